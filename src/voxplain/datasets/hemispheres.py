"""The hemisphere task: does this half of the head hold tumour? One label per half, made from whole scans."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from voxplain.datasets.case import Case
from voxplain.errors import InputError
from voxplain.model import Card
from voxplain.preparation import Prepared, prepare
from voxplain.scan import Labels

# A half with more tumour than the first holds tumour, with less than the second it holds none, between it has no label.
_WITH_TUMOUR_ML = 2.0
_WITHOUT_TUMOUR_ML = 0.16


@dataclass(frozen=True, eq=False)
class Half:
    """One half of a case as the network reads it: its tumour volume in ml and its label (1, 0, or None between)."""

    case: Case
    prepared: Prepared
    tumour_ml: float

    @property
    def label(self) -> int | None:
        """1 with more than 2 ml of tumour, 0 with less than 0.16 ml, None between."""
        return half_label(self.tumour_ml)

    @property
    def image(self) -> np.ndarray:
        """The network's input, float32 (C, X, Y, Z)."""
        return self.prepared.input.data


def half_label(tumour_ml: float) -> int | None:
    """The label of a half with this much tumour, in ml: 1, 0, or None between."""
    if tumour_ml > _WITH_TUMOUR_ML:
        return 1
    return 0 if tumour_ml < _WITHOUT_TUMOUR_ML else None


def halves(case: Case, card: Card) -> list[Half]:
    """Both halves of a case, cut as the card declares, with the label that its expert mask gives them.

    Raises:
        InputError: the case has no expert mask, or its scan does not fit the card.
    """
    tumour, scan = case.tumour(), case.scan()
    try:
        regions = prepare(scan, card)
    except InputError as error:
        raise InputError(f"case {case.id}: {error}") from error
    return [Half(case, prepared, tumour_volume(tumour, prepared.box)) for prepared in regions]


def tumour_volume(tumour: Labels, box: tuple[tuple[int, int], ...]) -> float:
    """Volume in ml of a mask inside a box of its grid."""
    inside = tumour.data[tuple(slice(start, stop) for start, stop in box)]
    return float(np.count_nonzero(inside)) * tumour.grid.voxel_volume / 1000


def split(
    cases: Sequence[Case], folds: int, seed: int = 0, groups: Mapping[str, int] | None = None
) -> list[tuple[list[Case], list[Case], list[Case]]]:
    """Training, validation and test cases of each fold, split by patient.

    Every patient is in the test part of one fold; a sixth of the others validates. The patients of each of the
    `groups` (patient: group) are spread evenly over the parts; those without a group are one more, dealt out last.

    Raises:
        InputError: fewer than two folds, or too few patients for the folds.
    """
    groups = groups or {}
    patients = sorted({case.patient for case in cases})
    if folds < 2 or len(patients) < max(folds, 3):
        raise InputError(f"{folds} folds need at least two folds and three patients; got {len(patients)} patients")
    shuffled = [str(patient) for patient in np.random.default_rng(seed).permutation(patients)]
    dealt = sorted(shuffled, key=lambda patient: groups.get(patient, math.inf))
    found = []
    for index in range(folds):
        testing = set(dealt[index::folds])
        others = [patient for patient in dealt if patient not in testing]
        count = max(1, round(len(others) / 6))
        # Evenly over the dealt order, so that both kinds of patient validate; each fold starts elsewhere.
        validating = {others[(place * len(others) // count + index) % len(others)] for place in range(count)}
        sides: tuple[list[Case], list[Case], list[Case]] = ([], [], [])
        for case in cases:
            sides[2 if case.patient in testing else 1 if case.patient in validating else 0].append(case)
        found.append(sides)
    return found
