"""Class activation maps: a layer's feature maps, weighted by how they move the score."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch.nn import functional

from voxplain.engine.differentiating import add_inside
from voxplain.engine.probe import Probe
from voxplain.errors import InputError
from voxplain.explain.explainer import Explainer, Relevance


@dataclass(frozen=True)
class ClassActivationMap(Explainer):
    """What all CAMs share: positive part of the weighted sum of a layer's feature maps, resized linearly.

    High values are important. The layer's own grid is coarse; its voxel size is stated in the provenance. Of a network
    that reads the scan in windows, each window's sum is resized and added up, and the positive part is that of the sum.
    """

    family: ClassVar[str] = "class activation"
    needs: ClassVar[Literal["calls", "gradients", "layer"]] = "layer"
    unit: ClassVar[str] = "logit gradient x activation"

    layer: str = field(default="", metadata={"help": "name of the layer, such as layer2 (a wrong name lists them all)"})

    def _relevance(self, probe: Probe) -> Relevance:
        layer, scale = self.layer or self._default_layer(probe), self._scale(probe)
        pieces = probe.activation_and_gradient(layer)
        found = np.zeros((1, *probe.input.shape[1:]), dtype=np.float32)
        for piece in pieces:
            coarse = self._weighted(piece.activation, scale * piece.gradient)
            # What windows contribute adds up before the positive part is taken.
            if len(pieces) == 1:
                coarse = np.maximum(coarse, 0)
            size = tuple(stop - start for start, stop in piece.sides)
            fine = functional.interpolate(
                torch.from_numpy(coarse)[None, None],
                size=size[: coarse.ndim],
                mode="bilinear" if coarse.ndim == 2 else "trilinear",
            )[0].numpy()
            add_inside(found, fine.reshape(1, *size), piece.sides)
        spacing = probe.prepared.input.grid.spacing
        grid = [round(s * n / c, 3) for s, n, c in zip(spacing, size, coarse.shape, strict=False)]
        return Relevance(
            unit=self.unit,
            signed=False,
            map=np.maximum(found, 0),
            facts={"layer": layer, "layer_shape": list(coarse.shape), "layer_grid_mm": grid},
        )

    @abstractmethod
    def _weighted(self, activation: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """The weighted sum of feature maps, (spatial...), from activation and gradient (channels, spatial...)."""

    def _default_layer(self, probe: Probe) -> str:
        """The layer that is taken where none is named."""
        raise InputError(
            f"{self.name} needs the name of a layer; this network has {', '.join(probe.layers_like_blocks())}"
        )

    def _scale(self, probe: Probe) -> float:
        """What the score that the method speaks of is, as a multiple of the target's."""
        return 1.0


@dataclass(frozen=True)
class GradCAM(ClassActivationMap):
    """Grad-CAM (Selvaraju 2017): each feature map is weighted by the mean gradient of the logit."""

    name: ClassVar[str] = "grad-cam"
    cost: ClassVar[str] = "2 forward, 1 backward"

    def _weighted(self, activation: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        return np.tensordot(gradient.reshape(len(gradient), -1).mean(axis=1), activation, axes=(0, 0))
