"""What every explainer owes its user: one suite, run on each class of `voxplain.explain.__all__`, in four worlds."""

import dataclasses
import itertools
import json
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import voxplain as vx
from voxplain import explain
from voxplain.networks.self_explaining import SelfExplaining

CPU = vx.Compute(device="cpu")
EVERY = [getattr(explain, name) for name in explain.__all__]
# Those that explain regions alone are in the suite on regions.
KINDS = [kind for kind in EVERY if issubclass(vx.ClassScore, kind.takes)]
# A flipped, anisotropic grid with an odd origin; RAS+ world, so this one is LAS.
AFFINE = np.array([[-1.5, 0, 0, 11], [0, 1, 0, -30], [0, 0, 2.5, 7], [0, 0, 0, 1.0]])


# Lengths in mm must suit worlds of 2 to 4 cm, and numbers of samples a suite that runs each method many times.
SETTINGS: dict[str, dict[str, object]] = {
    "occlusion": {"partition": "cubes:5", "stride": 2.5},
    "lime": {"samples": 250},
    "kernel-shap": {"samples": 250},
    "rise": {"cell": 3.0, "samples": 300},
}


def an_explainer(kind: type[vx.Explainer]) -> vx.Explainer:
    """The method with its own defaults, but for `SETTINGS`; one that asks for a layer gets the detector's."""
    layer = {"layer": "body"} if "layer" in {option.name for option in dataclasses.fields(kind)} else {}
    return kind(**(layer | SETTINGS.get(kind.name, {})))


class Detector(nn.Module):
    """Scores local contrast: mean over the image of how far a 3-voxel cube outshines the 5-voxel cube around it."""

    def __init__(self, channels: int, dims: int, threshold: float) -> None:
        super().__init__()
        self.head = nn.Linear(1, 1)
        _look_for_contrast(self, channels, dims, threshold)

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.body(inputs))

    def score(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(features.flatten(2).mean(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.score(self.features(inputs))


class Evident(SelfExplaining):
    """The detector as a network that explains itself: the mean is that of all, highest first."""

    def __init__(self, channels: int, dims: int, threshold: float) -> None:
        super().__init__(1, 1, spatial_dims=dims, pooling="top:1")
        _look_for_contrast(self, channels, dims, threshold)

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.body(inputs))


def _look_for_contrast(network: nn.Module, channels: int, dims: int, threshold: float) -> None:
    convolution, norm = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[dims]
    network.body = nn.Sequential(convolution(channels, 1, 5, padding=2), norm(1), nn.ReLU(inplace=True))
    network.dropout = nn.Dropout(0.5)
    inside = torch.zeros((5,) * dims)
    inside[(slice(1, 4),) * dims] = 1
    kernel = inside / inside.sum() - (1 - inside) / (1 - inside).sum()
    with torch.no_grad():
        network.body[0].weight.copy_(kernel / channels)
        # The border of the brain against the background of 0 must stay below, the blob far above.
        network.body[0].bias.fill_(-threshold)
        network.head.weight.fill_(500 / threshold)
        network.head.bias.fill_(-1.0)


class Stumbling:
    """Raises in its second pass, when an explanation is under way."""

    error: type[BaseException]
    calls = 0

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        found = super().features(inputs)
        if self.calls > 1:
            raise self.error("stumbled")
        return found


class Overwriting:
    """Writes into its own input before it looks at it."""

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().features(inputs.mul_(1.0).add_(0.0))


class Remembering:
    """Makes a tensor in its first pass and keeps it, as networks do with grids of positions."""

    kept: torch.Tensor | None = None

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            self.kept = torch.ones_like(inputs[:1])
        return super().features(inputs * self.kept) * self.kept.flatten()[0]


class NotANumber:
    def score(self, features: torch.Tensor) -> torch.Tensor:
        return super().score(features) * float("nan")


@dataclass(frozen=True, eq=False)
class World:
    """A scan with a planted blob, and what the card says of the network that looks for it."""

    scan: vx.Scan
    blob: np.ndarray
    card: vx.Card
    threshold: float

    def model(self, explainer: vx.Explainer, *ways: type) -> vx.Model:
        """A network that this explainer can read, in the `ways` of the classes above."""
        kind = Evident if explainer.needs == "self-explaining" else Detector
        made = type("Made", (*ways, kind), {})
        network = made(len(self.card.channels), self.card.spatial_dims, self.threshold)
        return vx.Model(network.eval(), self.card)


def _world(
    shape: tuple[int, int, int], channels: tuple[str, ...], corner: tuple[int, int, int], **card: object
) -> World:
    """An ellipsoid of tissue, symmetric from left to right, with noise and a blob of 3 voxels."""
    middle = (np.array(shape) - 1) / 2
    index = np.moveaxis(np.indices(shape), 0, -1)
    brain = (((index - middle) / (np.maximum(middle, 1) * 0.95)) ** 2).sum(axis=-1) < 1
    blob = np.zeros(shape, dtype=bool)
    blob[tuple(slice(c, c + 3) for c in corner)] = True
    assert brain[blob].all(), "the blob must lie inside the brain"
    noise = np.random.default_rng(3).normal(1.0, 0.1, (len(channels), *shape))
    data = np.where(brain, np.clip(noise, 0.5, 1.5) + 7.0 * blob, 0)
    names = tuple(reversed(channels))  # the card asks for another order than the scan has
    return World(
        vx.Scan(data, vx.Grid(shape, AFFINE), names),
        blob,
        vx.Card(name="detector", channels=channels, classes=("blob",), **card),
        # Scaled to 0-1 the blob is at 1 and tissue at about 1 / 9.
        threshold=0.15 if card.get("normalisation") == "min-max" else 1.5,
    )


WORLDS = {
    "one channel": _world((16, 20, 12), ("t1",), (9, 6, 4)),
    "four channels": _world(
        (16, 20, 12), ("flair", "t1", "t1ce", "t2"), (4, 11, 5), normalisation="z-score", orientation="RAS"
    ),
    "2D image": _world((24, 20, 1), ("t1",), (6, 9, 0), spatial_dims=2),
    "halves": _world(
        (20, 18, 12), ("flair", "t2"), (12, 7, 4), region="half", orientation="LPS", normalisation="min-max"
    ),
}


@pytest.fixture(params=WORLDS, ids=lambda name: name.replace(" ", "-"))
def world(request: pytest.FixtureRequest) -> World:
    return WORLDS[request.param]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def explainer(request: pytest.FixtureRequest) -> vx.Explainer:
    return an_explainer(request.param)


@pytest.fixture(autouse=True)
def _warnings_are_not_for_here() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _hooks(network: nn.Module) -> list[tuple[str, str, list[object]]]:
    """Every hook of every module, of whatever sort."""
    return [
        (name, sort, [*hooks.items()])
        for name, module in network.named_modules()
        for sort, hooks in vars(module).items()
        if "hooks" in sort and hasattr(hooks, "items")
    ]


def _everything(model: vx.Model, scan: vx.Scan) -> dict[str, object]:
    """All that an explanation must leave as it was, in values that compare by `==`."""
    network = model.network
    return {
        "weights": {name: (value.dtype, value.tolist()) for name, value in network.state_dict().items()},
        "modes": [(name, module.training) for name, module in network.named_modules()],
        "requires_grad": [(name, parameter.requires_grad) for name, parameter in network.named_parameters()],
        "gradients": [(name, parameter.grad) for name, parameter in network.named_parameters()],
        "hooks": _hooks(network),
        "scan": scan.data.tobytes(),
        "threads": torch.get_num_threads(),
        "grad mode": torch.is_grad_enabled(),
        "torch random": torch.get_rng_state().tolist(),
        "numpy random": str(np.random.get_state()),  # noqa: NPY002
        "random": random.getstate(),
    }


MODES = {
    "eval": lambda network: network.eval(),
    "train": lambda network: network.train(),
    # A frozen normalisation inside a training network, and the other way round.
    "training but frozen norm": lambda network: network.train().body[1].eval(),
    "evaluating but dropout": lambda network: network.eval().dropout.train(),
}


def _unsettle(network: Detector, mode: str) -> None:
    """Bring the network into a state that nobody would guess."""
    MODES[mode](network)
    network.body[0].weight.requires_grad_(False)
    network.body.register_forward_hook(lambda module, inputs, output: None)
    network.head.register_full_backward_hook(lambda module, given, gone: None)


def test_the_suite_sees_every_method() -> None:
    public = {value for value in vars(vx).values() if isinstance(value, type) and issubclass(value, vx.Explainer)}
    assert set(EVERY) == public - {vx.Explainer}
    assert len({kind.name for kind in EVERY}) == len(EVERY)


def test_is_a_small_printable_value(explainer: vx.Explainer) -> None:
    kind = type(explainer)
    assert kind.name
    assert kind.family
    assert kind.cost
    assert kind.needs in ("calls", "gradients", "layer", "self-explaining")
    assert explainer == dataclasses.replace(explainer)
    assert hash(explainer) == hash(dataclasses.replace(explainer))
    assert repr(explainer).startswith(kind.__name__)
    for option in dataclasses.fields(explainer):
        assert option.metadata.get("help"), f"{kind.__name__}.{option.name} needs metadata={{'help': ...}}"
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(explainer, option.name, None)


def test_map_lies_on_the_scans_own_grid(explainer: vx.Explainer, world: World) -> None:
    why = explainer(world.model(explainer), world.scan, compute=CPU)
    assert why.map.shape == (len(why.channels), *world.scan.grid.shape)
    np.testing.assert_array_equal(why.grid.affine, world.scan.grid.affine)
    assert why.map.dtype == np.float32
    assert np.isfinite(why.map).all()
    assert not why.map.flags.writeable
    assert why.map.any(), "a map of zeros says nothing about the checks of this suite"
    assert why.signed or why.map.min() >= 0
    assert why.unit
    if why.parts is not None:
        assert why.scores is not None
        assert why.parts.grid.matches(world.scan.grid)
        painted = np.append(0, why.scores)[why.parts.data]
        np.testing.assert_allclose(why.total, painted, rtol=1e-6)


def test_same_seed_gives_the_same_map(explainer: vx.Explainer, world: World) -> None:
    first, second = (explainer(world.model(explainer), world.scan, seed=5, compute=CPU) for _ in range(2))
    np.testing.assert_array_equal(first.map, second.map)


@pytest.mark.parametrize("mode", MODES)
def test_leaves_everything_as_it_was(explainer: vx.Explainer, world: World, mode: str) -> None:
    model = world.model(explainer)
    clean = explainer(model, world.scan, compute=CPU)
    _unsettle(model.network, mode)
    before = _everything(model, world.scan)
    why = explainer(model, world.scan, compute=dataclasses.replace(CPU, threads=1))
    assert _everything(model, world.scan) == before
    # Whatever mode it was in, what was explained is the network as it evaluates.
    np.testing.assert_allclose(why.map, clean.map, rtol=0, atol=1e-5 * np.abs(clean.map).max())


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("mode", MODES)
def test_leaves_everything_as_it_was_after_an_exception(
    explainer: vx.Explainer, world: World, mode: str, error: type[BaseException]
) -> None:
    model = world.model(explainer, Stumbling)
    model.network.error = error
    _unsettle(model.network, mode)
    before = _everything(model, world.scan)
    with pytest.raises(error, match="stumbled"):
        explainer(model, world.scan, compute=dataclasses.replace(CPU, threads=1))
    assert model.network.calls == 2
    assert _everything(model, world.scan) == before


def test_a_network_may_write_into_its_input(explainer: vx.Explainer, world: World) -> None:
    clean = explainer(world.model(explainer), world.scan, compute=CPU)
    before = world.scan.data.copy()
    why = explainer(world.model(explainer, Overwriting), world.scan, compute=CPU)
    np.testing.assert_array_equal(world.scan.data, before)
    np.testing.assert_array_equal(why.map, clean.map)


def test_a_network_that_was_explained_can_be_trained(explainer: vx.Explainer, world: World) -> None:
    model = world.model(explainer, Remembering)
    explainer(model, world.scan, compute=CPU)
    inputs = torch.rand(2, *model.network.kept.shape[1:])
    model.network.train()(inputs).sum().backward()
    assert all(parameter.grad is not None for parameter in model.network.parameters())


def test_a_constant_model_gives_a_zero_map(explainer: vx.Explainer, world: World) -> None:
    model = world.model(explainer)
    torch.nn.init.zeros_(model.network.head.weight)
    why = explainer(vx.Model(model.network, world.card), world.scan, compute=CPU)
    # A heat map is what each pixel would score by itself: where nothing weighs anything, that is the head's bias.
    expected = -1.0 if explainer == vx.HeatMap() else 0.0
    np.testing.assert_array_equal(why.map, expected)


def test_finds_a_planted_blob_and_high_means_important(explainer: vx.Explainer, world: World) -> None:
    why = explainer(world.model(explainer), world.scan, compute=CPU)
    peak = np.unravel_index(why.total.argmax(), why.total.shape)
    assert world.blob[peak]
    # A method of parts marks the part that holds the blob, which may be larger than the blob.
    assert why.total[world.blob].mean() > 5 * np.abs(why.total[~world.blob]).mean()


@pytest.mark.parametrize("flips", itertools.product((1, -1), repeat=3))
def test_affine_survives_save_and_load(explainer: vx.Explainer, tmp_path, flips: tuple[int, int, int]) -> None:
    world = WORLDS["one channel"]
    affine = np.diag([0.75 * flips[0], 2.0 * flips[1], 1.25 * flips[2], 1.0])
    affine[:3, 3] = (3, -44, 12.5)
    scan = vx.Scan(world.scan.data, vx.Grid(world.scan.grid.shape, affine), world.scan.channels)
    why = explainer(world.model(explainer), scan, compute=CPU)
    vx.save(why, tmp_path / "map.nii.gz")
    back = vx.read(map=tmp_path / "map.nii.gz")
    np.testing.assert_allclose(back.grid.affine, affine, atol=1e-5)
    np.testing.assert_array_equal(back.data[0], why.total)
    peak = scan.grid.world(np.unravel_index(why.total.argmax(), why.total.shape))
    there = back.grid.index(peak).round().astype(int)
    assert back.data[0][tuple(there)] == why.total.max()


def test_provenance_replays_to_the_same_map(explainer: vx.Explainer, world: World) -> None:
    model = world.model(explainer)
    why = explainer(model, world.scan, seed=11, compute=CPU)
    stored = json.loads(json.dumps(why.provenance))
    for provenance in (why.provenance, stored):
        again = vx.replay(provenance, model, world.scan, compute=CPU)
        np.testing.assert_array_equal(again.map, why.map)
        assert again.channels == why.channels
        assert again.provenance["options"] == why.provenance["options"]
        assert again.provenance["passes"] == why.provenance["passes"]
        assert again.provenance["seed"] == 11


def test_provenance_is_refused_for_another_model_or_scan(explainer: vx.Explainer) -> None:
    world, other = WORLDS["one channel"], WORLDS["2D image"]
    model = world.model(explainer)
    provenance = explainer(model, world.scan, compute=CPU).provenance
    with pytest.raises(vx.InputError, match="another scan"):
        vx.replay(provenance, model, other.scan)
    torch.nn.init.ones_(model.network.head.weight)
    with pytest.raises(vx.InputError, match="another model"):
        vx.replay(provenance, vx.Model(model.network, world.card), world.scan)


def test_provenance_says_what_was_run(explainer: vx.Explainer, world: World) -> None:
    model = world.model(explainer)
    calls = []
    model.network.body.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    provenance = explainer(model, world.scan, compute=CPU).provenance
    # One pass more per region asks whether the network draws on chance; it is none of the method's own.
    perturbs = explainer.family == "perturbation" or isinstance(explainer, vx.ScoreCAM)
    again = len(provenance["regions"]) if perturbs else 0
    assert provenance["passes"]["forward"] == sum(calls) - again
    assert (provenance["passes"]["backward"] > 0) == (explainer.needs in ("gradients", "layer"))
    assert provenance["model"]["fingerprint"] == model.fingerprint
    assert provenance["scan"]["fingerprint"] == world.scan.fingerprint
    assert provenance["versions"]["torch"]
    probabilities = [region["probability"] for region in provenance["regions"]]
    assert len(probabilities) == (2 if world.card.region == "half" else 1)


def test_batch_size_and_threads_change_nothing(explainer: vx.Explainer, world: World) -> None:
    reference = explainer(world.model(explainer), world.scan, compute=vx.Compute(device="cpu", batch_size=1, threads=1))
    for batch_size, threads in ((2, 2), (5, 1), (5, 2)):
        compute = vx.Compute("cpu", threads=threads, batch_size=batch_size)
        why = explainer(world.model(explainer), world.scan, compute=compute)
        assert np.abs(why.map - reference.map).max() <= 1e-5 * np.abs(reference.map).max(), (batch_size, threads)
        assert why.provenance["compute"]["batch_size"] == batch_size


# Defined only where there is a device: a test that can never run on a machine is not a test that was skipped there.
if torch.cuda.is_available():

    def test_a_gpu_gives_the_same_map(explainer: vx.Explainer, world: World) -> None:
        reference = explainer(world.model(explainer), world.scan, compute=CPU)
        model = world.model(explainer)
        why = explainer(model, world.scan, compute=vx.Compute(device="cuda"))
        # Convolutions may run in TF32 there, with a mantissa of 10 bits.
        assert np.abs(why.map - reference.map).max() <= 5e-3 * np.abs(reference.map).max()
        assert {parameter.device.type for parameter in model.network.parameters()} == {"cpu"}


def test_refuses_a_network_that_returns_nan(explainer: vx.Explainer, world: World) -> None:
    with pytest.raises(vx.InputError, match="NaN or infinite"):
        explainer(world.model(explainer, NotANumber), world.scan, compute=CPU)


def test_refuses_a_class_that_does_not_exist(explainer: vx.Explainer, world: World) -> None:
    with pytest.raises(vx.InputError, match=r"no class 'stroke'; it has blob"):
        explainer(world.model(explainer), world.scan, target=vx.ClassScore("stroke"), compute=CPU)


def test_refuses_a_scan_that_lacks_a_channel(explainer: vx.Explainer, world: World) -> None:
    card = dataclasses.replace(world.card, channels=(*world.card.channels[1:], "adc"))
    with pytest.raises(vx.InputError, match=r"missing: adc"):
        explainer(vx.Model(world.model(explainer).network, card), world.scan, compute=CPU)


def test_refuses_a_network_with_another_number_of_outputs(explainer: vx.Explainer, world: World) -> None:
    card = dataclasses.replace(world.card, classes=("blob", "none"))
    with pytest.raises(vx.InputError, match="one score per class"):
        explainer(vx.Model(world.model(explainer).network, card), world.scan, compute=CPU)


def test_a_volume_is_its_slices_one_by_one(explainer: vx.Explainer) -> None:
    flat = WORLDS["2D image"]
    volume = _world((24, 20, 6), ("t1",), (6, 9, 1), spatial_dims=2, slices="axial")
    model = volume.model(explainer)
    why = explainer(model, volume.scan, seed=3, compute=CPU)
    alone = vx.Model(model.network, flat.card)
    expected, count = np.zeros_like(why.map), 0
    for index in range(6):
        image = vx.Scan(
            volume.scan.data[..., index : index + 1], volume.scan.grid.window((0, 0, index), (24, 20, 1)), ("t1",)
        )
        if not image.data.any():
            continue
        by_hand = explainer(alone, image, seed=3, compute=CPU)
        expected[..., index] = by_hand.map[..., 0]
        assert why.regions[count].logit == by_hand.regions[0].logit
        assert why.regions[count].name == f"axial {index:03d}"
        count += 1
    assert count == len(why.regions) > 2
    np.testing.assert_array_equal(why.map, expected)
    assert why.map[..., 1:4].any()
