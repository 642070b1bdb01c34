"""How well the network classifies: the ground that every explanation of it stands on."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from voxplain.errors import InputError


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the receiver operating characteristic, 0 to 1; 0.5 is chance, ties count half.

    NaN when one of the two classes has no case, so also without any case.

    Args:
        labels: (N,), 0 or 1.
        scores: (N,), probability or logit of class 1.

    Raises:
        InputError: shapes differ, a label is not 0 or 1, or a score is NaN or infinite.
    """
    labels, scores = _aligned(labels, scores, classes=2)
    if not np.isfinite(scores).all():
        raise InputError("every case needs a finite score; these hold NaN or infinity: find the step that made them")
    positives = int(np.count_nonzero(labels))
    negatives = labels.size - positives
    if not positives or not negatives:
        return np.nan
    # By ranks rather than by scikit-learn, whose checks cost more than the figure: the bootstrap asks for thousands.
    wins = rankdata(scores)[labels == 1].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * negatives))


def auc_within(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> float:
    """Mean of the AUC within each group (a fold): scores of different networks are never ranked together.

    Groups that hold one class only are left out; NaN when no group is left. Arguments as for `auc`, each (N,).
    """
    found = [auc(labels[groups == group], scores[groups == group]) for group in np.unique(groups)]
    usable = [value for value in found if not np.isnan(value)]
    return float(np.mean(usable)) if usable else np.nan


def balanced_accuracy(labels: np.ndarray, predictions: np.ndarray, *, classes: int = 2) -> float:
    """Mean over the classes of the share of their cases predicted right, 0 to 1; chance is 1 / classes.

    NaN when a class has no case, so also without any case: its share is undefined, and leaving it out would
    measure something else.

    Args:
        labels: (N,), whole numbers from 0 to classes - 1.
        predictions: (N,), whole numbers from 0 to classes - 1.
        classes: how many classes there are.

    Raises:
        InputError: shapes differ, or a label or prediction is not one of the classes.
    """
    labels, predictions = _aligned(labels, predictions, classes=classes)
    if not np.isin(predictions, np.arange(classes)).all():
        raise InputError(f"predictions are classes 0 to {classes - 1}, not scores; got {_shown(predictions)}")
    if len(np.unique(labels)) < classes:
        return np.nan
    return float(np.mean([np.mean(predictions[labels == label] == label) for label in range(classes)]))


def _aligned(labels: np.ndarray, values: np.ndarray, *, classes: int) -> tuple[np.ndarray, np.ndarray]:
    labels, values = np.asarray(labels), np.asarray(values)
    if labels.ndim != 1 or labels.shape != values.shape:
        raise InputError(f"expected one label and one value per case, (N,); got {labels.shape} and {values.shape}")
    if not np.isin(labels, np.arange(classes)).all():
        raise InputError(f"labels are classes 0 to {classes - 1}; got {_shown(labels)}")
    return labels, values


def _shown(values: np.ndarray) -> str:
    return ", ".join(str(value) for value in np.unique(values)[:6])
