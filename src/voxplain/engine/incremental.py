"""Exact incremental inference: only what a perturbation can change is computed again, layer by layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from voxplain.engine.boxes import Boxes, Ranges, cover, gather, paste
from voxplain.engine.clean_run import CleanRun, extent_of
from voxplain.engine.rules import Held
from voxplain.engine.tracing import layer_name
from voxplain.errors import InputError

# One interval of voxels (start, stop) per axis.
Box = Sequence[tuple[int, int]]
Patch = tuple[Box, torch.Tensor | np.ndarray]

# Layers work on so many output voxels at a time (over the inputs of a batch) before a larger batch gains nothing; in a
# larger batch more boxes are padded to the largest.
_VOXELS_AT_ONCE = 1024
_SHAPE_QUERIES = {"size", "dim", "ndimension", "numel"}
# Reading a map off in one go is how a network ends; it costs next to nothing and is not worth telling.
_ENDS = {"flatten", "view", "reshape", "mean", "amax", "sum", torch.flatten, torch.mean, torch.amax, torch.reshape}
_END_MODULES = (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.Flatten)
_END_FUNCTIONS = {F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.adaptive_max_pool2d, F.adaptive_max_pool3d}


@dataclass(frozen=True)
class Arithmetic:
    """Multiply-accumulates of convolutions and linear layers: of one full pass, and of each perturbed pass in boxes."""

    full: float
    inside: tuple[float, ...]

    @property
    def ceiling(self) -> float:
        """How many times less arithmetic exactness allows, over all perturbed passes."""
        return self.full * len(self.inside) / sum(self.inside)


@dataclass(eq=False)
class _Batch:
    """Perturbed inputs `first` to `last` on their way through the graph: what nodes still to come will read."""

    first: int
    last: int
    values: dict[fx.Node, Any]


class Incremental:
    """A network at work on perturbations of one clean input, each of which changes one box of it.

    The clean input runs once, and its activations are kept. A perturbed input is followed layer by layer: only the box
    that can differ from the clean run is computed, from the box before and its clean surroundings. From layers that
    look at everything (instance and group norm, attention), and where boxes have grown over the whole volume, the rest
    runs in full. The network is copied, never changed; its scores agree with full passes to rounding.

    Args:
        network: in eval mode; input (N, C, X, Y, Z) or (N, C, X, Y), output one tensor (N, ...).
        clean_input: float32 (1, C, X, Y, Z) or (1, C, X, Y), on the network's device.
        batch_size: at most so many perturbed inputs are followed at a time.
        memory_bytes: about what their activations may take together, kept clean ones not counted.

    Attributes:
        clean_output: the network's output on the clean input, (1, ...).
        finished_in_full_from: names of the layers from which perturbed inputs ran in full so far, because the layer
            looks at everything or the boxes had reached (almost) everything there. Pooling or flattening at a
            network's end is not named.

    Raises:
        InputError: training mode, chance, an input or output of another kind.
        UntraceableError: torch.fx cannot trace the network; the message names the line.
    """

    def __init__(
        self, network: nn.Module, clean_input: torch.Tensor, *, batch_size: int = 16, memory_bytes: int = 2**30
    ) -> None:
        if clean_input.ndim not in (4, 5) or len(clean_input) != 1 or clean_input.dtype != torch.float32:
            raise InputError(
                "expected one float32 input (1, C, X, Y, Z) or (1, C, X, Y); "
                f"got {clean_input.dtype} of shape {tuple(clean_input.shape)}"
            )
        if batch_size < 1:
            raise InputError(f"batch_size is at least 1; got {batch_size}")
        self._batch_size, self._memory_bytes = batch_size, memory_bytes
        self._run = CleanRun(network, clean_input)
        self.clean_output = self._run.output
        self._finished: dict[str, None] = {}

    @property
    def finished_in_full_from(self) -> tuple[str, ...]:
        """Names of the layers from which perturbed inputs ran in full so far."""
        return tuple(self._finished)

    def outputs(self, patches: Sequence[Patch]) -> torch.Tensor:
        """The network's outputs (N, ...) on N inputs, each the clean one but for one box.

        Args:
            patches: per input the box, (start, stop) per axis, and its contents (C, dx, dy, dz).

        Raises:
            InputError: a box outside of the input, or contents of another shape.
        """
        clean = self._run.values[self._run.first]
        pieces = [self._checked(box, values) for box, values in patches]
        outputs = torch.empty((len(pieces), *self.clean_output.shape[1:]), device=clean.device)
        sides = np.array([box for box, _ in patches], dtype=np.int64).reshape(len(pieces), clean.ndim - 2, 2)
        low, high = sides[..., 0], sides[..., 1]
        with torch.inference_mode():
            for rows in self._chunks(low, high):
                outputs[rows] = self._follow(low[rows], high[rows], [pieces[row] for row in rows])
        return outputs

    def arithmetic(self, boxes: Sequence[Box]) -> Arithmetic:
        """Count what perturbing each of these boxes costs alone, and a full pass: the ceiling of the speed-up."""
        run, sides = self._run, np.array(boxes, dtype=np.int64)
        ranges = run.ranges(sides[..., 0], sides[..., 1])
        inside = (
            sum(macs * run.share(ranges[node], node, row) for node, macs in run.arithmetic.items())
            for row in range(len(boxes))
        )
        return Arithmetic(sum(run.arithmetic.values()), tuple(inside))

    def _checked(self, box: Box, values: torch.Tensor | np.ndarray) -> torch.Tensor:
        clean = self._run.values[self._run.first]
        shape = (clean.shape[1], *(stop - start for start, stop in box))
        inside = len(box) == clean.ndim - 2 and all(
            0 <= start < stop <= extent for (start, stop), extent in zip(box, clean.shape[2:], strict=True)
        )
        if not inside or tuple(values.shape) != shape:
            raise InputError(
                f"expected a box (start, stop per axis) within {tuple(clean.shape[2:])} and contents {shape}; "
                f"got {[tuple(side) for side in box]} and {tuple(values.shape)}"
            )
        return torch.as_tensor(values, dtype=clean.dtype, device=clean.device)

    def _chunks(self, low: np.ndarray, high: np.ndarray) -> list[list[int]]:
        """Inputs to follow together: boxes of like size, as many as memory allows."""
        remaining, chunks = list(np.argsort(-np.prod(high - low, axis=1), kind="stable")), []
        # Boxes grow on the way; 16 voxels stand for that when sizes are compared.
        sizes = (high - low).astype(np.float64) + 16
        while remaining:
            chunk = [int(remaining.pop(0))]
            largest = sizes[chunk[0]]
            ranges = self._run.ranges(low[chunk], high[chunk])
            most = max(1, min(self._batch_size, int(self._memory_bytes // self._run.peak_bytes(ranges))))
            while remaining and len(chunk) < most:
                grown = np.maximum(sizes[remaining], largest)
                best = int(np.argmin(grown.prod(axis=1) - sizes[remaining].prod(axis=1) / 2))
                chunk.append(int(remaining.pop(best)))
                largest = grown[best]
            chunks.append(chunk)
        return chunks

    def _follow(self, low: np.ndarray, high: np.ndarray, pieces: list[torch.Tensor]) -> torch.Tensor:
        ranges = self._run.ranges(low, high)
        batches = [self._start(low, high, row, piece) for row, piece in enumerate(pieces)]
        for segment in self._run.segments:
            batches = self._regroup(batches, self._together(segment, ranges, len(pieces)), ranges)
            for batch in batches:
                for node in segment:
                    self._step(node, batch, ranges)
        outputs = torch.cat([self._whole(self._run.last, batch) for batch in batches])
        if outputs.shape != (len(pieces), *self.clean_output.shape[1:]):
            raise InputError(
                f"expected outputs of shape {(len(pieces), *self.clean_output.shape[1:])}, got {tuple(outputs.shape)}: "
                "the network is written for one input at a time"
            )
        return outputs

    def _start(self, low: np.ndarray, high: np.ndarray, row: int, piece: torch.Tensor) -> _Batch:
        boxes = cover(low[row : row + 1], high[row : row + 1], extent_of(self._run.values[self._run.first]))
        clean = self._run.values[self._run.first]
        if boxes is None:
            whole = clean.clone()
            whole[(0, slice(None), *map(slice, low[row].tolist(), high[row].tolist()))] = piece
            return _Batch(row, row + 1, {self._run.first: whole})
        return _Batch(row, row + 1, {self._run.first: Held(clean, boxes, piece[None])})

    def _together(self, segment: list[fx.Node], ranges: dict[fx.Node, Ranges | None], count: int) -> int:
        """How many inputs a segment runs at a time: enough for layers to work at full speed, no more."""
        voxels = 1.0
        for node in segment:
            if extent_of(self._run.values[node]):
                shares = [self._run.share(ranges[node], node, row) for row in range(count)]
                voxels = max(voxels, float(np.mean(shares)) * math.prod(extent_of(self._run.values[node])))
        return max(1, min(count, math.ceil(_VOXELS_AT_ONCE / voxels)))

    def _regroup(self, batches: list[_Batch], together: int, ranges: dict[fx.Node, Ranges | None]) -> list[_Batch]:
        count = batches[-1].last
        groups = math.ceil(count / together)
        bounds = [round(group * count / groups) for group in range(groups + 1)]
        if bounds == [0, *(batch.last for batch in batches)]:
            return batches
        merged = [_Batch(first, last, {}) for first, last in itertools.pairwise(bounds)]
        for node in list(batches[0].values):
            for batch in merged:
                parts = [b for b in batches if b.first < batch.last and b.last > batch.first]
                batch.values[node] = self._joined(node, parts, batch, ranges[node])
            for old in batches:
                del old.values[node]
        return merged

    def _joined(self, node: fx.Node, parts: list[_Batch], batch: _Batch, ranges: Ranges | None) -> Any:
        """A node's value for the inputs of one batch, out of the batches that had them."""
        boxes = None
        if ranges is not None and all(isinstance(part.values[node], Held) for part in parts):
            rows = slice(batch.first, batch.last)
            boxes = cover(ranges[0][rows], ranges[1][rows], extent_of(self._run.values[node]))
        pieces = []
        for part in parts:
            rows = slice(max(batch.first, part.first) - part.first, min(batch.last, part.last) - part.first)
            if boxes is None:
                pieces.append(self._whole(node, part)[rows])
                continue
            held = part.values[node]
            skipped = max(part.first - batch.first, 0)
            start = boxes.start[skipped : skipped + rows.stop - rows.start]
            its = Boxes(held.boxes.start[rows], held.boxes.size)
            pieces.append(gather(held.clean, held.values[rows], its, start, boxes.size))
        values = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return values if boxes is None else Held(self._run.values[node], boxes, values)

    def _step(self, node: fx.Node, batch: _Batch, ranges: dict[fx.Node, Ranges | None]) -> None:
        rule, its_ranges = self._run.rules.get(node), ranges[node]
        given = [batch.values[source] for source in self._run.inputs[node]]
        boxes = None
        if rule is not None and its_ranges is not None and all(isinstance(value, Held) for value in given):
            rows = slice(batch.first, batch.last)
            boxes = cover(its_ranges[0][rows], its_ranges[1][rows], extent_of(self._run.values[node]))
        if rule is not None and boxes is not None:
            batch.values[node] = Held(self._run.values[node], boxes, rule.compute(given, boxes))
        else:
            batch.values[node] = self._in_full(node, batch)
        for done in self._run.done_after[node]:
            del batch.values[done]

    def _in_full(self, node: fx.Node, batch: _Batch) -> Any:
        values = dict(self._run.values)
        if _asks_for_shape(node):
            count = batch.last - batch.first
            for source in self._run.inputs[node]:
                value = batch.values[source]
                values[source] = value.clean.expand(count, *value.clean.shape[1:]) if isinstance(value, Held) else value
            return self._run.value_of(node, values)
        for source in self._run.inputs[node]:
            if isinstance(batch.values[source], Held) and not self._ends(node):
                self._finished.setdefault(layer_name(node))
            batch.values[source] = self._whole(source, batch)
            values[source] = batch.values[source]
        return self._run.value_of(node, values)

    def _ends(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self._run.graph.get_submodule(str(node.target)), _END_MODULES)
        return node.target in _ENDS | _END_FUNCTIONS

    def _whole(self, node: fx.Node, batch: _Batch) -> Any:
        value = batch.values[node]
        if not isinstance(value, Held) or value.boxes is None:
            return value
        if isinstance(value.values, torch.Tensor):
            return paste(self._run.values[node], value.values, value.boxes)
        return tuple(paste(c, v, value.boxes) for c, v in zip(self._run.values[node], value.values, strict=True))


def _asks_for_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _SHAPE_QUERIES
    return node.target is getattr and node.args[1] in ("shape", "device", "dtype", "ndim")
