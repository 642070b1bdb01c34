"""Of many gradients, the value farthest from 0 at every voxel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from voxplain.engine.boxes import Boxes
from voxplain.engine.pullback import runs


class SignedMaximum:
    """The value farthest from 0 at every voxel and channel, its sign kept; of equally far ones the first.

    Args:
        channels: how many.
        bounds: one box (1, D) outside of which all values are 0.
        device: where values are.

    Attributes:
        values: what was found so far, float32 (C, *bounds.size).
    """

    def __init__(self, channels: int, bounds: Boxes, device: torch.device) -> None:
        self._first = bounds.start[0]
        self.values = torch.zeros((channels, *bounds.size), device=device)

    def add(self, boxes: Boxes, values: torch.Tensor) -> None:
        """Look at more values, (N, C, *boxes.size) in boxes within the bounds."""
        for rows in runs(boxes.start):
            found, here = _farthest(values[rows]), self.values
            for axis, (first, size) in enumerate(zip(boxes.start[rows.start] - self._first, boxes.size, strict=True)):
                here = here.narrow(1 + axis, int(first), size)
            here.copy_(torch.where(found.abs() > here.abs(), found, here))


def _farthest(values: torch.Tensor) -> torch.Tensor:
    """Of (N, ...) the value farthest from 0, (...)."""
    if len(values) == 1:
        return values[0]
    high, low = values.amax(dim=0), values.amin(dim=0)
    found = torch.where(high > -low, high, low)
    ties = (high == -low) & (high > 0)
    if bool(ties.any()):
        first = values.abs().argmax(dim=0, keepdim=True)
        found = torch.where(ties, values.gather(0, first)[0], found)
    return found


def laid_out(values: np.ndarray, bounds: Boxes, shape: Sequence[int]) -> np.ndarray:
    """Values (C, *bounds.size) in zeros of the input's shape, (C, X, Y, Z)."""
    whole = np.zeros((len(values), *shape), dtype=np.float32)
    sides = zip(bounds.start[0].tolist(), bounds.size, strict=True)
    box = tuple(slice(first, first + size) for first, size in sides)
    part = whole[(slice(None), *box)]
    part[...] = values.reshape(part.shape)
    return whole
