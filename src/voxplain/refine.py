"""From a map to a mask that follows the scan: the map says where, intensities say how far.

A map is coarse: its parts, or the grid of a network's layer, do not end where a lesion ends. Both rules here take the
map as evidence and draw the border on one sequence of the scan, over the whole scan at once: regions that the network
judges on their own (two halves of a head) share what a lesion looks like, and a lesion goes on across their border.

What both rules share:

- Evidence is the positive part of `Explanation.total`, smoothed with a Gaussian of 4 mm, times the probability of its
  region, over its 99th percentile in the foreground, at most 1.
- Nothing is marked where no region is positive, or where there is no evidence.
- One connected component (26 neighbours) is marked: the one that holds most evidence of positive regions.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, label
from skimage.segmentation import random_walker as walk

from voxplain.errors import InputError
from voxplain.explanation import Explanation
from voxplain.scan import Labels, Scan

_EVIDENCE_SMOOTHING_MM = 4.0
_FULL_EVIDENCE = 0.99
# Noise of single voxels is no border.
_SMOOTHING_MM = 2.0
# Probability of lesion before intensities are looked at: without evidence, and what full evidence adds to it. At most
# about one half, so that no voxel is marked, or left out, by evidence alone.
_PRIOR = (0.02, 0.5)
_ROUNDS = 10
# Of the variance over the foreground: a class of a single intensity would otherwise shut all others out.
_SMALLEST_VARIANCE = 0.02
# Seeds of the random walker: evidence from the first on is lesion, below the second it is none.
_SEEDS = (0.7, 0.1)
_NEIGHBOURS_26 = np.ones((3, 3, 3), dtype=bool)


def mixture(explanation: Explanation, scan: Scan, *, channel: str = "flair") -> Labels:
    """The voxels that look like what the map shows rather than like the rest of the head: two Gaussians, fitted by EM.

    The intensity of a smoothed sequence (Gaussian of 2 mm) is one Gaussian inside of the lesion and another outside.
    Expectation-maximisation (Dempster 1977), ten rounds from the evidence on, fits both; the probability of lesion
    before intensities are looked at is 0.02 plus half the evidence. Marked is what is more probably lesion.

    Args:
        explanation: the map, signed or not, of voxels or of parts.
        scan: the scan that was explained.
        channel: the sequence on which the lesion's border shows.

    Returns:
        Labels (X, Y, Z) of 0 and 1 on the scan's grid.

    Raises:
        InputError: another grid, no such sequence, or no region is named.
    """
    inside, intensity, evidence = _prepared(explanation, scan, channel)
    found = np.zeros(scan.grid.shape, dtype=bool)
    if evidence.any():
        weight = evidence[inside]
        found[inside] = lesion_probability(intensity[inside], weight) > 0.5
    return Labels(_component(found, explanation, evidence), scan.grid)


def random_walker(explanation: Explanation, scan: Scan, *, channel: str = "flair", beta: float = 130.0) -> Labels:
    """The voxels from which a random walk that shuns edges reaches strong evidence before voxels without any.

    Grady 2006, as scikit-image solves it on the smoothed sequence (Gaussian of 2 mm). Voxels with evidence of at least
    0.7 are lesion, below 0.1 they are none.

    Args:
        explanation: the map, signed or not, of voxels or of parts.
        scan: the scan that was explained.
        channel: the sequence on which the lesion's border shows.
        beta: how much edges count.

    Returns:
        Labels (X, Y, Z) of 0 and 1 on the scan's grid.

    Raises:
        InputError: another grid, no such sequence, no region is named, or beta is not above 0.
    """
    if not 0 < beta < np.inf:
        raise InputError(f"beta says how much edges count, a number above 0; got {beta}")
    inside, intensity, evidence = _prepared(explanation, scan, channel)
    found = np.zeros(scan.grid.shape, dtype=bool)
    seeds = np.where(evidence >= _SEEDS[0], 1, np.where(evidence < _SEEDS[1], 2, 0))
    seeds[~inside] = -1
    if (seeds == 1).any() and (seeds == 2).any():
        # Unmarked voxels that no seed can reach are left out by scikit-image, with a warning; here they are no lesion.
        pieces, _ = label(seeds >= 0)
        reached = np.isin(pieces, np.unique(pieces[seeds > 0]))
        seeds[(seeds == 0) & ~reached] = 2
        box = tuple(slice(axis.min(), axis.max() + 1) for axis in np.nonzero(inside))
        found[box] = walk(intensity[box], seeds[box], beta=beta, mode="cg_j", tol=1e-3, spacing=scan.grid.spacing) == 1
    return Labels(_component(found, explanation, evidence), scan.grid)


def lesion_probability(intensity: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """The probability of lesion of each voxel, (N,), 0 to 1, from its intensity (N,) and its evidence (N,), 0 to 1.

    Two Gaussians, fitted by expectation-maximisation; see `mixture`.
    """
    low, gain = _PRIOR
    prior = low + gain * evidence
    floor = _SMALLEST_VARIANCE * float(intensity.var()) or 1.0
    probability = evidence.astype(np.float64)
    for _ in range(_ROUNDS):
        odds = np.log(prior) - np.log1p(-prior)
        for sign, weight in ((1, probability), (-1, 1 - probability)):
            total = weight.sum() + 1e-12
            mean = float((weight * intensity).sum() / total)
            variance = float((weight * np.square(intensity - mean)).sum() / total) + floor
            odds -= sign * (np.square(intensity - mean) / variance + np.log(variance)) / 2
        probability = 1 / (1 + np.exp(-np.clip(odds, -50, 50)))
    return probability


def evidence_of(explanation: Explanation, foreground: np.ndarray) -> np.ndarray:
    """The map as evidence, (X, Y, Z), 0 to 1, outside of the foreground (X, Y, Z) 0; see this module's rules."""
    values = np.where(foreground, np.maximum(explanation.total, 0), 0).astype(np.float64)
    values = gaussian_filter(values, _steps(_EVIDENCE_SMOOTHING_MM, explanation.grid.spacing))
    judged = np.zeros(explanation.grid.shape)
    for region in explanation.regions:
        judged[region.slices] = region.probability
    values = np.where(foreground, values * judged, 0)
    highest = float(np.quantile(values[foreground], _FULL_EVIDENCE)) if foreground.any() else 0.0
    # Evidence in less than a hundredth of the head has no 99th percentile above 0.
    highest = highest or float(values.max(initial=0))
    return np.clip(values / highest, 0, 1) if highest > 0 else values


def _prepared(explanation: Explanation, scan: Scan, channel: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Foreground, smoothed sequence in standard deviations, and evidence, all (X, Y, Z)."""
    if difference := scan.grid.difference(explanation.grid):
        raise InputError(f"the map lies on another grid than the scan: {difference}; give the scan that was explained")
    if not explanation.regions:
        raise InputError("a mask is made where a region is positive, and this explanation names none; give it regions")
    values = scan.channel(channel).astype(np.float64)
    inside = scan.foreground()
    known = values[values != 0]
    if known.size:
        values = np.where(values != 0, (values - known.mean()) / (known.std() or 1.0), 0)
    smooth = gaussian_filter(values, _steps(_SMOOTHING_MM, scan.grid.spacing))
    evidence = evidence_of(explanation, inside)
    if not any(region.positive for region in explanation.regions):
        evidence = np.zeros_like(evidence)
    return inside, smooth, evidence


def _component(found: np.ndarray, explanation: Explanation, evidence: np.ndarray) -> np.ndarray:
    positive = np.zeros(found.shape, dtype=bool)
    for region in explanation.regions:
        positive[region.slices] |= region.positive
    pieces, count = label(found, structure=_NEIGHBOURS_26)
    held = np.bincount(pieces.ravel(), weights=(evidence * positive).ravel(), minlength=2)[1:]
    if not count or not held.max() > 0:
        return np.zeros_like(found)
    return pieces == held.argmax() + 1


def _steps(width: float, spacing: tuple[float, float, float]) -> list[float]:
    return [width / step for step in spacing]
