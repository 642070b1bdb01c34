"""Class activation maps: a layer's feature maps, weighted by how they move the score."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch.nn import functional

from voxplain.engine.differentiating import LayerGradient, add_inside
from voxplain.engine.probe import Probe
from voxplain.errors import InputError
from voxplain.explain.explainer import Explainer, Relevance

_LAYER = "name of the layer, such as layer2 (a wrong name lists them all); several, with commas, are fused; all: each"


@dataclass(frozen=True)
class ClassActivationMap(Explainer):
    """What all CAMs share: positive part of the weighted sum of a layer's feature maps, resized linearly.

    High values are important. The layer's own grid is coarse; its voxel size is stated in the provenance. Of a network
    that reads the scan in windows, each window's sum is resized and added up, and the positive part is that of the sum.
    Of several layers (`layer="layer1,layer3"`) it is the mean of their maps, each divided by its highest value.
    """

    family: ClassVar[str] = "class activation"
    needs: ClassVar[Literal["calls", "gradients", "layer"]] = "layer"
    unit: ClassVar[str] = "logit gradient x activation"

    layer: str = field(default="", metadata={"help": _LAYER})

    def _relevance(self, probe: Probe) -> Relevance:
        layers = [name.strip() for name in self.layer.split(",") if name.strip()] or [self._default_layer(probe)]
        maps, shapes, grids = zip(*(self._of_layer(probe, layer) for layer in layers), strict=True)
        if len(layers) == 1:
            facts: dict[str, Any] = {"layer": layers[0], "layer_shape": shapes[0], "layer_grid_mm": grids[0]}
            return Relevance(unit=self.unit, signed=False, map=maps[0], facts=facts)
        fused: np.ndarray = np.stack([found / (found.max() or 1) for found in maps]).mean(axis=0)
        facts = {"layer": list(layers), "layer_shape": list(shapes), "layer_grid_mm": list(grids)}
        return Relevance(unit="share of the highest value, mean of the layers", signed=False, map=fused, facts=facts)

    def _of_layer(self, probe: Probe, layer: str) -> tuple[np.ndarray, list[int], list[float]]:
        """The map (1, X, Y, Z) of one layer, how many cells the layer's grid has along each axis, and their size."""
        pieces = probe.activation_and_gradient(layer)
        shape = pieces[0].activation.shape[1:]
        if math.prod(shape) == 1:
            raise InputError(
                f"layer {layer} has a grid of {' x '.join(map(str, shape))} cells, the whole input in one: there is "
                "nothing to localise; name an earlier layer"
            )
        weighted = self._weighting(probe, pieces)
        found = np.zeros((1, *probe.input.shape[1:]), dtype=np.float32)
        for piece in pieces:
            coarse = weighted(piece)
            # What windows contribute adds up before the positive part is taken.
            if len(pieces) == 1:
                coarse = np.maximum(coarse, 0)
            add_inside(found, resized(coarse, piece), piece.sides)
        spacing, sides = probe.prepared.input.grid.spacing, pieces[0].sides
        grid = [round(s * (b - a) / c, 3) for s, (a, b), c in zip(spacing, sides, shape, strict=False)]
        return np.maximum(found, 0), list(shape), grid

    @abstractmethod
    def _weighting(self, probe: Probe, pieces: Sequence[LayerGradient]) -> Callable[[LayerGradient], np.ndarray]:
        """What gives the weighted sum of feature maps, (spatial...), of each piece."""

    def _default_layer(self, probe: Probe) -> str:
        """The layer that is taken where none is named."""
        raise InputError(f"{self.name} needs the name of a layer; this network has {', '.join(probe.blocks())}")


@dataclass(frozen=True)
class GradientWeighted(ClassActivationMap):
    """The CAMs whose weights are made of the score's gradient."""

    def _weighting(self, probe: Probe, pieces: Sequence[LayerGradient]) -> Callable[[LayerGradient], np.ndarray]:
        scale = self._scale(probe)
        return lambda piece: self._weighted(piece.activation, scale * piece.gradient)

    @abstractmethod
    def _weighted(self, activation: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """The weighted sum of feature maps, (spatial...), from activation and gradient (channels, spatial...)."""

    def _scale(self, probe: Probe) -> float:
        """What the score that the method speaks of is, as a multiple of the target's."""
        return 1.0


@dataclass(frozen=True)
class GradCAM(GradientWeighted):
    """Grad-CAM (Selvaraju 2017): each feature map is weighted by the mean gradient of the logit."""

    name: ClassVar[str] = "grad-cam"
    cost: ClassVar[str] = "2 forward, 1 backward"

    def _weighted(self, activation: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        return np.tensordot(gradient.reshape(len(gradient), -1).mean(axis=1), activation, axes=(0, 0))


def resized(coarse: np.ndarray, piece: LayerGradient) -> np.ndarray:
    """A map on a layer's grid, resized linearly to the piece of the input that it belongs to: (1, X, Y, Z) float32."""
    size = tuple(stop - start for start, stop in piece.sides)
    fine = functional.interpolate(
        torch.from_numpy(coarse.astype(np.float32, copy=False))[None, None],
        size=size[: coarse.ndim],
        mode="bilinear" if coarse.ndim == 2 else "trilinear",
    )[0].numpy()
    found: np.ndarray = fine.reshape(1, *size)
    return found
