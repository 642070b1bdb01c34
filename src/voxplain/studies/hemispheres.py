"""The hemisphere study: a classifier learns which halves of the head hold tumour, and its maps segment it.

Papers relevance (000, 001), on labels that real tumour scans carry for free. No voxel labels are used in training;
the label of a half is derived from the expert mask's volume in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from voxplain.compute import Compute
from voxplain.datasets.case import Case
from voxplain.datasets.hemispheres import halves
from voxplain.io.atomic import read_json
from voxplain.io.bundle import load_model
from voxplain.model import Card
from voxplain.studies import cross_validation
from voxplain.studies.evaluation import default_explainers, evaluate_folds
from voxplain.studies.hemisphere_presets import PRESETS
from voxplain.studies.task import Labelled, Preset, Task

__all__ = ["PRESETS", "TASK", "Preset", "cross_validate", "study", "train_final"]


def _labelled_halves(case: Case, card: Card) -> list[Labelled]:
    return [
        Labelled(case, half.prepared.name, half.label, half.image.astype(np.float16))
        for half in halves(case, card)
        if half.label is not None
    ]


TASK = Task(
    inputs=_labelled_halves,
    presets=PRESETS,
    rarer=0,
    words=("halves", "with tumour"),
    region="side",
    labels="one per half, derived from expert masks: tumour above 2 ml, none below 0.16 ml; no voxel labels",
    data=(
        "BraTS glioma scans with expert masks: Menze 2015 (10.1109/TMI.2014.2377694), Bakas 2017 "
        "(10.1038/sdata.2017.117), Bakas 2018 (arXiv 1811.02629)"
    ),
    description="Tells whether a half of the head holds tumour; learnt from one label per half, no voxel labels.",
    limits=(
        "Research software, not a medical device. Trained on few pre-operative glioma scans, skull-stripped and "
        "co-registered; other diseases, sequences or scanners are outside of what it has seen."
    ),
)


def cross_validate(
    cases: Sequence[Case], out: Path, *, preset: str = "small", folds: int = 5, seed: int = 0, compute: Compute
) -> dict[str, Any]:
    """Train one network per fold into `out/fold0`, ... and sum up their test figures in `out/metrics.json`.

    Folds that are finished are kept; a fold that was killed goes on from its last epoch.
    """
    return cross_validation.cross_validate(TASK, cases, out, preset=preset, folds=folds, seed=seed, compute=compute)


def train_final(
    cases: Sequence[Case], out: Path, *, preset: str = "small", seed: int = 0, compute: Compute
) -> dict[str, Any]:
    """Train one network on all cases into `out/final`, for the median best epoch of the folds in `out`.

    Without folds in `out` it trains for as many epochs as the preset names.
    """
    return cross_validation.train_final(TASK, cases, out, preset=preset, seed=seed, compute=compute)


def study(
    cases: Sequence[Case],
    out: Path,
    *,
    layers: Sequence[str] | None = None,
    fill: str = "blank",
    segments: int = 100,
    methods: Sequence[str] | None = None,
    preset: str = "small",
    folds: int = 5,
    seed: int = 0,
    compute: Compute,
    console: Console | None = None,
) -> pd.DataFrame:
    """Cross-validate, then explain and score every patient with the network that has not seen them.

    `layers`, `fill`, `segments` and `methods` say which maps are scored; see `default_explainers`.
    """
    cross_validate(cases, out, preset=preset, folds=folds, seed=seed, compute=compute)
    by_id = {case.id: case for case in cases}
    work = []
    for index in range(folds):
        metrics = read_json(out / f"fold{index}" / "metrics.json")
        assert metrics is not None
        work.append((index, load_model(out / f"fold{index}"), [by_id[name] for name in metrics["test_ids"]]))
    explainers = default_explainers(work[0][1], layers, fill=fill, segments=segments, methods=methods)
    return evaluate_folds(work, out, explainers, seed, compute, console or Console())
