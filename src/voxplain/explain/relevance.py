"""Relevance maps: how much the score moves when one supervoxel is taken away (papers 000 and 001)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from voxplain.engine.probe import Probe
from voxplain.errors import InputError
from voxplain.explain.explainer import Explainer, Relevance
from voxplain.explain.fills import fill_named
from voxplain.explain.perturbation import scores_without_each_part
from voxplain.partition import cubes, supervoxels
from voxplain.scan import Labels


@dataclass(frozen=True)
class RelevanceMap(Explainer):
    """Relevance of each supervoxel: |score - score with the supervoxel filled| (000, Algorithm 1).

    Perturbations act on the network's input, after normalisation. `effect="signed"` is ours: a part whose filling
    raises the score speaks against the class, and stays out of a segmentation of it. The scores are not scaled to
    0-100 as in the paper; `Explanation.scaled()` does that.
    """

    name: ClassVar[str] = "relevance-map"
    family: ClassVar[str] = "perturbation"
    needs: ClassVar[Literal["calls", "gradients", "layer"]] = "calls"
    cost: ClassVar[str] = "1 + one pass per supervoxel (about `segments`)"

    fill: str = field(default="blank", metadata={"help": "blank (background), min or max"})
    scope: str = field(
        default="region", metadata={"help": "what min and max look at: region (paper 000) or sequence (001)"}
    )
    partition: str = field(default="slic", metadata={"help": "slic, or cubes:MM for cubes of an edge in mm"})
    segments: int = field(default=100, metadata={"help": "supervoxels that SLIC starts with"})
    compactness: float = field(
        default=0.3, metadata={"help": "SLIC compactness: low follows intensities, high gives cubes"}
    )
    channel: str | None = field(
        default=None, metadata={"help": "sequence that SLIC looks at, such as t2; all of them by default"}
    )
    mask: str = field(default="brain", metadata={"help": "brain: parts only where the scan is not background; or none"})
    effect: str = field(
        default="absolute",
        metadata={"help": "absolute: any change counts (papers); signed: positive where filling lowers the score"},
    )
    scale: str = field(default="probability", metadata={"help": "score that is compared: probability or logit"})

    def __post_init__(self) -> None:
        fill_named(self.fill, self.scope)
        _cube_edge(self.partition)
        for name, allowed in (
            ("mask", ("brain", "none")),
            ("effect", ("absolute", "signed")),
            ("scale", ("probability", "logit")),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        if self.segments < 1 or not 0 < self.compactness < np.inf:
            raise InputError(
                f"segments must be at least 1 and compactness above 0; got {self.segments} and {self.compactness}"
            )

    def _relevance(self, probe: Probe) -> Relevance:
        parts = self._parts(probe)
        scores = scores_without_each_part(probe, parts, fill_named(self.fill, self.scope), self.scale)
        falls = probe.clean_score(self.scale) - scores
        signed = self.effect == "signed"
        return Relevance(
            unit=f"fall of {self.scale}" if signed else f"|change of {self.scale}|",
            signed=signed,
            parts=parts,
            scores=falls if signed else np.abs(falls),
            facts={"parts": len(falls), "passes": probe.forwards},
        )

    def _parts(self, probe: Probe) -> Labels:
        scan = probe.prepared.input
        mask = probe.prepared.foreground if self.mask == "brain" else None
        edge = _cube_edge(self.partition)
        if edge is not None:
            return cubes(scan.grid, edge=edge, mask=mask)
        image = scan.data if self.channel is None else scan.channel(self.channel)[None]
        return supervoxels(image, scan.grid, segments=self.segments, compactness=self.compactness, mask=mask)


def _cube_edge(partition: str) -> float | None:
    """The edge in mm of "cubes:MM"; None for "slic"."""
    if partition == "slic":
        return None
    kind, _, edge = partition.partition(":")
    try:
        if kind == "cubes" and 0 < float(edge) < np.inf:
            return float(edge)
    except ValueError:
        pass
    raise InputError(f"partition is slic, or cubes:MM with an edge in mm such as cubes:16; got {partition!r}")
