"""How well lesions are found, each counting once whatever its size; and a Dice that does not favour large loads.

Lesions are instances, arrays (X, Y, Z) of labels 1 to N on one grid with 0 outside, such as
`voxplain.lesions.instances` makes. A lesion counts as found when one voxel of it overlaps with the other side.
"""

from __future__ import annotations

import numpy as np

from voxplain.errors import InputError


def touched(lesions: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of each lesion that occurs, by number, whether it overlaps with any of the others, boolean (N,)."""
    numbers = np.unique(lesions[lesions > 0])
    return np.isin(numbers, lesions[others > 0])


def lesion_precision(predicted: np.ndarray, reference: np.ndarray) -> float:
    """Share of the predicted lesions that overlap with a lesion of the reference, 0 to 1.

    Both without a lesion: 1.0. Nothing predicted where there are lesions: 0.0.

    Raises:
        InputError: an array is not of whole numbers of at least 0, or their shapes differ.
    """
    predicted, reference = _instances(predicted, reference)
    right = touched(predicted, reference)
    return float(right.mean()) if right.size else float(not reference.any())


def lesion_recall(predicted: np.ndarray, reference: np.ndarray) -> float:
    """Share of the reference's lesions that overlap with a predicted lesion, 0 to 1.

    Both without a lesion: 1.0. No lesion in the reference where some are predicted: NaN, as there is nothing to find;
    say how many cases an average leaves out.

    Raises:
        InputError: an array is not of whole numbers of at least 0, or their shapes differ.
    """
    predicted, reference = _instances(predicted, reference)
    found = touched(reference, predicted)
    return float(found.mean()) if found.size else (np.nan if predicted.any() else 1.0)


def lesion_f1(predicted: np.ndarray, reference: np.ndarray) -> float:
    """Harmonic mean of `lesion_precision` and `lesion_recall`, 0 to 1.

    Both without a lesion: 1.0. One of them without a lesion, or no lesion found: 0.0.

    Raises:
        InputError: an array is not of whole numbers of at least 0, or their shapes differ.
    """
    precision, recall = lesion_precision(predicted, reference), lesion_recall(predicted, reference)
    return f1_of(precision, recall)


def f1_of(precision: float, recall: float) -> float:
    """Harmonic mean of precision and recall, 0 to 1; 0 where one of them is NaN or both are 0."""
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def normalised_dice(prediction: np.ndarray, reference: np.ndarray, *, load: float = 0.001) -> float:
    """Dice with false positives weighted as if every patient had the same lesion load, 0 to 1 (Raina 2023).

    2 TP / (2 TP + k FP + FN) with k = (1 - load) / load x P / N, where P and N are how many voxels the reference says
    are lesion and are not. Dice at a given quality of prediction grows with the load; this does not.

    Both empty: 1.0. One empty: 0.0.

    Args:
        prediction: boolean (X, Y, Z).
        reference: boolean (X, Y, Z); all voxels count, so cut both to the brain where the load is of the brain.
        load: mean share of lesion voxels over patients, between 0 and 1; 0.001 is that of the paper's data.

    Raises:
        InputError: the masks are not boolean, differ in shape, or load is not between 0 and 1.
    """
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    if prediction.dtype != bool or reference.dtype != bool or prediction.shape != reference.shape:
        raise InputError(
            "expected two boolean masks on one grid; got "
            f"{prediction.dtype} {prediction.shape} and {reference.dtype} {reference.shape}"
        )
    if not 0 < load < 1:
        raise InputError(f"load is a share of voxels between 0 and 1; got {load}")
    right = int((prediction & reference).sum())
    wrong, missed = int(prediction.sum()) - right, int(reference.sum()) - right
    if not right:
        return float(not wrong and not missed)
    positives = right + missed
    negatives = reference.size - positives
    # Without a negative voxel nothing can be a false positive.
    weight = (1 - load) / load * positives / negatives if negatives else 0.0
    return 2 * right / (2 * right + weight * wrong + missed)


def _instances(predicted: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predicted, reference = np.asarray(predicted), np.asarray(reference)
    for values in (predicted, reference):
        if not np.issubdtype(values.dtype, np.integer) or values.min(initial=0) < 0:
            raise InputError(
                f"lesions are labels, whole numbers of at least 0; got {values.dtype}: give voxplain.lesions.instances"
            )
    if predicted.shape != reference.shape:
        raise InputError(f"expected lesions on one grid; got shapes {predicted.shape} and {reference.shape}")
    return predicted, reference
