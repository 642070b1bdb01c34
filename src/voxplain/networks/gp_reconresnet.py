"""GP-ReconResNet: a residual reconstruction network that classifies by global pooling (paper gp, 002, figure 3)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from voxplain.networks.self_explaining import SelfExplaining, fourier_resample


class GPReconResNet(SelfExplaining):
    """A residual network between two halvings and two doublings: 17,272,918 weights at 4 channels and 3 classes.

    Input (B, in_channels, X, Y), or (B, in_channels, X, Y, Z) for `spatial_dims` 3; output (B, classes) without
    activation. A 7x7 convolution to `width` features; two 3x3 convolutions of stride 2 that double them; `blocks`
    residual blocks with dropout of whole features between their two convolutions; Fourier resampling to the stored
    sizes and 3x3 convolutions that halve the features. Edges are reflected; instance normalisation without weights and
    PReLU with one weight follow each convolution but the last. `dropout` is 0.5 as the paper has it for BraTS, 0.2 for
    Cheng. An axis needs at least 8 pixels.

    Raises:
        ValueError: no such pooling, evidence or upsampling.
    """

    def __init__(
        self,
        in_channels: int = 4,
        classes: int = 3,
        *,
        spatial_dims: int = 2,
        width: int = 64,
        blocks: int = 14,
        pooling: str = "max",
        evidence: str = "signed",
        upsampling: str = "fourier",
        dropout: float = 0.5,
    ) -> None:
        super().__init__(width, classes, spatial_dims=spatial_dims, pooling=pooling, evidence=evidence)
        if upsampling not in ("fourier", "linear"):
            raise ValueError(f"upsampling is fourier or linear; got {upsampling!r}")
        self.upsampling = upsampling
        kind = spatial_dims - 2
        pad = (nn.ReflectionPad2d, nn.ReflectionPad3d)[kind]
        convolution = (nn.Conv2d, nn.Conv3d)[kind]
        norm = (nn.InstanceNorm2d, nn.InstanceNorm3d)[kind]
        drop = (nn.Dropout2d, nn.Dropout3d)[kind]
        self.stem = nn.Sequential(pad(3), convolution(in_channels, width, 7), norm(width), nn.PReLU())
        self.down = nn.ModuleList(
            nn.Sequential(convolution(size, 2 * size, 3, stride=2, padding=1), norm(2 * size), nn.PReLU())
            for size in (width, 2 * width)
        )
        deep = 4 * width
        self.residual = nn.ModuleList(
            nn.Sequential(
                pad(1),
                convolution(deep, deep, 3),
                norm(deep),
                nn.PReLU(),
                drop(dropout),
                pad(1),
                convolution(deep, deep, 3),
                norm(deep),
            )
            for _ in range(blocks)
        )
        self.up = nn.ModuleList(
            nn.Sequential(pad(1), convolution(2 * size, size, 3), norm(size), nn.PReLU()) for size in (2 * width, width)
        )

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Features of every pixel, (B, width, spatial...)."""
        x = self.stem(x)
        sizes = []
        for block in self.down:
            sizes.append(x.shape[2:])
            x = block(x)
        for block in self.residual:
            x = x + block(x)
        for block in self.up:
            x = block(self._resized(x, sizes.pop()))
        # What PReLU lets through of negative values would be evidence against a class.
        return functional.relu(x) if self.positive else x

    def _resized(self, x: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        if self.upsampling == "fourier":
            return fourier_resample(x, tuple(size))
        return functional.interpolate(x, size=size, mode="bilinear" if x.ndim == 4 else "trilinear")
