"""Of many gradients, the value farthest from 0 at every voxel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from voxplain.engine.boxes import Boxes
from voxplain.engine.pullback import Cotangents, runs


class SignedMaximum:
    """The value farthest from 0 at every voxel and channel, its sign kept; of equally far ones the first.

    Attributes:
        boxes: one box (1, D) that holds all that was looked at, and what it was given to begin with.
        values: what was found so far, float32 (1, C, *boxes.size); 0 around it.
    """

    def __init__(self, channels: int, boxes: Boxes, device: torch.device) -> None:
        self.boxes, self.values = boxes, torch.zeros((1, channels, *boxes.size), device=device)

    def add(self, boxes: Boxes, values: torch.Tensor) -> None:
        """Look at more values, (N, C, *boxes.size) in boxes."""
        self._grow(boxes)
        for rows in runs(boxes.start):
            found, here = _farthest(values[rows]), self.values[0]
            start = boxes.start[rows.start] - self.boxes.start[0]
            for axis, (first, size) in enumerate(zip(start.tolist(), boxes.size, strict=True)):
                here = here.narrow(1 + axis, first, size)
            here.copy_(torch.where(found.abs() > here.abs(), found, here))

    def _grow(self, boxes: Boxes) -> None:
        low = np.minimum(self.boxes.start[0], boxes.start.min(axis=0))
        high = np.maximum(self.boxes.start[0] + self.boxes.size, (boxes.start + boxes.size).max(axis=0))
        if (high - low == self.boxes.size).all():
            return
        wider = Cotangents(self.boxes, self.values).placed(Boxes(low[None], tuple((high - low).tolist())))
        self.boxes, self.values = wider.boxes, wider.values.contiguous()


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


def laid_out(found: Cotangents, shape: Sequence[int]) -> np.ndarray:
    """One gradient in zeros of the input's shape, (C, X, Y, Z)."""
    whole = np.zeros((found.values.shape[1], *shape), dtype=np.float32)
    sides = zip(found.boxes.start[0].tolist(), found.boxes.size, strict=True)
    part = whole[(slice(None), *(slice(first, first + size) for first, size in sides))]
    part[...] = found.values.cpu().numpy().reshape(part.shape)
    return whole
