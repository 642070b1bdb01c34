"""The loop for segmentation: it learns, and resumes to the same end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import voxplain as vx
import voxplain.segmentation_training
from voxplain.segmentation_losses import LesionSettings, lesion_loss
from voxplain.segmentation_training import SegmentationSettings, train_segmentation

CPU = vx.Compute(device="cpu", threads=1)
QUICK = SegmentationSettings(epochs=3, steps=4, batch_size=2, learning_rate=0.05, averaging=0.5, precision="float32")


def _loss(network: nn.Module, images: torch.Tensor, blobs: torch.Tensor) -> torch.Tensor:
    return lesion_loss(network(images), blobs, 1, LesionSettings())


def _network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 2, 1))


def _draw(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A brain of noise with a bright cube."""
    image = np.zeros((2, 8, 8, 8), dtype=np.float32)
    image[:, 1:-1, 1:-1, 1:-1] = random.normal(size=(2, 6, 6, 6))
    blobs = np.zeros((8, 8, 8), dtype=np.int64)
    x, y, z = random.integers(1, 5, 3)
    blobs[x : x + 2, y : y + 2, z : z + 2] = 1
    image[0] += 4 * blobs
    return image, blobs


def _train(folder: Path, settings: SegmentationSettings = QUICK, **changes: Any) -> tuple[nn.Module, list[float]]:
    network = _network()
    given: dict[str, Any] = {"loss": _loss, "settings": settings, "identity": "a", "compute": CPU} | changes
    found = train_segmentation(network, _draw, folder, **given)
    return network, list(found.losses)


def test_it_learns_to_find_what_is_bright(tmp_path: Path) -> None:
    settings = SegmentationSettings(
        epochs=10, steps=15, learning_rate=0.03, averaging=0.8, precision="float32", augmentation=False
    )
    network, losses = _train(tmp_path, settings)
    assert losses[-1] < 0.7 * losses[0]
    image, blobs = _draw(np.random.default_rng(99))
    with torch.no_grad():
        found = network(torch.from_numpy(image)[None]).softmax(dim=1)[0, 1].numpy()
    assert found[blobs > 0].min() > found[blobs == 0].max()
    assert not network.training


def test_a_killed_training_comes_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, losses = _train(tmp_path / "whole")
    original: Callable[..., float] = voxplain.segmentation_training._one_epoch

    def dying(*arguments: Any) -> float:
        if arguments[7] == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(voxplain.segmentation_training, "_one_epoch", dying)
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "killed")
    monkeypatch.setattr(voxplain.segmentation_training, "_one_epoch", original)
    resumed, again = _train(tmp_path / "killed")
    assert again == losses
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_network_that_draws_for_itself_repeats(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = _network()

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.inner(image) + (torch.randn(1) if self.training else 0)  # type: ignore[no-any-return]

    found = []
    for number in range(2):
        torch.manual_seed(number)
        before = torch.get_rng_state()
        found.append(
            train_segmentation(
                *(Noisy(), _draw, tmp_path / str(number)), loss=_loss, settings=QUICK, identity="a", compute=CPU
            ).losses
        )
        assert torch.equal(torch.get_rng_state(), before)
    assert found[0] == found[1]


@pytest.mark.parametrize("change", [{"identity": "b"}, {"seed": 1}, {"settings": SegmentationSettings(epochs=5)}])
def test_a_half_finished_training_of_something_else_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    _train(tmp_path)
    with pytest.raises(vx.InputError, match="half-finished training with other scans or settings"):
        _train(tmp_path, **change)


def test_augmentation_leaves_background_at_zero(tmp_path: Path) -> None:
    image, blobs = _draw(np.random.default_rng(0))
    transform = voxplain.segmentation_training.augmentation("lesions")
    changed, same = voxplain.segmentation_training._augmented(image, blobs, transform, np.random.default_rng(1))
    assert not changed[:, (image == 0).all(axis=0)].any()
    assert (changed != image).any()
    assert changed.dtype == np.float32
    np.testing.assert_array_equal(same, blobs)


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for wrong, words in (
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"optimiser": "sgd"}, "optimiser is one of adamw, adam"),
        ({"clip": 0.0}, "clip is the largest norm"),
    ):
        with pytest.raises(vx.InputError, match=words):
            SegmentationSettings(**wrong)

    def broken(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        image, blobs = _draw(random)
        return image * np.float32(np.nan), blobs

    settings = SegmentationSettings(epochs=1, steps=1, precision="float32", augmentation=False)
    with pytest.raises(vx.InputError, match="lower the learning rate"):
        train_segmentation(_network(), broken, tmp_path, loss=_loss, settings=settings, identity="a", compute=CPU)
