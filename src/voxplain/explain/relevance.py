"""Relevance maps: how much the score moves when one supervoxel is taken away (papers 000 and 001)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from voxplain.engine.probe import Probe
from voxplain.explain.explainer import Relevance
from voxplain.explain.parts import PartByPartExplainer


@dataclass(frozen=True)
class RelevanceMap(PartByPartExplainer):
    """Relevance of each supervoxel: |score - score with the supervoxel filled| (000, Algorithm 1).

    Perturbations act on the network's input, after normalisation. `effect="signed"` is ours: a part whose filling
    raises the score speaks against the class, and stays out of a segmentation of it. So is `sequences="each"`: a map
    per sequence, which shows where the evidence lies. The scores are not scaled to 0-100 as in the paper;
    `Explanation.scaled()` does that.
    """

    name: ClassVar[str] = "relevance-map"
    cost: ClassVar[str] = "1 + one pass per supervoxel (about `segments`), or per supervoxel and sequence"

    def _relevance(self, probe: Probe) -> Relevance:
        return self._relevance_of_parts(probe)
