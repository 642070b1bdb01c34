"""Deletion and insertion on a scan: a map's order of parts, run by the one perturbation core beside its controls."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from voxplain.compute import Compute
from voxplain.engine.probe import Probe
from voxplain.explain.explainer import in_evaluation
from voxplain.explain.fills import fill_named
from voxplain.explain.perturbation import features, scores_of_coalitions
from voxplain.explanation import Explanation, Region
from voxplain.grid import resample
from voxplain.metrics.controls import edge_detector
from voxplain.metrics.faithfulness import Faithfulness, faithfulness
from voxplain.metrics.network_free import network_free_rankings
from voxplain.metrics.sanity import Similarity, rank_similarity
from voxplain.model import Model
from voxplain.partition import supervoxels
from voxplain.preparation import prepare
from voxplain.scan import Labels, Scan
from voxplain.target import Target

# Every map is put to the same test, whatever it was made with.
FILL = "blank"


@dataclass(frozen=True, eq=False)
class RegionCheck:
    """Deletion and insertion in one region, and how alike the map ranks its parts to the scan's edges."""

    region: str
    faithfulness: Faithfulness
    edges: Similarity | None
    passes: int


def deletion_insertion(
    explanation: Explanation,
    model: Model,
    scan: Scan,
    *,
    target: Target,
    random_orders: int = 20,
    seed: int = 0,
    compute: Compute | None = None,
) -> list[RegionCheck]:
    """Deletion and insertion curves of a map in each of its regions, and of controls on the same parts.

    Parts are the explanation's own; of a voxel-wise map SLIC supervoxels of the network's input (about 100), which
    rank by the map's mean. They are filled with the background. Controls are the network-free rows "random-rank" (so
    many draws, at most 20) and "intensity/supervoxel-rank" (networks that read FLAIR), and "edge-detector".
    """
    compute = compute or Compute()
    regions = prepare(scan, model.card)
    names = {region.name for region in explanation.regions}
    found = []
    with compute.running(), in_evaluation(model.network, compute.torch_device):
        for prepared, its_target in zip(regions, target.on([p.input.grid for p in regions]), strict=True):
            if its_target is None or prepared.name not in names:
                continue
            probe = Probe(model, prepared, its_target, seed, compute)
            its_scan = Scan(
                np.where(prepared.foreground, prepared.input.data, 0), prepared.input.grid, prepared.input.channels
            )
            here = _on_input(explanation, probe)
            edges = edge_detector(its_scan, here)
            assert here.parts is not None
            known = features(probe, here.parts, fill_named(FILL, "region"))
            chosen = known.labels - 1
            rankings = [*network_free_rankings(its_scan, here, seed=seed), ("edge-detector", edges)]
            random = [row for row in rankings if row[0] == "random-rank"][:random_orders]
            controls = [row for row in rankings if row[0] != "random-rank"] + random

            faithful = faithfulness(
                _scores(here)[chosen],
                np.bincount(known.index.ravel(), minlength=len(chosen) + 1)[1:],
                partial(scores_of_coalitions, probe, known, scale="probability"),
                controls=[(row, _scores(control)[chosen]) for row, control in controls],
            )
            alike = rank_similarity(here, edges, scan=its_scan).get("whole")
            found.append(RegionCheck(prepared.name, faithful, alike, probe.forwards))
    return found


def _on_input(explanation: Explanation, probe: Probe) -> Explanation:
    """The map as scores of parts on the grid that the network reads of one region."""
    prepared = probe.prepared
    grid = prepared.input.grid
    if explanation.parts is not None and explanation.scores is not None:
        (region,) = [region for region in explanation.regions if region.name == prepared.name]
        labels = explanation.parts.on(grid).data
        present = np.intersect1d(labels, explanation.labels_in(region))
        labels = np.where(np.isin(labels, present), np.searchsorted(present, labels) + 1, 0)
        parts, scores = Labels(labels, grid), explanation.scores[present - 1]
    else:
        parts = supervoxels(prepared.input.data, grid, mask=prepared.foreground)
        values = resample(explanation.total, explanation.grid, grid).ravel()
        flat = parts.data.ravel()
        scores = np.bincount(flat, weights=values)[1:] / np.maximum(np.bincount(flat)[1:], 1)
    x, y, z = grid.shape
    whole = Region("whole", ((0, x), (0, y), (0, z)), probe.calibrated, probe.logit, True)
    painted = np.concatenate([[0.0], scores])[parts.data][None]
    return Explanation(painted, ("all",), grid, explanation.signed, explanation.unit, (whole,), parts, scores)


def _scores(explanation: Explanation) -> np.ndarray:
    assert explanation.scores is not None
    return explanation.scores
