"""A small classifier that collects local evidence: it judges neighbourhoods, and its score rests on a few of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class LocalClassifier(nn.Module):
    """Evidence for and against each class, place by place; the score is the strongest for minus the strongest against.

    Input (B, in_channels, X, Y, Z), output (B, classes) without activation. Convolutions of 3^3 with batch
    normalisation and ReLU, one per entry of `widths`, each with its entry of `strides`; a 1^3 convolution makes two
    maps per class of evidence, and each is pooled by the mean of its `places` highest values (Durand 2017, WILDCAT).
    Every neighbourhood is judged by the same few thousand weights, so that a few dozen scans are enough to learn from.
    """

    def __init__(
        self,
        in_channels: int = 4,
        classes: int = 1,
        widths: Sequence[int] = (8, 16, 16),
        strides: Sequence[int] = (2, 2, 1),
        places: int = 20,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = in_channels
        for width, stride in zip(widths, strides, strict=True):
            convolution = nn.Conv3d(before, width, 3, stride=stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm3d(width), nn.ReLU()]
            before = width
        self.body = nn.Sequential(*layers)
        self.evidence = nn.Conv3d(before, 2 * classes, 1)
        self.places = places

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Score a batch."""
        evidence = self.evidence(self.body(x)).flatten(2)
        strongest = evidence.topk(min(self.places, evidence.shape[2]), dim=2).values.mean(dim=2)
        speaks_for, speaks_against = strongest.chunk(2, dim=1)
        return speaks_for - speaks_against
