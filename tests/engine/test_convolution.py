"""Convolutions through oneDNN: what torch's own give, in float32 and under autocast."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from voxplain.engine.convolution import Convolution, InputGradient, convolve


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


LAYERS = [
    nn.Conv3d(4, 6, (3, 1, 5), (2, 1, 2), (1, 0, 4)),
    nn.Conv3d(4, 8, 3, padding=2, dilation=2, groups=2, bias=False),
    nn.Conv3d(4, 70, 1),
    nn.Conv2d(4, 6, 7, 2, 3),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("count", [1, 3])
def test_gives_what_the_layer_gives(layer: nn.Conv2d | nn.Conv3d, count: int) -> None:
    x = noise(count, 4, *(11, 9, 12)[: len(layer.kernel_size)])
    with torch.inference_mode():
        torch.testing.assert_close(Convolution(layer)(x), layer(x), rtol=1e-4, atol=1e-5)


def test_layouts_of_memory_do_not_matter() -> None:
    x, weight = noise(2, 5, 8, 7, 6), noise(6, 5, 3, 3, 3)
    expected = F.conv3d(x, weight, padding=1)
    for inputs in (
        x,
        x.contiguous(memory_format=torch.channels_last_3d),
        x.transpose(2, 4).contiguous().transpose(2, 4),
    ):
        found = convolve(inputs, weight, None, (1, 1, 1), (1, 1, 1), (1, 1, 1), 1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_autocast_is_obeyed() -> None:
    x, weight = noise(1, 5, 8, 7, 6), noise(6, 5, 3, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = convolve(x, weight, None, (1, 1, 1), (0, 0, 0), (1, 1, 1), 1)
    assert found.dtype == torch.bfloat16


@pytest.mark.parametrize("channels", [1, 2, 6], ids=lambda c: f"{c} channels")
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "groups"),
    [
        ((3, 3, 3), (2, 2, 2), (1, 1, 1), 1),
        ((3, 1, 5), (2, 1, 3), (1, 1, 1), 1),
        ((2, 2, 2), (4, 3, 2), (1, 1, 1), 1),
        ((7, 3), (2, 1), (1, 1), 1),
        ((3, 3, 3), (1, 2, 1), (2, 1, 3), 1),
        ((3, 3), (2, 2), (1, 1), "each"),
    ],
    ids=str,
)
def test_the_input_gradient_is_autograds(kernel, stride, dilation, groups, channels: int) -> None:
    groups = channels if groups == "each" else groups
    convolution = {2: F.conv2d, 3: F.conv3d}[len(kernel)]
    weight = noise(2 * channels, channels // groups, *kernel)
    output = (3, 4, 2)[: len(kernel)]
    read = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(output, stride, kernel, dilation, strict=True)]
    x, values = noise(2, channels, *read).requires_grad_(), noise(2, 2 * channels, *output)
    (expected,) = torch.autograd.grad(convolution(x, weight, None, stride, 0, dilation, groups), x, values)
    found = InputGradient(weight, stride, dilation, groups)(values)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
