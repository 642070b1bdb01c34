"""Exact incremental inference: only what a perturbation can change is computed again, layer by layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from voxplain.compute import size_in_words
from voxplain.engine.boxes import Boxes, Ranges, cover, gather, paste
from voxplain.engine.clean_run import CleanRun, asks_for_shape, extent_of
from voxplain.engine.rules import Held
from voxplain.engine.tracing import layer_name
from voxplain.errors import InputError

# One interval of voxels (start, stop) per axis.
Box = Sequence[tuple[int, int]]
Patch = tuple[Box, torch.Tensor | np.ndarray]

# Layers work on so many output voxels at a time (over the inputs of a batch) before a larger batch gains nothing; in a
# larger batch more boxes are padded to the largest.
_VOXELS_AT_ONCE = 1024
# What keeping the books of one layer for one input costs, 0.1 ms, as multiply-accumulates of a core.
_BOOKKEEPING = 6e6
# Reading a map off in one go is how a network ends; it costs next to nothing and is not worth telling.
_ENDS = {"flatten", "view", "reshape", "mean", "amax", "sum", torch.flatten, torch.mean, torch.amax, torch.reshape}
_END_MODULES = (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.Flatten)
_END_FUNCTIONS = {F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.adaptive_max_pool2d, F.adaptive_max_pool3d}


class KeepsTooMuchError(InputError):
    """The clean activations do not fit into memory. `kept_bytes` is what they would take."""

    def __init__(self, kept_bytes: int) -> None:
        super().__init__(
            f"the clean activations take {size_in_words(kept_bytes)}; allow more memory, or use full passes"
        )
        self.kept_bytes = kept_bytes


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
        expected: the network's output on the clean input, where that is known; it must come out again.
        batch_size: at most so many perturbed inputs are followed at a time.
        memory_bytes: what their activations may take together, kept clean ones not counted; one input runs even where
            it needs more.
        most_kept_bytes: what may be kept; any amount by default.

    Attributes:
        batch_size, memory_bytes: as given; both may be changed between calls.
        kept_bytes: what the copied network and the clean activations take as long as this object lives.
        clean_output: the network's output on the clean input, (1, ...).
        finished_in_full_from: names of the layers from which perturbed inputs ran in full so far, because the layer
            looks at everything or the boxes had reached (almost) everything there. Pooling or flattening at a
            network's end is not named.

    Raises:
        InputError: training mode, chance, an input or output of another kind.
        KeepsTooMuchError: more than `most_kept_bytes` would be kept.
        UntraceableError: torch.fx cannot trace the network; the message names the line.
    """

    def __init__(
        self,
        network: nn.Module,
        clean_input: torch.Tensor,
        *,
        expected: torch.Tensor | None = None,
        batch_size: int = 16,
        memory_bytes: int = 2**30,
        most_kept_bytes: float = math.inf,
    ) -> None:
        if clean_input.ndim not in (4, 5) or len(clean_input) != 1 or clean_input.dtype != torch.float32:
            raise InputError(
                "expected one float32 input (1, C, X, Y, Z) or (1, C, X, Y); "
                f"got {clean_input.dtype} of shape {tuple(clean_input.shape)}"
            )
        if batch_size < 1:
            raise InputError(f"batch_size is at least 1; got {batch_size}")
        self.batch_size, self.memory_bytes = batch_size, memory_bytes
        self._run = CleanRun(network, clean_input, expected, most_kept_bytes)
        self.kept_bytes = self._run.kept_bytes
        if not self._run.complete:
            raise KeepsTooMuchError(self.kept_bytes)
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
        outputs = torch.empty((len(patches), *self.clean_output.shape[1:]), device=self.clean_output.device)
        for rows, found in self.chunks(patches):
            outputs[rows] = found
        return outputs

    def chunks(self, patches: Sequence[Patch]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """As `outputs`, by and by: which of the inputs were followed together, and their outputs (n, ...).

        No more outputs exist at a time than one chunk's, as long as they are dropped before the next is asked for.
        """
        for box, values in patches:
            self._check(box, values)
        for rows in self.together([box for box, _ in patches]):
            yield rows, self.follow([patches[row] for row in rows])

    def together(self, boxes: Sequence[Box]) -> list[list[int]]:
        """Which inputs to follow together: boxes of like size, as many as `batch_size` and memory allow."""
        low, high = self._sides(boxes)
        return self._chunks(low, high)

    def follow(self, patches: Sequence[Patch]) -> torch.Tensor:
        """As `outputs`, of at least one input, all followed together."""
        clean = self._run.values[self._run.first]
        for box, values in patches:
            self._check(box, values)
        low, high = self._sides([box for box, _ in patches])
        pieces = [torch.as_tensor(values, dtype=clean.dtype, device=clean.device) for _, values in patches]
        with torch.inference_mode():
            outputs = self._follow(low, high, pieces)
        return outputs

    def pays(self, boxes: Sequence[Box]) -> bool:
        """Whether following inputs perturbed in these boxes is clearly less work than full passes."""
        counted = self.arithmetic(boxes)
        bookkeeping = _BOOKKEEPING * len(self._run.inputs)
        return float(np.mean(counted.inside)) + bookkeeping < counted.full

    def needed_bytes(self, boxes: Sequence[Box]) -> int:
        """What one input takes at most that is perturbed in any of these boxes, kept activations not counted."""
        return math.ceil(sum(self._run.peak_bytes(self._run.ranges(*self._sides(boxes)))))

    def _sides(self, boxes: Sequence[Box]) -> Ranges:
        """First voxels, and those one past the last, (N, D) each."""
        axes = self._run.values[self._run.first].ndim - 2
        sides = np.array(boxes, dtype=np.int64).reshape(len(boxes), axes, 2)
        return sides[..., 0], sides[..., 1]

    def arithmetic(self, boxes: Sequence[Box]) -> Arithmetic:
        """Count what perturbing each of these boxes costs alone, and a full pass: the ceiling of the speed-up."""
        run = self._run
        ranges = run.ranges(*self._sides(boxes))
        inside = np.zeros(len(boxes))
        for node, macs in run.arithmetic.items():
            inside += macs * run.shares(ranges[node], node)
        return Arithmetic(sum(run.arithmetic.values()), tuple(inside.tolist()))

    def _check(self, box: Box, values: torch.Tensor | np.ndarray) -> None:
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

    def _chunks(self, low: np.ndarray, high: np.ndarray) -> list[list[int]]:
        """Inputs to follow together: boxes of like size, as many as memory allows."""
        order = np.argsort(-np.prod(high - low, axis=1), kind="stable").tolist()
        rank = {row: position for position, row in enumerate(order)}
        remaining, chunks = order, []
        # Boxes grow on the way; 16 voxels stand for that when sizes are compared.
        sizes = (high - low).astype(np.float64) + 16
        while remaining:
            chunk = [remaining.pop(0)]
            largest = sizes[chunk[0]]
            most = self._most(low[chunk], high[chunk])
            while remaining and len(chunk) < most:
                grown = np.maximum(sizes[remaining], largest)
                best = int(np.argmin(grown.prod(axis=1) - sizes[remaining].prod(axis=1) / 2))
                chunk.append(remaining.pop(best))
                largest = grown[best]
            # All boxes of a chunk become as large as the largest along each axis.
            most = self._most(low[chunk], high[chunk])
            remaining = sorted([*remaining, *chunk[most:]], key=rank.__getitem__)
            chunks.append(chunk[:most])
        return chunks

    def _most(self, low: np.ndarray, high: np.ndarray) -> int:
        """How many inputs with boxes as large as these fit together; at least one."""
        each, once = self._run.peak_bytes(self._run.ranges(low, high))
        return int(max(1, min(self.batch_size, (self.memory_bytes - once) // each)))

    def _follow(self, low: np.ndarray, high: np.ndarray, pieces: list[torch.Tensor]) -> torch.Tensor:
        ranges = self._run.ranges(low, high)
        batches = [self._start(low, high, row, piece) for row, piece in enumerate(pieces)]
        for segment in self._run.segments:
            batches = self._regroup(batches, self._together(segment, ranges, len(pieces)), ranges)
            for batch in batches:
                for node in segment:
                    self._step(node, batch, ranges)
        wholes = [self._whole(self._run.last, batches.pop(0)) for _ in range(len(batches))]
        outputs = wholes[0] if len(wholes) == 1 else torch.cat(wholes)
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
                share = float(np.mean(self._run.shares(ranges[node], node)))
                voxels = max(voxels, share * math.prod(extent_of(self._run.values[node])))
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
        if asks_for_shape(node):
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
