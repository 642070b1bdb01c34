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

from voxplain.engine.boxes import Ranges, cover, gather, memory_format, paste
from voxplain.engine.layers import rule_for
from voxplain.engine.rules import Held, Rule
from voxplain.engine.tracing import layer_name, refuse_training, traced
from voxplain.errors import InputError

# One interval of voxels (start, stop) per axis.
Box = Sequence[tuple[int, int]]
Patch = tuple[Box, torch.Tensor | np.ndarray]

# Layers work on so many output voxels at a time (over the inputs of a batch) before a larger batch gains nothing.
_VOXELS_AT_ONCE = 8192
# The graph and the network may differ by this much of the largest score: rounding, summed over many layers.
_ROUNDING = 1e-4
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
        refuse_training(network)
        self._batch_size, self._memory_bytes = batch_size, memory_bytes
        self._graph = traced(network)
        self._finished: dict[str, None] = {}
        self._clean: dict[fx.Node, Any] = {}
        self._rules: dict[fx.Node, Rule] = {}
        # Node -> those of its arguments that depend on the network's input.
        self._inputs: dict[fx.Node, list[fx.Node]] = {}
        self._arithmetic: dict[fx.Node, float] = {}
        with torch.inference_mode():
            self._graph.to(memory_format=memory_format(clean_input.ndim))  # type: ignore[call-overload]
            self._run_clean(clean_input)
        self._check(network, clean_input)
        last_reader = {source: node for node in self._inputs for source in self._inputs[node]}
        self._done_after: dict[fx.Node, list[fx.Node]] = {node: [] for node in self._inputs}
        for source, reader in last_reader.items():
            if source is not self._out:
                self._done_after[reader].append(source)
        self._segments = self._cut()
        self._forget()

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
        clean = self._clean[self._in]
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
        inside = []
        for box in boxes:
            sides = np.array([box], dtype=np.int64)
            ranges = self._ranges(sides[..., 0], sides[..., 1])
            inside.append(sum(macs * self._share(ranges[node], node, 0) for node, macs in self._arithmetic.items()))
        return Arithmetic(sum(self._arithmetic.values()), tuple(inside))

    # Before: the clean run.

    def _run_clean(self, clean_input: torch.Tensor) -> None:
        modules = dict(self._graph.named_modules())
        for node in self._graph.graph.nodes:
            inputs = [source for source in node.all_input_nodes if source in self._inputs]
            module = modules[str(node.target)] if node.op == "call_module" else None
            if node.op == "placeholder":
                self._begin(node, clean_input)
                continue
            if node.op == "output":
                self._end(node)
                continue
            value = self._graph_value(node, self._clean)
            self._clean[node] = value
            if not inputs:
                continue
            self._inputs[node] = inputs
            self._arithmetic.update(_multiply_accumulates(node, module, self._clean))
            rule = rule_for(node, module, self._clean, inputs)
            if rule is not None:
                self._rules[node] = rule

    def _begin(self, node: fx.Node, clean_input: torch.Tensor) -> None:
        if self._inputs:
            # Further arguments of forward keep their defaults.
            self._clean[node] = node.args[0] if node.args else None
            return
        self._in = node
        self._inputs[node] = []
        self._clean[node] = clean_input.clone(memory_format=memory_format(clean_input.ndim))

    def _end(self, node: fx.Node) -> None:
        out = node.args[0]
        if not isinstance(out, fx.Node) or not isinstance(self._clean[out], torch.Tensor):
            raise InputError("expected a network that returns one tensor; wrap it so that it returns its scores alone")
        if out not in self._inputs:
            raise InputError("the network's output does not depend on its input")
        self._out = out

    def _check(self, network: nn.Module, clean_input: torch.Tensor) -> None:
        """The graph must say what the network says, and the network the same every time."""
        self.clean_output = self._clean[self._out].clone()
        with torch.no_grad():
            expected = network(clean_input.clone())
            if _agree(expected, self.clean_output):
                return
            again = network(clean_input.clone())
        if not _agree(expected, again):
            raise InputError(
                "two passes over the same input differ: the network draws on chance; make it deterministic"
            )
        raise InputError("the network's graph gives another output than the network itself; use full passes")

    def _cut(self) -> list[list[fx.Node]]:
        """The graph in segments of layers of one extent, between which batches are merged or split."""
        segments: list[list[fx.Node]] = [[]]
        live: set[fx.Node] = {self._in}
        extent = None
        # Nodes whose clean activations are needed to cut boxes anew.
        self._at_cuts: set[fx.Node] = {self._out}
        for node in self._inputs:
            if node is self._in:
                continue
            segments[-1].append(node)
            live.add(node)
            live.difference_update(self._done_after[node])
            value = self._clean[node]
            shape = value.shape[2:] if isinstance(value, torch.Tensor) else extent
            tensors = all(isinstance(self._clean[n], torch.Tensor) and len(self._clean[n]) == 1 for n in live)
            if shape != extent and tensors and len(segments[-1]) > 1:
                extent = shape
                self._at_cuts |= live
                segments.append([])
        return [segment for segment in segments if segment]

    def _forget(self) -> None:
        """Keep only the clean activations that boxes are cut out of; of the others, their shapes."""
        read = set(self._at_cuts)
        for node, inputs in self._inputs.items():
            rule = self._rules.get(node)
            if rule is None or rule.reads_clean:
                read.update(inputs)
        for node in self._inputs:
            value = self._clean[node]
            if node not in read and node is not self._in and isinstance(value, torch.Tensor):
                self._clean[node] = torch.empty_like(value, device="meta")

    # Each batch: ranges first, then values.

    def _checked(self, box: Box, values: torch.Tensor | np.ndarray) -> torch.Tensor:
        clean = self._clean[self._in]
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

    def _ranges(self, low: np.ndarray, high: np.ndarray) -> dict[fx.Node, Ranges | None]:
        """Where each node can differ from the clean run; None where all of it can."""
        ranges: dict[fx.Node, Ranges | None] = {}
        for node, inputs in self._inputs.items():
            if node is self._in:
                ranges[node] = (low, high)
                continue
            rule, given = self._rules.get(node), [ranges[source] for source in inputs]
            known = [r for r in given if r is not None]
            ranges[node] = rule.ranges(known) if rule is not None and len(known) == len(given) else None
        return ranges

    def _share(self, ranges: Ranges | None, node: fx.Node, row: int) -> float:
        """The share of a node's output that one perturbed input computes."""
        if ranges is None:
            return 1.0
        return float(np.prod(ranges[1][row] - ranges[0][row])) / math.prod(_extent(self._clean[node]))

    def _chunks(self, low: np.ndarray, high: np.ndarray) -> list[list[int]]:
        """Inputs to follow together: boxes of like size, as many as memory allows."""
        remaining, chunks = list(np.argsort(-np.prod(high - low, axis=1), kind="stable")), []
        # Boxes grow on the way; 16 voxels stand for that when sizes are compared.
        sizes = (high - low).astype(np.float64) + 16
        while remaining:
            chunk = [int(remaining.pop(0))]
            largest = sizes[chunk[0]]
            ranges = self._ranges(low[chunk], high[chunk])
            most = max(1, min(self._batch_size, int(self._memory_bytes // self._peak_bytes(ranges))))
            while remaining and len(chunk) < most:
                grown = np.maximum(sizes[remaining], largest)
                best = int(np.argmin(grown.prod(axis=1) - sizes[remaining].prod(axis=1) / 2))
                chunk.append(int(remaining.pop(best)))
                largest = grown[best]
            chunks.append(chunk)
        return chunks

    def _peak_bytes(self, ranges: dict[fx.Node, Ranges | None]) -> float:
        """What one perturbed input needs at its largest layer: its live activations and a copy of the largest."""
        live: dict[fx.Node, float] = {}
        peak = 1.0
        for node in self._inputs:
            value = self._clean[node]
            if isinstance(value, torch.Tensor):
                share = self._share(ranges[node], node, 0) if value.ndim > 2 else 1.0
                live[node] = value.numel() * value.element_size() * share
            peak = max(peak, sum(live.values()) + max(live.values()))
            for done in self._done_after[node]:
                live.pop(done, None)
        return peak

    def _follow(self, low: np.ndarray, high: np.ndarray, pieces: list[torch.Tensor]) -> torch.Tensor:
        ranges = self._ranges(low, high)
        batches = [self._start(low, high, row, piece) for row, piece in enumerate(pieces)]
        for segment in self._segments:
            batches = self._regroup(batches, self._together(segment, ranges, len(pieces)), ranges)
            for batch in batches:
                for node in segment:
                    self._step(node, batch, ranges)
        outputs = torch.cat([self._whole(self._out, batch) for batch in batches])
        if outputs.shape != (len(pieces), *self.clean_output.shape[1:]):
            raise InputError(
                f"expected outputs of shape {(len(pieces), *self.clean_output.shape[1:])}, got {tuple(outputs.shape)}: "
                "the network is written for one input at a time"
            )
        return outputs

    def _start(self, low: np.ndarray, high: np.ndarray, row: int, piece: torch.Tensor) -> _Batch:
        boxes = cover(low[row : row + 1], high[row : row + 1], self._extent_in)
        clean = self._clean[self._in]
        if boxes is None:
            whole = clean.clone()
            whole[(0, slice(None), *map(slice, low[row].tolist(), high[row].tolist()))] = piece
            return _Batch(row, row + 1, {self._in: whole})
        return _Batch(row, row + 1, {self._in: Held(clean, boxes, piece[None])})

    @property
    def _extent_in(self) -> tuple[int, ...]:
        return _extent(self._clean[self._in])

    def _together(self, segment: list[fx.Node], ranges: dict[fx.Node, Ranges | None], count: int) -> int:
        """How many inputs a segment runs at a time: enough for layers to work at full speed, no more."""
        voxels = 1.0
        for node in segment:
            if node in self._arithmetic and self._clean[node].ndim > 2:
                shares = [self._share(ranges[node], node, row) for row in range(count)]
                voxels = max(voxels, float(np.mean(shares)) * math.prod(_extent(self._clean[node])))
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
            boxes = cover(ranges[0][rows], ranges[1][rows], _extent(self._clean[node]))
        pieces = []
        for part in parts:
            rows = slice(max(batch.first, part.first) - part.first, min(batch.last, part.last) - part.first)
            if boxes is None:
                pieces.append(self._whole(node, part)[rows])
                continue
            held = part.values[node]
            skipped = max(part.first - batch.first, 0)
            start = boxes.start[skipped : skipped + rows.stop - rows.start]
            its = type(boxes)(held.boxes.start[rows], held.boxes.size)
            pieces.append(gather(held.clean, held.values[rows], its, start, boxes.size))
        values = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return values if boxes is None else Held(self._clean[node], boxes, values)

    def _step(self, node: fx.Node, batch: _Batch, ranges: dict[fx.Node, Ranges | None]) -> None:
        rule, its_ranges = self._rules.get(node), ranges[node]
        given = [batch.values[source] for source in self._inputs[node]]
        boxes = None
        if rule is not None and its_ranges is not None and all(isinstance(value, Held) for value in given):
            rows = slice(batch.first, batch.last)
            boxes = cover(its_ranges[0][rows], its_ranges[1][rows], _extent(self._clean[node]))
        if rule is not None and boxes is not None:
            batch.values[node] = Held(self._clean[node], boxes, rule.compute(given, boxes))
        else:
            batch.values[node] = self._in_full(node, batch)
        for done in self._done_after[node]:
            del batch.values[done]

    def _in_full(self, node: fx.Node, batch: _Batch) -> Any:
        values = dict(self._clean)
        if _asks_for_shape(node):
            count = batch.last - batch.first
            for source in self._inputs[node]:
                value = batch.values[source]
                held = isinstance(value, Held)
                values[source] = self._clean[source].expand(count, *self._clean[source].shape[1:]) if held else value
            return self._graph_value(node, values)
        for source in self._inputs[node]:
            if isinstance(batch.values[source], Held) and not self._ends(node):
                self._finished.setdefault(layer_name(node))
            batch.values[source] = self._whole(source, batch)
            values[source] = batch.values[source]
        return self._graph_value(node, values)

    def _ends(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self._graph.get_submodule(str(node.target)), _END_MODULES)
        return node.target in _ENDS | _END_FUNCTIONS

    def _whole(self, node: fx.Node, batch: _Batch) -> Any:
        value = batch.values[node]
        if not isinstance(value, Held) or value.boxes is None:
            return value
        if isinstance(value.values, torch.Tensor):
            return paste(self._clean[node], value.values, value.boxes)
        return tuple(paste(c, v, value.boxes) for c, v in zip(self._clean[node], value.values, strict=True))

    def _graph_value(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """What a node of the graph gives for values of its arguments."""
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            return getattr(self._graph.get_submodule(owner), name)
        arguments, named = fx.map_arg((node.args, node.kwargs), lambda source: values[source])
        if node.op == "call_module":
            return self._graph.get_submodule(str(node.target))(*arguments, **named)
        if node.op == "call_method":
            return getattr(arguments[0], str(node.target))(*arguments[1:], **named)
        assert callable(node.target)
        return node.target(*arguments, **named)


def _extent(value: Any) -> tuple[int, ...]:
    """A map's extent; that of the first of a tuple of maps."""
    return tuple((value if isinstance(value, torch.Tensor) else value[0]).shape[2:])


def _asks_for_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _SHAPE_QUERIES
    return node.target is getattr and node.args[1] in ("shape", "device", "dtype", "ndim")


def _agree(first: Any, second: torch.Tensor) -> bool:
    if not isinstance(first, torch.Tensor) or first.shape != second.shape:
        return False
    return bool((first - second).abs().max() <= _ROUNDING * (1 + first.abs().max()))


def _multiply_accumulates(node: fx.Node, module: nn.Module | None, clean: dict[fx.Node, Any]) -> dict[fx.Node, float]:
    """A layer's multiply-accumulates on one input; empty where it is no convolution and no linear layer."""
    weights = {F.conv2d, F.conv3d, F.linear}
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
        return {node: clean[node].numel() * float(module.weight[0].numel())}
    if isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
        return {node: clean[node.all_input_nodes[0]].numel() * float(module.weight[0].numel())}
    if module is None and node.target in weights and len(node.args) > 1 and isinstance(node.args[1], fx.Node):
        return {node: clean[node].numel() * float(clean[node.args[1]][0].numel())}
    return {}
