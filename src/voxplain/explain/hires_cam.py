"""HiResCAM: a weight for every voxel of every feature map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from voxplain.explain.cam import GradientWeighted


@dataclass(frozen=True)
class HiResCAM(GradientWeighted):
    """HiResCAM (Draelos 2020): the gradient of the logit times the feature maps, voxel by voxel, summed over the maps.

    Where a network is convolutions and one linear layer, it shows no voxel that did not speak for the class.
    """

    name: ClassVar[str] = "hires-cam"
    cost: ClassVar[str] = "2 forward, 1 backward"

    def _weighted(self, activation: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        return np.asarray((gradient * activation).sum(axis=0))
