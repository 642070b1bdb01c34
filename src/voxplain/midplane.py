"""Where a head is its own mirror image: the plane at which it is cut into halves."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np

from voxplain.errors import InputError
from voxplain.grid import Grid
from voxplain.scan import Scan

# Dice of the brain with its own mirror image: 0.92 to 0.97 on aligned BraTS heads.
_ALIGNED_SYMMETRY = 0.88
# The plane of symmetry may lie this far from the middle of the grid before the cut follows the brain instead.
_CENTRED_WITHIN_MM = 6.0


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
    centre = centre_along(foreground, 0)
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


def checked_midplane(scan: Scan) -> Midplane:
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


def centre_along(foreground: np.ndarray, axis: int) -> float:
    """The middle along one axis, in faces from the first one, of the stretch that holds foreground."""
    others = tuple(other for other in range(3) if other != axis)
    found = np.flatnonzero(np.any(foreground, axis=others))
    return (int(found[0]) + int(found[-1]) + 1) / 2


def face_world(grid: Grid, axis: int, face: int) -> np.ndarray:
    """World coordinates (3,) in mm of the middle of a face between voxels."""
    index = (np.array(grid.shape) - 1) / 2.0
    index[axis] = face - 0.5
    return grid.world(index)
