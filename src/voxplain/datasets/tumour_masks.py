"""Cases with the parts of their tumour marked, from any data set that has them: what a segmenter of 003 learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from monai.transforms import RandAffined

from voxplain.datasets import brats, medical_decathlon
from voxplain.datasets.case import Case, check_complete
from voxplain.errors import InputError
from voxplain.model import Card
from voxplain.preparation import prepare

DATASETS = ("msd", "brats", "phantom")
# The parts of a tumour in our order, whatever their numbers in a data set; the necrotic core is the non-enhancing one.
PARTS = ("oedema", "necrotic", "enhancing")
_DATA = {
    "msd": "Task01_BrainTumour of the Medical Segmentation Decathlon (Antonelli 2022, 10.1038/s41467-022-30695-9)",
    "brats": (
        "glioma scans in BraTS layout with expert masks (BraTS: Menze 2015, 10.1109/TMI.2014.2377694; Bakas 2017, "
        "10.1038/sdata.2017.117; Bakas 2018, arXiv 1811.02629)"
    ),
    "phantom": "glioma phantoms made by voxplain: phantom (software check), no patient's scan is among them",
}


@dataclass(frozen=True)
class Masked:
    """Cases whose expert mask tells oedema, necrotic core and enhancing tumour apart, and where they come from."""

    cases: Sequence[Case] = field(hash=False)
    data: str


@dataclass(frozen=True, eq=False)
class Tumour:
    """A scan as a network reads it, cut to the head: image (C, X, Y, Z) in 16 bits, parts (X, Y, Z), 1 to 3."""

    image: np.ndarray
    parts: np.ndarray


def cohort(dataset: str, root: Path | str) -> Masked:
    """The cases of a data set that have an expert mask.

    "msd" is Task01 of the Medical Segmentation Decathlon; "brats" and "phantom" lie in BraTS layout.

    Raises:
        InputError: no such data set, a folder that does not hold it, no case with a mask, or one that lacks a sequence.
    """
    if dataset not in DATASETS:
        raise InputError(f"--dataset is one of {', '.join(DATASETS)}; got {dataset!r}")
    found = medical_decathlon.cases(root) if dataset == "msd" else brats.cases(root)
    masked = [case for case in found if case.segmentation is not None]
    if not masked:
        raise InputError(f"none of the {len(found)} cases in {root} has an expert mask; give the training part")
    check_complete(masked)
    return Masked(masked, _DATA[dataset])


def tumour_of(case: Case, card: Card) -> Tumour:
    """Prepare a case as the card declares; for networks that learn from windows that is a scan cut to the head.

    Raises:
        InputError: the scan does not fit the card, or the expert mask is not as expected.
    """
    try:
        (prepared,) = prepare(case.scan(card.channels), card)
    except InputError as error:
        raise InputError(f"case {case.id}: {str(error).removeprefix(f'case {case.id}: ')}") from error
    parts = case.parts(PARTS).on(prepared.input.grid).data
    return Tumour(prepared.input.data.astype(np.float16), parts.astype(np.int8))


def draw(
    tumours: Sequence[Tumour], window: Sequence[int], random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A window of one of the heads: image float32 (C, x, y, z) and parts int64 (x, y, z).

    It lies anywhere in the head's box, is mirrored along random axes, and in half of the cases turned by up to 20
    degrees about each axis and scaled by up to 15 %.
    """
    tumour = tumours[int(random.integers(len(tumours)))]
    spare = np.array(tumour.parts.shape) - np.array(window)
    start = [int(random.integers(rest + 1)) for rest in spare]
    box = tuple(slice(a, a + n) for a, n in zip(start, window, strict=True))
    image, parts = tumour.image[(slice(None), *box)].astype(np.float32), tumour.parts[box]
    for axis in range(3):
        if random.random() < 0.5:
            image, parts = np.flip(image, axis + 1), np.flip(parts, axis)
    image, parts = np.ascontiguousarray(image), np.ascontiguousarray(parts)
    if random.random() < 0.5:
        turn = RandAffined(
            keys=("image", "parts"),
            prob=1.0,
            rotate_range=(0.35, 0.35, 0.35),
            scale_range=(0.15, 0.15, 0.15),
            mode=("bilinear", "nearest"),
            padding_mode="zeros",
        ).set_random_state(seed=int(random.integers(2**31)))
        turned = turn({"image": torch.from_numpy(image), "parts": torch.from_numpy(parts[None].astype(np.float32))})
        image, parts = np.asarray(turned["image"]), np.asarray(turned["parts"])[0]
    return image, parts.astype(np.int64)
