"""What paper gp's networks learn from: labelled slices, read as the card declares, and split by patient or by fold."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from voxplain.compute import Compute
from voxplain.datasets import brats, cheng
from voxplain.datasets.case import Case
from voxplain.datasets.slices import Slice, by_patient
from voxplain.engine.progress import tracked
from voxplain.errors import InputError
from voxplain.io.image import image_scan
from voxplain.model import Card
from voxplain.preparation import Prepared, prepare
from voxplain.scan import Labels, Scan
from voxplain.studies.gp_presets import CARDS, DATASETS
from voxplain.training import Example

# Pixels along the side of Cheng's images; the few of 256 show the same field of view.
_CHENG_SIDE = 512


@dataclass(frozen=True, eq=False)
class Stack:
    """A scan whose slices are judged one by one: an image by itself, or the volume of a patient.

    `group` and `fold` are what splits go by; `label` the class of an image, None where a slice's class follows from the
    expert mask and the patient's `grade`.
    """

    id: str
    group: str
    scan: Callable[[], Scan]
    mask: Callable[[], Labels]
    label: str | None = None
    grade: str | None = None
    fold: int | None = None

    def label_of(self, mask: np.ndarray, classes: Sequence[str]) -> str:
        """The class of one slice, given its part of the expert mask (boolean, any shape)."""
        if self.label is not None:
            return self.label
        if not mask.any():
            return "tumour-free"
        return "tumour" if "tumour" in classes else str(self.grade)


@dataclass(frozen=True, eq=False)
class LabelledSlice:
    """One slice as the network reads it: 16-bit (C, X, Y), and the number of its class."""

    stack: Stack
    name: str
    label: int
    image: np.ndarray

    @property
    def example(self) -> Example:
        """The slice as the training loop takes it."""
        return Example(f"{self.stack.id}/{self.name}", self.label, lambda: self.image.astype(np.float32))


Parts = tuple[list[Stack], list[Stack], list[Stack]]


def stacks(dataset: str, root: Path) -> list[Stack]:
    """The scans of a data set ("cheng", "brats-slices" or "brats-grade-slices"); images are read when asked for.

    Raises:
        InputError: no such data set, nothing there, or no patient with what the labels follow from: an expert mask and,
            for "brats-grade-slices", a grade.
    """
    if dataset not in DATASETS:
        raise InputError(f"dataset is one of {', '.join(DATASETS)}; got {dataset!r}")
    if dataset == "cheng":
        return [_image_stack(one) for one in cheng.slices(root)]
    graded = dataset == "brats-grade-slices"
    every = brats.cases(root)
    found = [case for case in every if case.segmentation is not None and not (graded and case.grade is None)]
    needed = "an expert mask and a grade" if graded else "an expert mask"
    if not found:
        raise InputError(
            f"no patient in {root} has {needed}, from which the labels of slices follow; give patients who have"
            + (", in HGG and LGG folders or with a name_mapping.csv" if graded else "")
        )
    if without := [case.id for case in every if case not in found]:
        shown = ", ".join(without[:3]) + (", ..." if len(without) > 3 else "")
        warnings.warn(
            f"{len(without)} of {len(every)} patients lack {needed.replace(' and ', ' or ')} and are left out: {shown}",
            UserWarning,
            stacklevel=2,
        )
    return [_volume_stack(case) for case in found]


def folds(dataset: str, every: Sequence[Stack], seed: int) -> list[Parts]:
    """Training, validation and test scans of each fold: the authors' folds for Cheng, three parts by patient for BraTS.

    Raises:
        InputError: too few patients or folds.
    """
    # What the splits go by, without images.
    listed = [Slice(one.id, one.group, one.label or "", _nothing, _nothing, fold=one.fold) for one in every]
    known = {one.id: one for one in every}
    if dataset == "cheng":
        count = len({one.fold for one in every if one.fold is not None}) or min(5, len({one.group for one in every}))
        splits = [cheng.splits(listed, index, seed) for index in range(count)]
    else:
        strata = {one.group: str(one.grade) for one in every}
        splits = [by_patient(listed, index, strata=strata, seed=seed) for index in range(3)]
    found = []
    for split in splits:
        training, validation, test = ([known[one.id] for one in part] for part in split)
        found.append((training, validation, test))
    return found


def read_slices(some: Sequence[Stack], card: Card, compute: Compute) -> list[LabelledSlice]:
    """All labelled slices of some scans, read once and kept in memory."""
    found = []
    for stack in tracked(some, "reading slices", shown=compute.progress):
        try:
            prepared = prepare(stack.scan(), card)
        except InputError as error:
            raise InputError(f"{stack.id}: {error}") from error
        mask = stack.mask().data > 0 if stack.label is None else None
        found += [_labelled(stack, one, mask, card) for one in prepared]
    return found


def check_card(card: Card, dataset: str) -> None:
    """Raise InputError where a network reads no slices, or none that are labelled as those of a data set."""
    if card.spatial_dims != 2 or (dataset != "cheng" and card.slices != "axial"):
        raise InputError(
            f"{dataset} is judged slice by slice, and {card.name} reads "
            + ("volumes" if card.spatial_dims == 3 else f"slices that are {card.slices or 'no part of a volume'}")
            + "; give a 2D network"
            + ("" if dataset == "cheng" else " whose card says slices: axial")
        )
    wanted = CARDS[dataset].classes
    volumes = dataset != "cheng" and set(card.classes) == set(CARDS["brats-slices"].classes)
    if set(card.classes) != set(wanted) and not volumes:
        raise InputError(
            f"the slices of {dataset} are {', '.join(wanted)}; {card.name} tells apart {', '.join(card.classes)}: give "
            "a network that was trained on such slices, or another --dataset"
        )


def check_classes(slices: Sequence[LabelledSlice], card: Card, part: str) -> None:
    """Raise InputError where a part of a split has no slice of one of the classes."""
    counts = np.bincount([one.label for one in slices], minlength=len(card.classes))
    if missing := [name for name, count in zip(card.classes, counts, strict=True) if not count]:
        found = ", ".join(f"{count} {name}" for name, count in zip(card.classes, counts, strict=True))
        raise InputError(
            f"the {part} part has no slice of class {' or '.join(missing)} (it has {found}); give more patients, or "
            "another data set or fold"
        )


def _labelled(stack: Stack, prepared: Prepared, mask: np.ndarray | None, card: Card) -> LabelledSlice:
    box = tuple(slice(start, stop) for start, stop in prepared.box)
    label = stack.label_of(np.zeros(1, dtype=bool) if mask is None else mask[box], card.classes)
    image = prepared.input.data[..., 0].astype(np.float16)
    return LabelledSlice(stack, prepared.name, card.classes.index(label), image)


def _image_stack(one: Slice) -> Stack:
    return Stack(one.id, one.group, partial(_scan_of, one), partial(_mask_of, one), label=one.label, fold=one.fold)


def _scan_of(one: Slice) -> Scan:
    image = one.load()[0]
    return image_scan(image, name="t1ce", pixel_size=_CHENG_SIDE / len(image))


def _mask_of(one: Slice) -> Labels:
    values = one.mask()
    mask = image_scan(values, pixel_size=_CHENG_SIDE / len(values))
    return Labels(mask.data[0], mask.grid)


def _volume_stack(case: Case) -> Stack:
    return Stack(case.id, case.patient, case.scan, case.tumour, grade=case.grade)


def _nothing() -> np.ndarray:
    raise AssertionError("only the id and the group of these slices are asked for")
