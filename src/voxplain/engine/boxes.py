"""Boxes in which perturbed activations differ from clean ones: how they grow, and how they are cut out and put back.

A range is one interval per axis and perturbed input, a pair of integer arrays (N, D), `low` and `high`; nothing outside
it differs from the clean activation. The boxes of a batch are what is held of it: they cover the ranges, lie within the
volume and have one size, so that a batch is one tensor (N, C, *size).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

Ranges = tuple[np.ndarray, np.ndarray]

# Boxes that fill more of the volume than this are not worth their bookkeeping.
_WHOLE = 0.9


@dataclass(frozen=True, eq=False)
class Boxes:
    """First voxels (N, D) of boxes of one size (D)."""

    start: np.ndarray
    size: tuple[int, ...]


def within(low: np.ndarray, high: np.ndarray, extent: Sequence[int]) -> Ranges:
    """Ranges clipped to a volume; each keeps at least one voxel, so that a change that vanished stays a box."""
    low = np.clip(low, 0, np.asarray(extent) - 1)
    return low, np.maximum(np.minimum(high, extent), low + 1)


def union(ranges: Sequence[Ranges]) -> Ranges:
    """The smallest ranges around several of each perturbed input."""
    return np.minimum.reduce([low for low, _ in ranges]), np.maximum.reduce([high for _, high in ranges])


def cover(low: np.ndarray, high: np.ndarray, extent: Sequence[int]) -> Boxes | None:
    """Boxes of one size around ranges, shifted into the volume; None where they are (almost) the whole volume."""
    size = tuple((high - low).max(axis=0).tolist())
    if math.prod(size) >= _WHOLE * math.prod(extent):
        return None
    return Boxes(np.minimum(low, np.asarray(extent) - size), size)


def memory_format(dimensions: int) -> torch.memory_format:
    """Channels last: what convolutions are fastest with, on tensors of so many dimensions."""
    return {4: torch.channels_last, 5: torch.channels_last_3d}.get(dimensions, torch.contiguous_format)


def gather(
    clean: torch.Tensor,
    values: torch.Tensor | None,
    boxes: Boxes | None,
    origin: np.ndarray,
    size: tuple[int, ...],
    fill: float = 0.0,
) -> torch.Tensor:
    """Cut boxes (N, C, *size) that begin at `origin` (N, D) out of perturbed activations.

    These are the clean one (1, C, *extent) with `values` (N, C, *boxes.size) put into `boxes`, and `fill` around the
    volume. What is returned may be `values` itself.
    """
    if values is not None and boxes is not None and boxes.size == size and np.array_equal(boxes.start, origin):
        return values
    extent = np.asarray(clean.shape[2:])
    shape = (len(origin), clean.shape[1], *size)
    cut = torch.empty(shape, dtype=clean.dtype, device=clean.device, memory_format=memory_format(len(shape)))
    low, high = np.clip(origin, 0, extent), np.clip(origin + size, 0, extent)
    for row, (first, last, zero) in enumerate(zip(low.tolist(), high.tolist(), origin.tolist(), strict=True)):
        here, stop = cut[row], [z + s for z, s in zip(zero, size, strict=True)]
        for a, b in _around((zero, stop), (first, last)):
            here[_slices(a, b, zero)] = fill
        if values is None or boxes is None:
            here[_slices(first, last, zero)] = clean[0][_slices(first, last)]
            continue
        start = boxes.start[row].tolist()
        inner = [max(a, s) for a, s in zip(first, start, strict=True)]
        outer = [min(b, s + n) for b, s, n in zip(last, start, boxes.size, strict=True)]
        for a, b in _around((first, last), (inner, outer)):
            here[_slices(a, b, zero)] = clean[0][_slices(a, b)]
        if all(a < b for a, b in zip(inner, outer, strict=True)):
            here[_slices(inner, outer, zero)] = values[row][_slices(inner, outer, start)]
    return cut


def paste(clean: torch.Tensor, values: torch.Tensor, boxes: Boxes) -> torch.Tensor:
    """Perturbed activations in full, (N, C, *extent)."""
    return gather(clean, values, boxes, np.zeros_like(boxes.start), tuple(clean.shape[2:]))


Corners = tuple[Sequence[int], Sequence[int]]


def _around(outer: Corners, inner: Corners) -> list[Corners]:
    """The outer box without the inner, in slabs that do not overlap; corners are (first voxel, one past the last)."""
    if any(a >= b for a, b in zip(*inner, strict=True)):
        return [outer] if all(a < b for a, b in zip(*outer, strict=True)) else []
    slabs: list[Corners] = []
    low, high = list(outer[0]), list(outer[1])
    for axis in range(len(low)):
        for first, last in ((low[axis], inner[0][axis]), (inner[1][axis], high[axis])):
            if first < last:
                slabs.append(([*low[:axis], first, *low[axis + 1 :]], [*high[:axis], last, *high[axis + 1 :]]))
        low[axis], high[axis] = inner[0][axis], inner[1][axis]
    return slabs


def _slices(low: Sequence[int], high: Sequence[int], origin: Sequence[int] | None = None) -> tuple[slice, ...]:
    """A box of all channels, its corners counted from an origin."""
    zero = origin or [0] * len(low)
    return (slice(None), *(slice(a - z, b - z) for a, b, z in zip(low, high, zero, strict=True)))
