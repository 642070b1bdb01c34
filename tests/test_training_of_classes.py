"""Several classes, steps of several batches, clipped gradients, and schedules: against arithmetic of their own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import voxplain as vx
from voxplain.balance import weights_of
from voxplain.networks.gp_unet import GPUNet
from voxplain.training import Example, Settings, _loss, train

CPU = vx.Compute(device="cpu", threads=1)
CLASSES = Settings(epochs=1, batch_size=4, loss="cross-entropy", averaging=0, augmentation=False, schedule="constant")


class Linear(nn.Module):
    """A network without batch norm or chance: two pixels a channel, three classes."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(2 * 3 * 4, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1))


def network(outputs: int = 3) -> Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Linear(outputs)


def examples(labels: Sequence[int], start: int = 0) -> list[Example]:
    """Slices (2, 3, 4) of noise, with a bright row that says their class."""
    found = []
    for index, label in enumerate(labels, start=start):
        image = np.random.default_rng(index).normal(size=(2, 3, 4)).astype(np.float32)
        image[:, label] += 2
        found.append(Example(f"slice{index}", label, lambda image=image: image))
    return found


def trained(folder: Path, labels: Sequence[int], **changes: Any) -> tuple[Linear, tuple[float, ...]]:
    built = network(changes.pop("outputs", 3))
    settings = dataclasses.replace(CLASSES, **changes)
    result = train(built, examples(labels), [], folder, settings=settings, seed=1, compute=CPU)
    return built, result.training_losses


UNEVEN = [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2]


def test_every_class_counts_as_much() -> None:
    weights = weights_of(UNEVEN, binary=False)
    counts = np.bincount(UNEVEN)
    np.testing.assert_allclose(weights.numpy() * counts, [4, 4, 4], rtol=1e-6)
    np.testing.assert_array_equal(weights_of([0, 1, 1], binary=True).numpy(), [1, 1])


@pytest.mark.parametrize("labels", [[1, 1], [0, 0], [0, 2], []])
def test_a_class_without_examples_is_refused(labels: list[int], tmp_path: Path) -> None:
    with pytest.raises(vx.InputError, match="training needs examples of every class"):
        trained(tmp_path, labels)
    assert list(tmp_path.iterdir()) == []


def test_a_network_with_other_outputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(vx.InputError, match="the network has 4 outputs, the training examples 3 classes"):
        trained(tmp_path, UNEVEN, outputs=4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weighted_cross_entropy_is_pytorchs_and_that_of_the_formula(smoothing: float) -> None:
    settings = dataclasses.replace(CLASSES, label_smoothing=smoothing)
    scores = torch.randn(12, 3, generator=torch.Generator().manual_seed(4))
    labels, weights = torch.tensor(UNEVEN), weights_of(UNEVEN, binary=False)
    each = _loss(scores, labels, weights, settings).numpy()
    logs = scores.double().numpy() - np.log(np.exp(scores.double().numpy()).sum(axis=1, keepdims=True))
    wanted = np.eye(3)[UNEVEN] * (1 - smoothing) + smoothing / 3
    by_class = 12 / (3 * np.bincount(UNEVEN))
    weight = by_class[UNEVEN]
    by_hand = -(wanted * logs).sum(axis=1) * weight / weight.mean()
    np.testing.assert_allclose(each, by_hand, rtol=1e-5)
    if not smoothing:
        theirs = nn.CrossEntropyLoss(weight=torch.tensor(by_class, dtype=torch.float32))(scores, labels)
        assert each.mean() == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("labels", [UNEVEN, [*UNEVEN, 0, 0], [0, 1] * 7], ids=["even", "short step", "two classes"])
@pytest.mark.parametrize("loss", ["cross-entropy", "binary"])
def test_a_step_of_several_batches_is_that_of_one(labels: list[int], loss: str, tmp_path: Path) -> None:
    if loss == "binary":
        labels = [min(label, 1) for label in labels]
    changes = {"loss": loss, "outputs": 1 if loss == "binary" else len(set(labels)), "optimiser": "adam", "epochs": 3}
    whole, _ = trained(tmp_path / "whole", labels, batch_size=8, **changes)
    parts, _ = trained(tmp_path / "parts", labels, batch_size=2, accumulation=4, **changes)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=0, atol=1e-6)
    alone, _ = trained(tmp_path / "alone", labels, batch_size=2, **changes)
    assert not torch.allclose(alone.head.weight, whole.head.weight, atol=1e-4)


def test_sparsity_adds_the_mean_positive_heat_map_also_over_several_batches(tmp_path: Path) -> None:
    def built() -> GPUNet:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return GPUNet(2, 3, width=2, levels=2, dropout=0, pooling="top:0.5", upsampling="linear")

    labels, found, losses = [*UNEVEN, 0, 0], {}, {}
    for name, changes in {
        "whole": {"batch_size": 8, "sparsity": 0.7},
        "parts": {"batch_size": 2, "accumulation": 4, "sparsity": 0.7},
        "without": {"batch_size": 14},
        "once": {"batch_size": 14, "sparsity": 0.7},
    }.items():
        network, settings = built(), dataclasses.replace(CLASSES, optimiser="adam", learning_rate=1e-3, **changes)
        result = train(network, examples(labels), [], tmp_path / name, settings=settings, seed=1, compute=CPU)
        found[name], losses[name] = network.state_dict(), result.training_losses[0]
    for key, value in found["whole"].items():
        torch.testing.assert_close(found["parts"][key], value, rtol=0, atol=2e-6)
    with torch.inference_mode():
        maps = built().heat_map(torch.tensor(np.stack([one.load() for one in examples(labels)]))).numpy()
    assert losses["once"] - losses["without"] == pytest.approx(0.7 * np.maximum(maps, 0).mean() * 3, rel=1e-4)
    with pytest.raises(vx.InputError, match="sparsity is for networks that explain themselves; Linear has no heat map"):
        trained(tmp_path / "other", UNEVEN, sparsity=0.1)


def test_the_last_step_of_an_epoch_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: (steps.append(1), step(self, *a, **k))[1])
    trained(tmp_path, UNEVEN, batch_size=2, accumulation=4)  # six batches: steps of four and of two
    assert len(steps) == 2


def test_a_gradient_is_clipped_to_its_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: dict[float | None, list[float]] = {}

    def seen(clip: float | None) -> None:
        step = torch.optim.AdamW.step

        def recording(self: torch.optim.Optimizer, *arguments: Any) -> Any:
            gradients = [weight.grad for group in self.param_groups for weight in group["params"]]
            norms.setdefault(clip, []).append(math.sqrt(sum(float(one.square().sum()) for one in gradients)))
            return step(self, *arguments)

        with monkeypatch.context() as patched:
            patched.setattr(torch.optim.AdamW, "step", recording)
            trained(tmp_path / str(clip), UNEVEN, batch_size=12, clip=clip)

    for clip in (None, 0.01, 1000.0):
        seen(clip)
    assert norms[None] == norms[1000.0]
    assert norms[None][0] > 0.1
    assert norms[0.01] == [pytest.approx(0.01, rel=1e-3)]


def test_bfloat16_comes_close_and_starts_from_the_same(tmp_path: Path) -> None:
    exact, losses = trained(tmp_path / "exact", UNEVEN, epochs=3)
    rough, rough_losses = trained(tmp_path / "rough", UNEVEN, epochs=3, precision="bfloat16")
    np.testing.assert_allclose(rough_losses, losses, rtol=0.03)
    assert losses != rough_losses
    torch.testing.assert_close(rough.head.weight, exact.head.weight, atol=5e-3, rtol=0)
    assert rough.head.weight.dtype == torch.float32


def test_classes_are_learnt_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    built = network()
    settings = dataclasses.replace(
        CLASSES,
        epochs=20,
        patience=20,
        learning_rate=0.02,
        schedule="one-cycle",
        clip=1.0,
        accumulation=2,
        label_smoothing=0.1,
    )
    checked = examples(UNEVEN * 4, start=1000)
    result = train(built, examples(UNEVEN * 8), checked, tmp_path, settings=settings, compute=CPU)
    with torch.inference_mode():
        scores = built(torch.tensor(np.stack([one.load() for one in checked])))
    assert (scores.argmax(dim=1) == torch.tensor([one.label for one in checked])).float().mean() > 0.8
    assert result.validation_losses[result.best_epoch - 1] == min(result.validation_losses)
    assert result.validation_losses[0] > 1.2 * min(result.validation_losses)


def test_the_record_of_older_trainings_is_what_it_was() -> None:
    """Trainings that were finished before there were classes are known by these names and values."""
    assert Settings().record() == {
        "epochs": 20,
        "patience": 8,
        "batch_size": 4,
        "optimiser": "adamw",
        "learning_rate": 3e-4,
        "weight_decay": 1e-2,
        "schedule": "cosine",
        "label_smoothing": 0.0,
        "averaging": 0.9,
        "augmentation": True,
        "tolerance": 0.0,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [("loss", "cross-entropy"), ("accumulation", 2), ("clip", 1.0), ("precision", "bfloat16"), ("sparsity", 0.5)],
)
def test_what_came_later_is_recorded_where_it_is_used(name: str, value: Any) -> None:
    assert Settings(**{name: value}).record() == Settings().record() | {name: value}


@pytest.mark.parametrize(
    "wrong",
    [{"loss": "mse"}, {"accumulation": 0}, {"clip": 0}, {"clip": -1.0}, {"clip": math.nan}, {"precision": "float16"},
     {"sparsity": -1.0}, {"sparsity": math.inf},
     {"schedule": "linear"}, {"augmentation": "strong"}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(vx.InputError, match=next(iter(wrong))):
        Settings(**wrong)


def test_a_validation_loss_that_is_no_number_is_said(tmp_path: Path) -> None:
    settings = dataclasses.replace(CLASSES, learning_rate=3e37, batch_size=12, optimiser="adam")
    with pytest.raises(vx.InputError, match=r"the validation loss of epoch 1 is (nan|inf); lower the learning rate"):
        train(network(), examples(UNEVEN), examples([0, 1, 2]), tmp_path, settings=settings, compute=CPU)


def test_a_half_finished_training_of_another_network_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, UNEVEN)
    assert (tmp_path / "checkpoint.pt").is_file()
    other = nn.Sequential(nn.Flatten(), nn.Linear(24, 3))
    with pytest.raises(vx.InputError, match="half-finished training of another network; remove the folder"):
        train(other, examples(UNEVEN), [], tmp_path, settings=CLASSES, seed=1, compute=CPU)
