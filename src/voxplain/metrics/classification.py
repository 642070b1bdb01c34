"""How well the network classifies: the ground that every explanation of it stands on."""

from __future__ import annotations

from typing import Generic, Literal, NamedTuple, TypeVar, overload

import numpy as np
from scipy.stats import rankdata

from voxplain.errors import InputError

_Figures = TypeVar("_Figures", float, np.ndarray)


class PrecisionRecallF1(NamedTuple, Generic[_Figures]):
    """Precision, recall and F1, 0 to 1: a number each, or (C,) with one for each class."""

    precision: _Figures
    recall: _Figures
    f1: _Figures


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
    return balanced_accuracy_of(confusion_matrix(labels, predictions, classes=classes))


def accuracy(labels: np.ndarray, predictions: np.ndarray, *, classes: int) -> float:
    """Share of the cases that are predicted right, 0 to 1; NaN without any case. Arguments as for `confusion_matrix`.

    Raises:
        InputError: shapes differ, or a label or prediction is not one of the classes.
    """
    return accuracy_of(confusion_matrix(labels, predictions, classes=classes))


def cohens_kappa(labels: np.ndarray, predictions: np.ndarray, *, classes: int) -> float:
    """Agreement beyond chance, -1 to 1 (Cohen 1960): 0 is what the two class frequencies alone would give.

    NaN without any case, and where labels and predictions are all of one and the same class: chance alone agrees then.
    Arguments and errors as for `confusion_matrix`.
    """
    return kappa_of(confusion_matrix(labels, predictions, classes=classes))


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, *, classes: int) -> np.ndarray:
    """How many cases of each class (row) were predicted as each class (column), int (C, C); all 0 without any case.

    Args:
        labels: (N,), whole numbers from 0 to classes - 1.
        predictions: (N,), whole numbers from 0 to classes - 1.
        classes: how many classes there are, C.

    Raises:
        InputError: shapes differ, or a label or prediction is not one of the classes.
    """
    labels, predictions = _predicted(labels, predictions, classes=classes)
    cells = labels.astype(int) * classes + predictions.astype(int)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def balanced_accuracy_of(matrix: np.ndarray) -> float:
    """`balanced_accuracy` from a confusion matrix (C, C), whose rows are what the cases are."""
    cases = matrix.sum(axis=1)
    return float((np.diag(matrix) / cases).mean()) if cases.all() else np.nan


def micro_balanced_accuracy_of(matrix: np.ndarray) -> float:
    """The mean of the shares of found yes and found no, 0 to 1, where each case is a yes or no for each class.

    From a confusion matrix (C, C) of two classes or more; NaN without any case.
    """
    cases, right = matrix.sum(), np.trace(matrix)
    if not cases:
        return np.nan
    # Of the classes - 1 times that a case is a no, one is called a yes where the case is wrong.
    found_no = 1 - (cases - right) / (cases * (len(matrix) - 1))
    return float((right / cases + found_no) / 2)


def accuracy_of(matrix: np.ndarray) -> float:
    """`accuracy` from a confusion matrix (C, C)."""
    cases = matrix.sum()
    return float(np.trace(matrix) / cases) if cases else np.nan


def kappa_of(matrix: np.ndarray) -> float:
    """`cohens_kappa` from a confusion matrix (C, C)."""
    cases = matrix.sum()
    if not cases:
        return np.nan
    chance = float(matrix.sum(axis=0) @ matrix.sum(axis=1)) / cases**2
    return float((np.trace(matrix) / cases - chance) / (1 - chance)) if chance < 1 else np.nan


def f1_of(matrix: np.ndarray) -> np.ndarray:
    """F1 of each class (C,) from a confusion matrix (C, C); NaN where a class has no case and is never predicted."""
    twice = matrix.sum(axis=0) + matrix.sum(axis=1)
    return np.where(twice > 0, 2 * np.diag(matrix) / np.maximum(twice, 1), np.nan)


@overload
def precision_recall_f1(
    labels: np.ndarray, predictions: np.ndarray, *, classes: int, average: Literal["weighted"] = "weighted"
) -> PrecisionRecallF1[float]: ...


@overload
def precision_recall_f1(
    labels: np.ndarray, predictions: np.ndarray, *, classes: int, average: Literal["none"]
) -> PrecisionRecallF1[np.ndarray]: ...


def precision_recall_f1(
    labels: np.ndarray, predictions: np.ndarray, *, classes: int, average: Literal["weighted", "none"] = "weighted"
) -> PrecisionRecallF1[float] | PrecisionRecallF1[np.ndarray]:
    """Precision, recall and F1 (their harmonic mean), 0 to 1.

    A class that is never predicted has precision 0. A class without cases has recall NaN and, where it is not
    predicted either, F1 NaN; it has no weight in the average. Without any case the averages are NaN.

    Args:
        labels: (N,), whole numbers from 0 to classes - 1.
        predictions: (N,), whole numbers from 0 to classes - 1.
        classes: how many classes there are, C.
        average: "weighted": the mean over classes, weighted by their cases; "none": one of each per class, (C,).

    Raises:
        InputError: shapes differ, a label or prediction is not one of the classes, or average is another word.
    """
    if average not in ("weighted", "none"):
        raise InputError(f"average is weighted or none; got {average!r}")
    matrix = confusion_matrix(labels, predictions, classes=classes)
    right, cases, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    precision = right / np.maximum(predicted, 1)
    recall = np.where(cases > 0, right / np.maximum(cases, 1), np.nan)
    f1 = f1_of(matrix)
    if average == "none":
        return PrecisionRecallF1(precision, recall, f1)
    held = cases > 0
    if not held.any():
        return PrecisionRecallF1(np.nan, np.nan, np.nan)
    means = [float(np.average(values[held], weights=cases[held])) for values in (precision, recall, f1)]
    return PrecisionRecallF1(means[0], means[1], means[2])


def _predicted(labels: np.ndarray, predictions: np.ndarray, *, classes: int) -> tuple[np.ndarray, np.ndarray]:
    labels, predictions = _aligned(labels, predictions, classes=classes)
    if not np.isin(predictions, np.arange(classes)).all():
        raise InputError(f"predictions are classes 0 to {classes - 1}, not scores; got {_shown(predictions)}")
    return labels, predictions


def _aligned(labels: np.ndarray, values: np.ndarray, *, classes: int) -> tuple[np.ndarray, np.ndarray]:
    labels, values = np.asarray(labels), np.asarray(values)
    if labels.ndim != 1 or labels.shape != values.shape:
        raise InputError(f"expected one label and one value per case, (N,); got {labels.shape} and {values.shape}")
    if not np.isin(labels, np.arange(classes)).all():
        raise InputError(f"labels are classes 0 to {classes - 1}; got {_shown(labels)}")
    return labels, values


def _shown(values: np.ndarray) -> str:
    return ", ".join(str(value) for value in np.unique(values)[:6])
