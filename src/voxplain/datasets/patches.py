"""Patches of scans with marked lesions: what a segmentation network learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from voxplain.errors import InputError
from voxplain.lesions import NEIGHBOURS_18
from voxplain.model import Card
from voxplain.preparation import prepare
from voxplain.scan import Labels, Scan

_VOXELS = 5000
# Kept around the brain, so that networks see where it ends.
_MARGIN = 8


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan as a network reads it, cut to the brain, with its lesions.

    `image` is normalised, (C, X, Y, Z) in 16 bits; `blobs` (X, Y, Z) numbers the lesions from 1 on, by 18-connectivity;
    `places` (N, 3) holds one voxel of each lesion, its first; `inside` (N, 3) voxels of lesions, of large ones some;
    `brain` (N, 3) some voxels of the brain. `weight` is how
    often the volume is drawn beside others.
    """

    name: str
    image: np.ndarray
    blobs: np.ndarray
    places: np.ndarray
    inside: np.ndarray
    brain: np.ndarray
    weight: float = 1.0


def volume_of(name: str, scan: Scan, lesions: Labels, card: Card, patch: Sequence[int], weight: float = 1.0) -> Volume:
    """Prepare a scan as the card declares, and number its lesions.

    Raises:
        InputError: the card is not that of a network that reads whole volumes, or the scan does not fit it.
    """
    regions = prepare(scan, card)
    if len(regions) != 1 or card.spatial_dims != 3:
        raise InputError("patches are cut from whole volumes; the card reads halves or slices")
    (prepared,) = regions
    mask = lesions.on(prepared.input.grid).data > 0
    box = _box(prepared.foreground, patch)
    numbers, _ = ndimage.label(mask[box], NEIGHBOURS_18)
    first = np.unique(numbers, return_index=True)[1][0 if numbers.all() else 1 :]
    voxels = np.argwhere(numbers)
    brain = np.argwhere(prepared.foreground[box][::4, ::4, ::4]) * 4
    return Volume(
        name,
        prepared.input.data[(slice(None), *box)].astype(np.float16),
        numbers.astype(np.int32),
        np.stack(np.unravel_index(first, numbers.shape), axis=1),
        voxels[:: max(1, len(voxels) // _VOXELS)].astype(np.int32),
        brain,
        weight,
    )


def draw(
    volumes: Sequence[Volume], patch: Sequence[int], random: np.random.Generator, *, lesions: float = 0.75
) -> tuple[np.ndarray, np.ndarray]:
    """A patch of one of the volumes, mirrored along random axes: float32 (C, x, y, z), and its blobs int64 (x, y, z).

    A share `lesions` of the patches holds a voxel of a lesion: in half of them each lesion comes as often as any other,
    in the other half by its size. The other patches hold some of the brain. Blobs are numbered from 1 on, without gaps;
    one that the patch cuts into pieces keeps one number.
    """
    weights = np.array([volume.weight for volume in volumes])
    volume = volumes[random.choice(len(volumes), p=weights / weights.sum())]
    anywhere = random.random() >= lesions or not len(volume.places)
    by_size = random.random() < 0.5
    centres = volume.brain if anywhere else volume.inside if by_size else volume.places
    centre = centres[random.integers(len(centres))]
    extent, size = np.array(volume.blobs.shape), np.array(patch)
    # The voxel lies anywhere in the patch, but for a rim.
    start = centre - random.integers(size // 8, size - size // 8)
    start = np.clip(start, 0, extent - size)
    box = tuple(slice(a, a + n) for a, n in zip(start.tolist(), size.tolist(), strict=True))
    image, blobs = volume.image[(slice(None), *box)].astype(np.float32), volume.blobs[box]
    for axis in range(3):
        if random.random() < 0.5:
            image, blobs = np.flip(image, axis + 1), np.flip(blobs, axis)
    present, numbers = np.unique(blobs, return_inverse=True)
    numbers = numbers.reshape(blobs.shape) + (0 if present[0] == 0 else 1)
    return np.ascontiguousarray(image), numbers.astype(np.int64)


def _box(foreground: np.ndarray, patch: Sequence[int]) -> tuple[slice, slice, slice]:
    """The brain's box with a margin, at least as large as a patch.

    Raises:
        InputError: the whole volume is smaller than a patch.
    """
    found = []
    for axis, size in enumerate(patch):
        extent = foreground.shape[axis]
        if extent < size:
            raise InputError(f"a patch of {tuple(patch)} voxels does not fit into a scan of {foreground.shape}")
        there = np.flatnonzero(foreground.any(axis=tuple(other for other in range(3) if other != axis)))
        start, stop = max(0, there[0] - _MARGIN), min(extent, there[-1] + 1 + _MARGIN)
        missing = max(0, size - (stop - start))
        start = min(max(0, start - missing // 2), extent - size)
        found.append(slice(int(start), int(max(stop, start + size))))
    return found[0], found[1], found[2]
