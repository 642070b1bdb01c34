"""A scan (one or more sequences on one grid) and labels on a grid."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from voxplain.errors import InputError
from voxplain.grid import Grid, resample


def frozen_array(values: np.ndarray, dtype: type) -> np.ndarray:
    """A read-only, contiguous array of the given dtype; the caller's own array stays as it was."""
    array: np.ndarray = np.ascontiguousarray(values, dtype=dtype)
    if array is values or array.base is not None:
        array = array.copy()
    array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan: data (C, X, Y, Z) float32, read-only; its grid; and the name of each of the C channels.

    A 2D image is a scan with Z = 1.

    Raises:
        InputError: shapes and names do not fit each other, a name comes twice, a value is NaN or infinite.
    """

    data: np.ndarray
    grid: Grid
    channels: tuple[str, ...]

    def __post_init__(self) -> None:
        channels = tuple(self.channels)
        if np.ndim(self.data) != 4 or self.data.shape[0] != len(channels) or self.data.shape[1:] != self.grid.shape:
            raise InputError(
                f"a scan is an array (channels, X, Y, Z): expected {(len(channels), *self.grid.shape)} for channels "
                f"{', '.join(channels)}; got {np.shape(self.data)}"
            )
        doubled = sorted({name for name in channels if channels.count(name) > 1})
        if doubled:
            raise InputError(f"every channel comes once; given twice: {', '.join(doubled)}")
        data = frozen_array(self.data, np.float32)
        for name, channel in zip(channels, data, strict=True):
            bad = int(channel.size - np.isfinite(channel).sum())
            if bad:
                raise InputError(
                    f"sequence {name} holds {bad} voxels that are NaN or infinite; every voxel must be a number: "
                    "find the step that made them, or set them to 0"
                )
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "channels", channels)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of voxels, grid and channel names."""
        digest = hashlib.sha256(self.data.tobytes())
        digest.update(repr((self.grid.fingerprint, self.channels)).encode())
        return digest.hexdigest()[:16]

    def channel(self, name: str) -> np.ndarray:
        """The voxels (X, Y, Z) of one channel, by name."""
        if name not in self.channels:
            raise InputError(f"this scan has no sequence {name!r}; it has {', '.join(self.channels)}")
        return self.data[self.channels.index(name)]

    def select(self, channels: Sequence[str]) -> Scan:
        """The scan with these channels, in this order."""
        if tuple(channels) == self.channels:
            return self
        return Scan(np.stack([self.channel(name) for name in channels]), self.grid, tuple(channels))

    def foreground(self) -> np.ndarray:
        """Boolean (X, Y, Z): where any channel differs from 0, which is the brain of a skull-stripped scan."""
        return (self.data != 0).any(axis=0)

    def on(self, grid: Grid) -> Scan:
        """The scan on another grid, by the rule of `voxplain.grid.resample`; 0 outside the field of view."""
        return Scan(resample(self.data, self.grid, grid), grid, self.channels)


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels on a grid: data (X, Y, Z) int32, read-only; 0 is background. A mask is labels of 0 and 1.

    Raises:
        InputError: the shape is not the grid's, or a value is not a whole number of at least 0.
    """

    data: np.ndarray
    grid: Grid

    def __post_init__(self) -> None:
        values = np.asarray(self.data)
        if values.shape != self.grid.shape:
            raise InputError(f"labels of shape {values.shape} do not lie on a grid of shape {self.grid.shape}")
        with np.errstate(invalid="ignore"):
            whole = values.astype(np.int32)
        if not np.array_equal(whole, values) or whole.min() < 0:
            raise InputError("labels are whole numbers of at least 0; this array holds other values")
        object.__setattr__(self, "data", frozen_array(whole, np.int32))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of voxels and grid."""
        digest = hashlib.sha256(self.data.tobytes())
        digest.update(self.grid.fingerprint.encode())
        return digest.hexdigest()[:16]

    @property
    def count(self) -> int:
        """How many different labels there are, background not counted."""
        return int(np.count_nonzero(np.bincount(self.data.ravel())[1:]))

    @property
    def volume(self) -> float:
        """Volume of all that is not background, in ml."""
        return float(np.count_nonzero(self.data)) * self.grid.voxel_volume / 1000

    def on(self, grid: Grid) -> Labels:
        """The labels on another grid, by nearest voxel; 0 outside the field of view."""
        return Labels(resample(self.data, self.grid, grid, nearest=True), grid)
