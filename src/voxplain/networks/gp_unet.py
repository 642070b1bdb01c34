"""GP-UNet: a U-Net that classifies by global pooling, and shows its heat map without it (paper gp, 002, figure 2)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from voxplain.networks.self_explaining import SelfExplaining, blocks, fourier_resample

_NORMS = {"none": (nn.Identity, nn.Identity), "batch": (nn.BatchNorm2d, nn.BatchNorm3d)}


class GPUNet(SelfExplaining):
    """A U-Net of three levels whose pooled features are classified: 1,740,675 weights at 4 channels and 3 classes.

    Input (B, in_channels, X, Y), or (B, in_channels, X, Y, Z) for `spatial_dims` 3; output (B, classes) without
    activation. Two 3x3 convolutions with ReLU a level, widths `width`, 2 `width`, 4 `width`; average pooling on the
    way down; on the way up Fourier resampling to the skip's size and a 1x1 convolution, then concatenation; dropout of
    whole features at the bottom. The paper says 1.90 M weights; no variant known has them.

    Ours, past the paper: `pooling` other than "max", `normalisation` "batch" after each convolution, `upsampling`
    "linear", which keeps what a pixel shows to its neighbourhood (a Fourier transform rings over the whole image), and
    `stride`: the first level works on blocks of so many pixels an axis, which costs a fraction; inputs are padded with
    zeros to whole blocks.

    Raises:
        ValueError: no such pooling, evidence, normalisation or upsampling, or a stride below 1.
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
        normalisation: str = "none",
        upsampling: str = "fourier",
        dropout: float = 0.5,
        stride: int = 1,
    ) -> None:
        super().__init__(width, classes, spatial_dims=spatial_dims, pooling=pooling, evidence=evidence, stride=stride)
        if normalisation not in _NORMS:
            raise ValueError(f"normalisation is one of {', '.join(_NORMS)}; got {normalisation!r}")
        if upsampling not in ("fourier", "linear"):
            raise ValueError(f"upsampling is fourier or linear; got {upsampling!r}")
        self.upsampling = upsampling
        kind = spatial_dims - 2
        convolution = (nn.Conv2d, nn.Conv3d)[kind]
        norm = _NORMS[normalisation][kind]

        def block(before: int, after: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for size in (before, after):
                layers += [convolution(size, after, 3, padding=1), norm(after), nn.ReLU()]
            return nn.Sequential(*layers)

        widths = [width * 2**level for level in range(levels)]
        self.down = nn.ModuleList(
            block(*pair) for pair in zip([in_channels * stride**spatial_dims, *widths], widths, strict=False)
        )
        self.dropout = (nn.Dropout2d, nn.Dropout3d)[kind](dropout)
        upwards = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.narrow = nn.ModuleList(convolution(deep, shallow, 1) for deep, shallow in upwards)
        self.up = nn.ModuleList(block(2 * shallow, shallow) for _, shallow in upwards)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Features of every pixel, (B, width, spatial...)."""
        if self.stride > 1:
            x = blocks(x, self.stride)
        skips = []
        for level, block in enumerate(self.down):
            if level:
                x = functional.avg_pool2d(x, 2) if x.ndim == 4 else functional.avg_pool3d(x, 2)
            x = block(x)
            skips.append(x)
        x = self.dropout(skips.pop())
        for narrow, block in zip(self.narrow, self.up, strict=True):
            skip = skips.pop()
            x = block(torch.cat([self._resized(narrow(x), skip.shape[2:]), skip], dim=1))
        return x

    def _resized(self, x: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        # A 1x1 convolution and a resampling change places without changing the result, and this order has less to do.
        if self.upsampling == "fourier":
            return fourier_resample(x, tuple(size))
        return functional.interpolate(x, size=size, mode="bilinear" if x.ndim == 4 else "trilinear")
