"""The loop for segmentation: it learns, resumes to the same end, and its loss is the sum of its parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import voxplain as vx
import voxplain.segmentation_training
from voxplain.losses import blob_loss, normalised_dice_loss
from voxplain.segmentation_training import SegmentationSettings, segmentation_loss, train_segmentation

CPU = vx.Compute(device="cpu", threads=1)
QUICK = SegmentationSettings(epochs=3, steps=4, batch_size=2, learning_rate=0.05, averaging=0.5, precision="float32")


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
    given: dict[str, Any] = {"lesion": 1, "settings": settings, "identity": "a", "compute": CPU} | changes
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


def test_the_loss_is_the_sum_of_its_parts() -> None:
    random = torch.Generator().manual_seed(0)
    output = torch.randn(2, 3, 4, 4, 4, generator=random)
    blobs = torch.zeros(2, 4, 4, 4, dtype=torch.int64)
    blobs[0, :2, 0, 0], blobs[0, 3, 3, 3] = 1, 2
    settings = SegmentationSettings(load=0.01, blob=2.0, cross_entropy=0.5)
    probability = output.softmax(dim=1)[:, 2]
    expected = normalised_dice_loss(probability, blobs > 0, load=0.01) + 2 * blob_loss(probability, blobs, load=0.01)
    expected = expected + 0.5 * cross_entropy(output, 2 * (blobs > 0).long())
    assert float(segmentation_loss(output, blobs, 2, settings)) == pytest.approx(float(expected), rel=1e-6)
    alone = SegmentationSettings(load=0.01, blob=0)
    assert float(segmentation_loss(output, blobs, 2, alone)) == pytest.approx(
        float(normalised_dice_loss(probability, blobs > 0, load=0.01))
    )
    # The class of background is the first that is not the lesion's.
    first = SegmentationSettings(load=0.01, blob=0, cross_entropy=1)
    expected = normalised_dice_loss(output.softmax(dim=1)[:, 0], blobs > 0, load=0.01)
    expected = expected + cross_entropy(output, (blobs == 0).long())
    assert float(segmentation_loss(output, blobs, 0, first)) == pytest.approx(float(expected), rel=1e-6)


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


def test_networks_and_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(vx.InputError, match="a map per class on the patch's grid"):
        segmentation_loss(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 8, 8, 8, dtype=torch.int64), 1, QUICK)
    for wrong, words in (
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"optimiser": "sgd"}, "optimiser is one of adamw, adam"),
        ({"blob": -1.0}, "blob is a weight of at least 0"),
        ({"clip": 0.0}, "clip is the largest norm"),
    ):
        with pytest.raises(vx.InputError, match=words):
            SegmentationSettings(**wrong)

    def broken(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        image, blobs = _draw(random)
        return image * np.float32(np.nan), blobs

    settings = SegmentationSettings(epochs=1, steps=1, precision="float32", augmentation=False)
    with pytest.raises(vx.InputError, match="lower the learning rate"):
        train_segmentation(_network(), broken, tmp_path, lesion=1, settings=settings, identity="a", compute=CPU)
