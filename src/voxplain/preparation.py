"""From the user's scan to what the card declares: resampled, normalised, cut - each step recorded, none silent."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from voxplain.brain_tissue import grey_matter
from voxplain.errors import InputError
from voxplain.grid import Grid
from voxplain.midplane import centre_along, checked_midplane, face_world
from voxplain.model import SLICE_CODES, Card
from voxplain.scan import Scan

# Of the brightest voxel: darker than a share of one in so many is air.
_DARKEST_TISSUE = 32
# Darker than this is background where its box is looked for (003, IV.A.2).
_NOTHING = 1e-8
# Voxels kept around a head that a scan is cut to.
_MARGIN = 4
# So that tissues, fluid and lesions lie about 1 away from each other.
_MATTER_SCALE = 5.0
# Brains measure 0.9 to 1.9 litres; a head with its skull, or a field of view without background, far more.
_LARGEST_BRAIN_ML = 2500.0
_SMALLEST_BRAIN_ML = 500.0


@dataclass(frozen=True, eq=False)
class Prepared:
    """One region of a scan as the network reads it.

    `input` is normalised, its channels in the card's order; its grid says where it lies in the world (a mirrored half
    has a flipped axis). `foreground` (X, Y, Z) marks the voxels that were not background before normalisation.
    `background` (C,) is what the raw value 0 became in each channel. `box` is the region on the scan's own grid. `slab`
    is the grid of a slice made as thick as the scan's slices that it stands for.
    """

    name: str
    input: Scan
    foreground: np.ndarray
    background: tuple[float, ...]
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    record: dict[str, Any] = field(default_factory=dict)
    slab: Grid | None = None

    @property
    def map_grid(self) -> Grid:
        """The grid from which a map of the input is laid back onto the scan's."""
        return self.slab or self.input.grid


def prepare(scan: Scan, card: Card) -> list[Prepared]:
    """Do what the card declares: pick channels by name, reorient, resample, normalise, cut into its regions.

    Returns:
        One `Prepared` for region "whole"; two for region "half", first the half that comes first in the card's
        orientation, then the other one, mirrored onto it. The mid-sagittal plane is the last face of the first axis
        that runs from left to right. For a card with `slices` one per slice that holds foreground, in the scan's own
        order, named "axial 033" by the first of the scan's slices that it stands for: every slice of the scan belongs
        to the nearest slice of the network's grid. Their normalisation is that of the whole scan.

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
    if card.spatial_dims == 2 and card.slices is None and scan.grid.shape[2] != 1:
        raise InputError(
            f"a 2D network reads images (scans with Z = 1); this scan is {scan.grid.shape}; set the card's slices to "
            "axial, coronal or sagittal to run it along the scan, cut out a slice, or use a 3D network"
        )
    if card.spatial_dims == 3 and scan.grid.shape[2] == 1:
        raise InputError(f"a 3D network reads volumes; this scan is a 2D image {scan.grid.shape}; use a 2D network")
    scan = scan.select(card.channels)
    empty = [name for name, data in zip(scan.channels, scan.data, strict=True) if not data.any()]
    if empty:
        raise InputError(f"sequence {', '.join(empty)} is zero in every voxel; expected an image")
    if card.skull_stripped:
        _check_skull_stripped(scan)
    if card.slices is not None:
        return _slices(scan, card, card.slices)
    return _halves(scan, card) if card.region == "half" else [_whole(scan, card)]


def _whole(scan: Scan, card: Card) -> Prepared:
    resampled, record = _stretched(scan, card) if card.fit == "stretch" else _on_lattice(scan, card)
    foreground = resampled.foreground()
    normalised, background = _normalised(resampled, card)
    box = tuple((0, n) for n in scan.grid.shape)
    if card.spatial_dims == 2:
        _check_image(scan.grid, resampled.grid, card)
    window = None
    if card.shape is not None and card.fit == "cut":
        window = _middle(resampled.grid, card.shape, record)
    elif card.fit == "head":
        window = _head(resampled.grid, foreground, card.window or (1, 1, 1), record)
    if window is not None:
        normalised, foreground = _cut(normalised, foreground, background, window)
    return Prepared("whole", normalised, foreground, background, box, record)  # type: ignore[arg-type]


def _stretched(scan: Scan, card: Card) -> tuple[Scan, dict[str, Any]]:
    """The box of all that is not background, in the card's orientation, resampled to the card's shape."""
    assert card.shape is not None
    turned, record = _on_lattice(scan, card)
    places = np.argwhere((np.abs(turned.data) > _NOTHING).any(axis=0))
    if not len(places):
        raise InputError(f"no voxel of the scan is further from 0 than {_NOTHING}; expected an image")
    first, last = places.min(axis=0), places.max(axis=0)
    box = turned.grid.window(first, last - first + 1)
    spacing = [n * size / wanted for n, size, wanted in zip(box.shape, box.spacing, card.shape, strict=True)]
    target = box.with_spacing(spacing)
    record |= {
        "box": {"start": first.tolist(), "shape": list(box.shape)},
        "spacing_mm": f"{_rounded(scan.grid.spacing)} -> {_rounded(target.spacing)}",
        "shape": f"{list(scan.grid.shape)} -> {list(target.shape)}",
        "resampled": True,
    }
    return turned.on(target), record


def _head(lattice: Grid, foreground: np.ndarray, smallest: tuple[int, int, int], record: dict[str, Any]) -> Grid:
    """The box of what is not background, with a margin, and not smaller than asked for."""
    first, shape = [], []
    for axis, (size, extent) in enumerate(zip(smallest, lattice.shape, strict=True)):
        there = np.flatnonzero(foreground.any(axis=tuple(other for other in range(3) if other != axis)))
        start, stop = (int(there[0]), int(there[-1]) + 1) if len(there) else (0, extent)
        start, stop = max(0, start - _MARGIN), min(extent, stop + _MARGIN)
        if stop - start < size:
            # About the middle of the head, but within the scan where that is large enough.
            start = min(max(0, (start + stop - size) // 2), max(0, extent - size))
            stop = start + size
        first.append(start)
        shape.append(stop - start)
    record["cut"] = {"start": first, "shape": shape}
    return lattice.window(first, shape)


def _slices(scan: Scan, card: Card, plane: str) -> list[Prepared]:
    """Every slice of the network's grid that is the nearest one to a slice of the scan and holds foreground."""
    grid = scan.grid
    axis = grid.axis(SLICE_CODES[plane])
    if 1 in grid.shape[:axis] + grid.shape[axis + 1 :]:
        raise InputError(
            f"the network reads {plane} slices; this scan of {_times(grid.shape)} voxels ({grid.orientation}) is an "
            "image in another plane: give a volume, or an image of that plane"
        )
    own = [code for code in grid.orientation if code not in SLICE_CODES[plane]]
    oriented = card.orientation or "".join([*own, grid.orientation[axis]])
    resampled, record = _on_lattice(scan, replace(card, orientation=oriented))
    lattice, foreground = resampled.grid, resampled.foreground()
    normalised, background = _normalised(resampled, card)
    if card.shape is not None:
        shape = (*card.shape[:2], lattice.shape[2])
        before = int(foreground.sum())
        normalised, foreground = _cut(normalised, foreground, background, _middle(lattice, shape, record))
        lost = 1 - int(foreground.sum()) / max(1, before)
        record["cut"]["foreground_left_out"] = round(lost, 4)
        if lost > 0.02:
            warnings.warn(
                f"{lost:.0%} of what is not background lies outside the {_times(card.shape[:2])} pixels that the "
                "model reads of each slice",
                UserWarning,
                stacklevel=3,
            )

    nearest = _nearest_slices(grid, axis, lattice)
    found = []
    for index in dict.fromkeys(nearest.tolist()):
        inside = foreground[:, :, index : index + 1]
        if not inside.any():
            continue
        here = np.flatnonzero(nearest == index)
        box = [(0, n) for n in grid.shape]
        box[axis] = int(here[0]), int(here[-1]) + 1
        its_grid = normalised.grid.window((0, 0, index), (*inside.shape[:2], 1))
        its_scan = Scan(normalised.data[..., index : index + 1], its_grid, scan.channels)
        slab, name = _slab(its_grid, grid, axis, box[axis]), f"{plane} {here[0]:03d}"
        found.append(Prepared(name, its_scan, inside, background, (box[0], box[1], box[2]), record, slab))
    if not found:
        raise InputError(
            f"no {plane} slice holds anything but background within the {_times(normalised.grid.shape[:2])} pixels "
            "that the model reads; check the card's shape and spacing"
        )
    record["slices"] = {"plane": plane, "explained": len(found), "of": len(set(nearest.tolist()))}
    return found


def _nearest_slices(grid: Grid, axis: int, lattice: Grid) -> np.ndarray:
    """For each slice of the scan along an axis, (n,), the nearest one along the lattice's third axis."""
    index = np.zeros((grid.shape[axis], 3))
    index[:, axis] = np.arange(grid.shape[axis])
    there = lattice.index(grid.world(index))[:, 2]
    # What is left over at the end of a coarser lattice belongs to its last slice.
    nearest: np.ndarray = np.clip(np.floor(there + 0.5 - 1e-9), 0, lattice.shape[2] - 1).astype(int)
    return nearest


def _slab(its_grid: Grid, grid: Grid, axis: int, stretch: tuple[int, int]) -> Grid:
    """A slice's grid, as thick as a stretch (start, stop) of the scan's slices and in the middle of it."""
    first = grid.index(its_grid.world((0, 0, 0)))
    first[axis] = (stretch[0] + stretch[1] - 1) / 2
    affine = its_grid.affine.copy()
    affine[:3, 2] *= (stretch[1] - stretch[0]) * grid.spacing[axis] / its_grid.spacing[2]
    affine[:3, 3] = grid.world(first)
    return Grid(its_grid.shape, affine)


def _middle(lattice: Grid, shape: tuple[int, int, int], record: dict[str, Any]) -> Grid:
    """The window of a shape in the middle of the lattice."""
    start = [int(np.floor((n - size) / 2)) for n, size in zip(lattice.shape, shape, strict=True)]
    record["cut"] = {"start": start, "shape": list(shape)}
    return lattice.window(start, shape)


def _check_image(grid: Grid, lattice: Grid, card: Card) -> None:
    """Raise InputError where an image is not of the plane or the size that a network for images reads."""
    if lattice.shape[2] != 1:
        raise InputError(
            f"the network reads images whose axes are {card.orientation}; this one lies in another plane "
            f"({grid.orientation}): give an image of that plane"
        )
    if card.shape is None or lattice.shape == card.shape:
        return
    wanted = []
    for axis in range(2):
        (codes,) = [codes for codes in SLICE_CODES.values() if grid.orientation[axis] in codes]
        there = lattice.axis(codes)
        wanted.append(round(card.shape[there] * lattice.spacing[there] / grid.spacing[axis]))
    raise InputError(
        f"the network reads images of {_times(wanted)} pixels; this one has {_times(grid.shape[:2])}: resize it"
    )


def _halves(scan: Scan, card: Card) -> list[Prepared]:
    grid = scan.grid
    midsagittal = checked_midplane(scan)
    axis, face = midsagittal.axis, midsagittal.face
    plane_world = face_world(grid, axis, face)
    resampled, record = _on_lattice(scan, card, plane_world)
    lattice, foreground = resampled.grid, resampled.foreground()
    normalised, background = _normalised(resampled, card)

    across = lattice.axis("LR")
    plane = round(float(lattice.index(plane_world)[across]) + 0.5)
    middle = [centre_along(foreground, axis) for axis in range(3)]
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
    thickness = target.shape[2] * target.spacing[2]
    if spacing is not None and card.spatial_dims == 2 and (target.shape[2] == 1 or 2 * thickness <= spacing[2]):
        spacing = (*spacing[:2], target.spacing[2])  # an image, or next to none, has nothing to resample across
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


def _times(values: Sequence[int]) -> str:
    return " x ".join(map(str, values))


def _rounded(values: tuple[float, ...]) -> list[float]:
    return [round(value, 4) for value in values]


def _normalised(scan: Scan, card: Card) -> tuple[Scan, tuple[float, ...]]:
    """The scan normalised per sequence, and what the raw value 0 became in each channel."""
    if card.normalisation == "none":
        return scan, (0.0,) * len(scan.channels)
    median = grey_matter(scan) if card.normalisation == "grey-matter" else {}
    data = np.empty_like(scan.data)
    background = []
    for index, channel in enumerate(scan.data):
        if card.normalisation == "z-score":
            inside = channel != 0
            values = channel[inside].astype(np.float64)
            mean, spread = (values.mean(), float(values.std()) or 1.0) if len(values) else (0.0, 1.0)
            data[index] = np.where(inside, (channel - mean) / spread, 0)
            background.append(0.0)
        elif median:
            data[index] = np.where(channel != 0, (channel / median[scan.channels[index]] - 1) * _MATTER_SCALE, 0)
            background.append(0.0)
        elif card.normalisation == "tissue":
            # Noise in the air around a head tells scanners apart, and networks find that out.
            tissue = channel > channel.max() / _DARKEST_TISSUE
            values = channel[tissue].astype(np.float64)
            # In the voxels' own precision, so that air holds exactly the background.
            found = (values.mean(), values.std() or 1) if len(values) else (0, 1)
            middle, deviation = (np.float32(value) for value in found)
            data[index] = (np.where(tissue, channel, np.float32(0)) - middle) / deviation
            background.append(float(-middle / deviation))
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
