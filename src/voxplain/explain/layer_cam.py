"""LayerCAM: a weight for every voxel of every feature map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from voxplain.explain.cam import GradientWeighted


@dataclass(frozen=True)
class LayerCAM(GradientWeighted):
    """LayerCAM (Jiang 2021): feature maps weighted voxel by voxel by the positive part of the gradient of the logit.

    Made for early layers, whose maps are fine.
    """

    name: ClassVar[str] = "layer-cam"
    cost: ClassVar[str] = "2 forward, 1 backward"

    def _weighted(self, activation: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        return np.asarray((np.maximum(gradient, 0) * activation).sum(axis=0))
