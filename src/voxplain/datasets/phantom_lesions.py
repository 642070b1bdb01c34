"""What grows in a phantom: a glioma that pushes the tissue around it away, or lesions of multiple sclerosis."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from voxplain.datasets.phantom_anatomy import FLUID, GREY, WHITE, Anatomy, smooth_noise, world
from voxplain.grid import Grid

NECROTIC, OEDEMA, ENHANCING = 1, 2, 4
LESION = 1

# A tumour keeps this far from the mid-sagittal plane, and above this height: the cerebellum stays free.
_FROM_THE_MIDDLE_MM = 3.0
LOWEST_TUMOUR_MM = -34.0
_LOWEST_LESION_MM = -15.0
_OEDEMA_REACH_MM = 45.0
# The share of an oligodendroglioma's core that holds calcium.
_CALCIFIED = 0.25
# Where tumours start: the white matter of the lobes, as boxes (x away from the middle, y, z) in mm with their weights.
_SITES = (
    (0.35, (22, 5, 5), (38, 40, 32)),  # frontal
    (0.25, (24, -62, 15), (40, -25, 40)),  # parietal
    (0.25, (34, -40, -14), (46, -5, 2)),  # temporal
    (0.15, (22, -80, 0), (34, -60, 20)),  # occipital
)


@dataclass(frozen=True, eq=False)
class Tumour:
    """A glioma in its brain: `labels` (X, Y, Z); where they are 2, how strong the oedema is (0 to 1); and calcium.

    `calcium` is a mask of clumps within the core, empty but for oligodendrogliomas.
    """

    anatomy: Anatomy
    labels: np.ndarray
    oedema: np.ndarray
    calcium: np.ndarray


def grow_glioma(random: np.random.Generator, anatomy: Anatomy, side: int, grade: str) -> Tumour:
    """A tumour, and the anatomy with its tissue pushed aside. Labels as in BraTS: 1 core, 2 oedema, 4 rim.

    `side` is -1 for the patient's left (x < 0), 1 for the right. "HGG" and "G" have an enhancing rim around necrosis;
    any other grade of the same patient has the same outlines and does not enhance, so that size says nothing of the
    grade. An "O" holds clumps of calcium, about a fifth of its core.
    """
    grid = anatomy.grid
    _, low, high = _SITES[random.choice(len(_SITES), p=[site[0] for site in _SITES])]
    centre = random.uniform(low, high) * (side, 1, 1)
    whole_ml = float(np.clip(random.lognormal(np.log(80), 0.55), 26, 190))
    core_ml = whole_ml * random.uniform(0.2, 0.5)
    radius = (3 * core_ml * 1000 / (4 * np.pi)) ** (1 / 3)
    pushed = _push(anatomy, centre, radius * random.uniform(0.3, 0.65) ** (1 / 3))
    away = _away(random, grid, centre, radius)
    tissues = pushed.tissues()
    x, _, z = world(grid)
    free = anatomy.brain & (side * x > _FROM_THE_MIDDLE_MM) & (z > LOWEST_TUMOUR_MM)
    blocked = np.where(free, np.float32(0), np.float32(1e4))
    core = _nearest(away + 9 * tissues[FLUID] + 3 * (1 - anatomy.deep) + blocked, core_ml, grid)
    # Oedema runs along white matter, in fingers, and hardly crosses cortex or fluid.
    fingers = 4.0 * smooth_noise(random, grid, 15) + 1.5 * smooth_noise(random, grid, 6)
    reach = _distance(core, grid, _OEDEMA_REACH_MM) + fingers + 13 * tissues[GREY] + 35 * tissues[FLUID] + blocked
    whole = _nearest(np.where(core, -100, reach), whole_ml, grid)
    depth = _depth(core, grid)
    thickness = random.uniform(2.8, 5.0) + 2.0 * smooth_noise(random, grid, 9) + 0.6 * smooth_noise(random, grid, 4)
    labels = np.where(whole, OEDEMA, 0)
    labels[core] = NECROTIC
    if grade in ("HGG", "G"):
        labels[core & (depth <= np.clip(thickness, 1.2, 9))] = ENHANCING
    edge = np.max(reach, where=whole & ~core, initial=1)
    strength = np.clip(1.25 - 0.85 * np.clip(reach / edge, 0, 1), 0, 1) * (1 - 0.45 * tissues[GREY])
    calcium = np.zeros(grid.shape, dtype=bool)
    if grade == "O":
        # The last draw, so that a patient's other grades have the same outlines.
        clumps = smooth_noise(random, grid, 5)
        calcium = core & (depth > 1.5) & (clumps > np.quantile(clumps[core], 1 - _CALCIFIED))
    return Tumour(pushed, labels.astype(np.int32), strength.astype(np.float32), calcium)


def scatter_lesions(random: np.random.Generator, anatomy: Anatomy, coarse: Anatomy) -> np.ndarray:
    """A mask (X, Y, Z) of lesions of multiple sclerosis: around the ventricles mostly, some below the cortex.

    10 to 45 lesions of log-normal volume (median 0.1 ml), irregular ellipsoids drawn out away from the ventricles.
    Those that touch have grown together. Places are chosen on `coarse`, the same brain at 2 mm, whatever the grid of
    `anatomy`, so that the patient is one at every spacing.
    """
    count = int(random.integers(10, 46))
    centres = _lesion_centres(random, coarse, count)
    volumes = np.clip(random.lognormal(np.log(100), 1.1, count), 15, 5000)
    stretches = random.uniform(1, 1.8, count)
    grid = anatomy.grid
    uneven = np.exp(0.22 * smooth_noise(random, grid, 4) + 0.12 * smooth_noise(random, grid, 2.2))
    mask = np.zeros(grid.shape, dtype=bool)
    for centre, volume, stretch in zip(centres, volumes, stretches, strict=True):
        # Lesions follow the veins, which run away from the ventricles.
        vein = centre - (np.sign(centre[0]) * 14, np.clip(centre[1], -40, 25), 18)
        vein = vein / max(float(np.linalg.norm(vein)), 1e-6)
        radius = (3 * volume / (4 * np.pi)) ** (1 / 3)
        low, high = (np.rint(grid.index(centre + sign * (2 * radius + 3))).astype(int) for sign in (-1, 1))
        box = tuple(slice(max(0, a), b + 1) for a, b in zip(low, high, strict=True))
        window = grid.window([part.start for part in box], uneven[box].shape)
        offset = [axis - c for axis, c in zip(world(window), centre, strict=True)]
        along = sum(part * v for part, v in zip(offset, vein, strict=True))
        across = np.sqrt(np.maximum(sum(part**2 for part in offset) - along**2, 0))
        mask[box] |= np.hypot(along / stretch, across * stretch**0.5) * uneven[box] < radius
    cerebrum = anatomy.brain & (world(grid)[2] > _LOWEST_LESION_MM)
    return mask & cerebrum & (anatomy.tissues()[FLUID] < 0.5)


def _lesion_centres(random: np.random.Generator, anatomy: Anatomy, count: int) -> np.ndarray:
    """World coordinates (count, 3) in mm: white matter by the ventricles, then below the cortex, then anywhere."""
    tissues = anatomy.tissues()
    x, _, z = world(anatomy.grid)
    # The lateral ventricles: deep fluid above the cisterns, off the mid-plane.
    ventricles = (tissues[FLUID] > 0.5) & (anatomy.deep > 0.9) & (np.abs(x) > 5) & (np.abs(x) < 40) & (z > 2)
    from_ventricle = _distance(ventricles, anatomy.grid)
    candidates = random.uniform((-60, -85, _LOWEST_LESION_MM), (60, 60, 65), (4000, 3))
    place = tuple(np.rint(anatomy.grid.index(candidates)).astype(int).T)
    near, grey, white = from_ventricle[place], tissues[GREY][place], tissues[WHITE][place]
    periventricular, juxtacortical = (near > 1) & (near < 7), (near > 12) & (grey > 0.15) & (grey < 0.7)
    weight = anatomy.brain[place] * (white > 0.3) * (0.01 + 6.0 * periventricular + 0.12 * juxtacortical)
    # The first of exponential waiting times: a draw by weight.
    waiting = random.exponential(size=weight.size) / np.maximum(weight, 1e-9)
    chosen: np.ndarray = candidates[np.argsort(waiting)[:count]]
    return chosen


def _away(random: np.random.Generator, grid: Grid, centre: np.ndarray, radius: float) -> np.ndarray:
    """Distance in mm from a lobed core: the least over a ball and up to two smaller ones beside it, uneven."""
    x, y, z = world(grid)
    found: np.ndarray | None = None
    for lobe in range(3):
        offset = np.zeros(3) if lobe == 0 else random.normal(0, 0.45, 3) * radius
        radii = random.uniform(0.8, 1.25, 3)
        shrink = 0.0 if lobe == 0 else random.uniform(0.1, 0.5) * radius
        position = centre + offset
        squared = sum(((p - c) / r) ** 2 for p, c, r in zip((x, y, z), position, radii, strict=True))
        distance = np.sqrt(squared) + shrink
        found = distance if found is None else np.minimum(found, distance)
    assert found is not None
    uneven: np.ndarray = found + 2.2 * smooth_noise(random, grid, 12) + 1.0 * smooth_noise(random, grid, 5)
    return uneven.astype(np.float32)


def _push(anatomy: Anatomy, centre: np.ndarray, radius: float) -> Anatomy:
    """The anatomy after a ball of that radius in mm has grown from the centre: tissue moves outward, skull stays.

    Tissue keeps its volume (r^3 grows by radius^3), fades out over 45 mm, and slows down towards the surface.
    """
    grid = anatomy.grid
    reach = 75.0
    first = np.maximum(np.floor(grid.index(centre - reach)), 0).astype(int)
    last = np.minimum(np.ceil(grid.index(centre + reach)) + 1, grid.shape).astype(int)
    box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    window = grid.window(first, last - first)
    x, y, z = (axis - np.float32(c) for axis, c in zip(world(window), centre, strict=True))
    distance = np.sqrt(x**2 + y**2 + z**2) + 1e-3
    source = np.cbrt(np.maximum(distance**3 - radius**3, 0.02 * distance**3))
    fade = np.clip((reach - distance) / 45, 0, 1) * (0.25 + 0.75 * anatomy.deep[box])
    share = (source / distance - 1) * fade / grid.spacing[0]
    at = np.indices(window.shape, dtype=np.float32) + np.stack([share * x, share * y, share * z])
    odds = anatomy.odds.copy()
    for tissue in range(len(odds)):
        moved = ndimage.map_coordinates(anatomy.odds[tissue][box], at, order=1, mode="nearest")
        odds[tissue][box] = np.where(anatomy.brain[box], moved, odds[tissue][box])
    return replace(anatomy, odds=odds)


def _nearest(distance: np.ndarray, millilitres: float, grid: Grid) -> np.ndarray:
    """The mask of about that volume where the distance is least: what of it hangs together, without holes."""
    count = round(millilitres * 1000 / grid.voxel_volume)
    parts, _ = ndimage.label(distance <= np.partition(distance, count, axis=None)[count])
    return parts == np.bincount(parts.ravel())[1:].argmax() + 1


def _distance(mask: np.ndarray, grid: Grid, reach: float = np.inf) -> np.ndarray:
    """Distance in mm of each voxel to a mask's nearest voxel; 1e4 in voxels further than `reach` along an axis."""
    found = np.full(mask.shape, 1e4, dtype=np.float32)
    box = _box(mask, min(reach, 1e3) / grid.spacing[0])
    found[box] = ndimage.distance_transform_edt(~mask[box], sampling=grid.spacing)
    return found


def _depth(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """How deep in mm each voxel of a mask lies below its surface; 0 outside."""
    found = np.zeros(mask.shape, dtype=np.float32)
    box = _box(mask, 1)
    found[box] = ndimage.distance_transform_edt(mask[box], sampling=grid.spacing)
    return found


def _box(mask: np.ndarray, margin: float) -> tuple[slice, ...]:
    """The smallest box that holds a mask, and `margin` voxels around it."""
    (box,) = ndimage.find_objects(mask.astype(np.int8))
    around = int(np.ceil(margin))
    return tuple(slice(max(0, part.start - around), part.stop + around) for part in box)
