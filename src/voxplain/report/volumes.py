"""Arrays as small NIfTI files in base64: cropped to what there is to see, in RAS order, millimetres kept exact."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from voxplain.grid import Grid
from voxplain.scan import Labels, Scan

# Voxels up to which a page keeps fine grey levels: a brain at 2 mm has 0.5 million, at 1 mm 4 million.
_FINE_VOXELS = 1_500_000
_MARGIN = 2


@dataclass(frozen=True, eq=False)
class View:
    """The part of a grid that a page shows: a box of its voxels, axes turned and flipped to RAS order.

    `grid` is the view's own grid; each of its voxels is a voxel of the scan, at the same millimetres.
    """

    whole: Grid
    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    @property
    def _box(self) -> Grid:
        return self.whole.window(self.start, [b - a for a, b in zip(self.start, self.stop, strict=True)])

    @property
    def grid(self) -> Grid:
        """The grid of the voxels that are shown."""
        return self._box.reoriented("RAS")

    @property
    def fine(self) -> bool:
        """Whether the page can afford fine steps of intensity and relevance."""
        return int(np.prod(self.grid.shape)) <= _FINE_VOXELS

    def take(self, array: np.ndarray) -> np.ndarray:
        """An array (X, Y, Z) on the whole grid, cut and turned to the view."""
        cut = array[tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))]
        turn = ornt_transform(io_orientation(self.whole.affine), axcodes2ornt(tuple("RAS")))
        return np.asarray(apply_orientation(cut, turn))

    def voxel(self, index: Sequence[float] | np.ndarray) -> np.ndarray:
        """Voxel indices (..., 3) of the view, whole numbers, from those of the whole grid."""
        return np.rint(self.grid.index(self.whole.world(index))).astype(int)


def view_of(scan: Scan, *labels: Labels | None) -> View:
    """The box around all that is not 0 in the scan or in any of the labels, and two voxels more on each side."""
    seen = scan.foreground()
    for image in labels:
        if image is not None:
            seen = seen | (image.data > 0)
    if not seen.any():
        return View(scan.grid, (0, 0, 0), scan.grid.shape)
    start, stop = [], []
    for axis, size in enumerate(scan.grid.shape):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(seen.any(axis=others))
        start.append(max(int(found[0]) - _MARGIN, 0))
        stop.append(min(int(found[-1]) + 1 + _MARGIN, size))
    return View(scan.grid, (start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def window_of(values: np.ndarray, foreground: np.ndarray) -> tuple[float, float]:
    """The intensities shown as black and white, for values and a boolean foreground of one shape.

    A background of exact zeros, as skull stripping leaves it, does not count.
    """
    inside = values[foreground] if foreground.any() else values.ravel()
    low, high = (float(value) for value in np.percentile(inside, (0.5, 99.5)))
    if not high > low:
        low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low, low + 1)


@dataclass(frozen=True)
class Packed:
    """A volume for the page: `base64` of a gzipped NIfTI; a value is `code * slope + intercept`.

    Codes from `clipped` upwards stand for that value or more; the code `background` for voxels outside of the brain.
    """

    base64: str
    slope: float = 1.0
    intercept: float = 0.0
    clipped: int | None = None
    background: int | None = None


def pack(codes: np.ndarray, grid: Grid, slope: float = 1.0, intercept: float = 0.0) -> str:
    """An array (X, Y, Z) under its grid as a gzipped NIfTI file in base64; the bytes depend on nothing else."""
    header = nib.Nifti1Header()
    header.set_data_dtype(codes.dtype)
    header.set_data_shape(codes.shape)
    header.set_zooms(grid.spacing)
    header.set_sform(grid.affine, 1)
    header.set_xyzt_units("mm")
    header["scl_slope"], header["scl_inter"] = slope, intercept
    header["vox_offset"], header["magic"] = 352, b"n+1"
    content = header.binaryblock + bytes(4) + codes.tobytes(order="F")
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode("ascii")


def pack_scan(values: np.ndarray, foreground: np.ndarray, view: View) -> Packed:
    """One sequence (X, Y, Z) on the whole grid, its foreground boolean: whole numbers exactly, others in 4096 steps.

    Large views are kept in 254 steps, the brightest 0.1 % clipped.
    """
    values, inside = view.take(values), view.take(foreground)
    low, high = float(values.min()), float(values.max())
    # A background of 0 amid negative intensities would be grey; it gets a code below all others.
    apart = low < 0 and not inside.all()
    if apart and inside.any():
        low, high = float(values[inside].min()), float(values[inside].max())
    whole = bool(np.array_equal(values, np.rint(values))) and low > -32000 and high < 32000
    slope, intercept, clipped = 1.0, 0.0, None
    if not view.fine and (not whole or high - low > 254):
        top = float(np.percentile(values[inside], 99.9)) if inside.any() else high
        clipped = 255 if top < high else None
        slope, intercept = (top - low) / 254 if top > low else 1.0, low
        intercept -= slope
        codes = np.clip(np.rint((values - intercept) / slope), 1, 255).astype(np.uint8)
    elif whole:
        codes = np.rint(values).astype(np.int16)
    else:
        slope, intercept = (high - low) / 4095 if high > low else 1.0, low
        codes = np.clip(np.rint((values - intercept) / slope), 0, 4095).astype(np.int16)
    background = None
    if apart:
        background = 0 if codes.dtype == np.uint8 else int(codes[inside].min()) - 1 if inside.any() else -1
        codes[~inside] = background
    return Packed(pack(codes, view.grid, slope, intercept), slope, intercept, clipped, background)


def pack_map(values: np.ndarray, view: View, *, exact: bool, steps: int | None = None) -> Packed:
    """A map (X, Y, Z) on the whole grid; `exact` keeps float32, which is small where parts are constant.

    Other maps are kept in steps of their peak / `steps`: by default 4095, or 1023 on large views; zero stays zero.
    """
    values = view.take(values)
    if exact:
        return Packed(pack(values.astype(np.float32), view.grid))
    peak = float(np.abs(values).max())
    slope = peak / (steps or (4095 if view.fine else 1023)) if peak > 0 else 1.0
    # In 64 bits: a step of the smallest peaks is zero in 32.
    return Packed(pack(np.rint(values / np.float64(slope)).astype(np.int16), view.grid, slope), slope)


def pack_labels(labels: Labels, view: View) -> Packed:
    """Labels on the whole grid, in the smallest type that holds them and that viewers read."""
    values = view.take(labels.data)
    highest = int(values.max())
    kind = np.uint8 if highest < 256 else np.uint16 if highest < 65536 else np.float32
    return Packed(pack(values.astype(kind), view.grid))
