"""Occlusion: how much the score falls when a window of the scan is covered (Zeiler 2014)."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from itertools import product
from typing import ClassVar

import numpy as np

from voxplain.engine.probe import Probe
from voxplain.engine.progress import tracked
from voxplain.errors import InputError
from voxplain.explain.explainer import Relevance
from voxplain.explain.parts import PartByPartExplainer, cube_edge, fall_unit
from voxplain.explain.perturbation import Box, Sample, announce, scored
from voxplain.explain.refinement import refined


@dataclass(frozen=True)
class Occlusion(PartByPartExplainer):
    """Occlusion: the score minus the score with a window filled, averaged over the windows that cover a voxel.

    Windows are cubes of an edge, `stride` apart (Zeiler 2014, section 4.2, who draws the score itself; here high is
    important). Cubes that do not overlap, and supervoxels (`partition="slic"`), are parts with a score each. Positive
    where covering lowers the score.

    With `passes`, windows are covered from coarse to fine: first on a lattice, then where the score moves otherwise
    than expected. The falls of the others are what the gradient at the clean input says, scaled to the falls that are
    known, and a smooth function through what that misses. Against all windows on the six halves of three glioma scans
    (1,950 to 2,455 windows of 16 mm, 8 mm apart, shipped model), inside of the brain, 15 % of the passes give a mean
    Spearman correlation of 0.95 (lowest 0.93), 20 % 0.96 (0.94), 30 % 0.97 (0.96). Without gradients 30 % give 0.92
    (0.89); on a ResNet-50 with random weights, whose gradients say nothing of windows, 0.78. `interpolation_error` in
    the provenance says what the estimates missed where they were put to the test.
    """

    name: ClassVar[str] = "occlusion"
    cost: ClassVar[str] = "1 + one pass per window: about brain volume / `stride`^3"

    partition: str = field(
        default="cubes:20", metadata={"help": "cubes:MM for windows of an edge in mm, or slic for supervoxels"}
    )
    stride: float | None = field(
        default=None, metadata={"help": "step between windows in mm, at most the edge; half the edge by default"}
    )
    effect: str = field(
        default="signed",
        metadata={"help": "signed: positive where filling lowers the score; absolute: any change counts"},
    )

    passes: int | None = field(
        default=None,
        metadata={"help": "cover this many windows per region at most, where it matters; all of them by default"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        edge = cube_edge(self.partition)
        if self.sequences == "each" and edge is not None and self.stride != edge:
            raise InputError(
                "sequences=each needs windows that do not overlap: a stride equal to the edge, or partition slic; "
                f"got stride {self.stride} for {self.partition}"
            )
        if self.passes is not None and (self.passes < 1 or edge is None or self.stride == edge):
            raise InputError(
                "passes must be at least 1, and spares windows that overlap (cubes:MM with a stride below the edge); "
                f"got {self.passes} for {self.partition}"
            )
        if self.stride is None:
            return
        if edge is None:
            raise InputError("supervoxels do not overlap, so they have no stride; leave it out, or use cubes:MM")
        if not 0 < self.stride <= edge:
            raise InputError(
                f"stride must be above 0 and at most the windows' edge of {edge:g} mm, so that no voxel is left out; "
                f"got {self.stride}"
            )

    def _relevance(self, probe: Probe) -> Relevance:
        edge = cube_edge(self.partition)
        unit, signed = fall_unit(self.effect, self.scale), self.effect == "signed"
        clean = probe.clean_score(self.scale)
        if edge is None or self.stride == edge:
            return self._relevance_of_parts(probe)

        grid = probe.prepared.input.grid
        size, step = (
            [max(1, round(length / spacing)) for spacing in grid.spacing]
            for length in (edge, edge / 2 if self.stride is None else self.stride)
        )
        boxes = windows(grid.shape, size, step)
        inside = probe.prepared.foreground if self.mask == "brain" else np.ones(grid.shape, dtype=bool)
        values = self._fill()(probe)
        samples = [Sample(box, ~inside[box], values(box, inside[box])) for box in boxes if inside[box].any()]
        samples = [sample for sample in samples if sample.changes(probe.input)]
        places = np.array([[b.start // s for b, s in zip(sample.box, step, strict=True)] for sample in samples])
        budget = len(samples) if self.passes is None else min(self.passes, len(samples))
        # Said once, and under one bar, for all rounds of the refinement.
        announce(probe, samples, count=budget, what=f"{len(boxes)} windows")
        with closing(tracked(range(budget), probe.prepared.name, shown=probe.compute.progress)) as done:

            def falls_of(chosen: np.ndarray) -> np.ndarray:
                some = (samples[index] for index in chosen)
                run = scored(probe, some, self.scale, count=len(chosen), what=None)
                return clean - np.array([score for (_, score), _ in zip(run, done, strict=False)])

            guess = None if budget == len(samples) else _guess(probe, samples)
            falls, covered, error = refined(falls_of, places.reshape(-1, 3), budget, guess)
        total, count = np.zeros(grid.shape), np.zeros(grid.shape)
        for box in boxes:
            count[box] += 1
        for sample, fall in zip(samples, falls if signed else np.abs(falls), strict=True):
            total[sample.box] += fall
        return Relevance(
            unit=unit,
            signed=signed,
            map=(total / count * inside)[None].astype(np.float32),
            facts={
                "windows": len(boxes),
                "window_voxels": size,
                "stride_voxels": step,
                "windows_that_change": len(samples),
                "windows_covered": int(covered.sum()),
                "guided_by_gradient": guess is not None,
                "interpolation_error": error,
                "passes": probe.forwards,
            },
        )


def _guess(probe: Probe, samples: list[Sample]) -> np.ndarray | None:
    """How much the score would fall under each window if it were a linear function of the input, (N,)."""
    gradient = probe.input_gradient()
    if gradient is None:
        return None
    inputs = probe.input
    return np.array(
        [
            np.sum(
                gradient[(slice(None), *sample.box)] * (inputs[(slice(None), *sample.box)] - sample.patch(inputs)[1])
            )
            for sample in samples
        ],
        dtype=np.float64,
    )


def windows(shape: tuple[int, int, int], size: list[int], step: list[int]) -> list[Box]:
    """The design: boxes of `size` voxels, `step` apart from the first voxel on; the last along an axis is cut off."""
    axes = [
        [slice(k * s, min(n, k * s + w)) for k in range(-(-max(0, n - w) // s) + 1)]
        for n, w, s in zip(shape, size, step, strict=True)
    ]
    return [(x, y, z) for x, y, z in product(*axes)]
