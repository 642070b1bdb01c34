"""What is trained for paper gp: everything builds, and the paper's preset is the paper's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import voxplain as vx
from voxplain.io.bundle import build_network
from voxplain.networks.self_explaining import SelfExplaining
from voxplain.studies.cross_validation import new_network
from voxplain.studies.gp_presets import DATASETS, NETWORKS, OPAQUE, PRESETS, preset
from voxplain.training import Example, train

CPU = vx.Compute(device="cpu", threads=1)
PAPER_SIZES = {"gp-unet": 1_740_675, "gp-reconresnet": 17_272_918, "gp-shuffleunet": 26_371_587}


@pytest.mark.parametrize("size", PRESETS)
@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("network", NETWORKS)
def test_everything_builds(network: str, dataset: str, size: str) -> None:
    found = preset(network, dataset, size)
    card, settings = found.card, found.settings
    assert card.name == f"{dataset}-{network}" + ("" if size == "small" else f"-{size}")
    assert (card.spatial_dims, card.activation, settings.loss) == (2, "softmax", "cross-entropy")
    assert set(card.absent) == ({"tumour-free"} & set(card.classes))
    assert settings.patience >= settings.epochs or size == "quick"
    assert card.shape is not None
    with torch.device("meta"):
        built = build_network(card)
    assert isinstance(built, SelfExplaining) == (network not in OPAQUE)
    if size == "quick":
        image = torch.zeros(2, len(card.channels), *card.shape[:2])
        with torch.inference_mode():
            assert new_network(card, 0).eval()(image).shape == (2, len(card.classes))


@pytest.mark.parametrize(("network", "weights"), PAPER_SIZES.items())
def test_the_papers_networks_have_the_papers_weights(network: str, weights: int) -> None:
    with torch.device("meta"):
        built = build_network(preset(network, "brats-grade-slices", "paper").card)
    assert sum(weight.numel() for weight in built.parameters()) == weights


@pytest.mark.parametrize("network", NETWORKS)
def test_the_papers_recipe(network: str) -> None:
    """002, 2.2: Adam 0.001, weight decay 5e-4, clip 1, effective batch 128, 300 epochs, 240 x 240 pixels."""
    found = preset(network, "brats-grade-slices", "paper")
    settings = found.settings
    assert (found.card.shape, found.card.spacing) == ((240, 240, 1), (1, 1, 1))
    assert (settings.optimiser, settings.learning_rate, settings.weight_decay) == ("adam", 1e-3, 5e-4)
    assert (settings.clip, settings.batch_size * settings.accumulation, settings.epochs) == (1, 128, 300)
    assert (settings.schedule, settings.averaging, settings.augmentation) == ("constant", 0, "turns")
    assert "pooling" not in found.card.arguments
    assert preset(network, "cheng", "paper").card.shape == (512, 512, 1)


def test_reconresnet_drops_less_on_cheng() -> None:
    for dataset, share in (("cheng", 0.2), ("brats-slices", 0.5), ("brats-grade-slices", 0.5)):
        assert preset("gp-reconresnet", dataset, "paper").card.arguments["dropout"] == share


@pytest.mark.parametrize("network", NETWORKS)
def test_one_step_of_the_paper_preset_on_reduced_slices(network: str, tmp_path: Path) -> None:
    found = preset(network, "brats-grade-slices", "paper")
    edge = 80 if network == "inception-v3" else 32
    built = new_network(found.card, 0)
    before = {name: weight.detach().clone() for name, weight in built.named_parameters()}
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 4, edge, edge)).astype(np.float32)
    examples = [Example(str(index), index % 3, lambda index=index: images[index]) for index in range(4)]
    settings = dataclasses.replace(found.settings, epochs=1, patience=1, batch_size=2, accumulation=2)
    result = train(built, examples, [], tmp_path, settings=settings, compute=CPU)
    assert np.isfinite(result.training_losses).all()
    moved = [float((weight.detach() - before[name]).abs().max()) for name, weight in built.named_parameters()]
    # Adam's first step is the learning rate, whatever the gradient.
    assert max(moved) == pytest.approx(1e-3, rel=0.02)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("unet", "cheng", "small"), "network is one of gp-unet, .*; got 'unet'"),
        (("gp-unet", "figshare", "small"), "dataset is one of cheng, .*; got 'figshare'"),
        (("gp-unet", "cheng", "large"), "preset is one of small, .*; got 'large'"),
    ],
)
def test_other_names_are_refused(given: tuple[str, str, str], words: str) -> None:
    with pytest.raises(vx.InputError, match=words):
        preset(*given)
