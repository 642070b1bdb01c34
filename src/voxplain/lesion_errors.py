"""How likely a predicted lesion is a false positive: logistic regression on a few features, as a value one can read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from voxplain.errors import InputError
from voxplain.io.atomic import read_json, write_json

# Inverse of the L2 penalty on coefficients of standardised features: scikit-learn's own, fixed beforehand.
STRENGTH = 1.0
MEAN, MAXIMUM, VOLUME = "mean_probability", "max_probability", "log_volume"
# The three rivals that need no map.
PLAIN = (MEAN, MAXIMUM, VOLUME)
# What of a map is a feature, for each sequence; then of the map as a whole. How many voxels a map was worked out from
# is none: it is the lesion's size by another name.
_OF_SEQUENCE = ("maximum", "minimum", "positive", "negative")
_OF_MAP = ("flair_share", "fades_mm")


@dataclass(frozen=True)
class ErrorScore:
    """Logistic regression for "this predicted lesion is a false positive".

    Attributes:
        features: what is read from a table, F names: columns of it, or `log_volume` (natural logarithm of mm^3).
        means: (F,), of the lesions that it was fitted on; a missing value is taken for the mean.
        scales: (F,), standard deviations; 1 for a feature that did not vary.
        absent: those features whose absence is a feature of its own, 1 where missing: missing for some of the lesions
            that it was fitted on.
        coefficients: (F + A,), of the standardised features, then of `absent`.
        intercept: log odds at the mean.
        strength: inverse of the L2 penalty.
        true, false: how many true and false positives it was fitted on.
    """

    features: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    absent: tuple[str, ...]
    coefficients: tuple[float, ...]
    intercept: float
    strength: float
    true: int
    false: int

    def predict(self, table: pd.DataFrame) -> np.ndarray:
        """The probability of each of N lines to be a false positive, (N,), 0 to 1.

        NaN for a lesion that misses a feature that needs no map, or all features of the map: it was not explained.

        Raises:
            InputError: the table lacks a column, or a value is infinite.
        """
        values = feature_values(table, self.features)
        known = _known(values, self.features)
        scores = _design(values, self) @ np.array(self.coefficients) + self.intercept
        return np.where(known, expit(scores), np.nan)

    def write(self, path: Path | str) -> None:
        """Write the score as JSON, whole or not at all; numbers come back as they were."""
        write_json(dataclasses.asdict(self), path)


def read_error_score(path: Path | str) -> ErrorScore:
    """What `ErrorScore.write` wrote.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    again = "fit the score again, or give the file that was written with it"
    try:
        content = read_json(path)
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); {again}") from error
    if content is None:
        raise InputError(f"expected an error score; there is no file {path}")
    fields = {field.name for field in dataclasses.fields(ErrorScore)}
    if not isinstance(content, dict) or set(content) != fields:
        raise InputError(f"{path} holds no error score; expected {', '.join(sorted(fields))}; {again}")
    try:
        score = _from(content)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} holds no error score ({error}); {again}") from error
    count = len(score.features)
    if (len(score.means), len(score.scales)) != (count, count) or len(score.coefficients) != count + len(score.absent):
        raise InputError(f"{path} does not give a mean, scale and coefficient to each of its {count} features; {again}")
    return score


def map_features(table: pd.DataFrame) -> tuple[str, ...]:
    """The columns of a table of lesions that hold what a map says, for every sequence s with an `s_maximum`.

    Raises:
        InputError: there is no such sequence, or one of the columns is missing.
    """
    sequences = [name.removesuffix("_maximum") for name in table.columns if str(name).endswith("_maximum")]
    wanted = [f"{sequence}_{what}" for sequence in sequences for what in _OF_SEQUENCE] + list(_OF_MAP)
    if not sequences or (missing := [name for name in wanted if name not in table.columns]):
        lacking = ", ".join(missing) if sequences else "SEQUENCE_maximum"
        raise InputError(f"the table of lesions has no column {lacking}; write it with the maps' statistics")
    return tuple(wanted)


def feature_sets(table: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """What is compared: each plain rival alone, their union `plain`, the `maps`, and `plain+maps`.

    Raises:
        InputError: the table lacks columns of maps.
    """
    maps = map_features(table)
    alone = {"mean probability": (MEAN,), "maximum probability": (MAXIMUM,), "log volume": (VOLUME,)}
    return {**alone, "plain": PLAIN, "maps": maps, "plain+maps": (*PLAIN, *maps)}


def feature_values(table: pd.DataFrame, features: Sequence[str]) -> np.ndarray:
    """The features of each of N lines, (N, F), NaN where missing.

    Raises:
        InputError: the table lacks a column, or a value is infinite, or a volume is not above 0.
    """
    columns = ["volume_mm3" if name == VOLUME else name for name in features]
    if missing := [name for name in columns if name not in table.columns]:
        raise InputError(f"the table of lesions has no column {', '.join(missing)}; it has {', '.join(table.columns)}")
    values = table[columns].to_numpy(dtype=np.float64, copy=True)
    for place, name in enumerate(features):
        if name == VOLUME:
            if (values[:, place] <= 0).any():
                raise InputError(f"volumes are above 0 mm^3; got {np.nanmin(values[:, place]):.3g}")
            values[:, place] = np.log(values[:, place])
    if np.isinf(values).any():
        strange = [name for name, infinite in zip(columns, np.isinf(values).any(axis=0), strict=True) if infinite]
        raise InputError(f"features are finite numbers, or NaN where missing; infinite somewhere: {', '.join(strange)}")
    return values


def fit_error_score(table: pd.DataFrame, features: Sequence[str], *, strength: float = STRENGTH) -> ErrorScore:
    """Fit the probability of a predicted lesion to be a false positive; TP and FP lines count, others do not.

    Classes are not weighted, so that it is a probability where errors are as frequent as in the table. A lesion without
    a map takes no part where features of maps are asked for.

    Args:
        table: lines of one method, with case, lesion, kind ("TP", "FP", ...), and the features' columns.
        features: names as in `ErrorScore.features`.
        strength: inverse of the L2 penalty.

    Raises:
        InputError: no features, a column is missing, a lesion comes twice, or TP or FP is without lesions.
    """
    if not features or not 0 < strength < np.inf:
        raise InputError(f"a score needs features and a strength above 0; got {list(features)} and {strength}")
    lines = predicted_lines(table)
    values = feature_values(lines, features)
    known = _known(values, features)
    values, wrong = values[known], (lines["kind"] == "FP").to_numpy()[known]
    if not wrong.any() or wrong.all():
        raise InputError(
            f"a score of errors is fitted on true and on false positives; got {int((~wrong).sum())} and "
            f"{int(wrong.sum())}: give more cases"
        )
    missing = np.isnan(values)
    means = [float(values[~gone, place].mean()) if not gone.all() else 0.0 for place, gone in enumerate(missing.T)]
    spreads = [float(values[~gone, place].std()) if not gone.all() else 0.0 for place, gone in enumerate(missing.T)]
    score = ErrorScore(
        features=tuple(features),
        means=tuple(means),
        # What does not vary is left as it is: rounding alone would be blown up.
        scales=tuple(spread if spread > 1e-9 * abs(mean) else 1.0 for spread, mean in zip(spreads, means, strict=True)),
        absent=tuple(name for name, gone in zip(features, missing.T, strict=True) if gone.any() and not gone.all()),
        coefficients=(),
        intercept=0.0,
        strength=float(strength),
        true=int((~wrong).sum()),
        false=int(wrong.sum()),
    )
    regression = LogisticRegression(C=strength, max_iter=10_000, tol=1e-8).fit(_design(values, score), wrong)
    coefficients = tuple(float(value) for value in regression.coef_[0])
    return dataclasses.replace(score, coefficients=coefficients, intercept=float(regression.intercept_[0]))


def predicted_lines(table: pd.DataFrame) -> pd.DataFrame:
    """The lines of predicted lesions (TP and FP), in the table's order.

    Raises:
        InputError: columns are missing, or a lesion comes twice.
    """
    if missing := [name for name in ("case", "lesion", "kind") if name not in table.columns]:
        raise InputError(f"the table of lesions has no column {', '.join(missing)}")
    lines = table[table["kind"].isin(["TP", "FP"])].reset_index(drop=True)
    doubled = lines[lines.duplicated(["case", "lesion"])]
    if len(doubled):
        first = doubled.iloc[0]
        raise InputError(
            f"each predicted lesion comes once; lesion {first['lesion']} of {first['case']} comes again: "
            "choose the lines of one method"
        )
    return lines


def _known(values: np.ndarray, features: Sequence[str]) -> np.ndarray:
    """Which lines (N,) have all that needs no map, and something of the map where it is asked for."""
    plain = np.array([name in PLAIN for name in features])
    there = ~np.isnan(values)
    known: np.ndarray = there[:, plain].all(axis=1)
    return known if plain.all() else known & there[:, ~plain].any(axis=1)


def _design(values: np.ndarray, score: ErrorScore) -> np.ndarray:
    """Standardised features, 0 where missing, then 1 where each of `absent` is missing: (N, F + A)."""
    missing = np.isnan(values)
    standard = (np.where(missing, score.means, values) - score.means) / score.scales
    return np.concatenate([standard, missing[:, [score.features.index(name) for name in score.absent]]], axis=1)


def _from(content: Mapping[str, Any]) -> ErrorScore:
    def numbers(name: str) -> tuple[float, ...]:
        return tuple(float(value) for value in content[name])

    return ErrorScore(
        features=tuple(str(name) for name in content["features"]),
        means=numbers("means"),
        scales=numbers("scales"),
        absent=tuple(str(name) for name in content["absent"]),
        coefficients=numbers("coefficients"),
        intercept=float(content["intercept"]),
        strength=float(content["strength"]),
        true=int(content["true"]),
        false=int(content["false"]),
    )
