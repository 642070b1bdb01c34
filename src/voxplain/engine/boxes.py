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
_WHOLE = 0.8


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
    for row in range(len(origin)):
        here = cut[row]
        if (high[row] - low[row] < size).any():
            here.fill_(fill)
        if (high[row] <= low[row]).any():
            continue
        here[_slices(low[row] - origin[row], high[row] - origin[row])] = clean[0][_slices(low[row], high[row])]
        if values is not None and boxes is not None:
            first = np.maximum(low[row], boxes.start[row])
            last = np.minimum(high[row], boxes.start[row] + boxes.size)
            if (first < last).all():
                inside = _slices(first - boxes.start[row], last - boxes.start[row])
                here[_slices(first - origin[row], last - origin[row])] = values[row][inside]
    return cut


def paste(clean: torch.Tensor, values: torch.Tensor, boxes: Boxes) -> torch.Tensor:
    """Perturbed activations in full, (N, C, *extent)."""
    shape = (len(values), *clean.shape[1:])
    whole = torch.empty(shape, dtype=clean.dtype, device=clean.device, memory_format=memory_format(len(shape)))
    whole.copy_(clean.expand(shape))
    for row, start in enumerate(boxes.start):
        whole[row][_slices(start, start + boxes.size)] = values[row]
    return whole


def _slices(low: np.ndarray, high: np.ndarray) -> tuple[slice, ...]:
    return (slice(None), *map(slice, low.tolist(), high.tolist()))
