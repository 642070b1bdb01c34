"""Gradients of single output voxels with respect to the input, each in the box in which it is not 0."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import fx, nn

from voxplain.engine.boxes import Boxes, memory_format
from voxplain.engine.clean_run import CleanRun, asks_for_shape
from voxplain.engine.pullback import Cotangents, pulled
from voxplain.engine.rules import Elementwise, Windowed
from voxplain.engine.tracing import UntraceableError, layer_name

_SUMS = {operator.add, torch.add, "add"}
_THROUGH = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d)
# Deep layers hold many weights and few voxels, so that a batch is as large as its widest activation allows; more than
# this much of them leaves the processor's caches for nothing.
_LARGEST_ACTIVATION = 1 << 25


@dataclass(frozen=True, eq=False)
class Rows:
    """Gradients of N output voxels with respect to the input: values (N, C, *boxes.size) in boxes, 0 around them.

    `numbers` (N,) says which of the voxels that were asked for they belong to.
    """

    numbers: np.ndarray
    boxes: Boxes
    values: torch.Tensor

    def only(self, which: np.ndarray) -> tuple[Boxes, torch.Tensor]:
        """Boxes and values of some of the N, by their places."""
        if len(which) == len(self.numbers):
            return self.boxes, self.values
        return Boxes(self.boxes.start[which], self.boxes.size), self.values[torch.from_numpy(which)]


class Reading(ABC):
    """A network's pass over one input, kept for gradients of its output voxels.

    Attributes:
        kept_bytes: what is kept of it.
    """

    kept_bytes: int

    @abstractmethod
    def rows(self, voxels: np.ndarray, index: int) -> Iterator[Rows]:
        """Gradients of one class's raw score in voxels (N, D) with respect to the input, in the order of the voxels."""


class LocalNetwork:
    """A network whose gradients are followed back in boxes: exact, and as much work as the boxes are large.

    Args:
        network: in eval mode, (1, C, ...) -> (1, classes, ...).
        example: an input of the shape that all inputs will have, on the network's device.
        most_bytes: what gradients of a batch may take in a layer.

    Raises:
        UntraceableError: a network that torch.fx cannot write down, or a layer that works on no boxes; named.
    """

    def __init__(self, network: nn.Module, example: torch.Tensor, most_bytes: int) -> None:
        self.run = CleanRun(network, example)
        self.most_bytes = min(most_bytes, _LARGEST_ACTIVATION)
        self.shapes = {node: _shape(self.run.values[node]) for node in self.run.inputs}
        self.order = self._on_the_way()
        # Activations' slopes are kept of a pass, and the inputs of what else is not linear.
        self.pointwise = {node for node in self.order if self._is_pointwise(node)}
        self.kept = {
            source
            for node in self.order
            if node not in self.pointwise and self._is_nonlinear(node)
            for source in self.run.inputs[node]
        }
        self.constants = {node: value for node, value in self.run.values.items() if node not in self.run.inputs}
        self.run.forget()

    def _on_the_way(self) -> list[fx.Node]:
        """The nodes between input and output, from the output back."""
        reached, order = {self.run.last}, []
        for node in reversed(self.run.inputs):
            if node not in reached:
                continue
            order.append(node)
            if node is self.run.first:
                continue
            if node not in self.run.rules or self.shapes[node] == ():
                raise UntraceableError(f"layer {layer_name(node)!r} works on no boxes")
            reached.update(source for source in self.run.inputs[node] if not asks_for_shape(source))
        return order

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.run.graph.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _is_pointwise(self, node: fx.Node) -> bool:
        """Whether each number of the output depends on one number of one input."""
        if not isinstance(self.run.rules.get(node), Elementwise) or len(self.run.inputs[node]) != 1:
            return False
        same = self.shapes[node] == self.shapes[self.run.inputs[node][0]]
        return same and not isinstance(self._module(node), (nn.Softmax, *_THROUGH)) and node.target is not torch.cat

    def _is_nonlinear(self, node: fx.Node) -> bool:
        rule = self.run.rules.get(node)
        if isinstance(rule, Windowed):
            return rule.back is None
        return isinstance(rule, Elementwise) and not self.is_sum(node) and not self.is_joined(node)

    def is_sum(self, node: fx.Node) -> bool:
        """Whether a node hands its gradient on as it is, to each of its inputs."""
        if isinstance(self._module(node), _THROUGH):
            return True
        alike = all(self.shapes[source] == self.shapes[node] for source in self.run.inputs[node])
        plain = not node.kwargs and all(isinstance(given, fx.Node) for given in node.args)
        return node.target in _SUMS and alike and plain and len(node.args) == len(self.run.inputs[node])

    def is_joined(self, node: fx.Node) -> bool:
        """Whether a node puts the channels of activations side by side."""
        return node.target in (torch.cat, torch.concat) and set(node.all_input_nodes) == set(self.run.inputs[node])

    def read(self, inputs: torch.Tensor) -> Reading:
        """A pass over an input (1, C, ...)."""
        return _LocalReading(self, inputs)


def _shape(value: object) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


class _LocalReading(Reading):
    def __init__(self, network: LocalNetwork, inputs: torch.Tensor) -> None:
        self._network, run = network, network.run
        self._dtype, self._device = inputs.dtype, inputs.device
        self._slopes: dict[fx.Node, torch.Tensor] = {}
        self._kept: dict[fx.Node, torch.Tensor] = {}
        values = dict(network.constants)
        with torch.no_grad():
            for node in run.inputs:
                if node is run.first:
                    values[node] = inputs.contiguous(memory_format=memory_format(inputs.ndim))
                elif node in network.pointwise:
                    values[node], self._slopes[node] = self._with_slopes(node, values)
                else:
                    values[node] = run.value_of(node, values)
                if node in network.kept:
                    self._kept[node] = values[node]
                for done in run.done_after[node]:
                    del values[done]
        self.kept_bytes = sum(kept.nbytes for kept in (*self._slopes.values(), *self._kept.values()))

    def _with_slopes(self, node: fx.Node, values: dict[fx.Node, object]) -> tuple[torch.Tensor, torch.Tensor]:
        (source,) = self._network.run.inputs[node]
        given = values[source]
        assert isinstance(given, torch.Tensor)
        with torch.enable_grad():
            asked = given.detach().requires_grad_()
            output = self._network.run.value_of(node, values | {source: asked})
            if not output.requires_grad:
                return output, torch.zeros_like(given)
            (slopes,) = torch.autograd.grad(output.sum(), asked)
        return output.detach(), slopes

    def rows(self, voxels: np.ndarray, index: int) -> Iterator[Rows]:
        """As `Reading.rows`; a batch is as large as its widest activation allows."""
        last = self._network.run.last
        count, axes = voxels.shape
        like = next(iter(self._slopes.values()), next(iter(self._network.run.graph.parameters()), torch.empty(0)))
        values = torch.zeros((count, self._network.shapes[last][1], *(1,) * axes), dtype=like.dtype, device=like.device)
        values[:, index] = 1
        start = Cotangents(Boxes(voxels.astype(np.int64), (1,) * axes), values)
        with torch.no_grad():
            yield from self._back(0, {last: start}, np.arange(count))

    def _back(self, position: int, given: dict[fx.Node, Cotangents], numbers: np.ndarray) -> Iterator[Rows]:
        network, order = self._network, self._network.order
        for place in range(position, len(order)):
            node = order[place]
            found = given.pop(node, None)
            if found is None:
                continue
            found = found.within(network.shapes[node][2:])
            if node is network.run.first:
                yield Rows(numbers, found.boxes, found.values)
                return
            if len(numbers) > 1 and len(numbers) * self._bytes_each(node, found) > network.most_bytes:
                given[node] = found
                half = len(numbers) // 2
                for rows in (slice(0, half), slice(half, len(numbers))):
                    yield from self._back(place, {n: c.rows(rows) for n, c in given.items()}, numbers[rows])
                return
            for source, cotangents in self._through(node, found):
                given[source] = given[source].plus(cotangents) if source in given else cotangents

    def _bytes_each(self, node: fx.Node, given: Cotangents) -> int:
        """What one gradient takes at most on its way through a node."""
        rule, size = self._network.run.rules[node], np.asarray(given.boxes.size)
        if isinstance(rule, Windowed):
            size = (size - 1) * rule.windows.stride + rule.windows.reach + 1
        channels = sum(self._network.shapes[source][1] for source in self._network.run.inputs[node])
        return int(np.prod(size)) * channels * given.values.element_size()

    def _through(self, node: fx.Node, given: Cotangents) -> Iterator[tuple[fx.Node, Cotangents]]:
        network, sources = self._network, self._network.run.inputs[node]
        if node in network.pointwise:
            yield sources[0], given.times(self._slopes[node])
        elif network.is_joined(node):
            yield from self._apart(node, given)
        elif network.is_sum(node):
            for source in node.all_input_nodes if len(sources) == 1 else node.args:
                assert isinstance(source, fx.Node)
                yield source, replace(given, own=len(sources) == 1 and given.own)
        else:
            found = pulled(network.run.rules[node], given, [self._kept.get(source) for source in sources])
            yield from zip(sources, found, strict=True)

    def _apart(self, node: fx.Node, given: Cotangents) -> Iterator[tuple[fx.Node, Cotangents]]:
        """The gradients of activations whose channels a node put side by side."""
        joined = node.args[0] if node.args else node.kwargs["tensors"]
        assert isinstance(joined, (list, tuple))
        first = 0
        for source in joined:
            assert isinstance(source, fx.Node)
            last = first + self._network.shapes[source][1]
            yield source, given.channels(slice(first, last))
            first = last


class AutogradNetwork:
    """As `LocalNetwork`, for any network that PyTorch can follow: one backward pass over all of the input a voxel."""

    def __init__(self, network: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._network = network

    def read(self, inputs: torch.Tensor) -> Reading:
        """A pass over an input (1, C, ...)."""
        return _AutogradReading(self._network, inputs)


class _AutogradReading(Reading):
    def __init__(self, network: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> None:
        self._inputs = inputs.detach().clone().requires_grad_()
        saved: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            block = tensor.untyped_storage()
            saved[block.data_ptr()] = block.nbytes()
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self._output = network(self._inputs.clone())
        self.kept_bytes = sum(saved.values())

    def rows(self, voxels: np.ndarray, index: int) -> Iterator[Rows]:
        """As `Reading.rows`; one by one."""
        boxes = Boxes(np.zeros((1, voxels.shape[1]), dtype=np.int64), tuple(self._inputs.shape[2:]))
        for number, voxel in enumerate(voxels.tolist()):
            score = self._output[(0, index, *voxel)]
            (gradient,) = torch.autograd.grad(score, self._inputs, retain_graph=True)
            yield Rows(np.array([number]), boxes, gradient)
