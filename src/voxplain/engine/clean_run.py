"""A network's pass over one clean input: its graph, the activations to keep, and where a perturbation can reach."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from voxplain.engine.boxes import Ranges, memory_format
from voxplain.engine.convolution import Convolution
from voxplain.engine.layers import rule_for
from voxplain.engine.rules import Rule
from voxplain.engine.tracing import refuse_training, traced
from voxplain.errors import InputError

# The graph and the network may differ by this much of the largest score: rounding, summed over many layers.
_ROUNDING = 1e-4


class CleanRun:
    """The graph of a network, and what its nodes give on a clean input.

    Attributes:
        graph: the traced copy of the network.
        values: node -> what it gives; activations that no box is cut out of keep their shape alone.
        rules: node -> how it works on boxes, where it can.
        inputs: node -> those of its arguments that depend on the network's input. In order of execution.
        arithmetic: node -> multiply-accumulates of a full pass through it.
        done_after: node -> activations that nothing reads after it.
        segments: the nodes, in runs between which batches may be merged or split.
        first, last: the network's input and its output.
        output: the network's clean output (1, ...).
    """

    def __init__(self, network: nn.Module, clean_input: torch.Tensor) -> None:
        refuse_training(network)
        self.graph = traced(network)
        self.values: dict[fx.Node, Any] = {}
        self.rules: dict[fx.Node, Rule] = {}
        self.inputs: dict[fx.Node, list[fx.Node]] = {}
        self.arithmetic: dict[fx.Node, float] = {}
        with torch.inference_mode():
            self.graph.to(memory_format=memory_format(clean_input.ndim))  # type: ignore[call-overload]
            self._run(clean_input)
        self.output = self.values[self.last].clone()
        self._check(network, clean_input)
        last_reader = {source: node for node in self.inputs for source in self.inputs[node]}
        self.done_after: dict[fx.Node, list[fx.Node]] = {node: [] for node in self.inputs}
        for source, reader in last_reader.items():
            if source is not self.last:
                self.done_after[reader].append(source)
        self.segments, at_cuts = self._cut()
        self._forget({self.last, *at_cuts})

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

    def share(self, ranges: Ranges | None, node: fx.Node, row: int) -> float:
        """The share of a node's output that one perturbed input computes."""
        if ranges is None:
            return 1.0
        return float(np.prod(ranges[1][row] - ranges[0][row])) / math.prod(extent_of(self.values[node]))

    def peak_bytes(self, ranges: dict[fx.Node, Ranges | None]) -> float:
        """What one perturbed input needs at its largest layer: its live activations and a copy of the largest."""
        live: dict[fx.Node, float] = {}
        peak = 1.0
        for node in self.inputs:
            value = self.values[node]
            if isinstance(value, torch.Tensor):
                share = self.share(ranges[node], node, 0) if value.ndim > 2 else 1.0
                live[node] = value.numel() * value.element_size() * share
            peak = max(peak, sum(live.values()) + max(live.values()))
            for done in self.done_after[node]:
                live.pop(done, None)
        return peak

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

    def _run(self, clean_input: torch.Tensor) -> None:
        modules = dict(self.graph.named_modules())
        for node in self.graph.graph.nodes:
            inputs = [source for source in node.all_input_nodes if source in self.inputs]
            module = modules[str(node.target)] if node.op == "call_module" else None
            if node.op == "placeholder":
                self._begin(node, clean_input)
                continue
            if node.op == "output":
                self._end(node)
                continue
            value = self.value_of(node, self.values)
            self.values[node] = value
            if not inputs:
                continue
            self.inputs[node] = inputs
            self.arithmetic.update(_multiply_accumulates(node, module, self.values))
            rule = rule_for(node, module, self.values, inputs)
            if rule is not None:
                self.rules[node] = rule

    def _begin(self, node: fx.Node, clean_input: torch.Tensor) -> None:
        if self.inputs:
            # Further arguments of forward keep their defaults.
            self.values[node] = node.args[0] if node.args else None
            return
        self.first = node
        self.inputs[node] = []
        self.values[node] = clean_input.clone(memory_format=memory_format(clean_input.ndim))

    def _end(self, node: fx.Node) -> None:
        out = node.args[0]
        if not isinstance(out, fx.Node) or not isinstance(self.values[out], torch.Tensor):
            raise InputError("expected a network that returns one tensor; wrap it so that it returns its scores alone")
        if out not in self.inputs:
            raise InputError("the network's output does not depend on its input")
        self.last = out

    def _check(self, network: nn.Module, clean_input: torch.Tensor) -> None:
        """The graph must say what the network says, and the network the same every time."""
        with torch.no_grad():
            expected = network(clean_input.clone())
            if isinstance(expected, torch.Tensor) and not bool(torch.isfinite(expected).all()):
                raise InputError("the network returns NaN or infinite scores for this input; check its weights")
            if _agree(expected, self.output):
                return
            again = network(clean_input.clone())
        if not _agree(expected, again):
            raise InputError(
                "two passes over the same input differ: the network draws on chance; make it deterministic"
            )
        raise InputError("the network's graph gives another output than the network itself; use full passes")

    def _cut(self) -> tuple[list[list[fx.Node]], set[fx.Node]]:
        """The graph in segments of layers of one extent, between which batches are merged or split."""
        nodes = [node for node in self.inputs if node is not self.first]
        live: set[fx.Node] = {self.first}
        # Per run of layers of one extent, where least is alive: (elements, position of the last layer, what is alive).
        best: list[tuple[float, int, set[fx.Node]]] = []
        extent = None
        for position, node in enumerate(nodes):
            live.add(node)
            live.difference_update(self.done_after[node])
            shape = extent_of(self.values[node])
            if not all(isinstance(self.values[n], torch.Tensor) and len(self.values[n]) == 1 for n in live):
                continue
            alive = float(sum(self.values[n].numel() for n in live))
            if shape != extent:
                extent = shape
                best.append((alive, position, set(live)))
            elif alive < best[-1][0]:
                best[-1] = (alive, position, set(live))
        bounds = sorted({0, *(position + 1 for _, position, _ in best), len(nodes)})
        alive_at_cuts = set().union(*(alive for _, _, alive in best))
        return [nodes[first:last] for first, last in itertools.pairwise(bounds)], alive_at_cuts

    def _forget(self, read: set[fx.Node]) -> None:
        """Keep only the clean activations that boxes are cut out of; of the others, their shapes."""
        for node, inputs in self.inputs.items():
            rule = self.rules.get(node)
            if rule is None or rule.reads_clean:
                read.update(inputs)
        for node in self.inputs:
            value = self.values[node]
            if node not in read and node is not self.first and isinstance(value, torch.Tensor):
                self.values[node] = torch.empty_like(value, device="meta")


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
