"""RISE in 3D: the score's covariance with random soft masks, voxel by voxel (Petsiuk 2018)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from voxplain.engine.probe import Probe
from voxplain.errors import InputError
from voxplain.explain.explainer import Explainer, Relevance
from voxplain.explain.fills import FORMS, fill_named
from voxplain.explain.parts import one_of
from voxplain.explain.perturbation import WHOLE, Sample, scored


@dataclass(frozen=True)
class RISE(Explainer):
    """RISE: the mean over random soft masks of (score - mean score) x mask / `keep` (Petsiuk 2018, eq. 6).

    A mask is a coarse lattice of cells, each kept with probability `keep`, interpolated linearly along the three axes
    and shifted at random by less than a cell; the input is blended with the fill by it. The mean score is subtracted
    so that a score that never moves gives zeros, and the map is signed; `baseline="none"` is the paper's form, whose
    level is the mean score. The standard error of a voxel is about the standard deviation of the scores over the
    square root of `samples`: both are in the provenance.
    """

    name: ClassVar[str] = "rise"
    family: ClassVar[str] = "perturbation"
    needs: ClassVar[Literal["calls", "gradients", "layer"]] = "calls"
    cost: ClassVar[str] = "1 + one pass per mask (`samples`)"

    samples: int = field(default=2000, metadata={"help": "random masks"})
    cell: float = field(default=24.0, metadata={"help": "edge of the masks' cells in mm"})
    keep: float = field(default=0.5, metadata={"help": "probability that a cell is kept, between 0 and 1"})
    fill: str = field(default="blank", metadata={"help": f"{FORMS}; of the sequence, not of a part"})
    baseline: str = field(
        default="mean", metadata={"help": "mean: the mean score is subtracted; none: the paper's form"}
    )
    mask: str = field(default="brain", metadata={"help": "brain: 0 where the scan is background; or none"})
    scale: str = field(default="probability", metadata={"help": "score that is read: probability or logit"})

    def __post_init__(self) -> None:
        fill_named(self.fill, "sequence")
        one_of("baseline", self.baseline, ("mean", "none"))
        one_of("mask", self.mask, ("brain", "none"))
        one_of("scale", self.scale, ("probability", "logit"))
        if self.samples < 2 or not 0 < self.cell < np.inf or not 0 < self.keep < 1:
            raise InputError(
                "samples must be at least 2, cell above 0 mm and keep between 0 and 1; "
                f"got {self.samples}, {self.cell} and {self.keep}"
            )

    def _relevance(self, probe: Probe) -> Relevance:
        grid = probe.prepared.input.grid
        # An axis of one voxel (a 2D image) has nothing to interpolate.
        cell = [max(1, round(self.cell / s)) if n > 1 else 1 for s, n in zip(grid.spacing, grid.shape, strict=True)]
        fill = fill_named(self.fill, "sequence")(probe)(WHOLE, np.ones(grid.shape, dtype=bool))
        masks = soft_masks(grid.shape, cell, self.keep, self.samples, probe.rng)
        samples = (Sample(WHOLE, mask, fill) for mask in masks)
        # Sums of mask and of mask x score, in place: no mask outlives its batch. Scores are counted from the clean one,
        # so that a score that never moves gives exact zeros.
        clean = probe.clean_score(self.scale)
        kept, moved = np.zeros(grid.shape), np.zeros(grid.shape)
        changes = []
        for sample, score in scored(probe, samples, self.scale, count=self.samples, what=f"{self.samples} masks"):
            changes.append(score - clean)
            kept += sample.keep
            moved += sample.keep * (score - clean)
        level = float(np.mean(changes)) if self.baseline == "mean" else -clean
        found = (moved - level * kept) / (self.samples * self.keep)
        if self.mask == "brain":
            found *= probe.prepared.foreground
        return Relevance(
            unit=f"{self.scale} x mask / keep" + (", mean subtracted" if self.baseline == "mean" else ""),
            signed=self.baseline == "mean" or self.scale == "logit",
            map=found[None].astype(np.float32),
            facts={
                "samples": self.samples,
                "cell_voxels": cell,
                "cell_mm": [round(c * s, 3) for c, s in zip(cell, grid.spacing, strict=True)],
                "mean_score": float(np.mean(changes)) + clean,
                "deviation_of_scores": float(np.std(changes)),
                "passes": probe.forwards,
            },
        )


def soft_masks(
    shape: tuple[int, int, int], cell: Sequence[int], keep: float, samples: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """The design: `samples` masks (X, Y, Z) float32 from 0 (filled) to 1 (kept), whose mean is `keep` everywhere.

    Cells of `cell` voxels along each axis; the lattice reaches a cell beyond the volume, so that no shift lays it bare.
    """
    nodes = [-(-(n - 1 + c - 1) // c) + 1 for n, c in zip(shape, cell, strict=True)]
    for _ in range(samples):
        mask = (rng.random(nodes) < keep).astype(np.float32)
        for axis, (n, c) in enumerate(zip(shape, cell, strict=True)):
            low, part = np.divmod(np.arange(n) + rng.integers(c), c)
            rise = (part / c).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
            high = np.minimum(low + 1, nodes[axis] - 1)
            mask = np.take(mask, low, axis=axis) * (1 - rise) + np.take(mask, high, axis=axis) * rise
        yield mask
