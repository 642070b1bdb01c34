"""Axial slices of BraTS patients, labelled by what the expert mask holds: a tumour, or a tumour's grade, or neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import numpy as np

from voxplain.datasets.brats import GRADES, SEQUENCES
from voxplain.datasets.case import Case
from voxplain.datasets.slices import Parts, Slice, by_patient, unique
from voxplain.errors import InputError
from voxplain.model import Card
from voxplain.preparation import prepare
from voxplain.scan import Labels

CLASSES = {"tumour": ("tumour-free", "tumour"), "grade": ("tumour-free", *reversed(GRADES))}

# A slice with less brain than this share of its pixels is blank: the crown's last pixels decide nothing.
_SMALLEST_BRAIN_SHARE = 0.01
# The cache holds the case that is being read and the one before: 4 x 240 x 240 x 155 voxels are 143 MB.
_CASES_KEPT = 2

_CARD = Card("slices", SEQUENCES, ("tumour",), orientation="LPS", normalisation="z-score", skull_stripped=True)


@dataclass(frozen=True, eq=False)
class _Stack:
    """A case as axial slices: images (Z, C, H, W), expert mask and brain (Z, H, W), pixel size in mm along H and W."""

    images: np.ndarray
    tumour: np.ndarray
    brain: np.ndarray
    spacing: tuple[float, float]


def slices(
    cases: Sequence[Case], *, classes: Literal["tumour", "grade"] = "tumour", every: int = 1, smallest: float = 0
) -> list[Slice]:
    """The axial slices of some cases, each from the neck up; every scan is read once to find their labels.

    `id` is "CASE_z012", counted from the lowest slice; `group` the patient. `load` gives (4, H, W): FLAIR, T1, T1ce
    and T2 by z-score over the non-zero voxels of the whole scan, zeros stay 0; H runs from front to back, W from the
    patient's right to left. It reads a case once while its slices are asked for one after the other. Slices with
    less than 1 % of their pixels in the brain are blank, and left out.

    Args:
        cases: BraTS cases with expert masks and all four sequences.
        classes: "tumour": labels "tumour-free" and "tumour". "grade": "tumour-free", "LGG" and "HGG".
        every: keeps each n-th slice, the lowest one first.
        smallest: area in mm^2 that makes a slice a tumour slice; those with less, but some, are left out. 0 counts
            every voxel.

    Raises:
        InputError: no cases, an option out of range, a case without mask, sequence or (for "grade") grade, or twice.
    """
    if classes not in CLASSES:
        raise InputError(f"classes is tumour or grade; got {classes!r}")
    if every < 1 or not 0 <= smallest < np.inf:
        raise InputError(f"every is at least 1 and smallest at least 0 mm^2; got {every} and {smallest}")
    if not cases:
        raise InputError("there are no cases to slice; read them with voxplain.datasets.brats.cases")
    found = []
    for case in cases:
        if classes == "grade" and case.grade not in GRADES:
            raise InputError(
                f"case {case.id} has grade {case.grade}; expected {' or '.join(GRADES)}: add it to name_mapping.csv, "
                "leave the case out, or ask for classes='tumour'"
            )
        name = "tumour" if classes == "tumour" else str(case.grade)
        stack = _stack(case)
        area = stack.tumour.sum(axis=(1, 2)) * stack.spacing[0] * stack.spacing[1]
        for height in range(0, len(stack.images), every):
            unclear = 0 < area[height] < smallest
            if stack.brain[height].mean() < _SMALLEST_BRAIN_SHARE or unclear:
                continue
            found.append(
                Slice(
                    f"{case.id}_z{height:03d}",
                    case.patient,
                    name if area[height] > 0 else CLASSES[classes][0],
                    partial(_image, case, height),
                    partial(_mask, case, height),
                    spacing=stack.spacing,
                )
            )
    return unique(found)


def axial(labels: Labels) -> np.ndarray:
    """A mask of a case, on its scan's grid, as the slices lie: bool (Z, H, W), the lowest one first."""
    upright = labels.on(labels.grid.reoriented(str(_CARD.orientation)))
    return np.ascontiguousarray(upright.data.transpose(2, 1, 0) > 0)


def splits(
    slices: Sequence[Slice],
    index: int,
    seed: int = 0,
    *,
    scheme: Literal["partition", "subsampling"] = "partition",
) -> Parts:
    """Training, validation and test slices of split `index`, by patient; see `voxplain.datasets.slices.by_patient`.

    Patients are spread by grade where the labels are grades, else by how many tumour slices they have (thirds).

    Raises:
        InputError: no slices, fewer than three patients, no split of that index, or another scheme.
    """
    if not slices:
        raise InputError("there are no slices to split; make them with voxplain.datasets.brats_slices.slices")
    return by_patient(slices, index, strata=_strata(slices), seed=seed, scheme=scheme)


def _strata(slices: Sequence[Slice]) -> Mapping[str, str]:
    """The grade of each patient, or which third they are in by their number of tumour slices."""
    labels: dict[str, list[str]] = {}
    for item in slices:
        held = labels.setdefault(item.group, [])
        if item.label != CLASSES["tumour"][0]:
            held.append(item.label)
    if any(set(held) & set(GRADES) for held in labels.values()):
        return {group: "+".join(sorted(set(held))) for group, held in labels.items()}
    ordered = sorted(labels, key=lambda group: (len(labels[group]), group))
    return {group: f"third {3 * place // len(ordered)}" for place, group in enumerate(ordered)}


@lru_cache(maxsize=_CASES_KEPT)
def _stack(case: Case) -> _Stack:
    tumour = axial(case.tumour())
    try:
        (prepared,) = prepare(case.scan(SEQUENCES), _CARD)
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith("case") else f"case {case.id}: {message}") from error
    across, along, _ = prepared.input.grid.spacing
    return _Stack(
        images=np.ascontiguousarray(prepared.input.data.transpose(3, 0, 2, 1)),
        tumour=tumour,
        brain=np.ascontiguousarray(prepared.foreground.transpose(2, 1, 0)),
        spacing=(along, across),
    )


def _image(case: Case, height: int) -> np.ndarray:
    return _stack(case).images[height].copy()


def _mask(case: Case, height: int) -> np.ndarray:
    return _stack(case).tumour[height].copy()
