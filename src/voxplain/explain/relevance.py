"""Relevance maps: how much the score moves when one supervoxel is taken away (papers 000 and 001)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from voxplain.engine.probe import Probe
from voxplain.explain.explainer import Relevance
from voxplain.explain.parts import PartsExplainer, fall_unit, one_of
from voxplain.explain.perturbation import scores_without_each_part


@dataclass(frozen=True)
class RelevanceMap(PartsExplainer):
    """Relevance of each supervoxel: |score - score with the supervoxel filled| (000, Algorithm 1).

    Perturbations act on the network's input, after normalisation. `effect="signed"` is ours: a part whose filling
    raises the score speaks against the class, and stays out of a segmentation of it. The scores are not scaled to
    0-100 as in the paper; `Explanation.scaled()` does that.
    """

    name: ClassVar[str] = "relevance-map"
    cost: ClassVar[str] = "1 + one pass per supervoxel (about `segments`)"

    effect: str = field(
        default="absolute",
        metadata={"help": "absolute: any change counts (papers); signed: positive where filling lowers the score"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("effect", self.effect, ("absolute", "signed"))

    def _relevance(self, probe: Probe) -> Relevance:
        parts = self._parts(probe)
        falls = probe.clean_score(self.scale) - scores_without_each_part(probe, parts, self._fill(), self.scale)
        signed = self.effect == "signed"
        return Relevance(
            unit=fall_unit(self.effect, self.scale),
            signed=signed,
            parts=parts,
            scores=falls if signed else np.abs(falls),
            facts={"parts": len(falls), "passes": probe.forwards},
        )
