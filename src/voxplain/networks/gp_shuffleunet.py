"""GP-ShuffleUNet: a U-Net of pixel shuffles that classifies by global pooling (paper gp, 002, figure 4)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from voxplain.networks.self_explaining import SelfExplaining, blocks

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)


class GPShuffleUNet(SelfExplaining):
    """A U-Net that shrinks and grows by pixel shuffles: 26,371,587 weights at 4 channels and 3 classes.

    Input (B, in_channels, X, Y), or (B, in_channels, X, Y, Z) for `spatial_dims` 3; output (B, classes) without
    activation. At each of three levels four parallel 3x3 convolutions split the features; the fourth alone goes down,
    by pixel unshuffle and two convolutions with batch normalisation, the only one of the network. On the way up pixel
    shuffle, four parallel convolutions whose results are added to those from the way down, and two convolutions over
    all of them and the skip (five times the features). Dropout of whole features at the bottom. Inputs are padded with
    zeros to multiples of 8, and features cut back.

    Raises:
        ValueError: no such pooling or evidence.
    """

    def __init__(
        self,
        in_channels: int = 4,
        classes: int = 3,
        *,
        spatial_dims: int = 2,
        width: int = 64,
        levels: int = 3,
        pooling: str = "max",
        evidence: str = "signed",
        dropout: float = 0.5,
    ) -> None:
        super().__init__(width, classes, spatial_dims=spatial_dims, pooling=pooling, evidence=evidence)
        self.multiple = 2**levels
        widths = [width * 2**level for level in range(levels + 1)]
        self.stem = _twice(in_channels, width, spatial_dims)
        self.split_down = nn.ModuleList(_Split(size, spatial_dims) for size in widths[:-1])
        self.shrink = nn.ModuleList(_Shrink(size, spatial_dims) for size in widths[:-1])
        self.down = nn.ModuleList(_twice(size, 2 * size, spatial_dims) for size in widths[:-1])
        self.dropout = (nn.Dropout2d, nn.Dropout3d)[spatial_dims - 2](dropout)
        self.grow = nn.ModuleList(_Grow(size, spatial_dims) for size in widths[-2::-1])
        self.split_up = nn.ModuleList(_Split(size, spatial_dims) for size in widths[-2::-1])
        self.up = nn.ModuleList(_twice(5 * size, size, spatial_dims) for size in widths[-2::-1])
        for module in self.modules():
            if isinstance(module, _CONVOLUTIONS):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Features of every pixel, (B, width, spatial...)."""
        size = x.shape[2:]
        missing = [-n % self.multiple for n in size]
        x = self.stem(functional.pad(x, [side for n in reversed(missing) for side in (0, n)]))
        skips, waves = [], []
        for split, shrink, block in zip(self.split_down, self.shrink, self.down, strict=True):
            skips.append(x)
            waves.append(split(x))
            x = block(shrink(waves[-1][-1]))
        x = self.dropout(x)
        for grow, split, block in zip(self.grow, self.split_up, self.up, strict=True):
            met = [below + across for below, across in zip(waves.pop(), split(grow(x)), strict=True)]
            x = block(torch.cat([skips.pop(), *met], dim=1))
        for axis, length in enumerate(size, start=2):
            x = x.narrow(axis, 0, length)
        return x


class _Split(nn.Module):
    """Four parallel 3x3 convolutions with ReLU, each of as many features as come in."""

    def __init__(self, features: int, spatial_dims: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_CONVOLUTIONS[spatial_dims - 2](features, features, 3, padding=1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [functional.relu(part(x)) for part in self.parts]


class _Shrink(nn.Module):
    """A 3x3 convolution, pixel unshuffle by 2, and two convolutions with batch normalisation back to the features."""

    def __init__(self, features: int, spatial_dims: int) -> None:
        super().__init__()
        convolution = _CONVOLUTIONS[spatial_dims - 2]
        norm = (nn.BatchNorm2d, nn.BatchNorm3d)[spatial_dims - 2]
        self.convolution = convolution(features, features, 3, padding=1)
        layers: list[nn.Module] = []
        for before in (features * 2**spatial_dims, features):
            layers += [convolution(before, features, 3, padding=1), norm(features), nn.ReLU()]
        self.block = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(blocks(self.convolution(x), 2))


class _Grow(nn.Module):
    """A 3x3 convolution and pixel shuffle by 2: twice as many features come in as go out."""

    def __init__(self, features: int, spatial_dims: int) -> None:
        super().__init__()
        wide = features * 2**spatial_dims
        self.convolution = _CONVOLUTIONS[spatial_dims - 2](2 * features, wide, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _shuffled(self.convolution(x))


def _twice(before: int, after: int, spatial_dims: int) -> nn.Sequential:
    convolution = _CONVOLUTIONS[spatial_dims - 2]
    return nn.Sequential(
        convolution(before, after, 3, padding=1), nn.ReLU(), convolution(after, after, 3, padding=1), nn.ReLU()
    )


def _shuffled(x: torch.Tensor) -> torch.Tensor:
    """(B, 2^d C, X, ...) as (B, C, 2X, ...): the inverse of `blocks`."""
    batch, features, *size = x.shape
    dims = len(size)
    split = x.reshape(batch, features // 2**dims, *(2,) * dims, *size)
    order = [0, 1, *(axis for edge in range(dims) for axis in (2 + dims + edge, 2 + edge))]
    return split.permute(order).reshape(batch, features // 2**dims, *(2 * edge for edge in size))
