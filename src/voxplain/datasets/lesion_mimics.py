"""Mimics: what looks like a lesion of multiple sclerosis on FLAIR and is none, painted into a scan by stated rules.

The rules were fixed before any score of a lesion was looked at; nothing here was chosen by what a network said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import cdist

from voxplain.brain_tissue import white_matter
from voxplain.datasets.phantom_anatomy import world
from voxplain.errors import InputError
from voxplain.scan import Labels, Scan

# The label of each kind of mimic.
MIMICS = {"vessel": 1, "cap": 2, "septum": 3, "cortical spot": 4}
# How many of each kind a patient has: both ends included.
_COUNTS = {"vessel": (4, 10), "cap": (2, 5), "septum": (0, 1), "cortical spot": (4, 10)}
# How bright, as multiples of white matter on FLAIR, and by which factor T1 changes: as lesions on FLAIR (1.2 to 1.65
# times), but hardly darker on T1, where lesions reach down to 0.35 times.
_FLAIR = {"vessel": (1.25, 1.7), "cap": (1.2, 1.5), "septum": (1.2, 1.5), "cortical spot": (1.35, 1.7)}
_T1 = {"vessel": (0.8, 1.0), "cap": (0.85, 1.0), "septum": (0.9, 1.0), "cortical spot": (0.95, 1.05)}
# How much of a voxel's signal a mimic takes at most: some are faint.
_STRENGTH = (0.7, 1.0)
# Tissue by T1, as shares of white matter.
_FLUID, _GREY = 0.55, (0.58, 0.8)
_SMOOTHING_MM = 0.7
# Ventricles: fluid so deep below the brain's surface, so near the mid-plane, above the cisterns.
_DEEP_MM, _FROM_THE_MIDDLE_MM, _LOWEST_MM = 20.0, 28.0, 2.0
# Shapes, in mm.
_TUBE_LENGTH, _TUBE_RADIUS, _TUBE_BEND, _TUBE_STEP = (8.0, 25.0), (0.6, 1.2), 0.18, 0.5
_CAP_RADIUS, _CAP_THICKNESS, _HORN = (5.0, 9.0), (1.5, 3.0), 0.15
_SEPTUM_RADIUS, _SEPTUM_THICKNESS, _SEPTUM_FROM_FLUID = (4.0, 8.0), 1.2, 4.0
_SPOT_RADIUS, _SPOT_DEPTH = (1.2, 3.0), (2.0, 20.0)
_EDGE_MM = 0.5
# Artefacts of the whole image: standard deviation of noise as a share of white matter, and the strength of a ghost.
_NOISE, _GHOST, _GHOST_SHIFT = (0.01, 0.04), (0.01, 0.04), (0.2, 0.5)
# Mimics stay so far from lesions, so that what is predicted on one is not right by touching the other.
_APART_MM = 3.0


@dataclass(frozen=True, eq=False)
class _Brain:
    """What shapes are placed by: arrays (X, Y, Z), distances in mm."""

    free: np.ndarray
    grey: np.ndarray
    depth: np.ndarray
    ventricles: np.ndarray
    from_ventricles: np.ndarray
    places: tuple[np.ndarray, np.ndarray, np.ndarray]
    shape: tuple[int, int, int]
    index: Callable[[np.ndarray], np.ndarray]


def paint_mimics(scan: Scan, *, seed: int = 0, known: Labels | None = None) -> tuple[Scan, Labels]:
    """A scan with mimics of lesions, which are bright on FLAIR and hardly dark on T1, and with noise and a ghost.

    Vessels are thin bent tubes anywhere in tissue (4 to 10), caps thin rims at the horns of the ventricles (2 to 5), a
    septum a plate at the mid-plane beside them (none or one), cortical spots small balls in grey matter (4 to 10). A
    mimic stays out of fluid and 3 mm away from known lesions; what does not fit is left out. FLAIR gets a faint copy of
    itself, shifted along the posterior-anterior axis; both sequences get noise. Other sequences stay as they are.

    Args:
        scan: skull-stripped, in MNI space on axes parallel to the world's, with flair and t1, not normalised.
        seed: what all that is random follows from.
        known: lesions of the scan, on its grid.

    Returns:
        The scan, and labels by the kinds of `MIMICS`, 0 elsewhere.

    Raises:
        InputError: no flair or t1, no brain, lesions on another grid, or a grid that is turned.
    """
    if "flair" not in scan.channels:
        raise InputError(f"mimics are painted on flair and t1; the scan has {', '.join(scan.channels)}")
    white = white_matter(scan)
    if known is not None and (difference := scan.grid.difference(known.grid)):
        raise InputError(f"known lesions lie on the scan's grid; these differ: {difference}")
    rotation = scan.grid.affine[:3, :3]
    if np.count_nonzero(np.abs(rotation - np.diag(np.diag(rotation))) > 1e-6):
        raise InputError(
            "mimics are placed by world axes; the scan's grid is turned against them: bring it to MNI space"
        )
    random = np.random.default_rng(seed)
    shapes, artefacts = random.spawn(2)
    brain = _brain(scan, white["t1"], known)
    data = scan.data.copy()
    flair, t1 = (data[scan.channels.index(name)] for name in ("flair", "t1"))
    labels = np.zeros(scan.grid.shape, dtype=np.int32)
    for kind, draw in (("vessel", _tube), ("cap", _cap), ("septum", _septum), ("cortical spot", _spot)):
        low, high = _COUNTS[kind]
        for _ in range(int(shapes.integers(low, high + 1))):
            drawn = draw(shapes, brain)
            brightness, factor, strength = (shapes.uniform(*its) for its in (_FLAIR[kind], _T1[kind], _STRENGTH))
            if drawn is None:
                continue
            box, mask = drawn
            share = strength * _soft(mask, scan.grid.spacing) * (brain.free[box] | mask)
            flair[box] = np.maximum(flair[box], flair[box] + share * (brightness * white["flair"] - flair[box]))
            t1[box] *= 1 + share * (factor - 1)
            labels[box][mask & (labels[box] == 0)] = MIMICS[kind]
    _artefacts(artefacts, scan, data, white)
    return Scan(data, scan.grid, scan.channels), Labels(labels, scan.grid)


def _brain(scan: Scan, white: float, known: Labels | None) -> _Brain:
    inside, spacing = scan.foreground(), scan.grid.spacing
    t1 = ndimage.gaussian_filter(scan.channel("t1"), np.divide(_SMOOTHING_MM, spacing)) / white
    depth = ndimage.distance_transform_edt(inside, sampling=spacing)
    x, y, z = world(scan.grid)
    fluid = inside & (t1 < _FLUID)
    ventricles = fluid & (depth > _DEEP_MM) & (np.abs(x) < _FROM_THE_MIDDLE_MM) & (z > _LOWEST_MM)
    far = np.full(inside.shape, np.inf)
    from_ventricles = ndimage.distance_transform_edt(~ventricles, sampling=spacing) if ventricles.any() else far
    free = inside & ~fluid
    if known is not None and known.data.any():
        free &= ndimage.distance_transform_edt(known.data == 0, sampling=spacing) > _APART_MM
    grey = free & (t1 > _GREY[0]) & (t1 < _GREY[1])
    return _Brain(free, grey, depth, ventricles, from_ventricles, (x, y, z), scan.grid.shape, scan.grid.index)


_Drawn = tuple[tuple[slice, ...], np.ndarray] | None


def _tube(random: np.random.Generator, brain: _Brain) -> _Drawn:
    place = _one_of(random, brain, brain.free)
    direction = random.standard_normal(3)
    steps = int(random.uniform(*_TUBE_LENGTH) / _TUBE_STEP)
    bends, radius = random.normal(0, _TUBE_BEND, (steps, 3)), random.uniform(*_TUBE_RADIUS)
    if place is None:
        return None
    points = np.empty((steps, 3))
    for step, bend in enumerate(bends):
        direction = direction / np.linalg.norm(direction) + bend
        place = place + _TUBE_STEP * direction / np.linalg.norm(direction)
        points[step] = place
    return _within(brain, points, radius, brain.free)


def _cap(random: np.random.Generator, brain: _Brain) -> _Drawn:
    anterior, right = random.random(2) < 0.5
    x, y, _ = brain.places
    side = brain.ventricles & ((x > 0) if right else (x < 0))
    found = np.flatnonzero(side.any(axis=(0, 2)))
    horns = side
    if found.size:
        along = y.ravel()[found]
        limit = np.quantile(along, 1 - _HORN if anterior else _HORN)
        horns = side & ((y >= limit) if anterior else (y <= limit))
    place = _one_of(random, brain, horns)
    radius, thickness = random.uniform(*_CAP_RADIUS), random.uniform(*_CAP_THICKNESS)
    return None if place is None else _within(brain, place[None], radius, brain.free, rim=thickness)


def _septum(random: np.random.Generator, brain: _Brain) -> _Drawn:
    plate = np.abs(brain.places[0]) < _SEPTUM_THICKNESS
    place = _one_of(random, brain, brain.free & plate & (brain.from_ventricles < _SEPTUM_FROM_FLUID))
    radius = random.uniform(*_SEPTUM_RADIUS)
    if place is None:
        return None
    return _within(brain, place[None], radius, brain.free & plate, rim=_SEPTUM_FROM_FLUID)


def _spot(random: np.random.Generator, brain: _Brain) -> _Drawn:
    low, high = _SPOT_DEPTH
    place = _one_of(random, brain, brain.grey & (brain.depth > low) & (brain.depth < high))
    radius = random.uniform(*_SPOT_RADIUS)
    return None if place is None else _within(brain, place[None], radius, brain.free)


def _one_of(random: np.random.Generator, brain: _Brain, allowed: np.ndarray) -> np.ndarray | None:
    """World coordinates (3,) of one of the voxels; None where there is none. Takes one draw either way."""
    luck = random.random()
    found = np.flatnonzero(allowed)
    if not found.size:
        return None
    index = np.unravel_index(found[int(luck * found.size)], brain.shape)
    return np.array([axis.ravel()[i] for axis, i in zip(brain.places, index, strict=True)], dtype=np.float64)


def _within(brain: _Brain, points: np.ndarray, radius: float, allowed: np.ndarray, rim: float | None = None) -> _Drawn:
    """The voxels allowed within a radius in mm of points (n, 3), as a box and a mask in it; None where there are none.

    With a rim, only those so near to the ventricles, in mm, and not in them.
    """
    corners = np.stack([brain.index(points.min(axis=0) - radius - 2), brain.index(points.max(axis=0) + radius + 2)])
    low = np.maximum(np.floor(corners.min(axis=0)), 0).astype(int)
    high = np.minimum(np.ceil(corners.max(axis=0)) + 1, brain.shape).astype(int)
    if (low >= high).any():
        return None
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    axes = [axis.ravel()[part] for axis, part in zip(brain.places, box, strict=True)]
    voxels = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    away = cdist(voxels.reshape(-1, 3), points).min(axis=1).reshape(voxels.shape[:3])
    mask = (away <= radius) & allowed[box]
    if rim is not None:
        mask &= (brain.from_ventricles[box] > 0) & (brain.from_ventricles[box] <= rim)
    return (box, mask) if mask.any() else None


def _soft(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """How much of a voxel is mimic, 0 to 1, as of a lesion: blurred at the border, 1 at its core."""
    blurred = ndimage.gaussian_filter(mask.astype(np.float32), np.divide(_EDGE_MM, spacing))
    soft: np.ndarray = np.clip(blurred / blurred[mask].max(), 0, 1)
    return soft


def _artefacts(random: np.random.Generator, scan: Scan, data: np.ndarray, white: dict[str, float]) -> None:
    """A ghost on FLAIR and noise on both, in place and inside the brain; every voxel there stays above 0."""
    inside = scan.foreground()
    axis = scan.grid.axis("PA")
    shift = round(random.uniform(*_GHOST_SHIFT) * scan.grid.shape[axis])
    strength = random.uniform(*_GHOST)
    flair = data[scan.channels.index("flair")]
    ghost = np.roll(flair, shift, axis=axis)[inside]
    flair[inside] = (1 - strength) * flair[inside] + strength * ghost
    for name in ("flair", "t1"):
        channel = data[scan.channels.index(name)]
        noise = white[name] * random.uniform(*_NOISE) * random.standard_normal(int(inside.sum()), dtype=np.float32)
        channel[inside] = np.maximum(channel[inside] + noise, 1e-3 * white[name])
