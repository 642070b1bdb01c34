"""Networks that explain themselves: the map that they show is made of the numbers that they decide by (paper gp, 002).

A segmentation network gives features for every pixel. In training they are pooled over the image before the last 1x1
convolution, which turns them into one score per class; without the pooling the same convolution gives a map per class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from voxplain.networks.pooling import GlobalPooling


class SelfExplaining(nn.Module, ABC):
    """A classifier that shows where its score comes from.

    A subclass gives `features`, (B, features, spatial...) from (B, channels, spatial...), on the input's own grid, or a
    place for each block of `stride` pixels an axis, the last one perhaps of fewer. `pooling` is how they become one
    number per feature and image: "max" (002), "top:SHARE" or "log-sum-exp:SHARPNESS" (`GlobalPooling`).

    `evidence` "positive" (ours) takes the last convolution's weights by their size and leaves out its bias: on features
    that are not negative a class then scores by what speaks for it alone. With signed weights one class may be what is
    left where nothing speaks for the others, and its map shows nothing in particular.

    Raises:
        ValueError: no such pooling or evidence, or a stride below 1.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        spatial_dims: int,
        pooling: str,
        evidence: str = "signed",
        stride: int = 1,
    ) -> None:
        super().__init__()
        if stride < 1:
            raise ValueError(f"stride is how many pixels an axis make a place, at least 1; got {stride}")
        self.stride = stride
        self.pooling = GlobalPooling(pooling)
        if evidence not in ("signed", "positive"):
            raise ValueError(f"evidence is signed or positive; got {evidence!r}")
        self.positive = evidence == "positive"
        self.head = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2](features, classes, 1, bias=not self.positive)

    @abstractmethod
    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Features of every place, (B, features, spatial...), of an input (B, channels, spatial...)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores (B, classes) without activation."""
        return self.score(self.features(x))

    def score(self, features: torch.Tensor) -> torch.Tensor:
        """Scores (B, classes) of features (B, features, spatial...): pooled, then the last convolution."""
        pooled = self.pooling(features)
        return self.last(pooled.reshape(*pooled.shape, *(1,) * (features.ndim - 2))).flatten(1)

    def last(self, features: torch.Tensor) -> torch.Tensor:
        """The last convolution: maps of classes (B, classes, spatial...) from features (B, features, spatial...)."""
        if not self.positive:
            return self.head(features)
        convolution = nn.functional.conv2d if features.ndim == 4 else nn.functional.conv3d
        return convolution(features, self.head.weight.abs())

    def heat_map(self, x: torch.Tensor) -> torch.Tensor:
        """The last convolution without the pooling, (B, classes, spatial...): what each pixel would score (002).

        It does not add up to the score, nor is its maximum the score: every feature is pooled by itself. Where features
        lie on a coarser grid, it is interpolated linearly between the middles of the blocks.
        """
        maps = self.last(self.features(x))
        if self.stride == 1:
            return maps
        # A last block that is not whole reaches past the input, so that the resized map is cut.
        maps = nn.functional.interpolate(maps, scale_factor=self.stride, mode=("bilinear", "trilinear")[x.ndim - 4])
        for axis, length in enumerate(x.shape[2:], start=2):
            maps = maps.narrow(axis, 0, length)
        return maps

    def contributions(self, x: torch.Tensor) -> torch.Tensor:
        """What each pixel adds to the score, (B, classes, spatial...); with the head's bias it sums up to the score.

        A feature's pooled value belongs to the places that it was taken from (`GlobalPooling.shares`).
        Where features lie on a coarser grid, each place shares what it adds evenly among its pixels.
        """
        features = self.features(x)
        added = self.last(self.pooling.shares(features))
        if self.head.bias is not None:
            added = added - self.head.bias.reshape(-1, *(1,) * (features.ndim - 2))
        for axis, (places, pixels) in enumerate(zip(added.shape[2:], x.shape[2:], strict=True), start=2):
            place = torch.arange(pixels, device=x.device) // self.stride
            share = 1 / torch.bincount(place, minlength=places)
            added = (added * share.reshape(-1, *(1,) * (added.ndim - 1 - axis))).index_select(axis, place)
        return added


def fourier_resample(x: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Resample (B, C, spatial...) to `size` by padding its spectrum with zeros (sinc interpolation).

    Values at the old positions stay; the image counts as periodic. A size may not shrink.

    Raises:
        ValueError: an axis would shrink.
    """
    for axis, (before, after) in enumerate(zip(x.shape[2:], size, strict=True), start=2):
        if after < before:
            raise ValueError(f"Fourier resampling enlarges; axis {axis - 2} would go from {before} to {after}")
        if after > before:
            x = _longer(x, axis, after)
    return x


def blocks(x: torch.Tensor, stride: int) -> torch.Tensor:
    """(B, C, X, ...) as (B, C stride^d, X / stride, ...): the pixels of a block become features of one place.

    What is missing of a last block is 0.
    """
    missing = [-n % stride for n in x.shape[2:]]
    x = nn.functional.pad(x, [side for n in reversed(missing) for side in (0, n)])
    batch, features, *size = x.shape
    dims = len(size)
    split = x.reshape(batch, features, *(n for edge in size for n in (edge // stride, stride)))
    order = [0, 1, *range(3, 3 + 2 * dims, 2), *range(2, 2 + 2 * dims, 2)]
    return split.permute(order).reshape(batch, features * stride**dims, *(edge // stride for edge in size))


def _longer(x: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    before = x.shape[axis]
    spectrum = torch.fft.rfft(x.float(), dim=axis)  # there is no Fourier transform in 16 bits
    if before % 2 == 0:
        # The highest frequency of an even length stands for itself and its negative: half of it each.
        weight = torch.ones(spectrum.shape[axis], device=x.device)
        weight[-1] = 0.5
        spectrum = spectrum * weight.reshape(-1, *(1,) * (x.ndim - 1 - axis))
    return (torch.fft.irfft(spectrum, n=size, dim=axis) * (size / before)).to(x.dtype)
