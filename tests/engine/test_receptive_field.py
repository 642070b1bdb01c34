"""The receptive field against gradients of a dense network, and crops against the network on all of its input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import UNet
from torch import nn

from voxplain.engine.receptive_field import ReceptiveField, receptive_field


def seeded(build, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 2)
        return network.double().eval().requires_grad_(False)


class Skip(nn.Module):
    """Down by a strided convolution or pooling, up by a transposed one or interpolation, and both side by side."""

    def __init__(self, down: nn.Module, up: nn.Module, width: int = 3) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.Conv3d(1, width, 3, padding=1), nn.BatchNorm3d(width), nn.LeakyReLU(0.3))
        self.down, self.up = down, up
        self.head = nn.Conv3d(2 * width, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        deep = self.up(self.down(x))
        deep = deep[(..., *(slice(0, n) for n in x.shape[2:]))]
        return self.head(torch.cat([x, deep], dim=1))


NETWORKS = {
    "strided and transposed": lambda: Skip(
        nn.Sequential(nn.Conv3d(3, 3, 3, stride=2, padding=1), nn.ELU()), nn.ConvTranspose3d(3, 3, 2, stride=2)
    ),
    "pooling and interpolation": lambda: Skip(
        nn.Sequential(nn.MaxPool3d(2, ceil_mode=True), nn.Conv3d(3, 3, 3, padding=1)),
        nn.Upsample(scale_factor=2, mode="nearest"),
    ),
    "stride of four": lambda: Skip(nn.Conv3d(3, 3, 5, stride=4, padding=2), nn.ConvTranspose3d(3, 3, 4, stride=4)),
    "dilated": lambda: Skip(nn.Conv3d(3, 3, 3, padding=3, dilation=3), nn.Identity()),
    "MONAI U-Net": lambda: UNet(3, 1, 2, channels=(2, 3), strides=(2,), kernel_size=3, norm="batch"),
}
SHAPE = (30, 26, 22)
# In the middle, at a corner, at the far border, of one voxel.
BOXES = [
    ((13, 16), (12, 14), (9, 11)),
    ((0, 2), (0, 1), (0, 3)),
    ((27, 30), (24, 26), (21, 22)),
    ((15, 16), (7, 8), (4, 5)),
]


def a_field(network: nn.Module, shape: tuple[int, ...], wanted: tuple[tuple[int, int], ...]) -> tuple:
    inputs = torch.from_numpy(np.random.default_rng(5).normal(size=(1, 1, *shape)))
    return inputs, receptive_field(network, inputs, wanted, module=network)


def gradient(network: nn.Module, inputs: torch.Tensor, part: tuple[tuple[int, int], ...]) -> torch.Tensor:
    inputs = inputs.clone().requires_grad_()
    output = network(inputs)[(0, 1, *(slice(*side) for side in part))]
    # Different weights, so that no two voxels cancel out.
    weights = torch.linspace(1, 2, output.numel(), dtype=output.dtype).reshape(output.shape)
    return torch.autograd.grad((output * weights).sum(), inputs)[0][0]


def check_crop(network: nn.Module, inputs: torch.Tensor, wanted, found: ReceptiveField) -> None:
    """Whatever the crop, gradients on it are those of the whole, and nothing outside of the box has any."""
    expected = gradient(network, inputs, wanted)
    crop = (slice(None), *(slice(*side) for side in found.crop))
    moved = tuple((a - zero, b - zero) for (a, b), (zero, _) in zip(wanted, found.crop, strict=True))
    cropped = gradient(network, inputs[(slice(None), *crop)], moved)
    outside = expected.clone()
    outside[(slice(None), *(slice(*side) for side in found.box))] = 0
    assert not outside.any()
    torch.testing.assert_close(cropped, expected[crop], rtol=0, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize("wanted", BOXES, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_crop_is_exact(name: str, wanted: tuple) -> None:
    network = seeded(NETWORKS[name])
    inputs, found = a_field(network, SHAPE, wanted)
    check_crop(network, inputs, wanted, found)
    assert found.notice is None
    crop = np.prod([b - a for a, b in found.crop])
    assert crop < 0.6 * np.prod(SHAPE), "a crop that is nearly everything tests nothing"


def test_the_field_is_tight() -> None:
    """Two convolutions of 3 reach 2 voxels; with a stride of 2 the coarse voxel's own reach is added."""
    plain = seeded(lambda: nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.Conv3d(2, 2, 3, padding=1)))
    _, found = a_field(plain, (40, 40, 40), ((20, 22), (1, 2), (39, 40)))
    assert found.box == ((18, 24), (0, 4), (37, 40))
    assert found.crop == found.box
    strided = seeded(lambda: nn.Sequential(nn.Conv3d(1, 2, 2, stride=2), nn.ConvTranspose3d(2, 2, 2, stride=2)))
    _, found = a_field(strided, (40, 40, 40), ((21, 22), (20, 21), (0, 4)))
    assert found.box == found.crop == ((20, 22), (20, 22), (0, 4))


class Shifted(nn.Module):
    """Reads the voxel that lies 3 behind."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.nn.functional.pad(x, (0, 0, 0, 0, 3, 0))[:, :, :-3]] * 2, dim=1)


def test_a_lopsided_field() -> None:
    _, found = a_field(Shifted(), (50, 9, 9), ((20, 21), (4, 5), (4, 5)))
    # The wanted voxel itself is part of it: a crop without it has nothing to read.
    assert found.box[0] == found.crop[0] == (17, 21)


@pytest.mark.parametrize("norm", ["instance", ("group", {"num_groups": 1})], ids=str)
def test_a_norm_over_everything_is_named(norm: object) -> None:
    network = seeded(lambda: UNet(3, 1, 2, channels=(2, 4), strides=(2,), norm=norm))
    _, found = a_field(network, (24, 24, 24), ((5, 7), (5, 7), (5, 7)))
    assert found.box == found.crop == ((0, 24),) * 3
    kind = "InstanceNorm3d" if norm == "instance" else "GroupNorm"
    assert found.notice is not None
    assert f"the receptive field is the whole window of 24x24x24 voxels: {kind} 'model" in found.notice
    assert "goes on without the crop" in found.notice


class Positions(nn.Module):
    """A convolution whose output is weighted by the place in the input: local, but no crop gives the same."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ramp = torch.arange(x.shape[2], dtype=x.dtype)[:, None, None] / x.shape[2]
        return torch.cat([x * ramp] * 2, dim=1)


class Swallows(nn.Module):
    """A mean over everything that NaN does not pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x + torch.nan_to_num(x).mean()] * 2, dim=1)


@pytest.mark.parametrize("network", [Positions(), Swallows()], ids=lambda n: type(n).__name__)
def test_where_no_crop_is_exact_all_of_the_input_runs(network: nn.Module) -> None:
    _, found = a_field(network, (80, 12, 12), ((40, 43), (5, 6), (5, 6)))
    assert found.crop == ((0, 80), (0, 12), (0, 12))
    assert found.notice is not None


class RefusesNaN(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.isnan(x).any():
            raise ValueError("NaN")
        return torch.cat([x, x], dim=1)


def test_a_network_that_refuses_nan_runs_whole() -> None:
    _, found = a_field(RefusesNaN(), (80, 12, 12), ((40, 41), (5, 6), (5, 6)))
    assert found.crop == ((0, 80), (0, 12), (0, 12))


def test_torchscript_and_a_constant_input() -> None:
    """Where the input is constant any phase gives the same scores; gradients would differ."""
    network = seeded(NETWORKS["stride of four"]).float()
    scripted = torch.jit.trace(network, torch.zeros(1, 1, *SHAPE), check_trace=False)
    inputs, wanted = torch.zeros(1, 1, *SHAPE), ((17, 19), (13, 14), (9, 10))
    found = receptive_field(scripted, inputs, wanted, module=scripted)
    assert all(a % 4 == 0 for a, _ in found.crop)
    expected, crop = gradient(network, inputs, wanted), (slice(None), *(slice(*side) for side in found.crop))
    moved = tuple((a - zero, b - zero) for (a, b), (zero, _) in zip(wanted, found.crop, strict=True))
    torch.testing.assert_close(gradient(network, inputs[(slice(None), *crop)], moved), expected[crop])


@settings(max_examples=10)
@given(
    seed=st.integers(0, 99),
    levels=st.integers(1, 3),
    units=st.integers(0, 1),
    stride=st.sampled_from([1, 2]),
    kernel=st.sampled_from([1, 3, 5]),
    extent=st.tuples(*[st.sampled_from([16, 24])] * 3),
    place=st.tuples(*[st.floats(0, 1)] * 3),
    size=st.tuples(*[st.integers(1, 3)] * 3),
)
def test_crops_of_random_networks_are_exact(seed, levels, units, stride, kernel, extent, place, size) -> None:
    channels, strides = (2, 3, 4, 5)[: levels + 1], (stride,) * levels
    network = seeded(
        lambda: UNet(
            3, 1, 2, channels=channels, strides=strides, kernel_size=kernel, num_res_units=units, norm="batch"
        ),
        seed,
    )
    start = [round(p * (n - s)) for p, n, s in zip(place, extent, size, strict=True)]
    wanted = tuple((a, a + s) for a, s in zip(start, size, strict=True))
    inputs, found = a_field(network, extent, wanted)
    check_crop(network, inputs, wanted, found)
