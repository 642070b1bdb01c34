"""One slice of a data set of 2D images, and how slices are split: by patient, never by slice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from voxplain.errors import InputError

Parts = tuple[list["Slice"], list["Slice"], list["Slice"]]

# The paper's 60:15:25 of the patients: a quarter tests, a fifth of the others validates.
_TESTING = 0.25
_VALIDATING = 0.2
_PARTITION = 3


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice with its label and its expert mask; both arrays are read when they are asked for.

    `id` is unique within a data set. `group` is what splits go by: the patient, or the fold where patients are not
    known. `label` is the name of its class. `load` gives the image, float32 (C, H, W), H from the top of the picture
    down and W from its left; `mask` the expert mask, bool (H, W). `fold` is the fold in which the data set's authors
    put it, and `spacing` the size of a pixel in mm along H and W; None where the files do not say.
    """

    id: str
    group: str
    label: str
    load: Callable[[], np.ndarray]
    mask: Callable[[], np.ndarray]
    fold: int | None = None
    spacing: tuple[float, float] | None = None


def rotate(slices: Sequence[Slice], fold_of: Mapping[str, int], index: int) -> Parts:
    """Training, validation and test slices: one fold tests, the next one validates, all others train.

    Args:
        slices: the slices, whose order is kept.
        fold_of: the fold of each group, so that no group lies on two sides.
        index: which of the folds tests, counted from 0 in the order of their numbers.

    Raises:
        InputError: fewer than three folds, or no fold of that index.
    """
    folds = sorted({fold_of[item.group] for item in slices})
    if len(folds) < 3:
        raise InputError(
            f"training, validation and test need at least three folds; these slices lie in {len(folds)}; "
            "give the slices of more folds"
        )
    check_index(index, len(folds))
    side = {folds[index]: 2, folds[(index + 1) % len(folds)]: 1}
    return _sides(slices, lambda item: side.get(fold_of[item.group], 0))


def deal(strata: Mapping[str, int | str], folds: int, seed: int) -> dict[str, int]:
    """The fold, 1 to `folds`, of each group: chance decides, and each stratum is spread evenly over the folds."""
    return {group: 1 + place % folds for place, group in enumerate(_dealt(strata, seed))}


def by_patient(
    slices: Sequence[Slice],
    index: int,
    *,
    strata: Mapping[str, int | str],
    seed: int = 0,
    scheme: Literal["partition", "subsampling"] = "partition",
) -> Parts:
    """Training, validation and test slices, whole groups (patients) each, every stratum spread evenly.

    Args:
        slices: the slices, whose order is kept.
        index: which split, from 0. A partition has three; subsampling as many as are asked for.
        strata: the stratum of each group, such as a patient's grade.
        seed: the same seed deals the same patients.
        scheme: "partition": each patient is tested once in three splits, a fifth of the others validates.
            "subsampling": each split draws a quarter of all patients to test and a fifth of the others to validate
            (60:15:25), so that a patient may be tested twice, or never.

    Raises:
        InputError: fewer than three groups, one without stratum, no split of that index, or another scheme.
    """
    if scheme not in ("partition", "subsampling"):
        raise InputError(f"scheme is partition or subsampling; got {scheme!r}")
    check_index(index, _PARTITION if scheme == "partition" else None)
    if len(strata) < 3:
        raise InputError(
            f"training, validation and test need at least three patients; got {len(strata)}; give slices of more"
        )
    unknown = sorted({item.group for item in slices} - set(strata))
    if unknown:
        raise InputError(f"patient {unknown[0]} has no stratum; give one for every patient of the slices")
    random = np.random.default_rng([seed, index])
    if scheme == "partition":
        dealt = _dealt(strata, seed)
        testing = set(dealt[index::_PARTITION])
    else:
        dealt = _dealt(strata, [seed, index])
        testing = _evenly(dealt, _TESTING, random)
    validating = _evenly([group for group in dealt if group not in testing], _VALIDATING, random)
    return _sides(slices, lambda item: 2 if item.group in testing else 1 if item.group in validating else 0)


def check_index(index: int, count: int | None) -> None:
    """Refuse an index of a split that is not 0 to `count` - 1; None takes any number from 0.

    Raises:
        InputError: there is no split of that index.
    """
    if index < 0 or (count is not None and index >= count):
        allowed = "at least 0" if count is None else f"0 to {count - 1}"
        raise InputError(f"the index of a split is {allowed} here; got {index}")


def unique(slices: list[Slice]) -> list[Slice]:
    """The slices as they are, once it is sure that no id comes twice.

    Raises:
        InputError: two slices have one id.
    """
    seen: set[str] = set()
    for item in slices:
        if item.id in seen:
            raise InputError(f"slice {item.id} comes twice; every slice needs an id of its own: leave one of them out")
        seen.add(item.id)
    return slices


def _dealt(strata: Mapping[str, int | str], seed: int | list[int]) -> list[str]:
    """All groups, stratum after stratum, shuffled within each."""
    shuffled = [str(group) for group in np.random.default_rng(seed).permutation(sorted(strata))]
    return sorted(shuffled, key=lambda group: str(strata[group]))


def _evenly(dealt: list[str], share: float, random: np.random.Generator) -> set[str]:
    """A share of the groups, at least one, at even steps, so that each stratum gives its share to within one."""
    count = max(1, round(len(dealt) * share))
    start = random.random()
    return {dealt[int((place + start) * len(dealt) / count)] for place in range(count)}


def _sides(slices: Sequence[Slice], side: Callable[[Slice], int]) -> Parts:
    parts: Parts = ([], [], [])
    for item in slices:
        parts[side(item)].append(item)
    return parts
