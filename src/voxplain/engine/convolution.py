"""Convolutions as fast as the processor has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

_CONVOLUTIONS = {2: F.conv2d, 3: F.conv3d}


def convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """A convolution (N, C, *extent) -> (N, features, *extent), numbers per axis as torch's own takes them.

    On the CPU torch leaves small inputs that come alone, and windows of one voxel, to loops that take twice as long as
    oneDNN's kernels. Boxes are small, so float32 goes to oneDNN whatever its size.
    """
    # Autocast does not know oneDNN's operator, and would run it in float32.
    in_float32 = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if x.device.type == "cpu" and in_float32 and torch.backends.mkldnn.is_available():
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, dilation, groups)
    return _CONVOLUTIONS[x.ndim - 2](x, weight, bias, stride, padding, dilation, groups)


class Convolution(nn.Module):
    """A convolution with zeros around, `convolve`d; it shares the weights of the one that it stands for."""

    def __init__(self, original: nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        assert not isinstance(original.padding, str)
        self.weight, self.bias = original.weight, original.bias
        self.stride: tuple[int, ...] = tuple(original.stride)
        self.padding: tuple[int, ...] = tuple(original.padding)
        self.dilation: tuple[int, ...] = tuple(original.dilation)
        self.groups = original.groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the original."""
        return convolve(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
