"""InceptionV3 and ResNeXt-50: torchvision's names and shapes, and its arithmetic written again in functions."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

import voxplain as vx
from voxplain.engine.tracing import traced
from voxplain.networks.inception import InceptionV3
from voxplain.networks.resnext import ResNeXt50

State = dict[str, torch.Tensor]

# Convolutions of InceptionV3: features in and out, kernel. `x` is what the block gets.
BLOCK_A = """branch1x1 x 64 1 1; branch5x5_1 x 48 1 1; branch5x5_2 48 64 5 5; branch3x3dbl_1 x 64 1 1;
branch3x3dbl_2 64 96 3 3; branch3x3dbl_3 96 96 3 3; branch_pool x p 1 1"""
BLOCK_B = "branch3x3 x 384 3 3; branch3x3dbl_1 x 64 1 1; branch3x3dbl_2 64 96 3 3; branch3x3dbl_3 96 96 3 3"
BLOCK_C = """branch1x1 x 192 1 1; branch7x7_1 x c 1 1; branch7x7_2 c c 1 7; branch7x7_3 c 192 7 1;
branch7x7dbl_1 x c 1 1; branch7x7dbl_2 c c 7 1; branch7x7dbl_3 c c 1 7; branch7x7dbl_4 c c 7 1;
branch7x7dbl_5 c 192 1 7; branch_pool x 192 1 1"""
BLOCK_D = """branch3x3_1 x 192 1 1; branch3x3_2 192 320 3 3; branch7x7x3_1 x 192 1 1; branch7x7x3_2 192 192 1 7;
branch7x7x3_3 192 192 7 1; branch7x7x3_4 192 192 3 3"""
BLOCK_E = """branch1x1 x 320 1 1; branch3x3_1 x 384 1 1; branch3x3_2a 384 384 1 3; branch3x3_2b 384 384 3 1;
branch3x3dbl_1 x 448 1 1; branch3x3dbl_2 448 384 3 3; branch3x3dbl_3a 384 384 1 3; branch3x3dbl_3b 384 384 3 1;
branch_pool x 192 1 1"""
BLOCKS = [
    ("Mixed_5b", BLOCK_A, {"x": 192, "p": 32}),
    ("Mixed_5c", BLOCK_A, {"x": 256, "p": 64}),
    ("Mixed_5d", BLOCK_A, {"x": 288, "p": 64}),
    ("Mixed_6a", BLOCK_B, {"x": 288}),
    ("Mixed_6b", BLOCK_C, {"x": 768, "c": 128}),
    ("Mixed_6c", BLOCK_C, {"x": 768, "c": 160}),
    ("Mixed_6d", BLOCK_C, {"x": 768, "c": 160}),
    ("Mixed_6e", BLOCK_C, {"x": 768, "c": 192}),
    ("AuxLogits", "conv0 x 128 1 1; conv1 128 768 5 5", {"x": 768}),
    ("Mixed_7a", BLOCK_D, {"x": 768}),
    ("Mixed_7b", BLOCK_E, {"x": 1280}),
    ("Mixed_7c", BLOCK_E, {"x": 2048}),
]
Shapes = dict[str, tuple[int, ...]]


def norm(name: str, features: int) -> Shapes:
    numbers = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{number}": (features,) for number in numbers} | {f"{name}.num_batches_tracked": ()}


def inception_shapes(channels: int, classes: int, auxiliary: bool) -> Shapes:
    rows = [
        ("Conv2d_1a_3x3", channels, 32, 3, 3), ("Conv2d_2a_3x3", 32, 32, 3, 3), ("Conv2d_2b_3x3", 32, 64, 3, 3),
        ("Conv2d_3b_1x1", 64, 80, 1, 1), ("Conv2d_4a_3x3", 80, 192, 3, 3),
    ]  # fmt: skip
    for block, text, sizes in BLOCKS:
        if block == "AuxLogits" and not auxiliary:
            continue
        for row in text.split(";"):
            name, *numbers = row.split()
            rows.append((f"{block}.{name}", *(sizes[n] if n in sizes else int(n) for n in numbers)))
    shapes: Shapes = {}
    for name, before, after, *kernel in rows:
        shapes |= {f"{name}.conv.weight": (after, before, *kernel)} | norm(f"{name}.bn", after)
    if auxiliary:
        shapes |= {"AuxLogits.fc.weight": (classes, 768), "AuxLogits.fc.bias": (classes,)}
    return shapes | {"fc.weight": (classes, 2048), "fc.bias": (classes,)}


def resnext_shapes(channels: int, classes: int) -> Shapes:
    shapes = {"conv1.weight": (64, channels, 7, 7)} | norm("bn1", 64)
    before = 64
    for stage, (blocks, inner, after) in enumerate([(3, 128, 256), (4, 256, 512), (6, 512, 1024), (3, 1024, 2048)]):
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            shapes |= {f"{name}.conv1.weight": (inner, before, 1, 1)} | norm(f"{name}.bn1", inner)
            shapes |= {f"{name}.conv2.weight": (inner, inner // 32, 3, 3)} | norm(f"{name}.bn2", inner)
            shapes |= {f"{name}.conv3.weight": (after, inner, 1, 1)} | norm(f"{name}.bn3", after)
            if block == 0:
                shapes |= {f"{name}.downsample.0.weight": (after, before, 1, 1)} | norm(f"{name}.downsample.1", after)
            before = after
    return shapes | {"fc.weight": (classes, 2048), "fc.bias": (classes,)}


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def without_memory(build: Callable[..., nn.Module], *sizes: int, **options: bool) -> nn.Module:
    with torch.device("meta"):
        return build(*sizes, **options)


@pytest.mark.parametrize(
    ("channels", "classes", "auxiliary", "weights"),
    [(3, 1000, True, 27_161_264), (3, 1000, False, 23_834_568), (4, 3, False, 21_792_003)],
)
def test_inception_has_torchvisions_names_and_shapes(channels, classes, auxiliary, weights) -> None:
    network = without_memory(InceptionV3, channels, classes, auxiliary=auxiliary)
    found = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert found == inception_shapes(channels, classes, auxiliary)
    assert count(network) == weights


@pytest.mark.parametrize(("channels", "classes", "weights"), [(3, 1000, 25_028_904), (4, 3, 22_989_187)])
def test_resnext_has_torchvisions_names_and_shapes(channels, classes, weights) -> None:
    network = without_memory(ResNeXt50, channels, classes)
    found = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert found == resnext_shapes(channels, classes)
    assert count(network) == weights


def normalised(state: State, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    mean, variance, weight, bias = (
        state[f"{name}.{number}"][:, None, None] for number in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + eps).sqrt() * weight + bias


def inception_by_hand(state: State, x: torch.Tensor) -> torch.Tensor:
    """Szegedy 2016 as torchvision orders it, from the state dict alone."""

    def conv(name: str, x: torch.Tensor, stride: int = 1, padding: int | tuple[int, int] = 0) -> torch.Tensor:
        x = functional.conv2d(x, state[f"{name}.conv.weight"], stride=stride, padding=padding)
        return normalised(state, f"{name}.bn", x, 0.001).clamp(min=0)

    def pool(x: torch.Tensor) -> torch.Tensor:
        return functional.max_pool2d(x, 3, 2)

    def mean(x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(x, 3, 1, 1)

    wide, high = (0, 3), (3, 0)
    x = conv("Conv2d_2b_3x3", conv("Conv2d_2a_3x3", conv("Conv2d_1a_3x3", x, 2)), 1, 1)
    x = pool(conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", pool(x))))
    for block in ("Mixed_5b.", "Mixed_5c.", "Mixed_5d."):
        five = conv(block + "branch5x5_2", conv(block + "branch5x5_1", x), 1, 2)
        double = conv(block + "branch3x3dbl_2", conv(block + "branch3x3dbl_1", x), 1, 1)
        double = conv(block + "branch3x3dbl_3", double, 1, 1)
        x = torch.cat([conv(block + "branch1x1", x), five, double, conv(block + "branch_pool", mean(x))], 1)
    double = conv("Mixed_6a.branch3x3dbl_2", conv("Mixed_6a.branch3x3dbl_1", x), 1, 1)
    x = torch.cat([conv("Mixed_6a.branch3x3", x, 2), conv("Mixed_6a.branch3x3dbl_3", double, 2), pool(x)], 1)
    for block in ("Mixed_6b.", "Mixed_6c.", "Mixed_6d.", "Mixed_6e."):
        seven = conv(block + "branch7x7_2", conv(block + "branch7x7_1", x), 1, wide)
        seven = conv(block + "branch7x7_3", seven, 1, high)
        double = conv(block + "branch7x7dbl_1", x)
        for number, padding in ((2, high), (3, wide), (4, high), (5, wide)):
            double = conv(f"{block}branch7x7dbl_{number}", double, 1, padding)
        x = torch.cat([conv(block + "branch1x1", x), seven, double, conv(block + "branch_pool", mean(x))], 1)
    three = conv("Mixed_7a.branch3x3_2", conv("Mixed_7a.branch3x3_1", x), 2)
    seven = conv("Mixed_7a.branch7x7x3_2", conv("Mixed_7a.branch7x7x3_1", x), 1, wide)
    seven = conv("Mixed_7a.branch7x7x3_4", conv("Mixed_7a.branch7x7x3_3", seven, 1, high), 2)
    x = torch.cat([three, seven, pool(x)], 1)
    for block in ("Mixed_7b.", "Mixed_7c."):
        three = conv(block + "branch3x3_1", x)
        double = conv(block + "branch3x3dbl_2", conv(block + "branch3x3dbl_1", x), 1, 1)
        parts = [conv(block + "branch1x1", x)]
        parts += [conv(block + "branch3x3_2a", three, 1, (0, 1)), conv(block + "branch3x3_2b", three, 1, (1, 0))]
        parts += [
            conv(block + "branch3x3dbl_3a", double, 1, (0, 1)),
            conv(block + "branch3x3dbl_3b", double, 1, (1, 0)),
        ]
        x = torch.cat([*parts, conv(block + "branch_pool", mean(x))], 1)
    return x.mean(dim=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def resnext_by_hand(state: State, x: torch.Tensor) -> torch.Tensor:
    """Xie 2017 from the state dict alone; the 3x3 convolution has the stride."""
    x = functional.conv2d(x, state["conv1.weight"], stride=2, padding=3)
    x = functional.max_pool2d(normalised(state, "bn1", x, 1e-5).clamp(min=0), 3, 2, 1)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = functional.conv2d(x, state[f"{name}.conv1.weight"])
            y = normalised(state, f"{name}.bn1", y, 1e-5).clamp(min=0)
            y = functional.conv2d(y, state[f"{name}.conv2.weight"], stride=stride, padding=1, groups=32)
            y = normalised(state, f"{name}.bn2", y, 1e-5).clamp(min=0)
            y = normalised(state, f"{name}.bn3", functional.conv2d(y, state[f"{name}.conv3.weight"]), 1e-5)
            if block == 0:
                x = functional.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride)
                x = normalised(state, f"{name}.downsample.1", x, 1e-5)
            x = (x + y).clamp(min=0)
    return x.mean(dim=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]


SMALL = {
    "InceptionV3": (lambda channels, classes: InceptionV3(channels, classes, width=0.08), inception_by_hand, 75),
    "ResNeXt50": (lambda channels, classes: ResNeXt50(channels, classes, width=16), resnext_by_hand, 33),
}


def seeded(name: str, channels: int, classes: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = SMALL[name][0](channels, classes).eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for values, low, high in ((module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 2)):
                    nn.init.uniform_(values, low, high)
                nn.init.uniform_(module.weight, 0.7, 1.3)
                nn.init.uniform_(module.bias, -0.2, 0.2)
        return network


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", SMALL)
def test_the_arithmetic_is_the_papers(name: str) -> None:
    _, by_hand, edge = SMALL[name]
    network = seeded(name, 4, 3)
    x = images(2, 4, edge + 8, edge)
    with torch.inference_mode():
        found = network(x)
        expected = by_hand(network.state_dict(), x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.std() > 0


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("channels", "edge"), [(4, 240), (1, 512), (7, 240)])
def test_the_papers_sizes_and_any_number_of_channels(name: str, channels: int, edge: int) -> None:
    with torch.inference_mode():
        assert seeded(name, channels, 3)(images(1, channels, edge, edge)).shape == (1, 3)


@pytest.mark.parametrize("build", [InceptionV3, ResNeXt50])
def test_the_networks_in_full(build: Callable[..., nn.Module]) -> None:
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(0)
        scores = build(4, 3).eval()(images(1, 4, 96, 80))
    assert scores.shape == (1, 3)
    assert scores.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_trains_from_scratch(name: str) -> None:
    """A few steps tell bright images from dark ones; every weight has a finite gradient."""
    network = seeded(name, 2, 2).train()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    labels = torch.tensor([0, 1] * 4)
    x = images(8, 2, 80, 80) * 0.3 + labels[:, None, None, None]
    losses = []
    # Dropout draws from the global state, which other tests move on.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(20):
            optimiser.zero_grad()
            loss = functional.cross_entropy(network(x), labels)
            loss.backward()
            assert all(parameter.grad is not None for parameter in network.parameters())
            assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
            optimiser.step()
            losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_and_bfloat16(name: str) -> None:
    network, x = seeded(name, 4, 3), images(2, 4, 80, 96)
    with torch.inference_mode():
        expected = network(x)
        last = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(last, expected, rtol=1e-3, atol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = network(x)
    assert rough.isfinite().all()
    assert (rough.float() - expected).abs().max() < 0.2 * expected.abs().max()


@pytest.mark.parametrize("name", SMALL)
def test_stays_traceable_for_the_incremental_engine(name: str) -> None:
    network, x = seeded(name, 4, 3), images(1, 4, 80, 96)
    with torch.inference_mode():
        torch.testing.assert_close(traced(network)(x), network(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "factory", "arguments"),
    [
        ("InceptionV3", "voxplain.networks.inception:InceptionV3", {"width": 0.08}),
        ("ResNeXt50", "voxplain.networks.resnext:ResNeXt50", {"width": 16}),
    ],
)
def test_a_folder_gives_it_back(name: str, factory: str, arguments: dict[str, float], tmp_path) -> None:
    network = seeded(name, 4, 3)
    card = vx.Card(
        name=name, channels=("flair", "t1", "t1ce", "t2"), classes=("hgg", "lgg", "healthy"), activation="softmax",
        spatial_dims=2, factory=factory, arguments={"in_channels": 4, "classes": 3, **arguments},
    )  # fmt: skip
    back = vx.load_model(vx.save_model(network, card, tmp_path / "model"))
    x = images(1, 4, 80, 80)
    with torch.inference_mode():
        assert torch.equal(back.network.eval()(x), network(x))


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"at least 75 pixels an axis; got \(80, 74\)"):
        seeded("InceptionV3", 1, 2)(images(1, 1, 80, 74))
    for width in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="width scales the features"):
            InceptionV3(width=width)
    for width in (0, 8, 40):
        with pytest.raises(ValueError, match="multiple of 16"):
            ResNeXt50(width=width)


def test_an_image_that_is_too_small_is_one_line_to_a_user() -> None:
    scan = vx.Scan(images(1, 40, 90, 1).numpy(), vx.Grid((40, 90, 1), torch.eye(4).numpy()), ("t1",))
    card = vx.Card(name="n", channels=("t1",), classes=("a", "b"), spatial_dims=2)
    with pytest.raises(vx.InputError, match=r"refuses inputs of shape .* at least 75 pixels an axis"):
        vx.GuidedBackprop()(vx.Model(seeded("InceptionV3", 1, 2), card), scan, compute=vx.Compute("cpu"))
