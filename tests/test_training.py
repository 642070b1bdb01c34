"""The loop: it learns, it repeats itself, and a killed training comes to the same end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import voxplain.training
from voxplain.augmentation import augmentation
from voxplain.compute import Compute
from voxplain.errors import InputError
from voxplain.optimisation import finish
from voxplain.training import Example, Settings, Trained, train

CPU = Compute(device="cpu")
QUICK = Settings(epochs=4, batch_size=4, learning_rate=3e-3, averaging=0.5, augmentation=False)


class Tiny(nn.Module):
    """A network with all that a resumed training could forget: batch statistics, dropout, weights."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten()
        )
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.body(x)))


def new_network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Tiny()


def examples(count: int = 12, start: int = 0) -> list[Example]:
    """Noise, with a bright cube where the label is 1."""

    def load(index: int) -> np.ndarray:
        image = np.random.default_rng(index).normal(size=(1, 8, 10, 6)).astype(np.float32)
        if index % 2:
            image[:, 2:6, 2:6, 1:4] += 3
        return image

    return [Example(f"case{i}", i % 2, lambda i=i: load(i)) for i in range(start, start + count)]


def run(folder: Path, network: nn.Module | None = None, **options: Any) -> tuple[Trained, dict[str, torch.Tensor]]:
    network = new_network() if network is None else network
    options = {"settings": QUICK, "seed": 3, "compute": CPU} | options
    trained = train(network, options.pop("training", examples()), examples(6, 100), folder, **options)
    return trained, network.state_dict()


def assert_same(one: tuple[Trained, dict[str, torch.Tensor]], other: tuple[Trained, dict[str, torch.Tensor]]) -> None:
    assert dataclasses.replace(one[0], seconds=0) == dataclasses.replace(other[0], seconds=0)
    for name, value in one[1].items():
        assert torch.equal(value, other[1][name]), name


@pytest.fixture
def killed_in_epoch(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make the training die in the middle of an epoch, as Ctrl-C or the end of a reservation does."""
    original = voxplain.training.average

    def arrange(epoch: int, steps_per_epoch: int = 3) -> None:
        steps = 0

        def dying(*arguments: Any) -> None:
            nonlocal steps
            steps += 1
            if steps == (epoch - 1) * steps_per_epoch + 2:
                monkeypatch.setattr(voxplain.training, "average", original)
                raise KeyboardInterrupt
            original(*arguments)

        monkeypatch.setattr(voxplain.training, "average", dying)

    return arrange


@pytest.mark.parametrize("settings", [QUICK, dataclasses.replace(QUICK, augmentation=True, label_smoothing=0.1)])
@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_a_killed_training_comes_to_the_same_end(
    tmp_path: Path, killed_in_epoch: Callable[[int], None], epoch: int, settings: Settings
) -> None:
    whole = run(tmp_path / "whole", settings=settings)
    killed_in_epoch(epoch)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", settings=settings)
    left = sorted(path.name for path in (tmp_path / "killed").iterdir())
    assert left == ([] if epoch == 1 else ["checkpoint.pt"])
    assert_same(run(tmp_path / "killed", settings=settings), whole)
    assert len(whole[0].training_losses) == 4


def test_a_kill_while_the_checkpoint_is_written_keeps_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole")
    original, written = torch.save, []

    def dying(state: Any, path: Path) -> None:
        if written:
            Path(path).write_bytes(b"half")
            raise KeyboardInterrupt
        original(state, path)
        written.append(path)

    monkeypatch.setattr(torch, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["checkpoint.pt"]
    assert_same(run(tmp_path / "killed"), whole)


def test_the_loss_falls_and_the_task_is_learned(tmp_path: Path) -> None:
    network = new_network()
    settings = dataclasses.replace(QUICK, epochs=25, learning_rate=5e-2, patience=25)
    trained, _ = run(tmp_path, network, settings=settings)
    assert trained.training_losses[-1] < 0.5 * trained.training_losses[0]
    assert trained.validation_losses[trained.best_epoch - 1] == min(trained.validation_losses)
    assert not network.training
    with torch.inference_mode():
        for example in examples(10, 200):
            assert (float(network(torch.from_numpy(example.load())[None])) > 0) == bool(example.label)


def test_the_best_epoch_is_kept_and_patience_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, kept = iter([0.9, 0.5, 0.8, 0.7, 0.1]), []
    original = voxplain.training.copied_weights

    def weights(network: nn.Module) -> dict[str, torch.Tensor]:
        kept.append(original(network))
        return kept[-1]

    monkeypatch.setattr(voxplain.training, "_losses", lambda *_: torch.tensor([next(losses)], dtype=torch.float64))
    monkeypatch.setattr(voxplain.training, "copied_weights", weights)
    trained, state = run(tmp_path, settings=dataclasses.replace(QUICK, epochs=5, patience=2))
    assert trained.best_epoch == 2
    assert trained.validation_losses == (0.9, 0.5, 0.8, 0.7)
    for name, value in state.items():
        assert torch.equal(value, kept[1][name]), name


@pytest.mark.parametrize(("tolerance", "epoch"), [(0.0, 4), (0.5, 3), (1.0, 2)])
def test_the_first_epoch_within_the_tolerance_of_the_lowest_is_kept(
    tolerance: float, epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The lowest loss has a standard error of 0.1, so 0.48 lies within one of it and 0.44 within a half.
    spread = torch.tensor([-1.0, 1.0], dtype=torch.float64) * 0.1
    losses = iter([0.9 + spread, 0.48 + spread, 0.44 + spread, 0.40 + spread, 0.42 + spread])
    monkeypatch.setattr(voxplain.training, "_losses", lambda *_: next(losses))
    settings = dataclasses.replace(QUICK, epochs=5, patience=5, tolerance=tolerance)
    assert run(tmp_path, settings=settings)[0].best_epoch == epoch


def test_without_validation_the_last_epoch_is_kept(tmp_path: Path) -> None:
    trained = train(new_network(), examples(), [], tmp_path, settings=QUICK, compute=CPU)
    assert (trained.best_epoch, len(trained.training_losses), trained.validation_losses) == (4, 4, ())
    shorter = train(new_network(), examples(), [], tmp_path / "s", settings=QUICK, compute=CPU, stop_after=2)
    assert shorter.best_epoch == 2
    assert shorter.training_losses == trained.training_losses[:2]


def test_one_seed_is_one_training(tmp_path: Path) -> None:
    settings = dataclasses.replace(QUICK, augmentation=True, epochs=2)
    first = run(tmp_path / "a", settings=settings)
    assert_same(first, run(tmp_path / "b", settings=settings))
    assert run(tmp_path / "c", settings=settings, seed=4)[0].training_losses != first[0].training_losses


def test_the_global_generators_are_left_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    run(tmp_path, settings=dataclasses.replace(QUICK, augmentation=True, epochs=1))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_examples_are_not_written_into(tmp_path: Path) -> None:
    images = [example.load() for example in examples()]
    for image in images:
        image.setflags(write=False)
    fixed = [Example(e.name, e.label, lambda image=image: image) for e, image in zip(examples(), images, strict=True)]
    run(tmp_path, training=fixed, settings=dataclasses.replace(QUICK, augmentation=True, epochs=1))
    for image, example in zip(images, examples(), strict=True):
        np.testing.assert_array_equal(image, example.load())


@pytest.mark.parametrize(
    "changed",
    [{"seed": 4}, {"settings": dataclasses.replace(QUICK, learning_rate=1e-4)}, {"training": examples(8)}],
    ids=["seed", "settings", "patients"],
)
def test_a_half_finished_training_with_other_settings_is_refused(
    tmp_path: Path, killed_in_epoch: Callable[[int], None], changed: dict[str, Any]
) -> None:
    killed_in_epoch(2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(InputError, match="half-finished training with other patients or settings"):
        run(tmp_path, **changed)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"half a checkpoint", b"\x80\x02N."])
def test_a_checkpoint_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint.pt cannot be read; remove it|with other patients or settings"):
        run(tmp_path)


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the loss of epoch \d is (nan|inf); lower the learning rate"):
        run(tmp_path, settings=dataclasses.replace(QUICK, learning_rate=1e30, optimiser="adam", schedule="constant"))


def test_one_label_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"label 0 and with label 1; got labels \[1\]"):
        run(tmp_path, training=examples()[1::2])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch_size": 1}, {"patience": 0}, {"optimiser": "sgd"}, {"schedule": "linear"}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Settings(**wrong)


def test_augmentation_keeps_zeros_zero_and_follows_its_seed() -> None:
    image = torch.zeros(2, 8, 10, 6)
    image[:, 2:6, 3:7, 2:4] = 5
    results = []
    for _ in range(2):
        transform = augmentation()
        transform.set_random_state(seed=7)
        results.append([np.asarray(transform(image.clone())) for _ in range(4)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
        assert (one[:, [0, -1]] == 0).mean() > 0.5
        assert one.shape == image.shape


def test_finish_writes_the_figures_and_drops_the_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, settings=dataclasses.replace(QUICK, epochs=1))
    finish(tmp_path, {"auc": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_every_epoch_is_handed_out_also_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def recording(seen: list[tuple[int, float, float]], weights: dict[int, torch.Tensor]) -> Callable[..., None]:
        def after(epoch: int, network: nn.Module, loss: float, validation_loss: float) -> None:
            seen.append((epoch, loss, validation_loss))
            weights[epoch] = network.state_dict()["head.weight"].clone()

        return after

    whole: list[tuple[int, float, float]] = []
    expected: dict[int, torch.Tensor] = {}
    trained, state = run(tmp_path / "whole", after_epoch=recording(whole, expected))
    assert whole == list(zip(range(1, 5), trained.training_losses, trained.validation_losses, strict=True))
    # The weights that are validated are those that are kept.
    assert torch.equal(expected[trained.best_epoch], state["head.weight"])
    # Killed after the call and before the checkpoint: the epoch comes again, the same.
    seen: list[tuple[int, float, float]] = []
    weights: dict[int, torch.Tensor] = {}
    write = voxplain.training.write_checkpoint

    def dying(path: Path, content: dict[str, Any]) -> None:
        if len(content["losses"]) == 3:
            monkeypatch.setattr(voxplain.training, "write_checkpoint", write)
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(voxplain.training, "write_checkpoint", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", after_epoch=recording(seen, weights))
    run(tmp_path / "killed", after_epoch=recording(seen, weights))
    assert seen == [*whole[:3], *whole[2:]]
    assert all(torch.equal(weights[epoch], value) for epoch, value in expected.items())


def test_without_validation_an_epoch_has_no_validation_loss(tmp_path: Path) -> None:
    seen: list[float] = []
    train(
        new_network(), examples(), [], tmp_path, settings=dataclasses.replace(QUICK, epochs=1), compute=CPU,
        after_epoch=lambda epoch, network, loss, validation_loss: seen.append(validation_loss),
    )  # fmt: skip
    assert np.isnan(seen).all()
    assert len(seen) == 1
