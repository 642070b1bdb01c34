"""A made scan: a brain after the MNI152 template, as four BraTS sequences, with a tumour of known shape.

The template and its tissue maps come in nilearn's wheel (ICBM 152, 2009a, nonlinear symmetric): no network is needed.
Anatomy, tumour and contrasts are rules that we wrote; what is measured on them checks software, not medicine.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template
from scipy import ndimage

from voxplain.datasets.brats import SEQUENCES, cases
from voxplain.datasets.case import Case
from voxplain.errors import InputError
from voxplain.grid import Grid
from voxplain.io.nifti import save
from voxplain.scan import Labels, Scan

# What each sequence shows, in scanner units:
#           grey white  csf necrotic oedema enhancing
_INTENSITIES = {
    "flair": (210, 175, 30, 260, 360, 335),
    "t1": (345, 470, 80, 265, 305, 320),
    "t1ce": (390, 475, 90, 310, 380, 780),
    "t2": (340, 265, 880, 720, 540, 500),
}
_NECROTIC, _OEDEMA, _ENHANCING = 1, 2, 4
_NOISE = 12.0  # standard deviation in each of the two channels of the receiver, scanner units


def made_scan(seed: int = 0, spacing: float = 2.0, tumour: bool = True, side: str = "left") -> tuple[Scan, Labels]:
    """A brain of our making, skull-stripped, and its labels: 1 necrotic core, 2 oedema, 4 enhancing rim, as in BraTS.

    Channels flair, t1, t1ce, t2, whole numbers from 1 to about 1000 in the brain and exactly 0 outside, on the
    template's grid (RAS+, the mid-sagittal plane at x = 0). The tumour (25 to 80 ml) lies wholly in the `side` half.
    One seed is one patient, whatever the spacing; `tumour=False` is that patient without it (labels all 0).

    Args:
        seed: the patient.
        spacing: voxel size in mm, 1 or 2.
        tumour: whether there is one.
        side: the patient's "left" (x < 0) or "right".

    Raises:
        InputError: another spacing or side.
    """
    if spacing not in (1, 2):
        raise InputError(f"a made scan has a spacing of 1 or 2 mm; got {spacing}; resample one with Scan.on")
    if side not in ("left", "right"):
        raise InputError(f"the tumour of a made scan lies 'left' or 'right'; got {side!r}")
    anatomy, growth, scanner = np.random.default_rng(seed).spawn(3)
    grid, tissues, brain = _brain(anatomy, int(spacing))
    labels = np.zeros(grid.shape, dtype=np.int32)
    if tumour:
        labels = _tumour(growth, grid, tissues, brain, -1 if side == "left" else 1)
    return _images(scanner, grid, tissues, brain, labels), Labels(labels, grid)


def write_case(scan: Scan, labels: Labels, folder: Path | str) -> Case:
    """Write a scan and its labels in BraTS layout (NAME/NAME_flair.nii.gz, ..., NAME/NAME_seg.nii.gz) and list it.

    Raises:
        InputError: the two lie on different grids, BraTS knows no such sequence, or the folder cannot be written.
    """
    strange = [name for name in scan.channels if name not in SEQUENCES]
    if strange:
        raise InputError(f"BraTS layout holds {', '.join(SEQUENCES)}; got {', '.join(strange)}; select channels first")
    if difference := scan.grid.difference(labels.grid):
        raise InputError(f"a scan and its labels lie on one grid; these differ: {difference}")
    folder = Path(folder).expanduser().resolve()
    for name in scan.channels:
        save(scan.select([name]), folder / f"{folder.name}_{name}.nii.gz")
    save(labels, folder / f"{folder.name}_seg.nii.gz")
    return cases(folder)[0]


def _brain(random: np.random.Generator, spacing: int) -> tuple[Grid, np.ndarray, np.ndarray]:
    """The grid; the parts of grey matter, white matter and fluid (3, X, Y, Z) in each voxel; the brain's mask."""
    load_1_mm = (load_mni152_gm_template, load_mni152_wm_template, load_mni152_brain_mask)
    images = [load(resolution=1) for load in load_1_mm]
    templates = [image.get_fdata(dtype=np.float32) for image in images]
    templates[2] = ndimage.gaussian_filter(templates[2], 3)
    x, y, z = (-(-n // spacing) for n in images[0].shape)
    grid = Grid((x, y, z), images[0].affine @ np.diag([spacing, spacing, spacing, 1]), sform_code=4)
    # The template is an average and its own mirror image. Each patient gets a shape (a warp in mm that leaves the
    # mid-sagittal plane in place) and folds (fine noise on the tissues' odds, sharpened) of its own.
    warp = np.stack([_smooth_noise(random, grid, 40) for _ in range(3)]) * 2.5
    warp[0] *= 1 - np.exp(-((_world(grid)[0] / 12) ** 2))
    at = np.indices(grid.shape, dtype=np.float32) * spacing + warp
    grey, white, inside = (ndimage.map_coordinates(template, at, order=1) for template in templates)
    brain = inside > 0.7
    fluid = 1.8 * np.clip(1 - grey - white, 0, 1) + 0.06
    odds = np.stack([np.clip(grey, 0, 1), np.clip(white, 0, 1), fluid])
    odds *= np.exp(0.4 * np.stack([_smooth_noise(random, grid, 5) for _ in range(3)]))
    odds = odds**1.7
    return grid, odds / odds.sum(axis=0), brain


def _tumour(random: np.random.Generator, grid: Grid, tissues: np.ndarray, brain: np.ndarray, side: int) -> np.ndarray:
    """Labels (X, Y, Z) of a tumour in the half where `side` (-1 or 1) times x is positive."""
    x, y, z = _world(grid)
    centre = random.uniform((26, -50, 15), (36, 30, 35))
    radii = random.uniform(0.8, 1.3, 3)
    away = np.sqrt(sum(((p - c) / r) ** 2 for p, c, r in zip((side * x, y, z), centre, radii, strict=True)))
    away = away * np.exp(0.2 * _smooth_noise(random, grid, 18)) + 1.2 * _smooth_noise(random, grid, 8)
    away[~brain | np.broadcast_to(side * x < 3, brain.shape)] = np.inf
    volume = random.uniform(32, 75)
    core = _nearest(away, random.uniform(0.25, 0.45) * volume, grid)
    rim = away > away[core].max() - np.clip(4 + _smooth_noise(random, grid, 10), 2, 6)
    # Oedema runs along white matter, hardly into the cortex and around fluid.
    reach = np.where(core, -1, away + 12 * tissues[0] + 40 * tissues[2])
    whole = _nearest(reach, volume, grid)
    return np.select([core & rim, core, whole], [_ENHANCING, _NECROTIC, _OEDEMA], 0).astype(np.int32)


def _nearest(distance: np.ndarray, millilitres: float, grid: Grid) -> np.ndarray:
    """The mask of that volume where the distance is least: what of it hangs together."""
    count = round(millilitres * 1000 / grid.voxel_volume)
    parts, _ = ndimage.label(distance <= np.partition(distance, count, axis=None)[count])
    return parts == np.bincount(parts.ravel())[1:].argmax() + 1


def _images(
    random: np.random.Generator, grid: Grid, tissues: np.ndarray, brain: np.ndarray, labels: np.ndarray
) -> Scan:
    """What a scanner makes of it: contrast, texture, uneven coil sensitivity, Rician noise."""
    parts = [
        ndimage.gaussian_filter((labels == value).astype(np.float32), 1 / grid.spacing[0])[brain]
        for value in (_NECROTIC, _OEDEMA, _ENHANCING)
    ]
    healthy = np.clip(1 - sum(parts), 0, 1)
    mixture = np.stack([*(healthy * tissue[brain] for tissue in tissues), *parts])
    data = np.zeros((len(_INTENSITIES), *grid.shape), dtype=np.float32)
    (receiver,) = random.spawn(1)  # noise takes as many numbers as there are voxels; all else is the same at 1 and 2 mm
    for image, intensities in zip(data, _INTENSITIES.values(), strict=True):
        contrast = np.asarray(intensities) * np.exp(0.04 * random.standard_normal(len(intensities)))
        texture = 0.06 * _smooth_noise(random, grid, 5)[brain] + 0.08 * _smooth_noise(random, grid, 70)[brain]
        signal = contrast @ mixture * np.exp(texture)
        real, imaginary = _NOISE * receiver.standard_normal((2, signal.size))
        image[brain] = np.maximum(np.rint(np.hypot(signal + real, imaginary)), 1)
    return Scan(data, grid, tuple(_INTENSITIES))


def _world(grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """World coordinates in mm of an axis-parallel grid, one array per axis, ready to broadcast."""
    x, y, z = np.ogrid[tuple(slice(n) for n in grid.shape)]
    (dx, dy, dz), (x0, y0, z0) = np.diag(grid.affine)[:3], grid.affine[:3, 3]
    return x * dx + x0, y * dy + y0, z * dz + z0


def _smooth_noise(random: np.random.Generator, grid: Grid, scale: float) -> np.ndarray:
    """Noise (X, Y, Z) of unit variance that varies over `scale` mm: cubic B-splines on random nodes in the world.

    The nodes do not depend on the grid, so that one generator gives one field at every spacing.
    """
    nodes = np.arange(np.floor(-150 / scale), np.ceil(150 / scale) + 1)
    field = random.standard_normal((nodes.size,) * 3, dtype=np.float32)
    for positions in _world(grid):
        t = np.abs(positions.reshape(-1, 1) / scale - nodes)
        weights = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6)
        weights /= np.linalg.norm(weights, axis=1, keepdims=True)
        field = np.tensordot(field, weights.astype(np.float32), axes=(0, 1))
    return field
