"""Incremental passes against full ones, on random weights and random boxes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache

import monai.networks.nets as monai_nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from voxplain.engine.budget import UNSEEN, MemoryMeter
from voxplain.engine.incremental import Incremental, KeepsTooMuchError
from voxplain.engine.tracing import UntraceableError
from voxplain.errors import InputError
from voxplain.networks.resnet import resnet

FEW = settings(max_examples=8, deadline=None, derandomize=True)
MANY = settings(max_examples=25, deadline=None, derandomize=True)
TOLERANCE = 1e-5


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Layers as small as these only wait for one another on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def settled(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that keep signals alive, and batch norms with statistics as if trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose3d | nn.Linear):
                fan = module.weight[0].numel()
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * (1.5 / fan) ** 0.5)
            if isinstance(module, _BatchNorm):
                features = module.running_mean.shape
                module.running_mean.copy_(torch.randn(features, generator=generator) * 0.2)
                module.running_var.copy_(torch.rand(features, generator=generator) + 0.5)
                if module.affine:
                    module.weight.copy_(torch.rand(features, generator=generator) + 0.5)
                    module.bias.copy_(torch.randn(features, generator=generator) * 0.2)
    return network.eval()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


Box = list[tuple[int, int]]


def boxes_in(extent: tuple[int, ...]) -> st.SearchStrategy[Box]:
    """Any boxes: inside, at borders, of one voxel, of the whole volume."""

    def side(length: int) -> st.SearchStrategy[tuple[int, int]]:
        small = st.tuples(st.integers(0, length - 1), st.integers(1, max(1, length // 3)))
        return st.one_of(
            small.map(lambda s: (s[0], min(length, s[0] + s[1]))),
            st.sampled_from([(0, 1), (length - 1, length), (length // 2, length // 2 + 1)]),
        )

    return st.one_of(st.tuples(*map(side, extent)).map(list), st.just([(0, length) for length in extent]))


def patches_for(clean: torch.Tensor, boxes: list[Box]) -> list[tuple[Box, torch.Tensor]]:
    return [
        (box, 2 * noise(clean.shape[1], *(stop - start for start, stop in box), seed=seed))
        for seed, box in enumerate(boxes)
    ]


def in_full(network: nn.Module, clean: torch.Tensor, patches: list[tuple[Box, torch.Tensor]]) -> torch.Tensor:
    rows = []
    for box, values in patches:
        perturbed = clean.clone()
        perturbed[(0, slice(None), *(slice(*side) for side in box))] = values
        with torch.no_grad():
            rows.append(network(perturbed)[0])
    return torch.stack(rows)


def deviation(outputs: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest in probability, and in scores where they are no larger than a few units."""
    assert outputs.shape == expected.shape
    raw = (outputs - expected).abs().max() / max(1.0, float(expected.abs().max()))
    return float(torch.maximum((outputs.sigmoid() - expected.sigmoid()).abs().max(), raw))


def assert_exact(network: nn.Module, incremental: Incremental, clean: torch.Tensor, boxes: list[Box]) -> None:
    patches = patches_for(clean, boxes)
    assert deviation(incremental.outputs(patches), in_full(network, clean, patches)) <= TOLERANCE


# Networks in which a layer reads its neighbours in every way there is.


class InceptionBlock(nn.Module):
    """Branches of other kernels, one behind average pooling, side by side; then a grid reduction."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()

        def block(into: int, kernel: tuple[int, int, int], stride: int = 1) -> nn.Sequential:
            padding = tuple(k // 2 for k in kernel) if stride == 1 else 0
            convolution = nn.Conv3d(into, width, kernel, stride, padding, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm3d(width, eps=0.001), nn.ReLU(inplace=True))

        self.stem = block(4, (3, 3, 3), 2)
        self.one = block(width, (1, 1, 1))
        self.wide = nn.Sequential(block(width, (1, 1, 7)), block(width, (7, 1, 1)), block(width, (1, 7, 1)))
        self.deep = nn.Sequential(block(width, (1, 1, 1)), block(width, (3, 3, 3)), block(width, (5, 5, 5)))
        self.pooled = block(width, (1, 1, 1))
        self.reduce = block(4 * width, (3, 3, 3), 2)
        self.head = nn.Linear(5 * width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        pooled = F.avg_pool3d(x, kernel_size=3, stride=1, padding=1)
        x = torch.cat([self.one(x), self.wide(x), self.deep(x), self.pooled(pooled)], 1)
        x = torch.cat((self.reduce(x), F.max_pool3d(x, 3, stride=2)), dim=1)
        return self.head(torch.flatten(F.adaptive_avg_pool3d(x, 1), 1)[:, : self.head.in_features])


class ResNeXtBlock(nn.Module):
    """Grouped convolutions, a skip that functional activations write into, squeeze and excitation at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv3d(4, 8, 3, 2, 1), nn.BatchNorm3d(8)
        self.down, self.grouped = nn.Conv3d(8, 16, 1), nn.Conv3d(16, 16, 3, padding=1, groups=4)
        self.up, self.shortcut = nn.Conv3d(16, 8, 1), nn.BatchNorm3d(8)
        self.stride = nn.Conv3d(8, 8, 3, 2, 1, groups=2)
        self.squeeze, self.excite, self.head = nn.Conv3d(8, 2, 1), nn.Conv3d(2, 8, 1), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.norm(self.stem(x))
        activated = F.relu(skip, inplace=True)
        y = F.relu(self.down(activated), inplace=True)
        y = self.up(F.relu_(self.grouped(y)))
        y += self.shortcut(skip)
        y = self.stride(torch.relu_(y))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3, 4), keepdim=True)))))
        y = y * gate
        return self.head(y.mean(dim=(2, 3, 4)))


class Exotic(nn.Module):
    """Anisotropic strides, dilation, transposed convolutions, both ways to interpolate, padding, chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv3d(3, 8, (3, 5, 1), (1, 2, 2), (1, 2, 0))
        self.dilated = nn.Conv3d(8, 8, 3, padding="same", dilation=2)
        self.up = nn.ConvTranspose3d(8, 6, (2, 3, 4), (2, 2, 2), (0, 1, 1), output_padding=(0, 1, 0), groups=2)
        self.norm, self.drop, self.activation = nn.BatchNorm3d(6), nn.Dropout3d(0.5), nn.PReLU(6)
        self.nearest = nn.Upsample(scale_factor=2, mode="nearest")
        self.pool = nn.AvgPool3d(3, 2, 1, ceil_mode=True, count_include_pad=False)
        self.position = nn.Parameter(torch.randn(1, 3, 1, 1, 1))
        self.last = nn.Conv3d(9, 3, 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = 0.5 + x * self.position
        y = F.leaky_relu(self.dilated(F.elu(self.one(x))), 0.1, True)
        left, right = torch.chunk(self.drop(self.activation(self.norm(self.up(y)))), 2, dim=1)
        z = F.interpolate(left, size=(9, 13, 8), mode="trilinear", align_corners=True)
        z = torch.cat([z, F.interpolate(right, size=z.shape[2:], mode="trilinear"), z - 1], 1)
        z = self.pool(self.nearest(F.pad(z, (1, 0, 2, 1, -1, 1), value=0.25)))
        z = F.max_pool3d(z, (2, 3, 2), padding=1, ceil_mode=True)
        return torch.softmax(self.last(z), 1)[:, :2].flatten(1)


class Flat(nn.Module):
    """A 2D network that gives a map."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(inplace=True), nn.MaxPool2d(2)
        )
        self.decode = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 2, 3, dilation=2, padding=2)
        )
        self.grid = nn.AdaptiveAvgPool2d((5, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.decode(self.encode(x)) + x
        return self.grid(y)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet10": (lambda: resnet(10, width=8, classes=2), (1, 4, 40, 33, 36)),
    "resnet50": (lambda: resnet(50, width=4), (1, 4, 48, 44, 40)),
    "densenet169": (
        lambda: monai_nets.DenseNet169(3, 4, 2, init_features=8, growth_rate=4, bn_size=2),
        (1, 4, 40, 44, 36),
    ),
    "inception": (InceptionBlock, (1, 4, 25, 28, 22)),
    "resnext": (ResNeXtBlock, (1, 4, 24, 21, 20)),
    "unet": (lambda: monai_nets.UNet(3, 4, 2, (4, 8, 16), (2, 2), norm="batch"), (1, 4, 24, 24, 24)),
    "unet-instance": (lambda: monai_nets.UNet(3, 4, 2, (4, 8), (2,)), (1, 4, 24, 20, 16)),
    "dynunet": (
        lambda: monai_nets.DynUNet(3, 4, 2, [3, 3, 3], [1, (2, 2, 1), 2], [(2, 2, 1), 2], filters=[4, 8, 16]),
        (1, 4, 24, 24, 16),
    ),
    "segresnet": (
        lambda: monai_nets.SegResNet(3, 8, 4, 2, blocks_down=(1, 1), blocks_up=(1,), upsample_mode="nontrainable"),
        (1, 4, 16, 16, 16),
    ),
    "exotic": (Exotic, (1, 3, 17, 22, 19)),
    "flat": (Flat, (1, 2, 30, 34)),
}


@cache
def case(name: str) -> tuple[nn.Module, torch.Tensor, Incremental]:
    build, shape = CASES[name]
    network, clean = settled(build()), noise(*shape, seed=1)
    return network, clean, Incremental(network, clean, batch_size=3)


@pytest.mark.parametrize("name", CASES)
def test_every_network_gives_what_full_passes_give(name: str) -> None:
    network, clean, incremental = case(name)

    @FEW
    @given(st.lists(boxes_in(tuple(clean.shape[2:])), min_size=1, max_size=4))
    def holds(boxes: list[Box]) -> None:
        assert_exact(network, incremental, clean, boxes)

    holds()


# Each layer alone, with any options.


@st.composite
def layers(draw: st.DrawFn) -> nn.Module:
    def per_axis(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(3))

    kernel, stride, dilation = per_axis(1, 4), per_axis(1, 3), per_axis(1, 2)
    groups = draw(st.sampled_from([1, 2]))
    kind = draw(st.sampled_from(["convolution", "transposed", "max", "average", "upsample"]))
    if kind == "convolution":
        return nn.Conv3d(2, 4, kernel, stride, per_axis(0, 4), dilation, groups)
    if kind == "transposed":
        extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        padding = tuple(draw(st.integers(0, d * (k - 1))) for d, k in zip(dilation, kernel, strict=True))
        return nn.ConvTranspose3d(2, 4, kernel, stride, padding, extra, groups, dilation=dilation)
    ceil, padding = draw(st.booleans()), tuple(draw(st.integers(0, k // 2)) for k in kernel)
    if kind == "max":
        return nn.MaxPool3d(kernel, stride, padding, dilation, ceil_mode=ceil)
    if kind == "average":
        divisor = draw(st.sampled_from([None, 3]))
        return nn.AvgPool3d(kernel, stride, padding, ceil, draw(st.booleans()), divisor)
    mode = draw(st.sampled_from(["nearest", "trilinear", "area", "nearest-exact"]))
    align = draw(st.booleans()) if mode == "trilinear" else None
    factor = draw(st.sampled_from([(0.5, 1.0, 2.0), (1.3, 0.7, 1.9), (3.0, 2.0, 1.0)]))
    return nn.Upsample(scale_factor=factor, mode=mode, align_corners=align)


@MANY
@given(layers(), st.lists(boxes_in((11, 10, 13)), min_size=1, max_size=4), st.integers(0, 99))
def test_a_layer_alone_and_between_others(layer: nn.Module, boxes: list[Box], seed: int) -> None:
    torch.manual_seed(seed)
    clean = noise(1, 2, 11, 10, 13, seed=seed)
    channels = layer(clean).shape[1]
    between = nn.Sequential(nn.Conv3d(2, 2, 3, padding=1), layer, nn.Conv3d(channels, 2, 1), nn.Tanh())
    for network in (nn.Sequential(layer), between):
        network = settled(network)
        assert_exact(network, Incremental(network, clean), clean, boxes)


class Skips(nn.Module):
    """Writes in place to what others still read."""

    def __init__(self, write: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.write = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 4, 3, padding=1), write

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.first(x)
        same = nn.functional.dropout(skip, 0.5, training=False)
        self.write(skip)
        return (self.second(skip) + same).mean((2, 3, 4)) + skip.amax((2, 3, 4))


@pytest.mark.parametrize(
    "write",
    [
        lambda x: F.relu(x, inplace=True),
        lambda x: F.relu(x, True),
        lambda x: F.relu_(x),
        lambda x: x.relu_(),
        lambda x: x.mul_(3),
        lambda x: x.add_(x),
        lambda x: F.leaky_relu(x, 0.3, inplace=True),
        nn.ReLU(inplace=True),
    ],
)
def test_writing_in_place_does_not_reach_the_kept_activations(write: Callable[[torch.Tensor], torch.Tensor]) -> None:
    network, clean = settled(Skips(write)), noise(1, 1, 9, 9, 9)
    incremental = Incremental(network, clean)
    boxes = [[(2, 5)] * 3, [(0, 1)] * 3, [(6, 9)] * 3]
    for _ in range(2):
        assert_exact(network, incremental, clean, boxes)


class WritesIntoView(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y[:, :1].relu_()
        return y.mean((2, 3, 4))


class WritesItem(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y[:, :, 0] = 0
        return y.mean((2, 3, 4))


@pytest.mark.parametrize("network", [WritesIntoView(), WritesItem()])
def test_writing_into_a_part_of_a_tensor_is_left_to_full_passes(network: nn.Module) -> None:
    with pytest.raises(UntraceableError, match=r"writes in place|item assignment"):
        Incremental(network.eval(), noise(1, 2, 5, 5, 5))


# How batches are made changes nothing but rounding.


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 2}, {"memory_bytes": 1}, {"batch_size": 64}])
def test_batches_change_no_score(options: dict[str, int]) -> None:
    network, clean, _ = case("resnet10")
    boxes = [[(3 * i, 3 * i + 2 + i % 5)] * 3 for i in range(9)]
    patches = patches_for(clean, boxes)
    outputs = Incremental(network, clean, **options).outputs(patches)
    assert deviation(outputs, in_full(network, clean, patches)) <= TOLERANCE


def test_no_patches_give_no_outputs() -> None:
    _, _, incremental = case("resnet10")
    assert incremental.outputs([]).shape == (0, 2)


def test_arrays_are_patches_too_and_outputs_serve_gradients() -> None:
    network, clean, incremental = case("resnet10")
    ((box, values),) = patches_for(clean, [[(4, 9), (5, 6), (30, 36)]])
    outputs = incremental.outputs([(box, values.numpy())])
    assert deviation(outputs, in_full(network, clean, [(box, values)])) <= TOLERANCE
    assert not outputs.is_inference()
    assert outputs.dtype == torch.float32


# Only boxes are computed.


def onednn_flops(inputs: torch.Size, weight: torch.Size, *_: object, out_shape: torch.Size) -> int:
    return conv_flop_count(inputs, weight, out_shape)


def flops(function: Callable[[], object]) -> int:
    # The counter does not know the operator that the engine calls on the CPU.
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mkldnn_convolution: onednn_flops})
    with counter:
        function()
    return counter.get_total_flops()


# Transposed convolutions read a voxel more at each side than the count, which shares out the whole, says.
@pytest.mark.parametrize(("name", "slack"), [("resnet50", 1.3), ("inception", 1.3), ("unet", 1.7)])
def test_what_is_computed_is_what_the_count_says(name: str, slack: float) -> None:
    network, clean, incremental = case(name)
    centre = [(length // 2, length // 2 + 3) for length in clean.shape[2:]]
    patches = patches_for(clean, [centre])
    counted = incremental.arithmetic([centre])
    with torch.no_grad():
        assert flops(lambda: network(clean)) == pytest.approx(2 * counted.full, rel=1e-3)
    computed = flops(lambda: incremental.outputs(patches))
    # Boxes that reach almost everything are computed as everything.
    assert 0.99 * 2 * counted.inside[0] <= computed <= slack * 2 * counted.inside[0] < 2 * counted.full
    assert counted.ceiling == pytest.approx(counted.full / counted.inside[0])


def test_a_box_of_everything_costs_a_full_pass() -> None:
    _, clean, incremental = case("resnet50")
    assert incremental.arithmetic([[(0, length) for length in clean.shape[2:]]]).ceiling == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "layers"),
    [("unet-instance", ["model.0.adn.N"]), ("segresnet", ["down_layers.0.1.norm1"]), ("resnet10", []), ("flat", [])],
)
def test_layers_that_look_at_everything_are_named(name: str, layers: list[str]) -> None:
    network, clean, _ = case(name)
    incremental = Incremental(network, clean)
    incremental.outputs(patches_for(clean, [[(8, 10)] * (clean.ndim - 2)]))
    assert list(incremental.finished_in_full_from)[: len(layers)] == layers


# The network is the user's.


def test_the_network_and_the_input_stay_as_they_are() -> None:
    network, clean = settled(ResNeXtBlock()), noise(1, 4, 24, 20, 20)
    weights, given_input = copy.deepcopy(network.state_dict()), clean.clone()
    output = network(clean)
    incremental = Incremental(network, clean)
    incremental.outputs(patches_for(clean, [[(3, 6)] * 3]))
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(clean, given_input)
    assert torch.equal(network(clean), output)
    clean.zero_()  # what the caller does with the input later is no matter
    assert_exact(network, incremental, given_input, [[(5, 9)] * 3])


# What is refused.


class AlwaysDrops(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5, training=True).mean((2, 3, 4))


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + torch.randn_like(x)).mean((2, 3, 4))


class NoisyWeights(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3, 4)) + torch.randn(1)


class TwoOutputs(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


class OneAtATime(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(1, -1)


def batch_norm_in_training() -> nn.Module:
    network = nn.Sequential(nn.Conv3d(2, 2, 1), nn.BatchNorm3d(2)).eval()
    network[1].train()
    return network


def dropout_left_on() -> nn.Module:
    network = nn.Sequential(nn.Conv3d(2, 2, 1), nn.Dropout3d(0.5)).eval()
    network[1].train()
    return network


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (batch_norm_in_training(), "BatchNorm3d '1' is in training mode"),
        (dropout_left_on(), "Dropout3d '1' is in training mode"),
        (nn.Conv3d(2, 2, 1), "training mode"),
        (nn.Sequential(nn.BatchNorm3d(2, track_running_stats=False)).eval(), "keeps no running statistics"),
        (AlwaysDrops().eval(), "dropout works as in training"),
        (Noisy().eval(), "draws on chance"),
        (NoisyWeights().eval(), "draws on chance"),
        (TwoOutputs().eval(), "returns one tensor"),
        (nn.Threshold(9e9, float("nan")).eval(), "NaN or infinite"),
    ],
)
def test_networks_that_depend_on_more_than_their_input_are_refused(network: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Incremental(network, noise(1, 2, 6, 6, 6))


def test_a_network_for_one_input_at_a_time_is_refused() -> None:
    incremental = Incremental(OneAtATime().eval(), noise(1, 2, 6, 6, 6))
    with pytest.raises(InputError, match="one input at a time"):
        incremental.outputs(patches_for(noise(1, 2, 6, 6, 6), [[(0, 2)] * 3, [(1, 3)] * 3]))


@pytest.mark.parametrize(
    ("box", "shape"),
    [
        ([(0, 2), (0, 2), (5, 7)], (2, 2, 2, 2)),
        ([(0, 2), (0, 2), (2, 2)], (2, 2, 2, 0)),
        ([(0, 2), (0, 2)], (2, 2, 2)),
        ([(0, 2), (0, 2), (0, 2)], (1, 2, 2, 2)),
    ],
)
def test_patches_that_do_not_fit_are_refused(box: Box, shape: tuple[int, ...]) -> None:
    incremental = Incremental(nn.Conv3d(2, 2, 1).eval(), noise(1, 2, 6, 6, 6))
    with pytest.raises(InputError, match="expected a box"):
        incremental.outputs([(box, np.zeros(shape, dtype=np.float32))])


@pytest.mark.parametrize("shape", [(2, 2, 6, 6, 6), (1, 6, 6), (1, 2, 6)])
def test_inputs_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="expected one float32 input"):
        Incremental(nn.Conv3d(2, 2, 1).eval(), noise(*shape))


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x
        return -x


@pytest.mark.parametrize(
    ("network", "line"),
    [
        (lambda: monai_nets.SwinUNETR(2, 2, feature_size=12, spatial_dims=3), r"swin_unetr\.py:\d+ \(.*\): '.+'"),
        (
            lambda: monai_nets.resnet10(spatial_dims=3, n_input_channels=2, shortcut_type="A"),
            r"resnet\.py:\d+ \(.*\): '.+'",
        ),
        (Branches, r"test_incremental\.py:\d+ \(forward\): 'if x\.sum\(\) > 0:'"),
        (lambda: torch.jit.trace(nn.Conv3d(2, 2, 1), noise(1, 2, 4, 4, 4)), "TorchScript"),
    ],
)
def test_networks_that_cannot_be_traced_say_which_line_stops_it(network: Callable[[], nn.Module], line: str) -> None:
    with pytest.raises(UntraceableError, match=line):
        Incremental(network().eval(), noise(1, 2, 32, 32, 32))


# What is kept, and what perturbed inputs need besides.


def test_the_clean_run_keeps_only_what_boxes_are_cut_out_of() -> None:
    clean = noise(1, 2, 24, 22, 20)
    chain = nn.Sequential(nn.Conv3d(2, 2, 3, padding=1), *(nn.Tanh() for _ in range(12))).eval()
    with torch.no_grad(), MemoryMeter(torch.device("cpu")) as meter:
        incremental = Incremental(chain, clean)
    weights = sum(parameter.nbytes for parameter in chain.parameters())
    # The input, which the convolution reads, and the output.
    assert incremental.kept_bytes == 2 * clean.nbytes + weights
    # Nor are there ever more than these, a layer's input and output, and copies of the input and the output.
    assert meter.needs.single <= UNSEEN * (6 * clean.nbytes + 4 * weights)


def test_what_would_be_kept_is_told_where_it_is_too_much() -> None:
    network, clean, incremental = case("resnet10")
    with pytest.raises(KeepsTooMuchError, match="the clean activations take") as caught:
        Incremental(network, clean, most_kept_bytes=incremental.kept_bytes // 2)
    assert incremental.kept_bytes <= caught.value.kept_bytes <= 1.1 * incremental.kept_bytes


@pytest.mark.parametrize("name", CASES)
def test_one_perturbed_input_needs_no_more_than_is_said(name: str) -> None:
    _, clean, incremental = case(name)
    for edge in (3, 9):
        boxes = [[(2, 2 + edge)] * (clean.ndim - 2)]
        patches = patches_for(clean, boxes)
        with MemoryMeter(torch.device("cpu")) as meter:
            incremental.follow(patches)
        assert meter.needs.single <= incremental.needed_bytes(boxes)


def test_outputs_come_in_chunks_that_memory_allows() -> None:
    network, clean, _ = case("unet")
    patches = patches_for(clean, [[(i, i + 4)] * 3 for i in range(9)])
    boxes = [box for box, _ in patches]
    incremental = Incremental(network, clean, batch_size=64)
    assert incremental.needed_bytes(boxes[:1]) >= 2 * incremental.clean_output.nbytes
    expected = incremental.outputs(patches)
    incremental.memory_bytes = 4 * incremental.needed_bytes(boxes)
    chunks = list(incremental.chunks(patches))
    assert sorted(row for rows, _ in chunks for row in rows) == list(range(9))
    assert 1 < max(len(rows) for rows, _ in chunks) < 9
    for rows, outputs in chunks:
        assert outputs.shape == (len(rows), *incremental.clean_output.shape[1:])
        assert deviation(outputs, expected[rows]) <= TOLERANCE
