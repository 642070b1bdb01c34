"""Gradients of single output voxels, followed back layer by layer in the boxes in which they are not 0."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from voxplain.engine.boxes import Boxes, gather, memory_format
from voxplain.engine.rules import Elementwise, Rule, Separable, Transposed, Windowed


@dataclass(frozen=True, eq=False)
class Cotangents:
    """Gradients of N scores with respect to one activation: values (N, C, *boxes.size) in boxes, 0 around them.

    Values that are `own` belong to nobody else, and may be written into.
    """

    boxes: Boxes
    values: torch.Tensor
    own: bool = False

    def rows(self, rows: slice) -> Cotangents:
        """Those of some of the N scores."""
        return Cotangents(Boxes(self.boxes.start[rows], self.boxes.size), self.values[rows], self.own)

    def channels(self, channels: slice) -> Cotangents:
        """Those with respect to some of the C channels."""
        return Cotangents(self.boxes, self.values[:, channels])

    def within(self, extent: Sequence[int]) -> Cotangents:
        """The same in boxes inside of the activation: beyond it lies padding, which depends on nothing."""
        start, size, most = self.boxes.start, np.asarray(self.boxes.size), np.asarray(extent)
        low, high = np.maximum(start, 0), np.minimum(start + size, most)
        if np.array_equal(low, start) and np.array_equal(high, start + size):
            return self
        fits = np.maximum((high - low).max(axis=0), 1)
        return self.placed(Boxes(np.clip(low, 0, most - fits), tuple(fits.tolist())))

    def placed(self, boxes: Boxes) -> Cotangents:
        """The same in other boxes; what lies outside of them is left out."""
        offset = boxes.start - self.boxes.start
        if boxes.size == self.boxes.size and not offset.any():
            return self
        shape = (*self.values.shape[:2], *boxes.size)
        values = torch.empty(
            shape, dtype=self.values.dtype, device=self.values.device, memory_format=memory_format(len(shape))
        ).zero_()
        self._write(values, offset, boxes.size, torch.Tensor.copy_)
        return Cotangents(boxes, values, own=True)

    def _write(
        self,
        values: torch.Tensor,
        offset: np.ndarray,
        size: Sequence[int],
        write: Callable[[torch.Tensor, torch.Tensor], object],
    ) -> None:
        """Write into boxes (N, C, *size) that begin `offset` (N, D) after these, where both are."""
        for rows in runs(offset):
            here, there = self.values[rows], values[rows]
            for axis, (o, n, m) in enumerate(zip(offset[rows.start].tolist(), self.boxes.size, size, strict=True)):
                length = max(0, min(n, o + m) - max(o, 0))
                here = here.narrow(2 + axis, min(max(o, 0), n - length), length)
                there = there.narrow(2 + axis, min(max(-o, 0), m - length), length)
            write(there, here)

    def plus(self, other: Cotangents) -> Cotangents:
        """The sum of two ways from an activation to the scores."""
        low = np.minimum(self.boxes.start, other.boxes.start)
        high = np.maximum(self.boxes.start + self.boxes.size, other.boxes.start + other.boxes.size)
        boxes = Boxes(low, tuple((high - low).max(axis=0).tolist()))
        # One of them mostly holds the other, so that little is to be added.
        wide, narrow = (self, other) if self.boxes.size == boxes.size else (other, self)
        whole = wide.placed(boxes)
        values = whole.values if whole.own else whole.values.clone()
        narrow._write(values, low - narrow.boxes.start, boxes.size, torch.Tensor.add_)
        return Cotangents(boxes, values, own=True)

    def times(self, slopes: torch.Tensor) -> Cotangents:
        """Each voxel times the slope of an activation there, (1, C, ...)."""
        values = self.values if self.own else self.values.clone()
        for rows in runs(self.boxes.start):
            values[rows].mul_(_cut(slopes, self.boxes.start[rows.start].tolist(), self.boxes.size))
        return Cotangents(self.boxes, values, own=True)


def joined(parts: Sequence[Cotangents]) -> Cotangents:
    """The scores of several, after each other."""
    if len(parts) == 1:
        return parts[0]
    size = tuple(np.max([part.boxes.size for part in parts], axis=0).tolist())
    alike = [part.placed(Boxes(part.boxes.start, size)) for part in parts]
    start = np.concatenate([part.boxes.start for part in alike])
    return Cotangents(Boxes(start, size), torch.cat([part.values for part in alike]), own=True)


def runs(places: np.ndarray) -> list[slice]:
    """Rows that follow each other and are alike in all of (N, D)."""
    changes = np.flatnonzero((places[1:] != places[:-1]).any(axis=1)) + 1
    bounds = [0, *changes.tolist(), len(places)]
    return [slice(first, last) for first, last in itertools.pairwise(bounds)]


def _cut(values: torch.Tensor, start: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    for axis, (first, length) in enumerate(zip(start, size, strict=True)):
        values = values.narrow(2 + axis, first, length)
    return values


def pulled(rule: Rule, given: Cotangents, inputs: Sequence[torch.Tensor | None]) -> list[Cotangents]:
    """Through one layer: gradients with respect to each of its inputs, from those with respect to its output.

    `given` lies within the output. `inputs` are the layer's clean inputs (1, C, ...), where it is not linear.
    """
    if isinstance(rule, Windowed):
        return [_through_windows(rule, given, inputs[0])]
    if isinstance(rule, Transposed):
        return [_through_transposed(rule, given)]
    if isinstance(rule, Separable):
        return [Cotangents(rule.read_by(given.boxes), rule.back(given.values, given.boxes), own=True)]
    assert isinstance(rule, Elementwise)
    pieces = [gather(_known(clean), None, None, given.boxes.start, given.boxes.size) for clean in inputs]
    fixed = [
        constant if constant.ndim == 0 else gather(constant, None, None, given.boxes.start, given.boxes.size)
        for constant in rule.constants
    ]
    with torch.enable_grad():
        pieces = [piece.requires_grad_() for piece in pieces]
        output = rule.call(*[piece.clone() for piece in pieces], *fixed)
        found = torch.autograd.grad(output, pieces, given.values, allow_unused=True)
    return [
        Cotangents(given.boxes, torch.zeros_like(piece) if gradient is None else gradient)
        for piece, gradient in zip(pieces, found, strict=True)
    ]


def _known(clean: torch.Tensor | None) -> torch.Tensor:
    assert clean is not None
    return clean


def _through_windows(rule: Windowed, given: Cotangents, clean: torch.Tensor | None) -> Cotangents:
    windows, boxes = rule.windows, given.boxes
    size = tuple(((np.asarray(boxes.size) - 1) * windows.stride + windows.reach + 1).tolist())
    read = Boxes(boxes.start * windows.stride - windows.padding, size)
    if rule.back is not None:
        return Cotangents(read, rule.back(rule.counted(given.values, boxes)), own=True)
    piece = gather(_known(clean), None, None, read.start, size, rule.fill)
    with torch.enable_grad():
        piece.requires_grad_()
        (gradient,) = torch.autograd.grad(rule.call(piece), piece, given.values)
    return Cotangents(read, gradient, own=True)


def _through_transposed(rule: Transposed, given: Cotangents) -> Cotangents:
    windows, boxes = rule.windows, given.boxes
    begins = boxes.start + windows.padding
    first = -((windows.reach - begins) // windows.stride)
    last = (begins + boxes.size - 1) // windows.stride + 1
    # Of the input, as many voxels as write into the box that most of them write into.
    count = np.maximum((last - first).max(axis=0), 1)
    size = tuple(((count - 1) * windows.stride + windows.reach + 1).tolist())
    written = given.placed(Boxes(first * windows.stride - windows.padding, size))
    return Cotangents(Boxes(first, tuple(count.tolist())), rule.back(written.values), own=True)
