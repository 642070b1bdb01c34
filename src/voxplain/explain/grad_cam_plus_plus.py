"""Grad-CAM++ for a class, and for one lesion of a segmentation (paper instance, 004)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from voxplain.engine.probe import Probe
from voxplain.explain.cam import GradientWeighted
from voxplain.explain.parts import one_of
from voxplain.target import RegionScore, Target

_ALPHA = "paper: Eq. 7 as printed; monai: with MONAI's sum(activation x gradient^3)"


@dataclass(frozen=True)
class GradCAMPlusPlus(GradientWeighted):
    """Grad-CAM++ (Chattopadhay 2018), of the logit: feature maps weighted by the positive part of their gradients.

    Eq. 4, 6 and 7 of 004: a map's weight is the sum over its voxels v of alpha[v] ReLU(g[v]), with alpha = g^2 /
    (2 g^2 + sum(A) g^3): second and third derivatives are powers of the gradient g, as the true ones of a network of
    rectifiers are 0. Where the denominator is 0, so is alpha. `alpha="monai"` has sum(A g^3) in place of sum(A) g^3.
    """

    name: ClassVar[str] = "grad-cam++"
    cost: ClassVar[str] = "2 forward, 1 backward"
    unit: ClassVar[str] = "alpha x logit gradient x activation"

    alpha: str = field(default="paper", metadata={"help": _ALPHA})

    def __post_init__(self) -> None:
        one_of("alpha", self.alpha, ("paper", "monai"))

    def _weighted(self, activation: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        weights = _alpha_of(activation, gradient, self.alpha) * np.maximum(gradient, 0)
        weights = weights.reshape(len(weights), -1).sum(axis=1).astype(np.float32)
        return np.tensordot(weights, activation, axes=(0, 0))


@dataclass(frozen=True)
class InstanceGradCAMPlusPlus(GradientWeighted):
    """Grad-CAM++ of one lesion (004, Eq. 8-10): every voxel of every feature map has a weight of its own.

    The score is the sum of the logits over the lesion's voxels (Eq. 9), and the map ReLU(sum_k alpha_k[v] ReLU(g_k[v])
    A_k[v]) with alpha as in `GradCAMPlusPlus`. Where no layer is named it is the feature maps that the network's last
    layer reads, which of a U-Net of MONAI are at half resolution; the paper's literal choice is the last layer's own
    output (`layer="model.2"` there), which shows the logits of the lesion itself.
    """

    name: ClassVar[str] = "instance-grad-cam++"
    cost: ClassVar[str] = "3 forward, 1 backward"
    unit: ClassVar[str] = "alpha x logit gradient x activation"
    takes: ClassVar[tuple[type[Target], ...]] = (RegionScore,)

    layer: str = field(
        default="", metadata={"help": "name of the layer; by default the feature maps that the last layer reads"}
    )
    alpha: str = field(default="paper", metadata={"help": _ALPHA})

    def __post_init__(self) -> None:
        one_of("alpha", self.alpha, ("paper", "monai"))

    def _default_layer(self, probe: Probe) -> str:
        return probe.last_features()

    def _scale(self, probe: Probe) -> float:
        assert isinstance(probe.target, RegionScore), "the template lets no other target through"
        # The target's logit is the mean over the lesion's voxels; Eq. 9 has the sum.
        return float(probe.target.count)

    def _weighted(self, activation: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        weights = _alpha_of(activation, gradient, self.alpha) * np.maximum(gradient, 0)
        return np.asarray((weights * activation).sum(axis=0), dtype=np.float32)


def _alpha_of(activation: np.ndarray, gradient: np.ndarray, form: str) -> np.ndarray:
    """The coefficients alpha (channels, spatial...) of Eq. 7, float64; 0 where their denominator is 0."""
    spatial = tuple(range(1, gradient.ndim))
    g, a = gradient.astype(np.float64), activation.astype(np.float64)
    third = a.sum(axis=spatial, keepdims=True) * g**3
    if form == "monai":
        third = (a * g**3).sum(axis=spatial, keepdims=True)
    denominator = 2 * g**2 + third
    alpha: np.ndarray = np.divide(g**2, denominator, out=np.zeros_like(g), where=denominator != 0)
    return alpha
