"""What is found when some of the predicted lesions are dropped, exactly: a lesion may touch several of the expert's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from voxplain.errors import InputError
from voxplain.metrics.lesionwise import f1_of


class LesionFigures(NamedTuple):
    """Lesion precision, recall and F1, 0 to 1; recall is NaN where there is nothing to find and some is predicted."""

    precision: float
    recall: float
    f1: float


def touching(lesions: np.ndarray, others: np.ndarray) -> dict[int, tuple[int, ...]]:
    """Of each lesion that occurs, by number, the numbers of the others that share a voxel with it, in order.

    Args:
        lesions: (X, Y, Z), whole numbers of at least 0; 0 is outside.
        others: the same of the other side.

    Raises:
        InputError: shapes differ.
    """
    lesions, others = np.asarray(lesions), np.asarray(others)
    if lesions.shape != others.shape:
        raise InputError(f"expected lesions on one grid; got shapes {lesions.shape} and {others.shape}")
    found: dict[int, tuple[int, ...]] = {int(number): () for number in np.unique(lesions[lesions > 0])}
    both = (lesions > 0) & (others > 0)
    for one, other in np.unique(np.stack([lesions[both], others[both]], axis=1), axis=0).tolist():
        found[one] += (other,)
    return found


def figures_of_kept(touches: Sequence[Sequence[int]], kept: np.ndarray, *, experts: int) -> LesionFigures:
    """Precision, recall and F1 of the predicted lesions that are kept, as `voxplain.metrics.lesionwise` has them.

    A predicted lesion is right when it touches an expert's; an expert's is found when one that is kept touches it.

    Args:
        touches: for each of the N predicted lesions the numbers, from 1, of the expert's that it touches.
        kept: (N,), boolean.
        experts: how many lesions the expert marked.

    Raises:
        InputError: touches and kept differ in length, or a number is not from 1 to `experts`.
    """
    kept = np.asarray(kept, dtype=bool)
    if kept.shape != (len(touches),):
        raise InputError(f"expected touches and kept for each predicted lesion; got {len(touches)} and {kept.shape}")
    if strange := sorted({number for its in touches for number in its if not 1 <= number <= experts}):
        raise InputError(
            f"the expert's lesions are numbered 1 to {experts}; got {strange[0]}: touches are of another mask"
        )
    remaining = [its for its, keep in zip(touches, kept, strict=True) if keep]
    right = sum(1 for its in remaining if its)
    found = len({number for its in remaining for number in its})
    precision = right / len(remaining) if remaining else float(experts == 0)
    recall = found / experts if experts else (np.nan if remaining else 1.0)
    return LesionFigures(precision, recall, f1_of(precision, recall))
