"""Optimal perturbation: what the network is shown, how it is trained, and to whom it belongs."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import voxplain as vx
from voxplain.explain.optimal import (
    PartedInput,
    PerturbationSettings,
    drop_checkpoint,
    load_perturbation_network,
    perturbed,
    train_perturbation,
)
from voxplain.networks.perturbation import PerturbationUNet
from voxplain.studies.perturbation import PRESETS

CPU = vx.Compute(device="cpu", threads=1)
SHAPE = (12, 10, 8)
GRID = vx.Grid(SHAPE, np.diag([2.0, 2, 2, 1]))
NAMES = ("flair", "t1")
TARGET = vx.ClassScore("tumour")
ARGUMENTS = {"channels": 2, "widths": [4, 8], "residual_units": 0}


def classifier(seed: int = 0) -> vx.Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 12 * 10 * 8, 1))
    card = vx.Card(name="small", channels=NAMES, classes=("tumour",), normalisation="min-max")
    return vx.Model(network, card)


def unet(seed: int = 0, **arguments: object) -> PerturbationUNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PerturbationUNet(**(ARGUMENTS | arguments))


def scan(seed: int = 0) -> vx.Scan:
    rng = np.random.default_rng(seed)
    data = rng.uniform(-1, 4, (2, *SHAPE))
    data[:, :2] = 0
    return vx.Scan(data, GRID, NAMES)


def an_input(seed: int = 0) -> PartedInput:
    parts = np.zeros(SHAPE, dtype=np.int32)
    parts[2:7], parts[7:, :5], parts[7:, 5:] = 1, 2, 3
    return PartedInput(f"scan {seed}", scan(seed).data, (0.0, 0.0), parts)


def saved(folder: Path, its: vx.Model, **card: object) -> Path:
    training = {"classifier": {"name": its.card.name, "fingerprint": its.fingerprint}}
    fields = {"factory": "voxplain.networks.perturbation:PerturbationUNet", "arguments": ARGUMENTS, "classes": NAMES}
    vx.save_model(unet(3), dataclasses.replace(its.card, **({**fields, "training": training} | card)), folder)
    return folder


class Spy(nn.Module):
    """A mask of 0.25 in the first sequence and 2 in the second; keeps what it was shown."""

    def forward(self, visible: torch.Tensor) -> torch.Tensor:
        self.seen = visible.clone()
        return torch.tensor([0.25, 2.0])[:, None, None, None].expand(visible.shape[1:])[None].expand_as(visible)


def test_the_network_sees_the_part_alone_and_only_the_part_changes() -> None:
    spy, rng = Spy(), np.random.default_rng(0)
    image, background = rng.normal(0, 1, (1, 2, *SHAPE)).astype(np.float32), np.float32([0.5, -0.25])
    part = rng.random((1, 1, *SHAPE)) < 0.2
    found = perturbed(
        spy, torch.tensor(image), torch.tensor(part), torch.tensor(background)[None, :, None, None, None]
    ).numpy()
    for voxel in np.ndindex(SHAPE):
        for channel, factor in ((0, 0.25), (1, 2.0)):
            value, empty = image[(0, channel, *voxel)], background[channel]
            inside = part[(0, 0, *voxel)]
            assert spy.seen[(0, channel, *voxel)] == pytest.approx(value - empty if inside else 0, abs=1e-6)
            expected = empty + factor * (value - empty) if inside else value
            assert found[(0, channel, *voxel)] == pytest.approx(expected, abs=1e-6)


def test_a_mask_of_zero_is_blank_and_of_one_changes_nothing(tmp_path) -> None:
    its = classifier()
    folder = saved(tmp_path / "optimal", its)

    class Flat(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, visible: torch.Tensor) -> torch.Tensor:
            return torch.full_like(visible, self.value)

    blank = vx.RelevanceMap(partition="cubes:8")(its, scan(), compute=CPU)
    for value in (0.0, 1.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PerturbationUNet, "forward", Flat(value).forward)
            why = vx.RelevanceMap(fill=f"optimal:{folder}", partition="cubes:8")(its, scan(), compute=CPU)
        expected = blank.map if value == 0 else np.zeros_like(blank.map)
        np.testing.assert_allclose(why.map, expected, atol=2e-6)


@pytest.mark.parametrize("kind", [vx.RelevanceMap, vx.Occlusion, vx.LIME, vx.KernelSHAP, vx.RISE])
def test_every_method_takes_it(kind: type[vx.Explainer], tmp_path) -> None:
    its = classifier()
    folder = saved(tmp_path / "optimal", its)
    options = {
        "rise": {"samples": 12, "cell": 8.0},
        "lime": {"partition": "cubes:8", "samples": 40},
        "kernel-shap": {"partition": "cubes:8", "samples": 80},
    }.get(kind.name, {"partition": "cubes:8"})
    explain = kind(fill=f"optimal:{folder}", **options)
    why = explain(its, scan(), compute=CPU)
    assert why.map.any()
    network = vx.load_model(folder)
    assert why.provenance["facts"]["whole"]["perturbation_network"] == network.fingerprint
    np.testing.assert_array_equal(vx.replay(why.provenance, its, scan(), compute=CPU).map, why.map)
    # Another network in the same folder is another fill.
    its_card = network.card
    vx.save_model(unet(9), dataclasses.replace(its_card, weights_fingerprint=None), folder)
    with pytest.raises(vx.InputError, match=r"perturbation network .*; its fill's folder holds"):
        vx.replay(why.provenance, its, scan(), compute=CPU)


def test_against_a_plain_loop(tmp_path) -> None:
    its = classifier()
    folder = saved(tmp_path / "optimal", its)
    why = vx.RelevanceMap(fill=f"optimal:{folder}", partition="cubes:8", scale="logit")(its, scan(), compute=CPU)
    assert why.parts is not None
    assert why.scores is not None
    data = scan().data
    low, high = data.min(axis=(1, 2, 3), keepdims=True), data.max(axis=(1, 2, 3), keepdims=True)
    image, background = (data - low) / (high - low), (0 - low) / (high - low)
    network = unet(3).eval()
    with torch.no_grad():
        clean = float(its.network(torch.tensor(image[None])))
        for label in range(1, len(why.scores) + 1):
            visible = np.where(why.parts.data == label, image - background, 0).astype(np.float32)
            mask = network(torch.tensor(visible[None]))[0].numpy()
            changed = np.where(why.parts.data == label, background + mask * visible, image).astype(np.float32)
            expected = abs(clean - float(its.network(torch.tensor(changed[None]))))
            assert why.scores[label - 1] == pytest.approx(expected, abs=1e-5)


def test_2d_images_too(tmp_path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(2 * 10 * 8, 1))
    card = vx.Card(name="flat", channels=("t1",), classes=("tumour",), spatial_dims=2)
    its = vx.Model(network, card)
    arguments = {"channels": 1, "widths": [4, 8], "residual_units": 0, "spatial_dims": 2}
    training = {"classifier": {"name": "flat", "fingerprint": its.fingerprint}}
    its_card = dataclasses.replace(
        card,
        classes=("t1",),
        arguments=arguments,
        training=training,
        factory="voxplain.networks.perturbation:PerturbationUNet",
    )
    vx.save_model(PerturbationUNet(**arguments), its_card, tmp_path / "optimal")
    image = vx.Scan(np.random.default_rng(0).uniform(1, 2, (1, 12, 10, 1)), vx.Grid((12, 10, 1), np.eye(4)), ("t1",))
    why = vx.RelevanceMap(fill=f"optimal:{tmp_path / 'optimal'}", partition="cubes:4")(its, image, compute=CPU)
    assert why.map.any()


def test_a_network_of_another_classifier_is_refused_in_one_line(tmp_path) -> None:
    its, other = classifier(), classifier(1)
    folder = saved(tmp_path / "optimal", its)
    with pytest.raises(vx.InputError, match="was trained for another classifier: small with fingerprint") as error:
        vx.RelevanceMap(fill=f"optimal:{folder}", partition="cubes:8")(other, scan(), compute=CPU)
    assert "\n" not in str(error.value)
    assert its.fingerprint in str(error.value)
    assert other.fingerprint in str(error.value)


def test_what_is_no_perturbation_network_is_refused(tmp_path) -> None:
    its = classifier()
    with pytest.raises(vx.InputError, match="no perturbation network; expected a folder that `voxplain train"):
        load_perturbation_network(saved(tmp_path / "other", its, training={}), its)
    with pytest.raises(vx.InputError, match=r"there is no perturbation network in .*nothing; expected a folder"):
        load_perturbation_network(tmp_path / "nothing", its)
    # A card that was edited by hand.
    for trained_for in ("small", {"name": "small"}):
        with pytest.raises(vx.InputError, match="no perturbation network; expected a folder"):
            load_perturbation_network(saved(tmp_path / "edited", its, training={"classifier": trained_for}), its)


def test_the_classifier_is_left_as_it_was_and_the_loss_falls(tmp_path) -> None:
    its = classifier()
    its.network.train()
    before = {name: value.clone() for name, value in its.network.state_dict().items()}
    state, network = torch.get_rng_state(), unet()
    settings = PerturbationSettings(epochs=6, batch_size=2, loss="logarithm")
    inputs = [an_input(0), an_input(1)]
    losses = train_perturbation(network, its, TARGET, inputs, tmp_path, settings=settings, compute=CPU)
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    for name, value in its.network.state_dict().items():
        assert torch.equal(value, before[name])
    assert its.network.training
    assert all(parameter.requires_grad for parameter in its.network.parameters())
    assert all(parameter.grad is None for parameter in its.network.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_loss_of_the_first_step_is_the_papers(tmp_path) -> None:
    """One batch of all parts: the mean over parts of 1 / (|p - p'| + eps), before any step."""
    its, network, one = classifier(), unet(), an_input()
    expected = []
    with torch.no_grad():
        read = lambda data: float(torch.sigmoid(its.network(torch.tensor(data[None])).double()))  # noqa: E731
        for label in (1, 2, 3):
            visible = np.where(one.parts == label, one.image, 0).astype(np.float32)
            mask = network(torch.tensor(visible[None]))[0].numpy()
            changed = np.where(one.parts == label, mask * visible, one.image).astype(np.float32)
            expected.append(1 / (abs(read(one.image) - read(changed)) + 1e-6))
    settings = PerturbationSettings(epochs=1, batch_size=3)
    (found,) = train_perturbation(network, its, TARGET, [one], tmp_path, settings=settings, compute=CPU)
    assert found == pytest.approx(np.mean(expected), rel=1e-3)


def test_a_stopped_training_goes_on_to_the_same_result(tmp_path, monkeypatch) -> None:
    its, inputs = classifier(), [an_input(0), an_input(1)]
    settings = PerturbationSettings(epochs=4, batch_size=2, supervoxels=2, loss="logarithm", clip=1.0)
    whole = unet()
    losses = train_perturbation(whole, its, TARGET, inputs, tmp_path / "a", settings=settings, compute=CPU)

    class Stopped(Exception):
        pass

    saves = []
    save = torch.save

    def stop(*given: object, **named: object) -> None:
        saves.append(save(*given, **named))
        if len(saves) == 3:
            raise Stopped

    monkeypatch.setattr(torch, "save", stop)
    with pytest.raises(Stopped):
        train_perturbation(unet(), its, TARGET, inputs, tmp_path / "b", settings=settings, compute=CPU)
    monkeypatch.undo()
    resumed = unet(8)
    again = train_perturbation(resumed, its, TARGET, inputs, tmp_path / "b", settings=settings, compute=CPU)
    assert again == losses
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])
    with pytest.raises(vx.InputError, match="half-finished training with other scans or settings"):
        train_perturbation(unet(), its, TARGET, inputs, tmp_path / "b", settings=settings, seed=1, compute=CPU)
    drop_checkpoint(tmp_path / "b")
    assert not list((tmp_path / "b").iterdir())


def test_a_torn_checkpoint_is_named(tmp_path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"torn")
    with pytest.raises(vx.InputError, match=r"checkpoint .* cannot be read; remove it"):
        train_perturbation(unet(), classifier(), TARGET, [an_input()], tmp_path, settings=PerturbationSettings())


def test_inputs_without_supervoxels_are_refused(tmp_path) -> None:
    empty = dataclasses.replace(an_input(), parts=np.zeros(SHAPE, dtype=np.int32))
    with pytest.raises(vx.InputError, match="training needs supervoxels"):
        train_perturbation(unet(), classifier(), TARGET, [empty], tmp_path, settings=PerturbationSettings())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1; got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"supervoxels": 0}, "supervoxels must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"clip": -1.0}, "clip must be above 0"),
        ({"loss": "square"}, "loss: form is reciprocal, logarithm or difference"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(vx.InputError, match=message):
        PerturbationSettings(**wrong)


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 7, 5), (40, 24, 19)])
def test_masks_have_the_inputs_shape_and_range(shape: tuple[int, int, int]) -> None:
    visible = torch.randn(2, 2, *shape) * 20
    for largest in (1.0, 2.0):
        mask = unet(largest=largest)(visible).detach()
        assert mask.shape == visible.shape
        assert 0 <= float(mask.min()) < float(mask.max()) <= largest


def test_the_paper_preset_on_a_reduced_volume(tmp_path) -> None:
    """Its size, its settings, and one step."""
    preset = PRESETS["paper"]
    assert (preset.per_class, preset.segments, preset.held_out) == (3, 100, None)
    assert preset.settings == PerturbationSettings()
    assert (preset.settings.epochs, preset.settings.learning_rate, preset.settings.loss) == (25, 0.01, "reciprocal")
    network = PerturbationUNet(channels=4, **preset.network)
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_811_129
    with torch.no_grad():
        assert network(torch.zeros(1, 4, 32, 32, 32)).shape == (1, 4, 32, 32, 32)
    smaller = PerturbationUNet(channels=2, **preset.network)
    image = np.random.default_rng(0).uniform(0, 1, (2, 32, 32, 32)).astype(np.float32)
    parts = np.zeros((32, 32, 32), dtype=np.int32)
    parts[4:20, 4:20, 4:20] = 1
    parts[20:30, 4:20, 4:20] = 2
    judge = nn.Sequential(nn.Conv3d(2, 4, 5, stride=4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 7**3, 1))
    its = vx.Model(judge, vx.Card(name="judge", channels=NAMES, classes=("tumour",)))
    before = {name: value.clone() for name, value in smaller.state_dict().items()}
    settings = dataclasses.replace(preset.settings, epochs=1)
    one = PartedInput("volume", image, (0.0, 0.0), parts)
    losses = train_perturbation(smaller, its, TARGET, [one], tmp_path, settings=settings, compute=CPU)
    assert np.isfinite(losses).all()
    assert any(not torch.equal(value, before[name]) for name, value in smaller.state_dict().items())
