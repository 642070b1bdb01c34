"""A lesion where it was not: in healthy white matter, and outside of the brain (paper instance, 004, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import ndimage, signal

from voxplain.brain_tissue import white_matter_voxels
from voxplain.scan import Labels, Scan

ORIGINAL, WHITE, OUTSIDE = "original", "white matter", "outside the brain"
PLACES = (ORIGINAL, WHITE, OUTSIDE, f"{OUTSIDE}, with 3 mm")
_TISSUE_MM = 3.0
# A clearly visible lesion is of about the paper's mean size; of those the surest one is taken.
_USUAL_MM3, _BAND_MM3 = 93.0, (50.0, 200.0)
# Healthy tissue lies so far from any lesion.
_APART_MM = 5.0
_ENOUGH_WHITE = 0.9


@dataclass(frozen=True, eq=False)
class Placement:
    """A scan that holds a copy of a lesion somewhere, and where the copy lies; the original stays where it is."""

    place: str
    scan: Scan
    region: Labels


def clearly_visible(table: pd.DataFrame) -> int | None:
    """The TP of 50 to 200 mm^3 with the highest mean probability; without any, the TP whose size is nearest to 93 mm^3.

    None where nothing is right.
    """
    right = table[table["kind"] == "TP"]
    if right.empty:
        return None
    usual = right[right["volume_mm3"].between(*_BAND_MM3)]
    if usual.empty:
        return int(right["lesion"].iloc[int((right["volume_mm3"] - _USUAL_MM3).abs().to_numpy().argmin())])
    return int(usual["lesion"].iloc[int(usual["mean_probability"].to_numpy().argmax())])


def copied(scan: Scan, source: np.ndarray, offset: tuple[int, int, int]) -> Scan:
    """The scan with the voxels of `source`, boolean (X, Y, Z), of all sequences copied so many voxels further.

    All of it must lie on the grid there.
    """
    x, y, z = (np.argwhere(source) + offset).T
    data = scan.data.copy()
    data[:, x, y, z] = scan.data[:, source]
    return Scan(data, scan.grid, scan.channels)


def moved(region: np.ndarray, offset: tuple[int, int, int]) -> np.ndarray:
    """A region, boolean (X, Y, Z), so many voxels further; all of it must lie on the grid there."""
    found = np.zeros_like(region)
    found[tuple((np.argwhere(region) + offset).T)] = True
    return found


def placements(scan: Scan, lesion: np.ndarray, lesions: np.ndarray, *, seed: int) -> list[Placement]:
    """The lesion where it is, in white matter, outside of the brain, and there with 3 mm of its tissue.

    White matter is where T1 lies between its 70th and its 95th percentile over the brain, 5 mm or more from all
    lesions; of the places where nine in ten of the lesion's voxels would be such (or as many as can), one is drawn.
    Outside is the place that is farthest from both the brain and the border of the grid. A place that does not exist is
    left out.

    Args:
        scan: skull-stripped, with t1, not normalised.
        lesion: boolean (X, Y, Z).
        lesions: all lesions, known or predicted, boolean (X, Y, Z).
        seed: of the place in white matter.
    """
    grid, brain = scan.grid, scan.foreground()
    found = [Placement(ORIGINAL, scan, Labels(lesion, grid))]
    near = _within(lesion, grid.spacing, _TISSUE_MM)
    white = white_offset(scan, lesion, lesions, seed=seed)
    if white is not None:
        found.append(Placement(WHITE, copied(scan, lesion, white), Labels(moved(lesion, white), grid)))
    outside = outside_offset(brain, near, grid.spacing)
    if outside is not None:
        region = Labels(moved(lesion, outside), grid)
        found.append(Placement(OUTSIDE, copied(scan, lesion, outside), region))
        found.append(Placement(PLACES[3], copied(scan, near, outside), region))
    return found


def white_offset(scan: Scan, lesion: np.ndarray, lesions: np.ndarray, *, seed: int) -> tuple[int, int, int] | None:
    """By how many voxels a lesion is moved to lie in healthy white matter; None where none of its voxels would."""
    ill = _within(lesions | lesion, scan.grid.spacing, _APART_MM)
    healthy = white_matter_voxels(scan) & ~ill
    (box,) = ndimage.find_objects(lesion.astype(np.int8))
    shape = lesion[box][::-1, ::-1, ::-1].astype(np.float32)
    # How many of the lesion's voxels are healthy, or ill, with the box's first voxel at each place.
    count = np.rint(signal.fftconvolve(healthy.astype(np.float32), shape, mode="valid"))
    blocked = np.rint(signal.fftconvolve(ill.astype(np.float32), shape, mode="valid"))
    count[blocked > 0] = 0
    if count.max() < 1:
        return None
    places = np.argwhere(count >= min(count.max(), _ENOUGH_WHITE * lesion.sum()))
    place = places[np.random.default_rng(seed).integers(len(places))]
    return _offset(place, [side.start for side in box])


def outside_offset(brain: np.ndarray, region: np.ndarray, spacing: tuple[float, ...]) -> tuple[int, int, int] | None:
    """By how many voxels a region is moved to lie outside of the brain, as far from it and from the border as can be.

    None where there is no room for it.
    """
    room = ndimage.distance_transform_edt(np.pad(~brain, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    place = np.array(np.unravel_index(int(room.argmax()), room.shape))
    voxels = np.argwhere(region)
    # The middle of the box, not of mass: a region reaches equally far from it to both sides.
    middle = (voxels.min(axis=0) + voxels.max(axis=0)) // 2
    there = voxels + (place - middle)
    if (there < 0).any() or (there >= brain.shape).any() or brain[tuple(there.T)].any():
        return None
    return _offset(place, middle)


def _within(region: np.ndarray, spacing: tuple[float, ...], reach: float) -> np.ndarray:
    found: np.ndarray = ndimage.distance_transform_edt(~region, sampling=spacing) <= reach + 1e-6
    return found


def _offset(place: np.ndarray, start: np.ndarray | list[int]) -> tuple[int, int, int]:
    x, y, z = (int(there) - int(here) for there, here in zip(place, start, strict=True))
    return x, y, z
