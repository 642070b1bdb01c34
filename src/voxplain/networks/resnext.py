"""ResNeXt-50 32x4d for 2D images, under torchvision's names of its weights (Xie 2017; an opaque rival in 002)."""

from __future__ import annotations

import torch
from torch import nn

_GROUPS = 32
_BLOCKS = (3, 4, 6, 3)


class ResNeXt50(nn.Module):
    """ResNeXt-50 of 32 groups of 4: 22,989,187 weights at 4 channels and 3 classes, torchvision's names and shapes.

    Input (B, in_channels, X, Y) of any size, normalised by the caller; output (B, classes) without activation. `width`
    is the number of features of the stem, a multiple of 16; the convolutions in groups begin with twice as many, and
    every stage doubles both. The groups stay 32.

    Raises:
        ValueError: a width that the groups do not divide.
    """

    def __init__(self, in_channels: int = 3, classes: int = 1000, *, width: int = 64) -> None:
        super().__init__()
        if width < 1 or 2 * width % _GROUPS:
            raise ValueError(f"width is a multiple of {_GROUPS // 2}, for groups of one size; got {width}")
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        before = width
        for stage, count in enumerate(_BLOCKS):
            inner = 2 * width * 2**stage
            blocks = []
            for block in range(count):
                blocks.append(_Block(before, inner, stride=2 if stage and not block else 1))
                before = 2 * inner
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Score a batch."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(len(_BLOCKS)):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


class _Block(nn.Module):
    """A 1x1 convolution to `inner` features, a 3x3 in groups, a 1x1 to twice as many, and a shortcut past them.

    Every rectifier is a module of its own: methods that watch layers need each to run once.
    """

    def __init__(self, before: int, inner: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=_GROUPS, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(inner, 2 * inner, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * inner)
        self.relu3 = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride > 1 or before != 2 * inner:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, 2 * inner, 1, stride=stride, bias=False), nn.BatchNorm2d(2 * inner)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        return self.relu3(self.bn3(self.conv3(x)) + shortcut)
