"""Convolutions, and their gradients with respect to the input, as fast as the processor has them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import nn

_CONVOLUTIONS = {2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {2: F.conv_transpose2d, 3: F.conv_transpose3d}
# Up to so many channels of the input, oneDNN's transposed convolutions leave most of the processor idle.
_FEW_CHANNELS = 4


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


class InputGradient:
    """The transpose of a convolution without padding: (N, features, *size) -> (N, C, *extent) on which it was made.

    Where C is small, all voxels of a cell of one stride are computed as channels of one convolution that steps by 1,
    and put in their places: three times faster than a transposed convolution onto two channels.

    Args:
        weight: the convolution's, (features, C / groups, *kernel).
    """

    def __init__(self, weight: torch.Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> None:
        self.weight, self.stride, self.dilation, self.groups = weight, tuple(stride), tuple(dilation), groups

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """The gradient with respect to all that the windows read."""
        few = self.weight.shape[1] <= _FEW_CHANNELS and values.device.type == "cpu"
        if few and self.groups == 1 and set(self.dilation) == {1}:
            return self._in_cells(values)
        back = _TRANSPOSED[values.ndim - 2]
        return back(values, self.weight, None, self.stride, 0, 0, self.groups, self.dilation)

    def _in_cells(self, values: torch.Tensor) -> torch.Tensor:
        dimensions, channels = values.ndim - 2, self.weight.shape[1]
        taps = self._cells.shape[2:]
        padding = [count - 1 for count in taps]
        found = convolve(values, self._cells, None, (1,) * dimensions, padding, (1,) * dimensions, 1)
        size = found.shape[2:]
        found = found.view(len(values), *self.stride, channels, *size)
        # (N, *stride, C, *cells) -> (N, C, cells and voxels of a cell of the first axis, of the second ...).
        places = [0, 1 + dimensions]
        for axis in range(dimensions):
            places += [2 + dimensions + axis, 1 + axis]
        extent = [n * s for n, s in zip(size, self.stride, strict=True)]
        whole = found.permute(places).reshape(len(values), channels, *extent)
        kernel = self.weight.shape[2:]
        read = [(n - 1) * s + k for n, s, k in zip(values.shape[2:], self.stride, kernel, strict=True)]
        for axis, wanted in enumerate(read):
            whole = whole.narrow(2 + axis, 0, wanted)
        return whole

    @cached_property
    def _cells(self) -> torch.Tensor:
        """Weights (*stride * C, features, *taps) of the convolution that computes cells.

        Voxel s j + r of an axis reads feature j - i through the window's voxel s i + r, for all i for which it exists.
        """
        kernel = self.weight.shape[2:]
        taps = [-(-k // s) for k, s in zip(kernel, self.stride, strict=True)]
        features, channels = self.weight.shape[:2]
        cells = self.weight.new_zeros((*self.stride, channels, features, *taps))
        for phase in itertools.product(*map(range, self.stride)):
            for place in itertools.product(*map(range, taps)):
                voxel = [s * (t - 1 - p) + r for s, t, p, r in zip(self.stride, taps, place, phase, strict=True)]
                if all(v < k for v, k in zip(voxel, kernel, strict=True)):
                    taken = self.weight.flatten(2)[..., _flat(voxel, kernel)]
                    cells[phase].flatten(2)[..., _flat(place, taps)] = taken.t()
        cells = cells.reshape(-1, features, *taps)
        order = {4: torch.channels_last, 5: torch.channels_last_3d}[cells.ndim]
        return cells.contiguous(memory_format=order)


def _flat(index: Sequence[int], extent: Sequence[int]) -> int:
    """The place of a voxel where all axes are one."""
    found = 0
    for i, n in zip(index, extent, strict=True):
        found = found * n + i
    return found
