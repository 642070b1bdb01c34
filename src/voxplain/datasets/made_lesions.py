"""Made lesions of multiple sclerosis in real scans: real shapes and places, painted into tissue that is healthy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from voxplain.brain_tissue import white_matter
from voxplain.errors import InputError
from voxplain.lesions import NEIGHBOURS_18
from voxplain.scan import Labels, Scan

# Of white matter's T1: darker is fluid, where no lesion lies.
_FLUID = 0.55


@dataclass(frozen=True)
class _Look:
    """How lesions show in one sequence, as shares of healthy tissue there.

    `contrast` is the range of patients, `difference` how far the lesions of one patient lie apart (log scale), `limits`
    hold for any voxel; `uneven` is the range of how far voxels of one lesion vary, as a standard deviation.
    """

    sequence: str
    contrast: tuple[float, float]
    difference: float
    limits: tuple[float, float]
    uneven: tuple[float, float]
    brighter: bool


_LOOKS = (
    _Look("flair", (1.2, 1.65), 0.1, (1.1, 1.9), (0.03, 0.1), brighter=True),
    # From hardly visible to black holes, nearly as dark as fluid.
    _Look("t1", (0.35, 0.95), 0.15, (0.25, 1.0), (0.05, 0.25), brighter=False),
)
# How much of a voxel's signal a lesion takes at most: some are faint.
_STRENGTH = (0.7, 1.0)
# Size of the patches in which a lesion is uneven.
_TEXTURE_MM = (1.0, 3.0)
# Blur of a lesion's edge, as standard deviation: a voxel at the border is partly lesion.
_EDGE_MM = (0.4, 1.1)
# Made lesions stay so far from known ones, so that no real border is painted over.
_APART_MM = 2.0


def paint_lesions(scan: Scan, lesions: Labels, *, seed: int = 0, known: Labels | None = None) -> tuple[Scan, Labels]:
    """A scan with lesions painted into its healthy tissue: bright on FLAIR, dark on T1, with partial volume.

    A patient's lesions are 1.2 to 1.65 times as bright as healthy tissue on FLAIR and 0.35 to 0.95 times on T1, each of
    them a little otherwise, and uneven in itself. What counts as healthy tissue lies, by lesion, between white matter
    and the voxel as it was: some lesions are uniform, others show the tissue that they grew in; some are faint. Other
    sequences stay as they are. What of a lesion lies outside the brain, in fluid or within 2 mm of a known lesion is
    left out.

    Args:
        scan: skull-stripped, with flair and t1, as the scanner gave it (not normalised).
        lesions: shapes and places; every label but 0 counts. On another grid they are brought by nearest voxel.
        seed: what all that is random follows from.
        known: lesions that the scan has already, on its grid.

    Returns:
        The scan, and a mask of 0 and 1: made and known lesions.

    Raises:
        InputError: no flair or t1, no brain, or known lesions on another grid.
    """
    if "flair" not in scan.channels:
        raise InputError(f"lesions are painted on flair and t1; the scan has {', '.join(scan.channels)}")
    white = white_matter(scan)
    if known is not None and (difference := scan.grid.difference(known.grid)):
        raise InputError(f"known lesions lie on the scan's grid; these differ: {difference}")
    random = np.random.default_rng(seed)
    there = lesions.on(scan.grid).data > 0
    there &= scan.foreground() & (scan.channel("t1") > _FLUID * white["t1"])
    mask = np.zeros_like(there) if known is None else known.data > 0
    if mask.any():
        there &= ndimage.distance_transform_edt(~mask, sampling=scan.grid.spacing) > _APART_MM
    data = scan.data.copy()
    if there.any():
        (box,) = ndimage.find_objects(ndimage.binary_dilation(there, iterations=4).astype(np.int8))
        numbers, count = ndimage.label(there[box], NEIGHBOURS_18)
        spacing = np.array(scan.grid.spacing)
        edge = random.uniform(*_EDGE_MM) / spacing
        texture = ndimage.gaussian_filter(
            random.standard_normal(numbers.shape, dtype=np.float32), random.uniform(*_TEXTURE_MM) / spacing
        )
        texture /= texture.std() or 1
        # Each lesion's own values are carried on beyond its border, where a voxel is lesion in part.
        strength = _spread(random.uniform(*_STRENGTH, count + 1)[numbers], there[box], edge)
        uniform = _spread(random.uniform(0, 1, count + 1)[numbers], there[box], edge)
        share = strength * _soft(numbers, count, edge)
        share = np.where(scan.foreground()[box], np.clip(share, 0, 1), 0)
        for look in _LOOKS:
            each = random.uniform(*look.contrast) * np.exp(random.normal(0, look.difference, count + 1))
            contrast = _spread(np.clip(each, *look.limits)[numbers], there[box], edge)
            contrast = np.clip(contrast * (1 + random.uniform(*look.uneven) * texture), *look.limits)
            channel = data[scan.channels.index(look.sequence)][box]
            healthy = uniform * white[look.sequence] + (1 - uniform) * channel
            painted = (np.maximum if look.brighter else np.minimum)(contrast * healthy, channel)
            channel += share * (painted - channel)
    return Scan(data, scan.grid, scan.channels), Labels(mask | there, scan.grid)


def _soft(numbers: np.ndarray, count: int, sigma: np.ndarray) -> np.ndarray:
    """How much of a voxel is lesion, 0 to 1: blurred at the border, and 1 at the core of even the smallest lesion."""
    blurred = ndimage.gaussian_filter((numbers > 0).astype(np.float32), sigma)
    cores = np.concatenate([[1], ndimage.maximum(blurred, numbers, range(1, count + 1))])
    soft: np.ndarray = np.clip(blurred / np.maximum(_spread(cores[numbers], numbers > 0, sigma), 1e-6), 0, 1)
    return soft


def _spread(values: np.ndarray, inside: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Values of lesions (X, Y, Z), carried on beyond their borders."""
    weight = ndimage.gaussian_filter(inside.astype(np.float32), sigma)
    total = ndimage.gaussian_filter(np.where(inside, values, 0).astype(np.float32), sigma)
    spread: np.ndarray = total / np.maximum(weight, 1e-6)
    return spread
