"""Calibration: a classifier's raw score becomes a probability that can be read as one."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax

# Wider than any temperature that a network needs.
_SCALES = (0.01, 100.0)


def temperature_scaling(logits: np.ndarray, labels: np.ndarray) -> float:
    """The scale with which softmax(scale * logits) is most likely to give the labels (Guo 2017: 1 / temperature).

    It changes no ranking of the classes. Where the scores separate the labels there is no best scale, so that the
    labels are moved towards equal shares by 1 / (N + classes), as Platt 1999 does for two.

    Args:
        logits: raw scores, (N, classes).
        labels: (N,), whole numbers from 0 to classes - 1.

    Returns:
        The scale, 0.01 to 100; 1 without any case.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    count = logits.shape[1]
    if not len(logits):
        return 1.0
    share = count / (len(logits) + count)
    targets = (1 - share) * np.eye(count)[labels] + share / count

    def loss(exponent: float) -> float:
        return float(-(targets * log_softmax(np.exp(exponent) * logits, axis=1)).sum())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(_SCALES), method="bounded").x))


def platt_scaling(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Scale and shift with which sigmoid(scale * logit + shift) is a probability, where both labels are as likely.

    Platt 1999: logistic regression on the raw score, towards (n + 1) / (n + 2) and 1 / (n + 2) instead of 1 and 0, so
    that the fit stays finite where the scores separate the labels; each label weighs one half in all, so that 0.5
    lies where both are as likely whatever their numbers.

    Args:
        logits: raw scores, (N,).
        labels: 0 or 1, (N,), both among them.

    Returns:
        (scale, shift); (1, 0), which changes nothing, where higher scores do not go with label 1.

    Raises:
        ValueError: one of the labels is missing.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=bool)
    positive, negative = int(labels.sum()), int((~labels).sum())
    if not positive or not negative:
        raise ValueError("calibration needs scores of label 0 and of label 1")
    targets = np.where(labels, (positive + 1) / (positive + 2), 1 / (negative + 2))
    weights = np.where(labels, 0.5 / positive, 0.5 / negative)
    # In units of the scores' own spread the search starts close to the answer, whatever the network's scale.
    centre, spread = float(logits.mean()), float(logits.std()) or 1.0
    units = (logits - centre) / spread

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        scores = values[0] * units + values[1]
        errors = weights * (expit(scores) - targets)
        return float(weights @ (np.logaddexp(0, scores) - targets * scores)), np.array([errors @ units, errors.sum()])

    slope, intercept = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B").x
    if slope <= 0:
        return 1.0, 0.0
    return float(slope / spread), float(intercept - slope * centre / spread)
