"""From the user's scan to what the card declares: resampled, normalised, cut - each step recorded, none silent."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from voxplain.errors import InputError
from voxplain.grid import Grid
from voxplain.model import Card
from voxplain.scan import Scan

# Brains measure 0.9 to 1.9 litres; a head with its skull, or a field of view without background, far more.
_LARGEST_BRAIN_ML = 2500.0
_SMALLEST_BRAIN_ML = 500.0
# Dice of the brain with its own mirror image: 0.92 to 0.97 on aligned BraTS heads.
_ALIGNED_SYMMETRY = 0.88
# The plane of symmetry may lie this far from the middle of the grid before the cut follows the brain instead.
_CENTRED_WITHIN_MM = 6.0


@dataclass(frozen=True, eq=False)
class Prepared:
    """One region of a scan as the network reads it.

    `input` is normalised, its channels in the card's order; its grid says where it lies in the world (a mirrored half
    has a flipped axis). `foreground` (X, Y, Z) marks the voxels that were not background before normalisation.
    `background` (C,) is what the raw value 0 became in each channel. `box` is the region on the scan's own grid.
    """

    name: str
    input: Scan
    foreground: np.ndarray
    background: tuple[float, ...]
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Midplane:
    """Where a head is its own mirror image: a face between voxels, counted along `axis`.

    `overlap` is the Dice of the brain with its mirror image; `off_centre` how far, in mm, the plane lies from the
    middle of the grid, 0 where it is the middle.
    """

    axis: int
    face: int
    overlap: float
    off_centre: float

    @property
    def aligned(self) -> bool:
        """Whether brain and mirror image overlap as those of a head that is aligned with the grid's axes."""
        return self.overlap >= _ALIGNED_SYMMETRY

    @property
    def note(self) -> str:
        """Why the plane lies there, in words."""
        why = "the brain's plane of symmetry" if self.off_centre else "middle of the grid"
        return f"{why} (overlap of brain and mirror image {self.overlap:.3f})"


def prepare(scan: Scan, card: Card) -> list[Prepared]:
    """Do what the card declares: pick channels by name, reorient, resample, normalise, cut into its regions.

    Returns:
        One `Prepared` for region "whole"; two for region "half", first the half that comes first in the card's
        orientation, then the other one, mirrored onto it. The mid-sagittal plane is the last face of the first axis
        that runs from left to right.

    Raises:
        InputError: a channel is missing or empty, the network's dimensions do not fit, or the scan is plainly not
            what the card expects (not skull-stripped, head not aligned).
    """
    missing = [name for name in card.channels if name not in scan.channels]
    if missing:
        raise InputError(
            f"the model reads {', '.join(card.channels)}; the scan has {', '.join(scan.channels)}; "
            f"missing: {', '.join(missing)}"
        )
    if card.spatial_dims == 2 and scan.grid.shape[2] != 1:
        raise InputError(
            f"a 2D network reads images (scans with Z = 1); this scan is {scan.grid.shape}; "
            "cut out a slice, or use a 3D network"
        )
    if card.spatial_dims == 3 and scan.grid.shape[2] == 1:
        raise InputError(f"a 3D network reads volumes; this scan is a 2D image {scan.grid.shape}; use a 2D network")
    scan = scan.select(card.channels)
    empty = [name for name, data in zip(scan.channels, scan.data, strict=True) if not data.any()]
    if empty:
        raise InputError(f"sequence {', '.join(empty)} is zero in every voxel; expected an image")
    if card.skull_stripped:
        _check_skull_stripped(scan)
    return _halves(scan, card) if card.region == "half" else [_whole(scan, card)]


def _whole(scan: Scan, card: Card) -> Prepared:
    resampled, record = _on_lattice(scan, card)
    foreground = resampled.foreground()
    normalised, background = _normalised(resampled, card)
    box = tuple((0, n) for n in scan.grid.shape)
    if card.shape is not None:
        start = [int(np.floor((n - size) / 2)) for n, size in zip(resampled.grid.shape, card.shape, strict=True)]
        window = resampled.grid.window(start, card.shape)
        record["cut"] = {"start": start, "shape": list(card.shape)}
        normalised, foreground = _cut(normalised, foreground, background, window)
    return Prepared("whole", normalised, foreground, background, box, record)  # type: ignore[arg-type]


def _halves(scan: Scan, card: Card) -> list[Prepared]:
    grid = scan.grid
    midsagittal = _checked_midplane(scan)
    axis, face = midsagittal.axis, midsagittal.face
    plane_world = _face_world(grid, axis, face)
    resampled, record = _on_lattice(scan, card, plane_world)
    lattice, foreground = resampled.grid, resampled.foreground()
    normalised, background = _normalised(resampled, card)

    across = lattice.axis("LR")
    plane = round(float(lattice.index(plane_world)[across]) + 0.5)
    middle = [_centre(foreground, axis) for axis in range(3)]
    shape = list(card.shape or lattice.shape)
    if card.shape is None:
        shape[across] = max(plane, lattice.shape[across] - plane)
    start = [int(np.floor(centre - size / 2 + 0.5)) for centre, size in zip(middle, shape, strict=True)]
    record |= {"midsagittal_plane": midsagittal.note, "plane_mm": [round(float(x), 3) for x in plane_world]}

    halves = []
    kept = 0
    first_side = "right" if lattice.orientation[across] == "L" else "left"
    # On the scan's own grid the half that holds the lower indices is "first" only when the axes run alike.
    same_direction = grid.orientation[axis] == lattice.orientation[across]
    for second in (False, True):
        start[across] = plane if second else plane - shape[across]
        window = lattice.window(start, shape)
        if second:
            window = window.flipped(across)
        cut, inside = _cut(normalised, foreground, background, window)
        kept += int(inside.sum())
        box = [(0, n) for n in grid.shape]
        box[axis] = (face, grid.shape[axis]) if second == same_direction else (0, face)
        side = first_side if not second else {"left": "right", "right": "left"}[first_side]
        halves.append(Prepared(side, cut, inside, background, (box[0], box[1], box[2]), record))
    lost = 1 - kept / max(1, int(foreground.sum()))
    record["cut"] = {"shape": list(shape), "brain_left_out": round(lost, 4)}
    if lost > 0.02:
        warnings.warn(
            f"{lost:.0%} of the brain lies outside the {tuple(shape)} voxels that the model reads of each half",
            UserWarning,
            stacklevel=2,
        )
    return halves


def _on_lattice(scan: Scan, card: Card, plane: np.ndarray | None = None) -> tuple[Scan, dict[str, Any]]:
    """The scan in the card's orientation and spacing, which alone decide where voxels come to lie.

    The mid-sagittal `plane` (a point of it in mm), where there is one, stays a face between voxels.
    """
    grid = scan.grid
    target = grid
    if card.orientation is not None and card.orientation != grid.orientation:
        target = grid.reoriented(card.orientation)
    spacing = card.spacing
    if spacing is not None and not np.allclose(spacing, target.spacing, rtol=0.01):
        faces = np.zeros(3)
        if plane is not None:
            across = target.axis("LR")
            faces[across] = round(float(target.index(plane)[across]) + 0.5, 6)
        target = target.with_spacing(spacing, faces.tolist())
    record = {
        "orientation": f"{grid.orientation} -> {target.orientation}",
        "spacing_mm": f"{_rounded(grid.spacing)} -> {_rounded(target.spacing)}",
        "shape": f"{list(grid.shape)} -> {list(target.shape)}",
        "resampled": target.spacing != grid.spacing and not np.allclose(sorted(target.spacing), sorted(grid.spacing)),
        "normalisation": card.normalisation,
    }
    return (scan if target is grid else scan.on(target)), record


def _rounded(values: tuple[float, ...]) -> list[float]:
    return [round(value, 4) for value in values]


def _normalised(scan: Scan, card: Card) -> tuple[Scan, tuple[float, ...]]:
    """The scan normalised per sequence, and what the raw value 0 became in each channel."""
    if card.normalisation == "none":
        return scan, (0.0,) * len(scan.channels)
    data = np.empty_like(scan.data)
    background = []
    for index, channel in enumerate(scan.data):
        if card.normalisation == "z-score":
            inside = channel != 0
            values = channel[inside].astype(np.float64)
            spread = float(values.std()) or 1.0
            data[index] = np.where(inside, (channel - values.mean()) / spread, 0)
            background.append(0.0)
        else:
            low, high = float(channel.min()), float(channel.max())
            spread = (high - low) or 1.0
            data[index] = (channel - low) / spread
            # In the voxels' own precision, so that background voxels hold exactly this.
            background.append(float(np.float32(-low) / np.float32(spread)))
    return Scan(data, scan.grid, scan.channels), tuple(background)


def _cut(scan: Scan, foreground: np.ndarray, background: tuple[float, ...], window: Grid) -> tuple[Scan, np.ndarray]:
    """The scan and its foreground in a window of the lattice; what lies outside the scan is background."""
    offset = np.asarray(background, dtype=np.float32)[:, None, None, None]
    shifted = Scan(scan.data - offset, scan.grid, scan.channels).on(window)
    inside = Scan(foreground[None].astype(np.float32), scan.grid, ("foreground",)).on(window).data[0] > 0.5
    return Scan(shifted.data + offset, window, scan.channels), inside


def _check_skull_stripped(scan: Scan) -> None:
    foreground = scan.foreground()
    volume = float(foreground.sum()) * scan.grid.voxel_volume / 1000
    share = float(foreground.mean())
    if volume > _LARGEST_BRAIN_ML or share > 0.95:
        raise InputError(
            "the model expects a skull-stripped head on a background of exactly 0; here "
            f"{share:.0%} of the voxels, {volume:.0f} ml, are not 0 (a brain has 900 to 1900 ml): "
            "strip the skull first, and set the background to 0"
        )
    if volume < _SMALLEST_BRAIN_ML:
        warnings.warn(
            f"the scan holds {volume:.0f} ml of tissue, less than a brain (900 to 1900 ml): is it the whole head?",
            UserWarning,
            stacklevel=3,
        )


def midplane(foreground: np.ndarray, grid: Grid) -> Midplane:
    """The mid-sagittal plane of a head, from the voxels (X, Y, Z) that are not background.

    The middle of the grid, as for heads registered to a template; when the brain's own plane of symmetry lies
    elsewhere (a scan cropped or padded on one side), that one.
    """
    axis = grid.axis("LR")
    foreground = np.moveaxis(foreground, axis, 0)
    size, spacing = foreground.shape[0], grid.spacing[axis]
    # Of two faces beside the middle of an odd number of voxels, the patient's right one, however the scan is stored.
    middle = size // 2 if grid.orientation[axis] == "L" else (size + 1) // 2
    if not foreground.any():
        return Midplane(axis, middle, 0.0, 0.0)
    centre = _centre(foreground, 0)
    reach = math.ceil(20 / spacing)
    candidates = [face for face in range(int(centre) - reach, int(centre) + reach + 1) if 0 < face < size]
    # Two-millimetre steps are fine enough to compare planes, and keep 1 mm scans quick.
    step = max(1, round(2 / spacing))
    coarse = foreground[:, ::step, ::step]
    symmetry = {face: _symmetry(coarse, face) for face in {*candidates, middle}}
    best: int = max(symmetry, key=lambda face: (symmetry[face], -abs(face - middle)))
    off = abs(best - middle) * spacing
    chosen, off = (best, off) if off > _CENTRED_WITHIN_MM else (middle, 0.0)
    return Midplane(axis, chosen, symmetry[chosen], off)


def _checked_midplane(scan: Scan) -> Midplane:
    """The plane at which the head is cut; a warning where it is not the grid's middle.

    Raises:
        InputError: the head is not aligned with the grid's axes.
    """
    plane = midplane(scan.foreground(), scan.grid)
    if plane.off_centre:
        warnings.warn(
            f"the brain's plane of symmetry lies {plane.off_centre:.0f} mm from the middle of the grid; "
            "the cut follows the brain. Check that the head is aligned and whole",
            UserWarning,
            stacklevel=4,
        )
    if not plane.aligned:
        raise InputError(
            "the model cuts the head at its mid-sagittal plane; this head is not aligned with the grid's axes "
            f"(brain and mirror image overlap by a Dice of {plane.overlap:.2f}, expected at least "
            f"{_ALIGNED_SYMMETRY}): register it to a template first"
        )
    return plane


def _symmetry(foreground: np.ndarray, face: int) -> float:
    """Dice of a mask (first axis across) with its mirror image at a face."""
    width = min(face, foreground.shape[0] - face)
    low, high = foreground[face - width : face][::-1], foreground[face : face + width]
    return 2.0 * int(np.count_nonzero(low & high)) / max(1, int(np.count_nonzero(foreground)))


def _centre(foreground: np.ndarray, axis: int) -> float:
    """The middle along one axis, in faces from the first one, of the stretch that holds foreground."""
    others = tuple(other for other in range(3) if other != axis)
    found = np.flatnonzero(np.any(foreground, axis=others))
    return (int(found[0]) + int(found[-1]) + 1) / 2


def _face_world(grid: Grid, axis: int, face: int) -> np.ndarray:
    """World coordinates (3,) in mm of the middle of a face between voxels."""
    index = (np.array(grid.shape) - 1) / 2.0
    index[axis] = face - 0.5
    return grid.world(index)
