"""How kinds of layers work on boxes: where their output can change, and how to compute that much of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from voxplain.engine.boxes import Boxes, Ranges, gather, union, within


@dataclass(frozen=True, eq=False)
class Held:
    """What is known of a perturbed activation: the clean one (1, C, ...), boxes in it, and their contents.

    A constant (weights, positions) has no boxes. Layers that give tuples hold a tuple.
    """

    clean: Any
    boxes: Boxes | None
    values: Any


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of a layer, one number per axis each, and the extent of what it gives out."""

    kernel: np.ndarray
    stride: np.ndarray
    dilation: np.ndarray
    padding: np.ndarray
    extent: tuple[int, ...]

    @property
    def reach(self) -> np.ndarray:
        """From a window's first to its last voxel."""
        reach: np.ndarray = self.dilation * (self.kernel - 1)
        return reach


class Rule(ABC):
    """A layer that works on boxes. `reads_clean`: it needs its inputs' clean activations, not their boxes alone."""

    reads_clean: bool = True

    @abstractmethod
    def ranges(self, inputs: Sequence[Ranges]) -> Ranges:
        """Where the output can change, from where the inputs do."""

    @abstractmethod
    def compute(self, inputs: Sequence[Held], boxes: Boxes) -> Any:
        """The output (N, C, *boxes.size) in boxes."""


@dataclass(frozen=True, eq=False)
class Elementwise(Rule):
    """Each output voxel depends on the same voxel of every input (and on all of its channels).

    `call` takes the inputs' and the `constants`' tensors, cut out alike; constants of full extent are cut as well.
    """

    call: Callable[..., Any]
    constants: tuple[torch.Tensor, ...]
    reads_clean: bool

    def ranges(self, inputs: Sequence[Ranges]) -> Ranges:
        """The union of the inputs' ranges."""
        return inputs[0] if len(inputs) == 1 else union(inputs)

    def compute(self, inputs: Sequence[Held], boxes: Boxes) -> Any:
        """Boxes of all inputs, through the function."""
        if not self.reads_clean:
            return self.call(inputs[0].values)
        cut = [gather(i.clean, i.values, i.boxes, boxes.start, boxes.size) for i in inputs]
        cut += [c if c.ndim == 0 else gather(c, None, None, boxes.start, boxes.size) for c in self.constants]
        return self.call(*cut)


@dataclass(frozen=True, eq=False)
class Windowed(Rule):
    """Convolutions, pooling and padding: an output voxel reads a window of the input.

    `call` works on a piece of the padded input, without padding of its own; `fill` is what lies around the volume. A
    mean over windows that reach over the border divides by the number of voxels counted there (`counts`, one vector
    per axis). Where `call` is linear, `back` is its transpose, from (N, C, *size) to the piece; else it is None.
    """

    windows: Windows
    call: Callable[[torch.Tensor], torch.Tensor]
    fill: float = 0.0
    counts: tuple[torch.Tensor, ...] | None = None
    back: Callable[[torch.Tensor], torch.Tensor] | None = None

    def ranges(self, inputs: Sequence[Ranges]) -> Ranges:
        """Windows that touch the input's ranges."""
        ((low, high),), w = inputs, self.windows
        return within(-((w.reach - low - w.padding) // w.stride), (high - 1 + w.padding) // w.stride + 1, w.extent)

    def compute(self, inputs: Sequence[Held], boxes: Boxes) -> torch.Tensor:
        """The windows' voxels, cut out of the padded input, through the function."""
        (held,), w = inputs, self.windows
        size = (np.asarray(boxes.size) - 1) * w.stride + w.reach + 1
        origin = boxes.start * w.stride - w.padding
        return self.counted(
            self.call(gather(held.clean, held.values, held.boxes, origin, tuple(size.tolist()), self.fill)), boxes
        )

    def counted(self, values: torch.Tensor, boxes: Boxes) -> torch.Tensor:
        """Sums over windows (N, C, *boxes.size), divided by the number of voxels that count in each."""
        for axis, counts in enumerate(self.counts or ()):
            rows = torch.stack([counts[s : s + boxes.size[axis]] for s in boxes.start[:, axis].tolist()])
            shape = [len(rows)] + [1] * (values.ndim - 1)
            shape[2 + axis] = boxes.size[axis]
            values = values / rows.view(shape)
        return values


@dataclass(frozen=True, eq=False)
class Transposed(Rule):
    """Transposed convolutions: an input voxel writes a window of the output. `back` is the transpose of `call`."""

    windows: Windows
    call: Callable[[torch.Tensor], torch.Tensor]
    back: Callable[[torch.Tensor], torch.Tensor]

    def ranges(self, inputs: Sequence[Ranges]) -> Ranges:
        """All that the input's ranges write to."""
        ((low, high),), w = inputs, self.windows
        return within(low * w.stride - w.padding, (high - 1) * w.stride - w.padding + w.reach + 1, w.extent)

    def compute(self, inputs: Sequence[Held], boxes: Boxes) -> torch.Tensor:
        """All that writes into the boxes; where windows leave gaps, one voxel more, so that the last gap is covered."""
        (held,), w = inputs, self.windows
        first = -((w.reach - boxes.start - w.padding) // w.stride)
        last = (boxes.start + boxes.size - 1 + w.padding) // w.stride + 1
        covered = (last - 1) * w.stride - w.padding + w.reach + 1
        short = (covered < boxes.start + boxes.size).any(axis=0)
        size = tuple(((last - first).max(axis=0) + short).tolist())
        written = self.call(gather(held.clean, held.values, held.boxes, first, size))
        offsets = boxes.start - (first * w.stride - w.padding)
        return _crop(written, offsets, boxes.size)


@dataclass(frozen=True, eq=False)
class Separable(Rule):
    """Interpolation and regional means: one matrix (in, out) per axis, whose columns read intervals."""

    matrices: tuple[torch.Tensor, ...]
    reads: tuple[tuple[np.ndarray, np.ndarray], ...] = field(init=False)

    def __post_init__(self) -> None:
        used = [(matrix != 0).cpu().numpy() for matrix in self.matrices]
        object.__setattr__(self, "reads", tuple((u.argmax(axis=0), len(u) - u[::-1].argmax(axis=0)) for u in used))

    def ranges(self, inputs: Sequence[Ranges]) -> Ranges:
        """The output voxels that read the input's ranges."""
        ((low, high),) = inputs
        lows = [np.searchsorted(last, low[:, axis], side="right") for axis, (_, last) in enumerate(self.reads)]
        highs = [np.searchsorted(first, high[:, axis], side="left") for axis, (first, _) in enumerate(self.reads)]
        return within(np.stack(lows, 1), np.stack(highs, 1), [matrix.shape[1] for matrix in self.matrices])

    def compute(self, inputs: Sequence[Held], boxes: Boxes) -> torch.Tensor:
        """The matrices' columns of the boxes, times the rows that they read."""
        (held,) = inputs
        read = self.read_by(boxes)
        values = gather(held.clean, held.values, held.boxes, read.start, read.size)
        for axis in range(len(self.matrices)):
            weights = self._weights(axis, read, boxes, values)
            values = torch.matmul(values.movedim(2 + axis, -1), weights).movedim(-1, 2 + axis)
        return values

    def read_by(self, boxes: Boxes) -> Boxes:
        """Boxes of the input that boxes of the output read."""
        last_voxels = boxes.start + boxes.size - 1
        first = np.stack([read[0][boxes.start[:, axis]] for axis, read in enumerate(self.reads)], 1)
        last = np.stack([read[1][last_voxels[:, axis]] for axis, read in enumerate(self.reads)], 1)
        size = (last - first).max(axis=0)
        return Boxes(np.minimum(first, [len(matrix) for matrix in self.matrices] - size), tuple(size.tolist()))

    def back(self, values: torch.Tensor, boxes: Boxes) -> torch.Tensor:
        """The transpose: from values (N, C, *boxes.size) of the output to boxes of the input, as `read_by` has them."""
        read = self.read_by(boxes)
        for axis in range(len(self.matrices)):
            weights = self._weights(axis, read, boxes, values).transpose(-1, -2)
            values = torch.matmul(values.movedim(2 + axis, -1), weights).movedim(-1, 2 + axis)
        return values

    def _weights(self, axis: int, read: Boxes, boxes: Boxes, like: torch.Tensor) -> torch.Tensor:
        """Along one axis, for each input of a batch, how much each voxel read counts in each voxel of the output."""
        pieces = [
            self.matrices[axis][row : row + read.size[axis], column : column + boxes.size[axis]]
            for row, column in zip(read.start[:, axis].tolist(), boxes.start[:, axis].tolist(), strict=True)
        ]
        weights = torch.stack(pieces).to(like.dtype)
        return weights.view(len(pieces), *[1] * (like.ndim - 3), *weights.shape[1:])


def _crop(values: torch.Tensor, offsets: np.ndarray, size: tuple[int, ...]) -> torch.Tensor:
    rows = [
        row[(slice(None), *(slice(o, o + s) for o, s in zip(offset, size, strict=True)))]
        for row, offset in zip(values, offsets.tolist(), strict=True)
    ]
    return torch.stack(rows)
