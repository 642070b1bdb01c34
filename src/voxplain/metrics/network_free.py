"""What needs no network: the rows that stand beside every map, because a map that does not beat them earned nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.ndimage import label as connected_components

from voxplain.errors import InputError
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
    foreground = scan.foreground()
    found = {"whole-brain": foreground[box]}
    if "flair" in scan.channels:
        flair = scan.channel("flair")
        values = flair[flair != 0]
        score = np.zeros_like(flair)
        if values.size:
            spread = values.std(dtype=np.float64) or 1.0
            score = np.where(flair != 0, (flair - values.mean(dtype=np.float64)) / spread, 0)
        inside = np.zeros_like(foreground)
        inside[box] = foreground[box]
        found = {"intensity/flair": bright_flair(score, inside=inside, spacing=scan.grid.spacing)[box]} | found
    return found


def flair_outliers(scan: Scan, *, deviations: float = 3.0) -> np.ndarray:
    """What is unusually bright on FLAIR, boolean (X, Y, Z): the row that needs no network beside lesions.

    The threshold is the median over the brain plus so many robust standard deviations (1.4826 times the median absolute
    deviation): no mask chooses it.

    Raises:
        InputError: no sequence flair, or no brain.
    """
    flair = scan.channel("flair")
    inside = flair != 0
    if not inside.any():
        raise InputError("FLAIR is zero in every voxel; expected an image")
    middle = float(np.median(flair[inside]))
    spread = 1.4826 * float(np.median(np.abs(flair[inside] - middle)))
    return inside & (flair > middle + deviations * spread)


def bright_flair(score: np.ndarray, *, inside: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """The mask of row "intensity/flair", boolean, of a volume (X, Y, Z) or of one slice (H, W).

    Args:
        score: FLAIR as z-scores over the brain of the whole scan, 0 outside it; smoothed here.
        inside: boolean, of the same shape: where the mask may lie, before its largest component is taken.
        spacing: size of a voxel, or pixel, along each axis, in mm.

    Raises:
        InputError: shapes differ, or spacing is not one size above 0 mm for each axis.
    """
    if inside.shape != score.shape or len(spacing) != score.ndim or not all(size > 0 for size in spacing):
        raise InputError(
            "score and inside are of one shape, with a spacing above 0 mm for each axis; "
            f"got {score.shape}, {inside.shape} and {tuple(spacing)}"
        )
    smooth = gaussian_filter(score, [_FLAIR_SMOOTHING_MM / step for step in spacing])
    pieces, count = connected_components((smooth > _FLAIR_THRESHOLD) & inside, np.ones((3,) * score.ndim))
    largest = np.bincount(pieces.ravel())[1:].argmax() + 1 if count else -1
    return pieces == largest


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
