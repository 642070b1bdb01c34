"""A small classifier that collects local evidence: it judges neighbourhoods, and its score rests on a few of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class LocalClassifier(nn.Module):
    """Evidence for and against each class, place by place; the score is the strongest for minus the strongest against.

    Input (B, in_channels, X, Y, Z), output (B, classes) without activation. Convolutions with
    batch normalisation and ReLU, one per entry of `widths`, each with its entry of `kernels` (edges, odd) and
    `strides`; a 1^3 convolution makes two maps of evidence per class, and each is pooled by the mean of its `places`
    highest values (Durand 2017, WILDCAT). Every neighbourhood is judged by the same thousand weights, so that a few
    dozen scans are enough to learn from.
    """

    def __init__(
        self,
        in_channels: int = 4,
        classes: int = 1,
        widths: Sequence[int] = (8, 16),
        kernels: Sequence[int] = (3, 1),
        strides: Sequence[int] = (2, 1),
        places: int = 5,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = in_channels
        for width, kernel, stride in zip(widths, kernels, strides, strict=True):
            convolution = nn.Conv3d(before, width, kernel, stride=stride, padding=kernel // 2, bias=False)
            layers += [convolution, nn.BatchNorm3d(width), nn.ReLU()]
            before = width
        self.body = nn.Sequential(*layers)
        self.evidence = nn.Conv3d(before, 2 * classes, 1)
        self.places = places

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Score a batch."""
        evidence = self.evidence(self.body(x)).flatten(2)
        strongest = evidence.topk(self.places, dim=2).values.mean(dim=2)
        speaks_for, speaks_against = strongest.chunk(2, dim=1)
        return speaks_for - speaks_against
