"""Guided backpropagation against Captum's where that is right (modules of ReLU), elsewhere by chains of matrices."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from captum.attr import GuidedBackprop as CaptumGuided
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import voxplain as vx
from voxplain.networks.gp_reconresnet import GPReconResNet
from voxplain.networks.gp_shuffleunet import GPShuffleUNet
from voxplain.networks.gp_unet import GPUNet
from voxplain.networks.inception import InceptionV3
from voxplain.networks.resnet import resnet
from voxplain.networks.resnext import ResNeXt50

CPU = vx.Compute(device="cpu", threads=1)
SEQUENCES = ("flair", "t2")


def seeded(build, *arguments) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return build(*arguments).eval()


def a_scan(*shape: int, channels: int = 2, seed: int = 1) -> vx.Scan:
    data = np.random.default_rng(seed).normal(0, 1, (channels, *shape)).astype(np.float32)
    return vx.Scan(data, vx.Grid(shape, np.diag([2.0, 1, 1.5, 1])), tuple(f"s{i}" for i in range(channels)))


def a_model(network: nn.Module, scan: vx.Scan, classes: int) -> vx.Model:
    dims = 2 if scan.grid.shape[2] == 1 else 3
    names = tuple(f"c{i}" for i in range(classes))
    return vx.Model(network, vx.Card(name="n", channels=scan.channels, classes=names, spatial_dims=dims))


def explained(network: nn.Module, scan: vx.Scan, classes: int, sequences: str = "each") -> vx.Explanation:
    """The map of the last class."""
    model = a_model(network, scan, classes)
    explain = vx.GuidedBackprop(sequences=sequences)
    return explain(model, scan, target=vx.ClassScore(model.card.classes[-1]), compute=CPU)


def tensor(scan: vx.Scan) -> torch.Tensor:
    inputs = torch.from_numpy(scan.data.copy())[None]
    return (inputs[..., 0] if scan.grid.shape[2] == 1 else inputs).requires_grad_()


def plain_gradient(network: nn.Module, scan: vx.Scan) -> np.ndarray:
    inputs = tensor(scan)
    (gradient,) = torch.autograd.grad(network(inputs)[0, -1], inputs)
    return gradient[0].numpy().reshape(scan.data.shape)


def flat() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(8, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 3),
    )  # fmt: skip


def deep() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 5, 3, padding=1), nn.ReLU(), nn.AvgPool3d(2), nn.Conv3d(5, 7, 3), nn.InstanceNorm3d(7), nn.ReLU(),
        nn.AdaptiveMaxPool3d(2), nn.Flatten(), nn.Linear(56, 12), nn.ReLU(), nn.Linear(12, 2),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("build", "shape", "classes"),
    [(flat, (21, 18, 1), 3), (deep, (10, 12, 8), 2), (lambda: GPUNet(2, 3, width=4, dropout=0.2), (24, 17, 1), 3)],
    ids=["2D", "3D", "GP-UNet"],
)
def test_agrees_with_captum_on_modules_of_relu(build, shape: tuple[int, int, int], classes: int) -> None:
    scan = a_scan(*shape)
    why = explained(seeded(build), scan, classes)
    theirs = seeded(build)
    with pytest.warns(UserWarning, match="backward hooks"):
        expected = CaptumGuided(theirs).attribute(tensor(scan), target=classes - 1)
    expected = expected.detach()[0].numpy().reshape(why.map.shape)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(why.map, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert np.abs(why.map - plain_gradient(seeded(build), scan)).max() > 1e-2 * np.abs(expected).max()
    assert why.provenance["passes"] == {"forward": 2, "backward": 1}
    assert why.signed
    assert why.unit == "logit per intensity unit"


def leaky(slope: float):
    return lambda z: np.where(z > 0, z, slope * z)


def rectified(z: np.ndarray) -> np.ndarray:
    return np.maximum(z, 0)


def up_to_6(z: np.ndarray) -> np.ndarray:
    return np.clip(z, 0, 6)


# How a network may spell a rectifier -> the same in numpy. A lambda that makes modules is called once for each layer.
FUNCTIONS = {
    "functional.relu": (functional.relu, rectified),
    "functional.relu in place": (lambda z: functional.relu(z, inplace=True), rectified),
    "functional.relu, True": (lambda z: functional.relu(z, True), rectified),
    "functional.relu, by name": (lambda z: functional.relu(input=z), rectified),
    "functional.relu_": (functional.relu_, rectified),
    "torch.relu": (torch.relu, rectified),
    "torch.relu_": (torch.relu_, rectified),
    "tensor.relu": (lambda z: z.relu(), rectified),
    "tensor.relu_": (lambda z: z.relu_(), rectified),
    "aten.relu": (torch.ops.aten.relu, rectified),
    "clamp": (lambda z: z.clamp(min=0), rectified),
    "clamp(0, 6)": (lambda z: z.clamp(0, 6), up_to_6),
    "clamp_": (lambda z: z.clamp_(0), rectified),
    "torch.clip": (lambda z: torch.clip(z, min=0.0), rectified),
    "clamp_min": (lambda z: z.clamp_min(0), rectified),
    "torch.clamp_min_": (lambda z: torch.clamp_min_(z, 0), rectified),
    "functional.threshold": (lambda z: functional.threshold(z, 0, 0), rectified),
    "functional.leaky_relu": (functional.leaky_relu, leaky(0.01)),
    "functional.leaky_relu in place": (lambda z: functional.leaky_relu(z, 0.3, inplace=True), leaky(0.3)),
    "functional.leaky_relu_": (lambda z: functional.leaky_relu_(z, negative_slope=0.3), leaky(0.3)),
    "functional.prelu": (lambda z: functional.prelu(z, torch.tensor([0.4])), leaky(0.4)),
    "tensor.prelu": (lambda z: z.prelu(torch.tensor([-0.4])), leaky(-0.4)),
    "functional.rrelu": (lambda z: functional.rrelu(z, 0.2, 0.4), leaky(0.3)),
    "functional.relu6": (functional.relu6, up_to_6),
    "functional.hardtanh": (lambda z: functional.hardtanh(z, 0.0, 6.0), up_to_6),
}
MODULES = {
    "ReLU": (nn.ReLU, rectified),
    "ReLU in place": (lambda: nn.ReLU(inplace=True), rectified),
    "LeakyReLU": (lambda: nn.LeakyReLU(0.2), leaky(0.2)),
    "LeakyReLU in place": (lambda: nn.LeakyReLU(0.2, inplace=True), leaky(0.2)),
    "PReLU": (lambda: nn.PReLU(init=0.35), leaky(0.35)),
    "PReLU per feature": (lambda: nn.PReLU(30, init=0.35), leaky(0.35)),
    "RReLU": (lambda: nn.RReLU(0.1, 0.3), leaky(0.2)),
    "RReLU in place": (lambda: nn.RReLU(0.1, 0.3, inplace=True), leaky(0.2)),
    "ReLU6": (nn.ReLU6, up_to_6),
    "ReLU6 in place": (lambda: nn.ReLU6(inplace=True), up_to_6),
    "Hardtanh(0, 6)": (lambda: nn.Hardtanh(0, 6), up_to_6),
    "Threshold(0, 0)": (lambda: nn.Threshold(0, 0), rectified),
}


class Chain(nn.Module):
    """Three linear layers of 30 features and one of 2 classes, a rectifier after each but the last."""

    def __init__(self, rectifiers) -> None:
        super().__init__()
        sizes = [24, 30, 30, 30, 2]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.rectifiers = rectifiers
        for layer in self.layers:
            # So that some values pass the ceiling of 6, and not most.
            nn.init.normal_(layer.weight, std=0.7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        for layer, rectifier in zip(self.layers, self.rectifiers, strict=False):
            x = rectifier(layer(x))
        return self.layers[-1](x)


def by_hand(chain: Chain, x: np.ndarray, rectifier) -> tuple[float, np.ndarray]:
    """The last class's score and its guided gradient, layer by layer, value by value, in float64."""
    weights = [layer.weight.detach().double().numpy() for layer in chain.layers]
    biases = [layer.bias.detach().double().numpy() for layer in chain.layers]
    ceiling = 6 if rectifier is up_to_6 else np.inf
    value, before = x.astype(np.float64), []
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        before.append(weight @ value + bias)
        value = rectifier(before[-1])
    gradient = weights[-1][-1]
    for weight, given in zip(weights[-2::-1], before[::-1], strict=True):
        guided = np.zeros(len(given))
        for place, (z, g) in enumerate(zip(given, gradient, strict=True)):
            if 0 < z < ceiling and g > 0:
                guided[place] = g
        gradient = weight.T @ guided
    return float(weights[-1][-1] @ value + biases[-1][-1]), gradient


CHAINS = {name: (lambda given=given: [given] * 3, hand) for name, (given, hand) in FUNCTIONS.items()} | {
    name: (lambda given=given: nn.ModuleList(given() for _ in range(3)), hand)
    for name, (given, hand) in MODULES.items()
}


@pytest.mark.parametrize("name", CHAINS)
def test_every_spelling_of_a_rectifier_against_a_chain_of_matrices(name: str) -> None:
    build, rectifier = CHAINS[name]
    chain = seeded(lambda: Chain(build()))
    scan = a_scan(3, 4, 1)
    score, gradient = by_hand(chain, scan.data.ravel(), rectifier)
    why = explained(chain, scan, 2)
    assert why.regions[0].logit == pytest.approx(score, rel=1e-5)
    assert np.abs(gradient).max() > 0.1
    np.testing.assert_allclose(why.map.ravel(), gradient, rtol=0, atol=1e-5 * np.abs(gradient).max())
    assert why.provenance["facts"]["whole"] == {"rectifiers": 3, "unguided": []}
    plain = plain_gradient(chain, scan).ravel()
    assert np.abs(plain - gradient).max() > 1e-2 * np.abs(gradient).max()


def test_one_module_may_run_many_times() -> None:
    for module in (nn.ReLU(), nn.ReLU(inplace=True), nn.PReLU()):
        chain = seeded(lambda module=module: Chain(nn.ModuleList([module] * 3)))
        scan = a_scan(3, 4, 1)
        gradient = by_hand(chain, scan.data.ravel(), leaky(0.25) if isinstance(module, nn.PReLU) else rectified)[1]
        np.testing.assert_allclose(
            explained(chain, scan, 2).map.ravel(), gradient, rtol=0, atol=1e-5 * np.abs(gradient).max()
        )


class Aliased(nn.Module):
    """What a rectifier writes in place is read again through other names of the same tensor."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 1), nn.Linear(6, 2)
        self.inplace = inplace

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        if self.inplace:
            whole = y * 1
            functional.relu_(whole[:, :3])
            whole[:, 3:].relu_()
            z = functional.leaky_relu(self.second(whole), 0.1, inplace=True)
        else:
            whole = torch.relu(y)
            z = functional.leaky_relu(self.second(whole), 0.1)
        z += whole
        return self.head(z.mean(dim=(2, 3)))


def test_writes_in_place_are_seen_through_every_name_of_the_tensor() -> None:
    scan = a_scan(9, 8, 1)
    expected = explained(seeded(Aliased, False), scan, 2).map
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(explained(seeded(Aliased, True), scan, 2).map, expected, rtol=0, atol=1e-7)


class Checkpointed(nn.Module):
    """Runs a part of itself again in the backward pass, when nothing guides its rectifiers."""

    def __init__(self, options: dict[str, object]) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Conv2d(2, 6, 3), nn.LeakyReLU(), nn.Conv2d(6, 6, 3)), nn.Linear(6, 2)
        self.options = options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(checkpoint(self.body, x, **self.options))
        return self.head(y.mean(dim=(2, 3)))


@pytest.mark.parametrize(
    "options",
    [{"use_reentrant": False}, {"use_reentrant": False, "determinism_check": "none"}, {"use_reentrant": True}],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_checkpoints_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(vx.InputError, match=r"cannot follow the score back to the input: .*[Cc]heckpoint"):
        explained(seeded(Checkpointed, options), a_scan(9, 8, 1), 2)


NETWORKS = {
    "GPUNet": (lambda: GPUNet(4, 3, width=4), (32, 24, 1), 3),
    "GPUNet in 3D": (lambda: GPUNet(4, 3, width=4, spatial_dims=3), (12, 10, 9), 3),
    "GPReconResNet": (lambda: GPReconResNet(4, 3, width=4, blocks=2), (24, 20, 1), 3),
    "GPReconResNet in 3D": (lambda: GPReconResNet(4, 3, width=4, blocks=1, spatial_dims=3), (12, 16, 12), 3),
    "GPShuffleUNet": (lambda: GPShuffleUNet(4, 3, width=4), (24, 20, 1), 3),
    "InceptionV3": (lambda: InceptionV3(4, 3, width=0.1), (80, 75, 1), 3),
    "ResNeXt50": (lambda: ResNeXt50(4, 3, width=16), (48, 40, 1), 3),
    "ResNet-10 in 3D": (lambda: resnet(10, 4, 2, width=4), (32, 24, 16), 2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gets_a_map_that_is_not_its_plain_gradient(name: str) -> None:
    build, shape, classes = NETWORKS[name]
    network, scan = seeded(build), a_scan(*shape, channels=4)
    each, joint = (explained(network, scan, classes, sequences) for sequences in ("each", "joint"))
    assert each.channels == scan.channels
    assert joint.channels == ("all",)
    assert np.isfinite(each.map).all()
    assert each.map.any()
    np.testing.assert_allclose(joint.total, each.map.sum(axis=0), rtol=0, atol=1e-5 * np.abs(joint.total).max())
    plain = plain_gradient(network, scan)
    assert np.abs(plain / np.abs(plain).max() - each.map / np.abs(each.map).max()).max() > 0.01


def test_bfloat16_gives_nearly_the_same_map() -> None:
    scan = a_scan(24, 20, 1, channels=4)
    model = a_model(seeded(lambda: GPUNet(4, 3, width=4)), scan, 3)
    why = vx.GuidedBackprop()(model, scan, compute=CPU)
    with pytest.warns(UserWarning, match="bfloat16"):
        rough = vx.GuidedBackprop()(model, scan, compute=vx.Compute("cpu", threads=1, dtype="bfloat16"))
    assert np.corrcoef(why.map.ravel(), rough.map.ravel())[0, 1] > 0.95


def smooth(activation) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), *activation, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("activation", "names"),
    [
        ([], "none that is known"),
        ([nn.GELU(), nn.SiLU()], "gelu, silu"),
        ([nn.ELU()], "elu"),
        ([nn.Hardtanh()], "hardtanh"),
        ([nn.Threshold(1, 0)], "threshold"),
        ([nn.Sigmoid()], "sigmoid"),
    ],
)
def test_a_network_without_a_rectifier_is_refused(activation, names: str) -> None:
    with pytest.raises(
        vx.InputError, match=f"none ran between input and score; this network's activations are {names}"
    ):
        explained(seeded(smooth, activation), a_scan(8, 8, 1), 2)


def test_activations_that_are_not_guided_are_named_in_a_warning() -> None:
    network = seeded(smooth, [nn.ReLU(), nn.Tanh(), nn.Conv2d(4, 4, 1), nn.LogSigmoid()])
    with pytest.warns(UserWarning, match="log_sigmoid, tanh kept the plain gradient"):
        why = explained(network, a_scan(8, 8, 1), 2)
    assert why.provenance["facts"]["whole"] == {"rectifiers": 1, "unguided": ["log_sigmoid", "tanh"]}


def test_a_rectifier_off_the_way_to_the_score_does_not_count() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(2, 2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.convolution(x).mean(dim=(2, 3)) * torch.relu(torch.ones(1))

    with pytest.raises(vx.InputError, match="none ran"):
        explained(seeded(Aside), a_scan(8, 8, 1), 2)


def test_clamps_with_other_bounds_keep_their_gradient() -> None:
    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(2, 2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.convolution(x).clamp(min=-1e6).clamp(max=1e6)).sum(dim=(2, 3))

    network, scan = seeded(Clamped), a_scan(8, 8, 1)
    # One rectifier, and nothing but positive gradients arrive there.
    np.testing.assert_allclose(explained(network, scan, 2).map, plain_gradient(network, scan), rtol=0, atol=1e-6)


def test_torchscript_is_refused_whole_and_in_part() -> None:
    scan = a_scan(8, 8, 1)
    network = seeded(smooth, [nn.ReLU()])
    scripted = torch.jit.trace(network, tensor(scan).detach())
    with pytest.raises(vx.InputError, match="TorchScript network does not allow"):
        explained(scripted, scan, 2)
    with pytest.raises(vx.InputError, match="layer '0' is TorchScript, whose rectifiers guided-backprop cannot see"):
        explained(nn.Sequential(scripted), scan, 2)


def test_says_what_else_stands_in_the_way() -> None:
    class Cut(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x.detach()).mean(dim=(2, 3))

    with pytest.raises(vx.InputError, match="does not depend on the input in a way that PyTorch can follow"):
        explained(Cut(), a_scan(8, 8, 1), 2)
    scan = a_scan(64, 64, 1, channels=4)
    model = a_model(seeded(lambda: GPUNet(4, 3, width=4)), scan, 3)
    with pytest.raises(vx.InputError, match=r"keep more than the limit of 10KB; give a larger --memory"):
        vx.GuidedBackprop()(model, scan, compute=vx.Compute("cpu", memory="10KB", batch_size=1))
    with pytest.raises(vx.InputError, match="sequences is one of joint, each"):
        vx.GuidedBackprop(sequences="all")


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_rectifiers_are_their_own_again_after_an_exception(error: type[BaseException]) -> None:
    class Stumbling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.calls = nn.Conv2d(2, 2, 3), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            y = functional.leaky_relu(self.convolution(x))
            if self.calls == 2:
                raise error
            return y.mean(dim=(2, 3))

    network, scan = seeded(Stumbling), a_scan(8, 8, 1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(error):
        explained(network, scan, 2)
    assert network.calls == 2
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(-functional.leaky_relu(x, 0.1).sum(), x)
    assert gradient.tolist() == pytest.approx([-0.1, -1.0])
