"""Gradients of the explained score: with respect to the input, or to what a layer gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from voxplain.engine.budget import is_out_of_memory
from voxplain.engine.last_layer import last_features
from voxplain.engine.running import Running, memory_guarded
from voxplain.engine.windows import Stitched
from voxplain.errors import InputError


class _NoGradientError(InputError):
    """The score has no gradient with respect to the input, or none that fits into memory."""


@dataclass(frozen=True, eq=False)
class LayerGradient:
    """What a layer gives on one piece of the clean input, and the logit's gradient there.

    Attributes:
        sides: the piece, (start, stop) per axis of the input: all of it, or a window, which reaches beyond the input
            along an axis that is padded.
        activation, gradient: (channels, spatial...) float32. Gradients carry the window's blending weights, so that
            what windows contribute to the logit adds up.
    """

    sides: tuple[tuple[int, int], ...]
    activation: np.ndarray
    gradient: np.ndarray


@dataclass(frozen=True, eq=False)
class _Piece:
    """What the network reads at once: a copy of the input there, (1, C, ...), and how the logit reads its output.

    `weights` (1, classes, x, y, z) is the logit's gradient with respect to the raw scores of a window, blending
    included; None where the target reads the output itself.
    """

    sides: tuple[tuple[int, int], ...]
    inputs: torch.Tensor
    weights: torch.Tensor | None


class Differentiating(Running):
    """A network at work on one region of a scan, whose score can be followed back."""

    def input_gradient(self) -> np.ndarray | None:
        """As `gradient`; None where there is none, for methods that do without."""
        try:
            return self.gradient()
        except _NoGradientError:
            return None

    def gradient(self, during: AbstractContextManager[object] | None = None) -> np.ndarray:
        """The logit's gradient with respect to the clean input, float32 (C, X, Y, Z).

        The pass forward, of each window its own, runs within `during`, which may change what functions of torch do.

        Raises:
            InputError: the score does not depend on the input in a way that PyTorch can follow, the gradient is not
                finite, or what the pass has to save takes more than the memory limit.
        """
        limit, saved = self.compute.memory_bytes - self._needs.single, dict[int, int]()

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            block = tensor.untyped_storage()
            saved[block.data_ptr()] = block.nbytes()
            if sum(saved.values()) > limit:
                raise _NoGradientError(
                    f"the gradient has to keep more than the limit of {self.compute.memory}; give a larger --memory, "
                    "or use a method that needs calls only"
                )
            return tensor

        found = np.zeros_like(self.input)
        for piece in self._pieces():
            saved.clear()
            inputs = piece.inputs.requires_grad_()
            with during or nullcontext(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                output = self._output(inputs.clone())
            score = self._score(piece, output)
            gradient = self._followed_back(score, inputs) if score.requires_grad else None
            if gradient is None:
                raise _NoGradientError(
                    "the score does not depend on the input in a way that PyTorch can follow; use a method that needs "
                    "calls only"
                )
            if not bool(torch.isfinite(gradient).all()):
                raise _NoGradientError(
                    "the gradient of the score holds NaN or infinity; use a method that needs calls only"
                )
            values: np.ndarray = gradient[0].float().cpu().numpy()
            add_inside(found, values[..., None] if self.model.card.spatial_dims == 2 else values, piece.sides)
        self.forwards += 1
        self.backwards += 1
        return found

    def _pieces(self) -> Iterator[_Piece]:
        """The clean input as the network reads it: whole, or the windows that the region touches, one by one."""
        inputs = self._tensor(self.input[None])
        if not isinstance(self.network, Stitched):
            yield _Piece(tuple((0, size) for size in self.input.shape[1:]), inputs, None)
            return
        tiling = self.network.tiling(inputs.shape[2:])
        output = torch.zeros((1, len(self.model.card.classes), *inputs.shape[2:]), device=self._device)
        # The logit is a mean over voxels: its gradient is the same whatever the scores are.
        (read,) = torch.autograd.grad(self.target.logit(output.requires_grad_(), self.model.card).sum(), output)
        read = tiling.pad(read, (0.0,) * read.shape[1])
        for number in self.network.numbers(inputs.shape[2:]):
            weights = read[(slice(None), slice(None), *tiling.boxes[number])] * tiling.weights(number).to(self._device)
            yield _Piece(tiling.sides(number), self.network.piece(inputs, number), weights)

    def _output(self, inputs: torch.Tensor) -> torch.Tensor:
        """The raw scores of a piece that is read as `inputs`; the pass counts as none."""
        network = self.network.window_scores if isinstance(self.network, Stitched) else self.network
        return self._checked(self._called(network, inputs), tuple(inputs.shape))

    def _score(self, piece: _Piece, output: torch.Tensor) -> torch.Tensor:
        """What the raw scores of a piece add to the logit."""
        if piece.weights is None:
            return self.target.logit(output, self.model.card).sum()
        return (output * piece.weights).sum()

    @memory_guarded()
    def _followed_back(self, score: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor | None:
        """The score's gradient with respect to the inputs; None where it does not depend on them."""
        try:
            (gradient,) = torch.autograd.grad(score, inputs, allow_unused=True)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:200]
            raise _NoGradientError(
                f"PyTorch cannot follow the score back to the input: {reason}; use a method that needs calls only"
            ) from error
        return gradient

    def activation_and_gradient(self, layer: str) -> list[LayerGradient]:
        """A layer's output on the clean input and the logit's gradient there: of the input, or of each window.

        Raises:
            InputError: no such layer, a layer that runs more than once or not at all, or one whose output the score
                does not depend on.
        """
        found = [self._layer_gradient(layer, piece) for piece in self._pieces()]
        self.forwards += 1
        self.backwards += 1
        return found

    def last_features(self) -> str:
        """Name of the layer whose feature maps the network's last layer reads; found by one pass over a piece.

        Raises:
            InputError: no layer before the last one gives feature maps.
        """
        piece = next(self._pieces())

        def run() -> None:
            with torch.no_grad():
                self._output(piece.inputs)

        found = last_features(self.model.network, run, dims=self.model.card.spatial_dims)
        self.forwards += 1
        if found is None:
            raise InputError("no layer before the network's last one gives feature maps; name a layer")
        return found

    def _layer_gradient(self, layer: str, piece: _Piece) -> LayerGradient:
        kept: list[object] = []

        def keep(_module: nn.Module, _inputs: object, output: object) -> object:
            kept.append(output)
            # What follows works on a copy, so that an activation in place cannot overwrite what is kept.
            return output.clone() if isinstance(output, torch.Tensor) else output

        handle = self.model.layer(layer).register_forward_hook(keep)
        try:
            # The input asks for gradients, so that every layer's output does, with the weights left out of it. The
            # network gets a copy, which it may write into.
            output = self._output(piece.inputs.requires_grad_().clone())
        finally:
            handle.remove()
        if len(kept) != 1:
            raise InputError(
                f"layer {layer!r} runs {len(kept)} times in one pass, so its map is not defined; "
                f"name a layer that runs once, such as a block ({', '.join(self.blocks())})"
            )
        (activation,) = kept
        if not isinstance(activation, torch.Tensor) or activation.ndim != 2 + self.model.card.spatial_dims:
            raise InputError(f"layer {layer!r} gives no feature maps; name a convolution or a block")
        score, gradient = self._score(piece, output), None
        if score.requires_grad and activation.requires_grad:
            (gradient,) = torch.autograd.grad(score, activation, allow_unused=True)
        if gradient is None:
            raise InputError(f"the score does not depend on layer {layer!r}; name a layer on the way to the output")
        return LayerGradient(
            piece.sides, activation.detach()[0].float().cpu().numpy(), gradient[0].float().cpu().numpy()
        )


def add_inside(volume: np.ndarray, values: np.ndarray, sides: Sequence[tuple[int, int]]) -> None:
    """Add a box's values (C, x, y, z) to a volume (C, X, Y, Z), leaving out what lies beyond the volume."""
    here, there = [slice(None)], [slice(None)]
    for (start, stop), size in zip(sides, volume.shape[1:], strict=True):
        first, last = max(start, 0), min(stop, size)
        here.append(slice(first - start, last - start))
        there.append(slice(first, last))
    volume[tuple(there)] += values[tuple(here)]
