"""Where voxels lie in the world, and the one rule by which data move from one grid to another."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from voxplain.errors import InputError

# Two grids are one grid when no corner of theirs lies further apart than this part of a voxel: headers written
# by different tools round differently, a real shift is never that small.
_SAME_WITHIN_VOXELS = 0.01


def _read_only(matrix: np.ndarray) -> np.ndarray:
    matrix = np.array(matrix, dtype=np.float64)
    matrix.setflags(write=False)
    return matrix


@dataclass(frozen=True, eq=False)
class Grid:
    """A voxel grid in the world: how many voxels (X, Y, Z), and the affine from voxel indices to millimetres (RAS+).

    `qform`, `qform_code` and `sform_code` are what the file's header said; they are carried so that a map is saved
    under the very header of its scan, and play no part in comparing grids.

    Raises:
        InputError: the shape is not three positive integers, or the affine is not an invertible 4 x 4 matrix.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    qform: np.ndarray | None = None
    qform_code: int = 0
    sform_code: int = 2

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise InputError(f"a grid needs three axes of at least one voxel; got shape {shape}")
        affine = _read_only(self.affine)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise InputError(
                "a grid needs an invertible 4 x 4 affine from voxel indices to millimetres; "
                f"got {np.asarray(self.affine).tolist()}; repair the file's sform or qform"
            )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)
        if self.qform is not None:
            object.__setattr__(self, "qform", _read_only(self.qform))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along each axis, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def orientation(self) -> str:
        """The direction in which each axis grows, as nibabel's axis codes: "RAS", "LPS", ..."""
        return "".join(nib.aff2axcodes(self.affine))

    @property
    def voxel_volume(self) -> float:
        """Volume of one voxel, in mm^3."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def fingerprint(self) -> str:
        """A hash of shape and affine; -0 and 0 are one number to it."""
        return hashlib.sha256(repr(self.shape).encode() + (np.round(self.affine, 6) + 0.0).tobytes()).hexdigest()[:16]

    def world(self, index: Sequence[float] | np.ndarray) -> np.ndarray:
        """World coordinates in mm (..., 3) of voxel indices (..., 3); whole numbers are voxel centres."""
        return np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def index(self, world: Sequence[float] | np.ndarray) -> np.ndarray:
        """Voxel indices (..., 3), not rounded, of world coordinates (..., 3) in mm."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(world, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]

    def difference(self, other: Grid) -> str | None:
        """What sets the two grids apart, in words; None when they are the same grid."""
        if self.shape != other.shape:
            return f"shape {self.shape} against {other.shape}"
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape])).reshape(3, -1).T
        apart = float(np.abs(self.world(corners) - other.world(corners)).max())
        if apart <= _SAME_WITHIN_VOXELS * min(*self.spacing, *other.spacing):
            return None
        if self.orientation != other.orientation:
            return f"orientation {self.orientation} against {other.orientation}"
        if not np.allclose(self.spacing, other.spacing, rtol=1e-3):
            mine, theirs = (" x ".join(f"{s:.4g}" for s in grid.spacing) for grid in (self, other))
            return f"spacing {mine} mm against {theirs} mm"
        return f"same shape and spacing, but up to {apart:.3g} mm apart in the world (origin or rotation differs)"

    def matches(self, other: Grid) -> bool:
        """Whether the two are the same grid: same shape, corners within a hundredth of a voxel."""
        return self.difference(other) is None

    def axis(self, codes: str) -> int:
        """The axis that runs along a direction given by its two codes ("LR", "PA" or "IS")."""
        return next(axis for axis, code in enumerate(self.orientation) if code in codes)

    def window(self, start: Sequence[int], shape: Sequence[int]) -> Grid:
        """The grid of a box of voxels: `start` is its first voxel (may lie outside), `shape` its size in voxels."""
        affine = self.affine.copy()
        affine[:3, 3] = self.world(np.asarray(start))
        x, y, z = (int(n) for n in shape)
        return self._derived((x, y, z), affine)

    def flipped(self, axis: int) -> Grid:
        """The same voxels counted from the other end of one axis."""
        step = np.eye(4)
        step[axis, axis] = -1
        step[axis, 3] = self.shape[axis] - 1
        return self._derived(self.shape, self.affine @ step)

    def reoriented(self, orientation: str) -> Grid:
        """The same voxels with axes permuted and flipped to the given axis codes, for example "LPS"."""
        try:
            wanted = axcodes2ornt(tuple(orientation))
        except (ValueError, TypeError):
            wanted = np.full((3, 2), np.nan)
        if len(orientation) != 3 or not np.isfinite(wanted).all() or len(set(wanted[:, 0])) != 3:
            raise InputError(f"an orientation is three axis codes such as 'RAS' or 'LPS'; got {orientation!r}")
        change = ornt_transform(io_orientation(self.affine), wanted)
        x, y, z = (self.shape[int(np.flatnonzero(change[:, 0] == axis)[0])] for axis in range(3))
        return self._derived((x, y, z), self.affine @ inv_ornt_aff(change, self.shape))

    def with_spacing(self, spacing: Sequence[float], faces: Sequence[float] = (0, 0, 0)) -> Grid:
        """The grid over the same field of view with another voxel size in mm.

        `faces` (in voxels from the outer face of the first one) says where along each axis a face between voxels
        stays where it is; what is left over at an end counts as a voxel when it is more than half of one.
        """
        scale = np.array([new / old for new, old in zip(spacing, self.spacing, strict=True)])
        before = [math.ceil(face / s - 0.5 - 1e-6) for face, s in zip(faces, scale, strict=True)]
        after = [math.ceil((n - face) / s - 0.5 - 1e-6) for n, face, s in zip(self.shape, faces, scale, strict=True)]
        step = np.diag([*scale, 1.0])
        step[:3, 3] = np.asarray(faces) - np.array(before) * scale + (scale - 1) / 2
        x, y, z = (max(1, b + a) for b, a in zip(before, after, strict=True))
        return self._derived((x, y, z), self.affine @ step)

    def _derived(self, shape: tuple[int, int, int], affine: np.ndarray) -> Grid:
        # The header's qform speaks of the old grid; its kind of space (scanner, template, ...) still holds.
        return Grid(shape, affine, sform_code=self.sform_code or self.qform_code or 2)


def resample(
    data: np.ndarray, source: Grid, target: Grid, *, nearest: bool = False, outside: float = 0.0
) -> np.ndarray:
    """Bring data (..., X, Y, Z) from one grid to another: the one rule for resampling.

    Along each axis: whole-voxel shifts and flips copy; finer targets interpolate linearly; coarser targets average
    over each target voxel's extent, so nothing aliases. With `nearest` (labels) the nearest source voxel is taken.
    Target voxels whose centre lies outside the source's field of view get the value `outside`.

    Returns:
        Array (..., X', Y', Z') on the target grid, in the input's dtype (whole numbers are rounded).

    Raises:
        InputError: the axes of the two grids are not parallel, so that a rotation would be needed.
    """
    if data.shape[-3:] != source.shape:
        raise InputError(f"data of shape {data.shape[-3:]} do not lie on a grid of shape {source.shape}")
    step = np.linalg.inv(source.affine) @ target.affine
    axes = np.abs(step[:3, :3]).argmax(axis=0)
    aligned = np.zeros((3, 3))
    aligned[axes, range(3)] = step[axes, range(3)]
    drift = np.abs(step[:3, :3] - aligned).max(axis=0) * target.shape
    if len(set(axes.tolist())) != 3 or drift.max() > 0.05:
        raise InputError(
            "the two grids are rotated against each other "
            f"({source.orientation} and {target.orientation}); align the images first"
        )
    lead = data.ndim - 3
    result = np.transpose(data, [*range(lead), *(lead + axes)])
    inside = []
    for axis in range(3):
        scale, offset = float(step[axes[axis], axis]), float(step[axes[axis], 3])
        size = source.shape[axes[axis]]
        centres = scale * np.arange(target.shape[axis]) + offset
        inside.append((centres > -0.5 - 1e-6) & (centres < size - 0.5 + 1e-6))
        result = _along_axis(result, lead + axis, centres, abs(scale), nearest)
    if not all(part.all() for part in inside):
        keep = inside[0][:, None, None] & inside[1][None, :, None] & inside[2][None, None, :]
        result = np.where(keep, result, np.asarray(outside, dtype=result.dtype))
    if np.issubdtype(data.dtype, np.integer) and np.issubdtype(result.dtype, np.floating):
        result = np.rint(result)
    return np.ascontiguousarray(result, dtype=data.dtype)


def _along_axis(data: np.ndarray, axis: int, centres: np.ndarray, width: float, nearest: bool) -> np.ndarray:
    """Resample one axis at the given source positions; `width` is the target voxel's extent in source voxels."""
    size = data.shape[axis]
    rounded = np.rint(centres)
    whole = math.isclose(width, 1, abs_tol=1e-4) and np.abs(centres - rounded).max() < 1e-3
    if nearest or whole:
        # Half-way positions go up, on every platform alike.
        index = rounded if whole else np.floor(centres + 0.5 - 1e-9)
        return np.take(data, np.clip(index, 0, size - 1).astype(int), axis=axis)
    sources = np.arange(size)
    if width <= 1:
        at = np.clip(centres, 0, size - 1)
        weights = np.clip(1 - np.abs(at[:, None] - sources[None, :]), 0, None)
    else:
        low, high = centres[:, None] - width / 2, centres[:, None] + width / 2
        weights = np.clip(np.minimum(high, sources + 0.5) - np.maximum(low, sources - 0.5), 0, None)
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
    kind = data.dtype if np.issubdtype(data.dtype, np.floating) else np.float64
    return np.moveaxis(np.tensordot(data.astype(kind, copy=False), weights.astype(kind), axes=(axis, 1)), -1, axis)
