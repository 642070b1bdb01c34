"""The brain of a phantom: the MNI152 template, bent and folded into one patient's anatomy.

The template and its tissue maps come in nilearn's wheel (ICBM 152, 2009a, nonlinear symmetric): no network is needed.
All randomness is anchored in the world, in mm, so that one generator gives one patient at every voxel size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template
from scipy import ndimage

from voxplain.grid import Grid

GREY, WHITE, FLUID = 0, 1, 2

_SHAPE = (197, 233, 189)
_ORIGIN = (-98.0, -134.0, -72.0)
# How decidedly a voxel is one tissue, by voxel size in mm: larger voxels hold more of a mixture.
_DECIDED = {1: 2.0, 2: 1.7}


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A brain before a scanner has seen it, on a grid at 1 or 2 mm.

    `odds` (3, X, Y, Z) are the log odds of grey matter, white matter and fluid; `brain` (X, Y, Z) is its mask; `deep`
    (X, Y, Z) runs from 0 at the brain's surface to 1 from about 12 mm on; `vessels` (X, Y, Z) is the share of
    contrast-filled vessel, 0 to 1.
    """

    grid: Grid
    odds: np.ndarray
    brain: np.ndarray
    deep: np.ndarray
    vessels: np.ndarray

    def tissues(self) -> np.ndarray:
        """The shares (3, X, Y, Z) of grey matter, white matter and fluid, which add up to 1."""
        return shares(self.odds, self.grid)


def shares(odds: np.ndarray, grid: Grid) -> np.ndarray:
    """Shares (3, ...) of the tissues, which add up to 1, of log odds (3, ...) in voxels of a grid at 1 or 2 mm."""
    scaled = _DECIDED[round(grid.spacing[0])] * odds
    parts: np.ndarray = np.exp(scaled - scaled.max(axis=0))
    parts /= parts.sum(axis=0)
    return parts


def make_anatomy(random: np.random.Generator, spacing: int) -> Anatomy:
    """A patient's brain on the template's grid at 1 or 2 mm (RAS+, the mid-sagittal plane at x = 0)."""
    template, grid = _template(), template_grid(spacing)
    ventricles = random.uniform(-0.15, 0.38)
    # Wide ventricles and wide sulci come together.
    atrophy = 0.5 * (ventricles - 0.1) + random.normal(0, 0.12)
    at = _placed(random, grid)
    at += _warp(random, grid, ((2.2, 40),))
    brain = _sampled(template["inside"], at) > 0.7
    parts, _ = ndimage.label(brain)
    brain = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    # The finer warps bend folds, not the skull; from here on only what lies in the brain is worked out.
    at += _warp(random, grid, ((2.2, 17), (0.7, 8)))
    inner = at[:, brain]
    _stretch_ventricles(inner, ventricles)
    grey, white, cortex, depth = (_sampled(template[name], inner) for name in ("grey", "white", "cortex", "deep"))
    folds, *uneven = (field[brain] for field in (_band_noise(random, grid, 6.5), *_noises(random, grid, 5, 2)))
    odds = np.empty((3, *grid.shape), dtype=np.float32)
    odds[:] = np.reshape([-4, -4, 1], (3, 1, 1, 1))
    # Sulci of the patient's own: the sheets where a noise field passes 0, with a band of cortex on both sides.
    sulcus, band = np.exp(-((folds / 0.33) ** 2)), np.exp(-((folds / 0.7) ** 2))
    odds[GREY, brain] = np.log(np.clip(grey, 0, 1) + 0.03) + cortex * (1.3 * band - 0.6) - 0.2 + 0.2 * uneven[0]
    odds[WHITE, brain] = np.log(np.clip(white, 0, 1) + 0.02) + 0.2 * uneven[1]
    fluid = np.clip(1 - np.clip(grey, 0, 1) - np.clip(white, 0, 1), 0, 1)
    odds[FLUID, brain] = np.log(1.6 * fluid + 0.02) + cortex * (2.2 * sulcus - 0.2) + atrophy
    deep = np.zeros(grid.shape, dtype=np.float32)
    deep[brain] = np.clip(2 * depth - 1, 0, 1)
    return Anatomy(grid, odds, brain, deep, _vessels(random, grid, odds[FLUID], deep, brain))


def template_grid(spacing: int) -> Grid:
    """The template's grid at a voxel size of 1 or 2 mm."""
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = _ORIGIN
    x, y, z = (-(-n // spacing) for n in _SHAPE)
    return Grid((x, y, z), affine, sform_code=4)


def world(grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """World coordinates in mm of an axis-parallel grid, one float32 array per axis, ready to broadcast."""
    index = np.ogrid[tuple(slice(n) for n in grid.shape)]
    steps, origin = np.diag(grid.affine)[:3], grid.affine[:3, 3]
    x, y, z = ((n * d + o).astype(np.float32) for n, d, o in zip(index, steps, origin, strict=True))
    return x, y, z


def smooth_noise(random: np.random.Generator, grid: Grid, scale: float) -> np.ndarray:
    """Noise (X, Y, Z) float32 of unit variance that varies over `scale` mm.

    The noise does not depend on the grid, so that one generator gives one field at every spacing.
    """
    return _splines(random.standard_normal((_nodes(scale).size,) * 3, dtype=np.float32), grid, scale)


def _band_noise(random: np.random.Generator, grid: Grid, scale: float) -> np.ndarray:
    """Noise of about unit variance without its slow part: the surfaces where it is 0 lie evenly apart."""
    field = random.standard_normal((_nodes(scale).size,) * 3, dtype=np.float32)
    return _splines((field - ndimage.gaussian_filter(field, 1.2)) / 0.8, grid, scale)


def _noises(random: np.random.Generator, grid: Grid, scale: float, count: int) -> list[np.ndarray]:
    return [smooth_noise(random, grid, scale) for _ in range(count)]


def _nodes(scale: float) -> np.ndarray:
    return np.arange(np.floor(-150 / scale), np.ceil(150 / scale) + 1)


def _splines(field: np.ndarray, grid: Grid, scale: float) -> np.ndarray:
    """Cubic B-splines on nodes every `scale` mm of the world, scaled so that white nodes give unit variance."""
    for positions in world(grid):
        t = np.abs(positions.reshape(-1, 1) / scale - _nodes(scale))
        weights = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6)
        weights /= np.linalg.norm(weights, axis=1, keepdims=True)
        field = np.tensordot(field, weights.astype(np.float32), axes=(0, 1))
    return field


def _sampled(template: np.ndarray, at: np.ndarray) -> np.ndarray:
    """A template map at world coordinates (3, ...), linearly between its voxels; 0 outside."""
    index = at - np.reshape(np.array(_ORIGIN, dtype=np.float32), (3, *(1,) * (at.ndim - 1)))
    values: np.ndarray = ndimage.map_coordinates(template, index, order=1)
    return values


@lru_cache(maxsize=1)
def _template() -> dict[str, np.ndarray]:
    """Maps (X, Y, Z) at 1 mm: tissue shares, the brain's soft mask, depth below its surface, and where folds lie."""
    load = (load_mni152_gm_template, load_mni152_wm_template, load_mni152_brain_mask)
    grey, white, brain = (load_one(resolution=1).get_fdata(dtype=np.float32) for load_one in load)
    # An average is blurred: what differs from its own surroundings is brought out.
    sharp = [tissue + 0.8 * (tissue - ndimage.gaussian_filter(tissue, 2)) for tissue in (grey, white)]
    x, y, z = world(template_grid(1))
    # Deep nuclei, brainstem and cerebellum (below a plane that falls towards the front) have no sulci of this kind.
    around_nuclei = np.clip((x / 34) ** 2 + ((y + 12) / 48) ** 2 + ((z - 4) / 26) ** 2 - 1, 0, 1)
    cerebrum = np.where(y > -25, 1, 1 / (1 + np.exp(-(z + 18 + 0.3 * (y + 60)) / 3)))
    cortex = around_nuclei * cerebrum * np.clip(2.2 * ndimage.gaussian_filter(grey, 4), 0, 1)
    return {
        "grey": sharp[0],
        "white": sharp[1],
        "inside": ndimage.gaussian_filter(brain, 3),
        "deep": ndimage.gaussian_filter(brain, 7),
        "cortex": cortex.astype(np.float32),
    }


def _placed(random: np.random.Generator, grid: Grid) -> np.ndarray:
    """Where in the template (3, X, Y, Z), in mm, each voxel comes from: a brain of another size, slightly turned."""
    size = np.exp(-np.clip(random.normal(0, 0.02, 3) + random.normal(-0.04, 0.025), -0.12, 0.05))
    # Turned about the left-right axis mostly: the mid-sagittal plane stays where it is.
    pitch, roll, yaw = np.deg2rad(random.normal(0, (3.0, 0.6, 0.6)))
    turn = (
        ((1, 0, 0), (0, np.cos(pitch), -np.sin(pitch)), (0, np.sin(pitch), np.cos(pitch))),
        ((np.cos(roll), 0, np.sin(roll)), (0, 1, 0), (-np.sin(roll), 0, np.cos(roll))),
        ((np.cos(yaw), -np.sin(yaw), 0), (np.sin(yaw), np.cos(yaw), 0), (0, 0, 1)),
    )
    matrix = (np.diag(size) @ np.array(turn[0]) @ np.array(turn[1]) @ np.array(turn[2])).astype(np.float32)
    middle = np.array((0, -18, 8), dtype=np.float32)
    x, y, z = (axis - m for axis, m in zip(world(grid), middle, strict=True))
    return np.stack([row[0] * x + row[1] * y + row[2] * z + m for row, m in zip(matrix, middle, strict=True)])


def _warp(random: np.random.Generator, grid: Grid, scales: Sequence[tuple[float, float]]) -> np.ndarray:
    """Displacements (3, X, Y, Z) in mm, the sum over (amplitude, scale); the mid-sagittal plane stays in place."""
    total = np.stack([sum(a * smooth_noise(random, grid, scale) for a, scale in scales) for _ in range(3)])
    total[0] *= 1 - np.exp(-((world(grid)[0] / 12) ** 2))
    return total


def _stretch_ventricles(at: np.ndarray, share: float) -> None:
    """Draw coordinates (3, N) towards the middle of the ventricles, in place: what lies there is magnified."""
    x, y, z = at[0], at[1] + 12, at[2] - 12
    pull = np.float32(share) * np.exp(-((x / 26) ** 2) - (y / 42) ** 2 - (z / 22) ** 2)
    at -= pull * np.stack([x, 0.35 * y, 0.8 * z])


def _vessels(
    random: np.random.Generator, grid: Grid, fluid: np.ndarray, deep: np.ndarray, brain: np.ndarray
) -> np.ndarray:
    """Vessel shares: curves where two noise fields are both 0, in sulci; the sinus along the mid-plane; the plexus."""
    x, y, z = world(grid)
    wet = np.clip((fluid + 3.2) / 1.5, 0, 1)
    found = np.zeros(grid.shape, dtype=np.float32)
    for scale, width in ((8, 1.2), (14, 1.7)):
        first, second = _noises(random, grid, scale, 2)
        found = np.maximum(found, np.exp(-(first**2 + second**2) * (0.75 * scale / width) ** 2 / 2))
    found *= wet * np.clip(1.8 - 1.6 * deep, 0.25, 1)
    sinus = np.exp(-((x / 2) ** 2)) * np.clip(1.3 - deep / 0.3, 0, 1) * np.clip((z + 5) / 10, 0, 1)
    plexus = np.exp(-(((np.abs(x) - 24) / 5) ** 2) - ((y + 38) / 7) ** 2 - ((z - 10) / 6) ** 2) * wet
    return np.where(brain, np.max([found, sinus, plexus], axis=0), 0).astype(np.float32)
