"""Rows of the Jacobian, followed back in boxes, against torch.autograd over everything."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import UNet
from torch import nn

import voxplain as vx
from voxplain.engine.jacobian import Jacobian
from voxplain.engine.local_gradients import AutogradNetwork, LocalNetwork
from voxplain.engine.probe import Probe
from voxplain.engine.tracing import UntraceableError
from voxplain.engine.windows import Stitched
from voxplain.explain.explainer import in_evaluation
from voxplain.preparation import prepare

CPU = vx.Compute(device="cpu")


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 1.5)
            if isinstance(module, nn.PReLU):
                nn.init.uniform_(module.weight, 0.1, 0.4)
        return network.eval().requires_grad_(False)


class Ways(nn.Module):
    """Two ways from the input to the output, side by side."""

    def __init__(self, *layers: nn.Module, join: str = "cat", width: int = 4) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.Conv3d(2, width, 3, padding=1), nn.BatchNorm3d(width), nn.PReLU(width))
        self.layers = nn.Sequential(*layers)
        self.join = join
        self.head = nn.Conv3d(2 * width if join == "cat" else width, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        y = self.layers(x)
        if self.join == "cat":
            return self.head(torch.cat([x, y], dim=1))
        return self.head({"add": x + y, "sub": x - y, "mul": x * torch.sigmoid(y)}[self.join])


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 2, 3)
        self.norm = nn.BatchNorm3d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(F.pad(x, (2, 0, 1, 1, 0, 2)))
        return self.norm(x) * torch.tensor(2.0) - 0.5


class Gates(nn.Module):
    """Attention over channels, voxel by voxel, and a map of constants."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 4, 3, padding=1)
        self.softmax = nn.Softmax(dim=1)
        self.head = nn.Conv3d(4, 2, 1)
        self.register_buffer("ramp", torch.linspace(0.5, 1.5, 12)[:, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.elu(self.conv(x))
        return self.head((self.softmax(x) * x + x + x) * self.ramp)


class Halves(nn.Module):
    """A channel's slice through another activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 6, 3, padding=1)
        self.deep = nn.Conv3d(3, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.deep(torch.tanh(x[:, :3]) + F.gelu(x[:, 3:]))


UP = nn.Upsample
DOWN = [nn.Conv3d(4, 4, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "strided and transposed": lambda: Ways(
        nn.Conv3d(4, 6, 3, stride=2, padding=1), nn.ELU(), nn.ConvTranspose3d(6, 4, 3, 2, 1, output_padding=1)
    ),
    "a kernel of 2": lambda: Ways(nn.Conv3d(4, 4, 2, stride=2), nn.ReLU(), nn.ConvTranspose3d(4, 4, 2, stride=2)),
    "gaps between windows": lambda: Ways(
        nn.Conv3d(4, 4, 1, stride=2), nn.ConvTranspose3d(4, 4, 1, 2, output_padding=1)
    ),
    "dilated and grouped": lambda: Ways(nn.Conv3d(4, 4, 3, padding=2, dilation=2, groups=2), nn.SiLU()),
    "transposed and grouped": lambda: Ways(
        nn.MaxPool3d(2), nn.ConvTranspose3d(4, 4, 4, stride=2, padding=1, groups=2), nn.GELU()
    ),
    "max pooling": lambda: Ways(nn.MaxPool3d(3, stride=2, padding=1), UP(scale_factor=2, mode="nearest")),
    "mean pooling": lambda: Ways(nn.AvgPool3d(2), UP(scale_factor=2, mode="trilinear", align_corners=False)),
    "mean pooling over the border": lambda: Ways(
        nn.AvgPool3d(3, stride=1, padding=1, count_include_pad=False), nn.Conv3d(4, 4, 1)
    ),
    "aligned corners": lambda: Ways(*DOWN, UP(scale_factor=2, mode="trilinear", align_corners=True), join="add"),
    "difference": lambda: Ways(nn.Conv3d(4, 4, 3, padding=1), nn.Softplus(), join="sub"),
    "gate": lambda: Ways(nn.Conv3d(4, 4, 3, padding=1), nn.Dropout3d(0.5), nn.Identity(), join="mul"),
    "regional means": lambda: Ways(nn.AdaptiveAvgPool3d((6, 5, 4)), UP(size=(12, 16, 8), mode="nearest")),
    "padded": Padded,
    "channels that look at each other": Gates,
    "halves of the channels": Halves,
    "MONAI U-Net": lambda: UNet(3, 2, 2, channels=(3, 5, 7), strides=(2, 2), norm="batch"),
    "MONAI residual U-Net": lambda: UNet(
        3, 2, 2, channels=(3, 4, 5), strides=(2, 2), num_res_units=2, norm="batch", act="ELU", dropout=0.2
    ),
}
SHAPE = (12, 16, 8)


def whole(rows, count: int, like: torch.Tensor) -> torch.Tensor:
    """Rows laid into zeros of the input's shape, (N, C, ...); each must come once."""
    found = torch.zeros(count, *like.shape[1:])
    seen = []
    for row in rows:
        for number, start, values in zip(row.numbers.tolist(), row.boxes.start.tolist(), row.values, strict=True):
            box = (slice(None), *(slice(s, s + n) for s, n in zip(start, row.boxes.size, strict=True)))
            assert all(s >= 0 and s + n <= e for s, n, e in zip(start, row.boxes.size, like.shape[2:], strict=True))
            found[number][box] = values
            seen.append(number)
    assert sorted(seen) == list(range(count))
    return found


def by_autograd(
    network: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, voxels: np.ndarray
) -> torch.Tensor:
    inputs = inputs.clone().requires_grad_()
    output = network(inputs)[0, 1]
    return torch.cat([torch.autograd.grad(output[tuple(v)], inputs, retain_graph=True)[0] for v in voxels.tolist()])


def check(network: nn.Module, shape: tuple[int, ...], voxels: np.ndarray, most_bytes: int = 1 << 28) -> None:
    inputs = torch.randn(1, 2, *shape, generator=torch.Generator().manual_seed(1))
    expected = by_autograd(network, inputs, voxels)
    assert expected.abs().amax(dim=tuple(range(1, expected.ndim))).min() > 0, "a row of zeros compares nothing"
    local = LocalNetwork(network, torch.zeros_like(inputs), most_bytes)
    found = whole(local.read(inputs).rows(voxels, 1), len(voxels), inputs)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    other = whole(AutogradNetwork(network).read(inputs).rows(voxels, 1), len(voxels), inputs)
    assert (other - expected).abs().max() <= 1e-6 * expected.abs().max()


# In the middle, at corners and borders, in no order, one twice.
VOXELS = np.array([(5, 5, 4), (0, 0, 0), (11, 15, 7), (6, 4, 3), (0, 9, 4), (5, 5, 4), (7, 0, 7)])


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_are_autograds(name: str) -> None:
    check(seeded(NETWORKS[name]), SHAPE, VOXELS)


@pytest.mark.parametrize("most_bytes", [1, 3000, 10000])
def test_batches_are_cut_to_fit(most_bytes: int) -> None:
    check(seeded(NETWORKS["MONAI U-Net"]), SHAPE, VOXELS, most_bytes)


@pytest.mark.parametrize("shape", [(13, 9, 11), (6, 5, 7)], ids=str)
def test_odd_sizes(shape: tuple[int, int, int]) -> None:
    network = seeded(
        lambda: nn.Sequential(
            nn.Conv3d(2, 4, 3, stride=2, padding=1),
            nn.PReLU(),
            nn.Conv3d(4, 4, 5, padding=2),
            nn.ReLU(),
            nn.ConvTranspose3d(4, 2, 3, stride=2, padding=1),
        )
    )
    output = network(torch.zeros(1, 2, *shape)).shape[2:]
    voxels = np.array([(0, 0, 0), [n - 1 for n in output], [n // 2 for n in output]])
    check(network, shape, voxels)


def test_images() -> None:
    network = seeded(lambda: UNet(2, 2, 2, channels=(3, 5, 7), strides=(2, 2), norm="batch"))
    check(network, (16, 12), np.array([(3, 4), (0, 0), (15, 11), (8, 7)]))


@settings(max_examples=15)
@given(
    seed=st.integers(0, 999),
    levels=st.integers(1, 3),
    units=st.integers(0, 1),
    kernel=st.sampled_from([1, 2, 3, 5]),
    activation=st.sampled_from(["RELU", "PRELU", "ELU", "LEAKYRELU"]),
    data=st.data(),
)
def test_rows_of_random_networks(seed, levels, units, kernel, activation, data) -> None:
    strides = tuple(data.draw(st.lists(st.sampled_from([1, 2]), min_size=levels, max_size=levels)))
    shape = tuple(data.draw(st.sampled_from([8, 16])) for _ in range(3))
    kernel = 3 if kernel == 2 else kernel
    network = seeded(
        lambda: UNet(
            3, 2, 2, channels=(3, 4, 5, 6)[: levels + 1], strides=strides, kernel_size=kernel,
            num_res_units=units, norm="batch", act=activation,
        ),
        seed,
    )  # fmt: skip
    voxels = np.random.default_rng(seed).integers(0, shape, (4, 3))
    inputs = torch.randn(1, 2, *shape, generator=torch.Generator().manual_seed(seed))
    expected = by_autograd(network, inputs, voxels)
    found = whole(LocalNetwork(network, inputs, 1 << 28).read(inputs).rows(voxels, 1), 4, inputs)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_what_has_no_rule_is_named() -> None:
    network = seeded(lambda: UNet(3, 2, 2, channels=(3, 5), strides=(2,), norm="instance"))
    with pytest.raises(UntraceableError, match=r"layer 'model.*adn.N' works on no boxes"):
        LocalNetwork(network, torch.zeros(1, 2, *SHAPE), 1 << 28)


CARD = vx.Card(name="lesions", channels=("flair", "t1"), classes=("rest", "lesion"), activation="softmax")
WINDOWED = dataclasses.replace(CARD, window=(16, 12, 8), overlap=0.4)


def a_probe(
    network: nn.Module, card: vx.Card, shape: tuple[int, int, int], voxels: np.ndarray, **compute: object
) -> Probe:
    data = np.random.default_rng(4).normal(0, 1, (2, *shape)).astype(np.float32)
    scan = vx.Scan(data, vx.Grid(shape, np.eye(4)), ("flair", "t1"))
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(voxels.T)] = True
    model = vx.Model(network, card)
    (prepared,) = prepare(scan, card)
    target = vx.RegionScore("lesion", vx.Labels(mask, scan.grid))
    return Probe(model, prepared, target, 0, dataclasses.replace(CPU, **compute))


@pytest.mark.parametrize("engine", ["auto", "full"])
@pytest.mark.parametrize(
    ("card", "shape"),
    [(CARD, (32, 16, 24)), (WINDOWED, (29, 20, 15)), (WINDOWED, (13, 12, 14))],
    ids=["whole", "windows", "padded windows"],
)
@pytest.mark.parametrize(("memory", "uncropped"), [("2GB", 0), ("1MB", 10**6)])
def test_rows_of_the_stitched_prediction(
    card: vx.Card, shape: tuple[int, int, int], engine: str, memory: str, uncropped: int
) -> None:
    network = seeded(lambda: UNet(3, 2, 2, channels=(3, 5, 7), strides=(2, 2), norm="batch"))
    voxels = np.argwhere(np.ones((3, 2, 3))) + np.array((10, 7, 6))
    voxels = np.concatenate([voxels, [(0, 0, 0), np.array(shape) - 1]])
    probe = a_probe(network, card, shape, voxels, engine=engine, memory=memory)
    jacobian = Jacobian(probe, voxels, 1, uncropped=uncropped)
    image = probe.input + np.random.default_rng(1).normal(0, 0.1, probe.input.shape).astype(np.float32)
    inputs = torch.from_numpy(image[None])
    stitched = Stitched(network, card)
    expected = by_autograd(stitched, inputs, voxels)
    found = whole(jacobian.rows(image), len(voxels), inputs)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert jacobian.engine == ("local" if engine == "auto" else "autograd")
    assert all(0 < size <= 29 for size in jacobian.reach)
    jacobian = Jacobian(probe, voxels, 1, single=False, uncropped=uncropped)
    weights = np.linspace(1, 2, len(voxels)).astype(np.float32)
    mean = (expected * torch.from_numpy(weights).view(-1, 1, 1, 1, 1)).sum(dim=0).numpy()
    np.testing.assert_allclose(jacobian.mean(image, weights), mean, rtol=0, atol=1e-5 * np.abs(mean).max())


@pytest.mark.parametrize("kind", ["instance norm", "TorchScript"])
def test_other_networks_run_backward_as_a_whole(kind: str) -> None:
    norm = "instance" if kind == "instance norm" else "batch"
    network = seeded(lambda: UNet(3, 2, 2, channels=(3, 5), strides=(2,), norm=norm))
    if kind == "TorchScript":
        network = torch.jit.trace(network, torch.zeros(1, 2, 16, 12, 8), check_trace=False)
    voxels = np.array([(10, 7, 6), (11, 7, 6), (3, 3, 3)])
    probe = a_probe(network, WINDOWED, (29, 20, 15), voxels)
    with in_evaluation(network, torch.device("cpu")):
        jacobian = Jacobian(probe, voxels, 1)
        inputs = torch.from_numpy(probe.input[None].copy())
        found = whole(jacobian.rows(probe.input), len(voxels), inputs)
    expected = by_autograd(Stitched(network, WINDOWED), inputs, voxels)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert jacobian.engine == "autograd"
    assert any("one by one" in notice for notice in probe.notices)
    assert any("receptive field is the whole window" in notice for notice in probe.notices) == (norm == "instance")
