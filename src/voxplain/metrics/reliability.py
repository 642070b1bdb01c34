"""Whether a probability can be read as one: of what is said to be so with 0.7, seven in ten should be so."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from voxplain.errors import InputError


class ReliabilityCurve(NamedTuple):
    """By bin of probability, (B,) each: mean probability and share of label 1 (NaN without cases), and its cases."""

    probability: np.ndarray
    observed: np.ndarray
    cases: np.ndarray


def reliability_curve(labels: np.ndarray, probabilities: np.ndarray, *, bins: int = 10) -> ReliabilityCurve:
    """What was said beside what came, in bins of equal width; a bin holds its lower edge, the last one also 1.

    Args:
        labels: (N,), 0 or 1.
        probabilities: (N,), of label 1, 0 to 1.
        bins: how many, B.

    Raises:
        InputError: shapes differ, a label is not 0 or 1, a probability is not from 0 to 1, or there is no bin.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != probabilities.shape:
        raise InputError(
            f"expected one label and one probability per case, (N,); got {labels.shape} and {probabilities.shape}"
        )
    if not np.isin(labels, (0, 1)).all():
        raise InputError(f"labels are 0 or 1; got {', '.join(str(value) for value in np.unique(labels)[:6])}")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise InputError(
            "probabilities are numbers from 0 to 1; got others: give probabilities, not logits, and no NaN"
        )
    if bins < 1:
        raise InputError(f"a reliability curve has at least 1 bin; got {bins}")
    # Edges as k / bins, so that 0.3 lies in the bin that begins there and not, by rounding, in the one before.
    place = np.clip(np.searchsorted(np.arange(bins + 1) / bins, probabilities, side="right") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        said = np.bincount(place, weights=probabilities, minlength=bins) / count
        observed = np.bincount(place, weights=labels, minlength=bins) / count
    return ReliabilityCurve(said, observed, count)


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, *, bins: int = 10) -> float:
    """Mean distance of mean probability and share of label 1 over bins, weighted by cases, 0 to 1; 0 is best.

    Guo 2017, eq. 3, for two classes. It is above 0 by chance where cases are few. NaN without any case. Arguments and
    errors as for `reliability_curve`.
    """
    curve = reliability_curve(labels, probabilities, bins=bins)
    held = curve.cases > 0
    if not held.any():
        return np.nan
    return float(np.average(np.abs(curve.probability - curve.observed)[held], weights=curve.cases[held]))
