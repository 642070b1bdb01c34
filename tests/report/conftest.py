"""Made explanations for the pages: parts or voxels, on a made head, in any orientation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from voxplain.explanation import Explanation, Region
from voxplain.partition import cubes
from voxplain.scan import Labels, Scan

PROVENANCE: dict[str, Any] = {
    "explainer": "voxplain.explain.relevance:RelevanceMap",
    "options": {"fill": "blank", "channel": "t1"},
    "target": {"kind": "ClassScore", "name": "tumour"},
    "seed": 0,
    "model": {"name": "tiny", "fingerprint": "0123456789abcdef", "threshold": 0.4},
    "seconds": 1.5,
    "warnings": [],
}


def halves_of(scan: Scan, probabilities: tuple[float, float] = (0.9, 0.1)) -> tuple[Region, Region]:
    axis = scan.grid.axis("LR")
    middle = scan.grid.shape[axis] // 2
    regions = []
    for index, name in enumerate(("left", "right")):
        box = [(0, size) for size in scan.grid.shape]
        box[axis] = (0, middle) if index == 0 else (middle, scan.grid.shape[axis])
        value = probabilities[index]
        regions.append(Region(name, (box[0], box[1], box[2]), value, 1.0, value >= 0.4))
    return regions[0], regions[1]


@pytest.fixture
def parts_map() -> Callable[..., Explanation]:
    """A map of cubes of 24 mm with different scores, over the brain of a scan."""

    def make(scan: Scan, *, signed: bool = False, probabilities: tuple[float, float] = (0.9, 0.1)) -> Explanation:
        labels = cubes(scan.grid, edge=24.0, mask=scan.foreground())
        rng = np.random.default_rng(3)
        scores = rng.random(int(labels.data.max())) ** 4 * 0.4
        if signed:
            scores[::3] *= -1
        return Explanation(
            map=np.concatenate([[0.0], scores])[labels.data][None],
            channels=("all",),
            grid=scan.grid,
            signed=signed,
            unit="fall of probability" if signed else "|change of probability|",
            regions=halves_of(scan, probabilities),
            parts=labels,
            scores=scores,
            provenance=dict(PROVENANCE),
        )

    return make


@pytest.fixture
def voxel_map() -> Callable[..., Explanation]:
    """A smooth map without parts; K channels, perhaps signed, or all zero."""

    def make(scan: Scan, *, channels: int = 1, signed: bool = False, zero: bool = False) -> Explanation:
        place = np.indices(scan.grid.shape).astype(float)
        values = []
        for k in range(channels):
            centre = np.array(scan.grid.shape) * (0.35 + 0.1 * k)
            away = sum((axis - c) ** 2 for axis, c in zip(place, centre, strict=True))
            values.append(np.exp(-away / 40) - (0.2 if signed else 0))
        data = np.stack(values) * (0 if zero else 1)
        provenance = PROVENANCE | {"explainer": "voxplain.explain.cam:GradCAM", "options": {"layer": "layer2"}}
        names = ("all",) if channels == 1 else tuple(f"sequence {k}" for k in range(channels))
        return Explanation(data, names, scan.grid, signed, "a.u.", halves_of(scan), provenance=provenance)

    return make


@pytest.fixture
def top_mask() -> Callable[[Explanation], Labels]:
    """The highest three parts, or everything above half of the peak."""

    def make(explanation: Explanation) -> Labels:
        if explanation.parts is None or explanation.scores is None:
            total = explanation.total
            return Labels((total > 0.5 * total.max()) & (total > 0), explanation.grid)
        best = np.argsort(-explanation.scores)[:3] + 1
        return Labels(np.isin(explanation.parts.data, best), explanation.grid)

    return make
