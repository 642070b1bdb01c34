"""A network's pass over one clean input: its graph, the activations to keep, and where a perturbation can reach."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from voxplain.engine.boxes import Ranges, cover, memory_format
from voxplain.engine.budget import UNSEEN, bytes_in_blocks
from voxplain.engine.convolution import Convolution
from voxplain.engine.layers import rule_for
from voxplain.engine.rules import Rule, Separable, Transposed, Windowed
from voxplain.engine.tracing import UntraceableError, refuse_training, traced
from voxplain.errors import InputError

# The graph and the network may differ by this much of the largest score: rounding, summed over many layers.
_ROUNDING = 1e-4
_SHAPE_QUERIES = {"size", "dim", "ndimension", "numel"}
_ONE_TENSOR = "expected a network that returns one tensor; wrap it so that it returns its scores alone"


class CleanRun:
    """The graph of a network, and what its nodes give on a clean input.

    Attributes:
        graph: the traced copy of the network.
        values: node -> what it gives; activations that no box is cut out of keep their shape alone.
        rules: node -> how it works on boxes, where it can.
        inputs: node -> those of its arguments that depend on the network's input. In order of execution.
        in_full: nodes that run in full wherever the input is perturbed.
        arithmetic: node -> multiply-accumulates of a full pass through it.
        done_after: node -> activations that nothing reads after it.
        segments: the nodes, in runs between which batches may be merged or split.
        first, last: the network's input and its output.
        output: the network's clean output (1, ...).
        kept_bytes: what the copied weights and the clean activations to be kept take.
        complete: whether these activations are kept; not where they would take more than `memory_bytes`.
    """

    def __init__(
        self,
        network: nn.Module,
        clean_input: torch.Tensor,
        expected: torch.Tensor | None = None,
        memory_bytes: float = math.inf,
    ) -> None:
        refuse_training(network)
        self.graph = traced(network)
        self.values: dict[fx.Node, Any] = {}
        self.rules: dict[fx.Node, Rule] = {}
        self.inputs: dict[fx.Node, list[fx.Node]] = {}
        self.in_full: set[fx.Node] = set()
        self.arithmetic: dict[fx.Node, float] = {}
        self._order()
        # Activations of which boxes are cut out.
        self._read = {self.first, self.last}
        # Before anything is kept, so that a whole pass and what is kept do not add up.
        if expected is None:
            with torch.no_grad():
                expected = network(clean_input.clone())
        with torch.inference_mode():
            self.graph.to(memory_format=memory_format(clean_input.ndim))  # type: ignore[call-overload]
            weights = sum(weight.nbytes for weight in (*self.graph.parameters(), *self.graph.buffers()))
            self.complete = self._run(clean_input, memory_bytes - weights)
        self.output = self.values[self.last].clone()
        self._check(network, clean_input, expected)
        self.kept_bytes = weights + self._bytes_to_keep()
        self.segments = self._cut()

    def ranges(self, low: np.ndarray, high: np.ndarray) -> dict[fx.Node, Ranges | None]:
        """Where each node can differ from the clean run; None where all of it can."""
        ranges: dict[fx.Node, Ranges | None] = {}
        for node, inputs in self.inputs.items():
            if node is self.first:
                ranges[node] = (low, high)
                continue
            rule, given = self.rules.get(node), [ranges[source] for source in inputs]
            known = [r for r in given if r is not None]
            ranges[node] = rule.ranges(known) if rule is not None and len(known) == len(given) else None
        return ranges

    def shares(self, ranges: Ranges | None, node: fx.Node) -> np.ndarray | float:
        """The share of a node's output that each perturbed input computes, (N,); 1 where all of it."""
        if ranges is None:
            return 1.0
        found: np.ndarray = np.prod(ranges[1] - ranges[0], axis=1) / math.prod(extent_of(self.values[node]))
        return found

    def peak_bytes(self, ranges: dict[fx.Node, Ranges | None]) -> tuple[float, float]:
        """What perturbed inputs need at the layer where it is most, in bytes: each of them, and all together once.

        Each has its live activations, in boxes as large as the largest of `ranges`, what a layer cuts out of them, and
        what it gives; where a layer runs in full, all of these in full. Once for all there is what a convolution makes
        for itself.
        """
        live: dict[fx.Node, float] = {}
        each = once = 1.0
        for node, inputs in self.inputs.items():
            value, rule, size = self.values[node], self.rules.get(node), self._box_size(node, ranges[node])
            live[node] = _bytes(value) * _share(size, value)
            cut = 0.0
            for source in inputs:
                given = self.values[source]
                if rule is None or size is None:
                    live[source] = float(_bytes(given))
                elif rule.reads_clean:
                    cut += _bytes(given) * _share(_size_read(rule, size), given)
            if isinstance(rule, Separable):
                cut += 2 * live[node]  # one axis after the other
            each = max(each, sum(live.values()) + cut)
            once = max(once, self._scratch_bytes(node, size))
            for done in self.done_after[node]:
                live.pop(done, None)
        # The output as a whole, and once more where those of several batches are put together.
        each = max(each, live[self.last] + 2 * _bytes(self.values[self.last]))
        return UNSEEN * each, UNSEEN * once

    def _box_size(self, node: fx.Node, ranges: Ranges | None) -> np.ndarray | None:
        """The size of boxes that cover ranges; None where the node runs in full."""
        boxes = None if ranges is None else cover(*ranges, extent_of(self.values[node]))
        return None if boxes is None else np.asarray(boxes.size)

    def _scratch_bytes(self, node: fx.Node, size: np.ndarray | None) -> float:
        """What a convolution on the CPU makes for itself for one input, in the worst case."""
        module = self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        value = self.values[node]
        if self.values[self.first].device.type != "cpu":
            return 0.0
        if not isinstance(module, Convolution | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            return 0.0
        made = bytes_in_blocks(value)
        return made * _share(size, value) + 2 * _bytes(module.weight)

    def value_of(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """What a node of the graph gives for values of its arguments."""
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            return getattr(self.graph.get_submodule(owner), name)
        arguments, named = fx.map_arg((node.args, node.kwargs), lambda source: values[source])
        if node.op == "call_module":
            return self.graph.get_submodule(str(node.target))(*arguments, **named)
        if node.op == "call_method":
            return getattr(arguments[0], str(node.target))(*arguments[1:], **named)
        assert callable(node.target)
        return node.target(*arguments, **named)

    def _order(self) -> None:
        """What depends on the network's input, in order of execution, and after which node nothing reads it."""
        for node in self.graph.graph.nodes:
            inputs = [source for source in node.all_input_nodes if source in self.inputs]
            if node.op == "output":
                out = node.args[0]
                if not isinstance(out, fx.Node):
                    raise InputError(_ONE_TENSOR)
                if out not in self.inputs:
                    raise InputError("the network's output does not depend on its input")
                self.last = out
            elif inputs:
                self.inputs[node] = inputs
            elif node.op == "placeholder" and not self.inputs:
                self.first = node
                self.inputs[node] = []
        last_reader = {source: node for node in self.inputs for source in self.inputs[node]}
        self.done_after: dict[fx.Node, list[fx.Node]] = {node: [] for node in self.inputs}
        for source, reader in last_reader.items():
            if source is not self.last:
                self.done_after[reader].append(source)

    def _run(self, clean_input: torch.Tensor, memory_bytes: float) -> bool:
        """Run the clean input, and keep what boxes are cut out of, of the rest the shape.

        Returns False where that is more than `memory_bytes`: then all is forgotten as soon as the pass has read it.
        """
        modules = dict(self.graph.named_modules())
        kept: list[fx.Node] = []
        held: dict[fx.Node, int] = {}
        complete = True
        for node in self.graph.graph.nodes:
            if node.op == "output":
                continue
            if node is self.first:
                self.values[node] = clean_input.clone(memory_format=memory_format(clean_input.ndim))
            elif node.op == "placeholder":
                # Further arguments of forward keep their defaults.
                self.values[node] = node.args[0] if node.args else None
            else:
                self.values[node] = self.value_of(node, self.values)
            if node not in self.inputs:
                continue
            if node is not self.first:
                self._note(node, modules[str(node.target)] if node.op == "call_module" else None)
            held[node] = _bytes(self.values[node])
            for done in self.done_after[node]:
                if complete and done in self._read:
                    kept.append(done)
                else:
                    self._forget(done)
                    del held[done]
            # What comes next, and what it needs besides, is taken to be as large as what came last.
            if complete and sum(held.values()) + 2 * held[node] > memory_bytes:
                complete = False
                for done in kept:
                    self._forget(done)
                    del held[done]
        if not isinstance(self.values[self.last], torch.Tensor):
            raise InputError(_ONE_TENSOR)
        return complete

    def _bytes_to_keep(self) -> int:
        if not self.complete:
            return sum(_bytes(self.values[node]) for node in self._read)
        # Layers may hand on what they were given.
        kept = [value for value in map(self.values.get, self._read) if isinstance(value, torch.Tensor)]
        return sum({block.data_ptr(): block.nbytes() for block in (v.untyped_storage() for v in kept)}.values())

    def _note(self, node: fx.Node, module: nn.Module | None) -> None:
        """How a node that has just run works on boxes, and which activations are read for that."""
        inputs = self.inputs[node]
        self.arithmetic.update(_multiply_accumulates(node, module, self.values))
        rule = rule_for(node, module, self.values, inputs)
        if rule is not None:
            self.rules[node] = rule
        if rule is None or not self.in_full.isdisjoint(inputs):
            self.in_full.add(node)
            if not asks_for_shape(node) or "device" in node.args:
                self._read.update(source for source in inputs if source not in self.in_full)
        elif rule.reads_clean:
            self._read.update(inputs)

    def forget(self) -> None:
        """Keep the shapes of the activations alone, for who runs other inputs through the graph."""
        for node in self.inputs:
            self._forget(node)

    def _forget(self, node: fx.Node) -> None:
        """Keep an activation's shape alone."""
        value = self.values[node]
        if isinstance(value, torch.Tensor):
            self.values[node] = torch.empty_like(value, device="meta")
        elif isinstance(value, tuple | list) and all(isinstance(v, torch.Tensor) for v in value):
            self.values[node] = type(value)(torch.empty_like(v, device="meta") for v in value)

    def _check(self, network: nn.Module, clean_input: torch.Tensor, expected: Any) -> None:
        """The graph must say what the network says, and the network the same every time."""
        if isinstance(expected, torch.Tensor) and not bool(torch.isfinite(expected).all()):
            raise InputError("the network returns NaN or infinite scores for this input; check its weights")
        if _agree(expected, self.output):
            return
        with torch.no_grad():
            again = network(clean_input.clone())
        if not _agree(expected, again):
            raise InputError(
                "two passes over the same input differ: the network draws on chance; make it deterministic"
            )
        raise UntraceableError("the network's graph gives another output than the network itself")

    def _cut(self) -> list[list[fx.Node]]:
        """The graph in segments of layers of one extent, between which batches are merged or split.

        Merged boxes are cut out of clean activations too, so that all that is alive at a cut must be kept anyway.
        """
        nodes = [node for node in self.inputs if node is not self.first]
        live: set[fx.Node] = {self.first}
        # Per run of layers of one extent, where least is alive: (elements, position of the last layer).
        best: list[tuple[float, int]] = []
        extent = None
        for position, node in enumerate(nodes):
            live.add(node)
            live.difference_update(self.done_after[node])
            shape = extent_of(self.values[node])
            whole = [self.values[n] for n in live]
            if not live <= self._read | self.in_full or not all(
                isinstance(v, torch.Tensor) and len(v) == 1 for v in whole
            ):
                continue
            alive = float(sum(v.numel() for v in whole))
            if shape != extent:
                extent = shape
                best.append((alive, position))
            elif alive < best[-1][0]:
                best[-1] = (alive, position)
        bounds = sorted({0, *(position + 1 for _, position in best), len(nodes)})
        return [nodes[first:last] for first, last in itertools.pairwise(bounds)]


def asks_for_shape(node: fx.Node) -> bool:
    """Whether a node reads no more of its argument than its shape, device or kind of numbers."""
    if node.op == "call_method":
        return node.target in _SHAPE_QUERIES
    return node.target is getattr and node.args[1] in ("shape", "device", "dtype", "ndim")


def extent_of(value: Any) -> tuple[int, ...]:
    """A map's extent; that of the first of a tuple of maps; nothing for anything else."""
    first = value[0] if isinstance(value, tuple | list) and value else value
    return tuple(first.shape[2:]) if isinstance(first, torch.Tensor) else ()


def _agree(first: Any, second: torch.Tensor) -> bool:
    if not isinstance(first, torch.Tensor) or first.shape != second.shape:
        return False
    return bool((first - second).abs().max() <= _ROUNDING * (1 + first.abs().max()))


def _multiply_accumulates(node: fx.Node, module: nn.Module | None, clean: dict[fx.Node, Any]) -> dict[fx.Node, float]:
    """A layer's multiply-accumulates on one input; empty where it is no convolution and no linear layer."""
    weights = {F.conv2d, F.conv3d, F.linear}
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear | Convolution):
        return {node: clean[node].numel() * float(module.weight[0].numel())}
    if isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
        return {node: clean[node.all_input_nodes[0]].numel() * float(module.weight[0].numel())}
    if module is None and node.target in weights and len(node.args) > 1 and isinstance(node.args[1], fx.Node):
        return {node: clean[node].numel() * float(clean[node.args[1]][0].numel())}
    return {}


def _bytes(value: Any) -> int:
    """What a tensor takes, or those of a tuple; nothing for anything else."""
    if isinstance(value, tuple | list):
        return sum(_bytes(item) for item in value)
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0


def _share(size: np.ndarray | None, value: Any) -> float:
    """The share that boxes of a size have of a map; 1 for all of it, and for what is no map."""
    extent = extent_of(value)
    return 1.0 if size is None or not extent else math.prod(size.tolist()) / math.prod(extent)


def _size_read(rule: Rule, size: np.ndarray) -> np.ndarray:
    """The size of what a layer cuts out of its input for boxes of a size."""
    if isinstance(rule, Windowed):
        return (size - 1) * rule.windows.stride + rule.windows.reach + 1
    if isinstance(rule, Transposed):
        return (size + rule.windows.reach) // rule.windows.stride + 2
    if isinstance(rule, Separable):
        return np.array([s * len(m) // m.shape[1] + 2 for s, m in zip(size.tolist(), rule.matrices, strict=True)])
    return size
