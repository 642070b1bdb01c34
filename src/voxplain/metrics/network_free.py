"""What needs no network: the rows that stand beside every map, because a map that does not beat them earned nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.ndimage import label as connected_components

from voxplain.explanation import Explanation, Region
from voxplain.scan import Scan

NETWORK_FREE = ("intensity/flair", "intensity/supervoxel-rank", "random-rank", "whole-brain")

_FLAIR_SMOOTHING_MM = 2.0
_FLAIR_THRESHOLD = 1.2
_RANDOM_DRAWS = 20


def network_free_masks(scan: Scan, region: Region | None = None) -> dict[str, np.ndarray]:
    """Masks by row, boolean on the scan's grid or in one region of it.

    "intensity/flair" (scans with a sequence of that name): FLAIR smoothed with a Gaussian of 2 mm, above a z-score of
    1.2 over the brain, largest connected component; "whole-brain": every voxel where any sequence differs from 0.
    """
    box = (slice(None),) * 3 if region is None else region.slices
    foreground = scan.foreground()[box]
    found = {"whole-brain": foreground}
    if "flair" in scan.channels:
        flair = scan.channel("flair")
        values = flair[flair != 0]
        score = np.zeros_like(flair)
        if values.size:
            spread = values.std(dtype=np.float64) or 1.0
            score = np.where(flair != 0, (flair - values.mean(dtype=np.float64)) / spread, 0)
        smooth = gaussian_filter(score, [_FLAIR_SMOOTHING_MM / step for step in scan.grid.spacing])[box]
        pieces, count = connected_components((smooth > _FLAIR_THRESHOLD) & foreground, np.ones((3, 3, 3)))
        largest = np.bincount(pieces.ravel())[1:].argmax() + 1 if count else -1
        found = {"intensity/flair": pieces == largest} | found
    return found


def network_free_rankings(scan: Scan, explanation: Explanation, *, seed: int) -> list[tuple[str, Explanation]]:
    """The explanation's own parts, ranked without a network, as (row, explanation); nothing where it has no parts.

    "intensity/supervoxel-rank" (scans with a sequence "flair"): by mean FLAIR; "random-rank": by chance, 20 draws.
    """
    if explanation.parts is None or explanation.scores is None:
        return []
    labels, count = explanation.parts.data, len(explanation.scores)
    rankings = []
    if "flair" in scan.channels:
        sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        sums = np.bincount(labels.ravel(), weights=scan.channel("flair").ravel(), minlength=count + 1)[1:]
        rankings.append(("intensity/supervoxel-rank", sums / np.maximum(sizes, 1)))
    random = np.random.default_rng(seed)
    rankings += [("random-rank", random.random(count)) for _ in range(_RANDOM_DRAWS)]
    return [(row, _with_scores(explanation, values)) for row, values in rankings]


def _with_scores(explanation: Explanation, values: np.ndarray) -> Explanation:
    assert explanation.parts is not None
    painted = np.concatenate([[0.0], values])[explanation.parts.data][None]
    return replace(explanation, map=painted, channels=("all",), signed=False, unit="rank", scores=values, provenance={})
