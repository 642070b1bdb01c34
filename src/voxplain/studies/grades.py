"""The grade study: a classifier learns from one label per scan whether a glioma is of high or of low grade.

The task of papers relevance (000, 001) on any folder in BraTS layout whose patients have grades. Where a grade has few
patients, no figure of it means anything, and every figure says so (`too_few`).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxplain.compute import Compute
from voxplain.datasets import tumour_classes
from voxplain.datasets.brats import GRADES
from voxplain.datasets.case import Case
from voxplain.errors import InputError
from voxplain.model import Card
from voxplain.preparation import prepare
from voxplain.studies import cross_validation
from voxplain.studies.task import Labelled, Preset, Task
from voxplain.training import Settings

_SMALL = Card(
    name="tumour-grade",
    channels=("flair", "t1", "t1ce", "t2"),
    classes=("high-grade",),
    spacing=(2, 2, 2),
    orientation="LPS",
    normalisation="z-score",
    region="whole",
    shape=(80, 96, 76),
    skull_stripped=True,
    factory="voxplain.networks.resnet:resnet",
    arguments={"depth": 10, "in_channels": 4, "classes": 1, "width": 16, "stem_stride": 2, "stem_kernel": 3},
)

PRESETS = {
    # Sizes that finish on two CPU cores.
    "small": Preset(
        _SMALL,
        Settings(epochs=20, patience=20, batch_size=4, learning_rate=1e-3, averaging=0.95, augmentation="gentle"),
    ),
    # What `voxplain study grade-phantoms` learns with, in seconds a fold. At 4 mm vessels, which are as bright on T1ce
    # as a tumour's rim, have all but gone; a ResNet-10 at 2 mm knew 33 phantoms by heart before it saw a rim.
    "phantoms": Preset(
        dataclasses.replace(
            _SMALL,
            name="tumour-grade-phantoms",
            spacing=(4, 4, 4),
            shape=(40, 48, 38),
            factory="voxplain.networks.local:LocalClassifier",
            arguments={
                "in_channels": 4,
                "classes": 1,
                "widths": [8, 16],
                "kernels": [3, 1],
                "strides": [2, 1],
                "places": 5,
            },
        ),
        Settings(
            epochs=40,
            patience=40,
            batch_size=4,
            learning_rate=1e-2,
            label_smoothing=0.1,
            averaging=0.8,
            augmentation="gentle",
        ),
        # About half of all beginnings get stuck, and their validation loss says so: 0.6 and more instead of 0.2.
        attempts=5,
    ),
    # A smoke run: every step, in seconds, with figures that mean nothing.
    "quick": Preset(
        dataclasses.replace(
            _SMALL,
            name="tumour-grade-quick",
            spacing=(4, 4, 4),
            shape=(40, 48, 38),
            arguments={**_SMALL.arguments, "width": 4},
        ),
        Settings(epochs=1, augmentation=False),
    ),
    # The paper's own: ResNet-50, 4 x 128^3 cut from the middle, min-max, Adam 0.01, 100 epochs (000, 3.1 and 3.2).
    "paper": Preset(
        dataclasses.replace(
            _SMALL,
            name="tumour-grade-paper",
            spacing=(1, 1, 1),
            normalisation="min-max",
            shape=(128, 128, 128),
            arguments={**_SMALL.arguments, "depth": 50, "width": 64, "stem_kernel": 7},
        ),
        Settings(
            epochs=100,
            patience=100,
            batch_size=4,
            optimiser="adam",
            learning_rate=0.01,
            weight_decay=0,
            schedule="constant",
            averaging=0,
            augmentation=False,
        ),
    ),
}


def too_few(cases: Sequence[Case]) -> str | None:
    """Why no figure of a grade task on these cases means anything, or None: a grade with fewer than ten patients.

    The text stands beside every figure that is printed or written: "too few to mean anything (LGG: 3 patients)".
    Cases without a grade do not count.
    """
    patients = {grade: len({case.patient for case in cases if case.grade == grade}) for grade in GRADES}
    return tumour_classes.too_few(patients)


def graded(cases: Sequence[Case]) -> list[Case]:
    """The cases whose grade is known; warns of those that are left out.

    Raises:
        InputError: not both grades among them.
    """
    known = [case for case in cases if case.grade in GRADES]
    counts = {grade: sum(case.grade == grade for case in known) for grade in GRADES}
    if missing := [grade for grade, count in counts.items() if not count]:
        found = ", ".join(f"{count} {grade}" for grade, count in counts.items())
        raise InputError(
            f"the grade task needs patients of both grades, HGG and LGG; got {found} and {len(cases) - len(known)} "
            f"without a grade: give patients of {' and '.join(missing)}, in HGG/ and LGG/ folders or with a "
            "name_mapping.csv"
        )
    if left_out := [case.id for case in cases if case.grade not in GRADES]:
        warnings.warn(
            f"{len(left_out)} of {len(cases)} cases have no grade (neither a folder HGG or LGG nor a line in "
            f"name_mapping.csv) and are left out: {', '.join(left_out)}",
            UserWarning,
            stacklevel=2,
        )
    return known


def labelled_scan(case: Case, card: Card) -> list[Labelled]:
    """The whole scan of a case as the network reads it, with label 1 for HGG and 0 for LGG.

    Raises:
        InputError: the scan does not fit the card.
    """
    try:
        (prepared,) = prepare(case.scan(), card)
    except InputError as error:
        raise InputError(f"case {case.id}: {error}") from error
    return [Labelled(case, prepared.name, int(case.grade == "HGG"), prepared.input.data.astype(np.float16))]


TASK = Task(
    inputs=labelled_scan,
    presets=PRESETS,
    rarer=0,
    words=("scans", "of high grade"),
    region="region",
    labels="one per scan, the grade that the data set gives (1 HGG, 0 LGG); no voxel labels",
    data=(
        "glioma scans in BraTS layout with a grade for each patient (BraTS: Menze 2015, 10.1109/TMI.2014.2377694; "
        "Bakas 2017, 10.1038/sdata.2017.117; Bakas 2018, arXiv 1811.02629)"
    ),
    description="Tells gliomas of high grade from those of low grade; learnt from one label per scan, no voxel labels.",
    limits=(
        "Research software, not a medical device. In BraTS grade and hospital are confounded; other diseases, "
        "sequences or scanners are outside of what it has seen."
    ),
    caution=too_few,
)


def cross_validate(
    cases: Sequence[Case], out: Path, *, preset: str = "small", folds: int = 5, seed: int = 0, compute: Compute
) -> dict[str, Any]:
    """Train one network per fold into `out/fold0`, ... and sum up their test figures in `out/metrics.json`.

    Both grades are spread evenly over the parts, which are split by patient; cases without a grade are left out. Where
    a grade has too few patients, the entry "caution" says so beside the figures. Folds that are finished are kept; a
    fold that was killed goes on from its last epoch.

    Raises:
        InputError: no such preset, not both grades, or too few patients for the folds.
    """
    return cross_validation.cross_validate(
        TASK, graded(cases), out, preset=preset, folds=folds, seed=seed, compute=compute
    )


def train_final(
    cases: Sequence[Case], out: Path, *, preset: str = "small", seed: int = 0, compute: Compute
) -> dict[str, Any]:
    """Train one network on all cases with a grade into `out/final`, for the median best epoch of the folds in `out`.

    Without folds in `out` it trains for as many epochs as the preset names.
    """
    return cross_validation.train_final(TASK, graded(cases), out, preset=preset, seed=seed, compute=compute)
