"""From a map to a mask that follows the scan: the map says where, intensities say how far.

A map is coarse: its parts, or the grid of a network's layer, do not end where a lesion ends. A finish takes the map as
evidence and draws the border on sequences of the scan, over the whole scan at once: regions that the network
judges on their own (two halves of a head) share what a lesion looks like, and a lesion goes on across their border.

The rules:

- Evidence is the positive part of `Explanation.total` (of maps of parts smoothed with a Gaussian of 4 mm, as parts end
  where they were cut), times the probability of its region, over its 99th percentile in the foreground, at most 1.
- Nothing is marked where no region is positive, or where there is no evidence.
- One connected component (26 neighbours) is marked: the one that holds most evidence of positive regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter, label
from scipy.special import softmax

from voxplain.errors import InputError
from voxplain.explanation import Explanation
from voxplain.scan import Labels, Scan

_PARTS_SMOOTHING_MM = 4.0
_FULL_EVIDENCE = 0.99
# Noise of single voxels is no border.
_SMOOTHING_MM = 2.0
# Probability of lesion before intensities are looked at: without evidence, and what full evidence adds to it. At most
# about one half, so that no voxel is marked, or left out, by evidence alone.
_PRIOR = (0.02, 0.5)
_ROUNDS = 10
_MOST_VOXELS = 20_000
# Added to every class, of the variance over the foreground: a class of a single intensity would shut all others out.
_SMALLEST_VARIANCE = 0.02
_NEIGHBOURS_26 = np.ones((3, 3, 3), dtype=bool)


def mixture(explanation: Explanation, scan: Scan, *, channels: Sequence[str] = ("flair", "t2")) -> Labels:
    """The voxels that look like what the map shows rather than like the rest of the head: Gaussians, fitted by EM.

    Lesion, tissue and fluid are one Gaussian each over the intensities of some smoothed sequences (Gaussian of 2 mm).
    Expectation-maximisation (Dempster 1977), ten rounds from the evidence on, fits them; the probability of lesion
    before intensities are looked at is 0.02 plus half the evidence. Marked is what is more probably lesion than not.

    Args:
        explanation: the map, signed or not, of voxels or of parts.
        scan: the scan that was explained.
        channels: the sequences on which the lesion differs from tissue and from fluid.

    Returns:
        Labels (X, Y, Z) of 0 and 1 on the scan's grid.

    Raises:
        InputError: another grid, no such sequence, or no region is named.
    """
    inside, intensities, evidence = _prepared(explanation, scan, channels)
    found = np.zeros(scan.grid.shape, dtype=bool)
    if evidence.any():
        found[inside] = lesion_probability(intensities[:, inside], evidence[inside]) > 0.5
    return Labels(one_component(found, explanation, evidence), scan.grid)


def fused(first: Explanation, second: Explanation, scan: Scan) -> Explanation:
    """Where two maps of one scan agree: the geometric mean of both, each over its 99th percentile, 0 to 1.

    A relevance map is coarse and knows what matters; a CAM on an early layer is fine and marks much that does not. Maps
    of parts are smoothed with a Gaussian of 4 mm. The regions are those of the first map.

    Raises:
        InputError: the maps and the scan lie on different grids, or the maps speak of different regions.
    """
    for one in (first, second):
        if difference := scan.grid.difference(one.grid):
            raise InputError(f"the map lies on another grid than the scan: {difference}; give the scan of both maps")
    if [region.box for region in first.regions] != [region.box for region in second.regions]:
        raise InputError("the maps speak of different regions; fuse maps of one model on one scan")
    foreground = scan.foreground()
    shares = [saturated(_positive(one, foreground), foreground) for one in (first, second)]
    return replace(
        first,
        map=np.sqrt(shares[0] * shares[1])[None],
        channels=("all",),
        signed=False,
        unit="evidence",
        parts=None,
        scores=None,
        provenance={"fused": [first.provenance, second.provenance]},
    )


def lesion_probability(intensities: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """The probability of lesion of each voxel, (N,), 0 to 1, from intensities (C, N) and evidence (N,), 0 to 1.

    Three Gaussians (lesion, tissue, fluid), fitted by expectation-maximisation to at most 20,000 voxels, evenly spread;
    see `mixture`. Tissue and fluid begin as the brighter and the darker half of what is not evidence, by the first
    channel.
    """
    low, gain = _PRIOR
    prior = low + gain * evidence
    every = -(-len(evidence) // _MOST_VOXELS)
    fitted, its_prior = intensities[:, ::every], prior[::every]
    floor = np.diag(_SMALLEST_VARIANCE * np.maximum(intensities.var(axis=1), 1e-12))
    bright = fitted[0] > np.median(fitted[0])
    lesion = evidence[::every]
    weights = np.stack([lesion, (1 - lesion) * bright, (1 - lesion) * ~bright])
    for _ in range(_ROUNDS):
        classes = [_Gaussian.fitted(fitted, weight, floor) for weight in weights]
        # Of what is no lesion, so much is tissue and so much fluid.
        shares = np.maximum(weights[1:].sum(axis=1), 1)
        shares = shares / shares.sum()
        weights = _memberships(fitted, its_prior, classes, shares)
    return _memberships(intensities, prior, classes, shares)[0]


@dataclass(frozen=True, eq=False)
class _Gaussian:
    """A Gaussian over C sequences: mean (C,), and what makes its covariance the identity, (C, C)."""

    mean: np.ndarray
    whitening: np.ndarray

    @classmethod
    def fitted(cls, values: np.ndarray, weight: np.ndarray, floor: np.ndarray) -> _Gaussian:
        total = weight.sum() + 1e-12
        mean = values @ weight / total
        apart = values - mean[:, None]
        covariance = (apart * weight) @ apart.T / total + floor
        return cls(mean, np.linalg.inv(np.linalg.cholesky(covariance)))

    def log_density(self, values: np.ndarray) -> np.ndarray:
        """Of values (C, N), (N,), up to a constant that all classes share."""
        apart = self.whitening @ (values - self.mean[:, None])
        return np.log(np.diag(self.whitening)).sum() - np.square(apart).sum(axis=0) / 2


def _memberships(values: np.ndarray, prior: np.ndarray, classes: Sequence[_Gaussian], shares: np.ndarray) -> np.ndarray:
    """The probability of each class, (3, N): lesion, then the others."""
    before = np.stack([prior, *(share * (1 - prior) for share in shares)])
    log = np.log(before) + np.stack([one.log_density(values) for one in classes])
    return softmax(log, axis=0)


def evidence_of(explanation: Explanation, foreground: np.ndarray) -> np.ndarray:
    """The map as evidence, (X, Y, Z), 0 to 1, outside of the foreground (X, Y, Z) 0; see this module's rules."""
    values = _positive(explanation, foreground)
    judged = np.zeros(explanation.grid.shape)
    for region in explanation.regions:
        judged[region.slices] = region.probability
    return saturated(np.where(foreground, values * judged, 0), foreground)


def _positive(explanation: Explanation, foreground: np.ndarray) -> np.ndarray:
    """What speaks for the class, (X, Y, Z), smoothed where parts were scored, 0 outside of the foreground."""
    values = np.where(foreground, np.maximum(explanation.total, 0), 0).astype(np.float64)
    if explanation.parts is None:
        return values
    return np.where(foreground, gaussian_filter(values, _steps(_PARTS_SMOOTHING_MM, explanation.grid.spacing)), 0)


def saturated(values: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """Values of at least 0 over their 99th percentile in the foreground, at most 1."""
    highest = float(np.quantile(values[foreground], _FULL_EVIDENCE)) if foreground.any() else 0.0
    # Evidence in less than a hundredth of the head has no 99th percentile above 0.
    highest = highest or float(values.max(initial=0))
    return np.clip(values / highest, 0, 1) if highest > 0 else np.zeros_like(values)


def _prepared(
    explanation: Explanation, scan: Scan, channels: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Foreground (X, Y, Z), smoothed sequences in standard deviations (C, X, Y, Z), and evidence (X, Y, Z)."""
    if difference := scan.grid.difference(explanation.grid):
        raise InputError(f"the map lies on another grid than the scan: {difference}; give the scan that was explained")
    if not explanation.regions:
        raise InputError("a mask is made where a region is positive, and this explanation names none; give it regions")
    if not channels:
        raise InputError("a border needs a sequence to follow; name at least one of " + ", ".join(scan.channels))
    inside = scan.foreground()
    smooth = np.stack([standardised(scan.channel(name), scan.grid.spacing) for name in channels])
    evidence = evidence_of(explanation, inside)
    if not any(region.positive for region in explanation.regions):
        evidence = np.zeros_like(evidence)
    return inside, smooth, evidence


def standardised(data: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """A sequence (X, Y, Z) in standard deviations over what is not 0, smoothed with a Gaussian of 2 mm."""
    known = data[data != 0].astype(np.float64)
    if not known.size:
        return np.zeros(data.shape)
    values = np.where(data != 0, (data - known.mean()) / (known.std() or 1.0), 0)
    return gaussian_filter(values, _steps(_SMOOTHING_MM, spacing))


def one_component(found: np.ndarray, explanation: Explanation, evidence: np.ndarray) -> np.ndarray:
    """The component of a mask (X, Y, Z) that holds most evidence of positive regions; none where none does."""
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
