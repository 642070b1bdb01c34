import dataclasses

import numpy as np
import pytest
import torch

import voxplain as vx
from voxplain.io.bundle import build_network, load_model
from voxplain.studies.grading_presets import PRESETS, preset
from voxplain.training import Example, train

TYPES = ("glioblastoma", "astrocytoma", "oligodendroglioma")


def test_the_paper_preset_is_the_papers() -> None:
    found = preset("paper", TYPES)
    assert found.card.shape == (120, 148, 120)
    assert found.card.classes == TYPES
    assert (found.settings.epochs, found.settings.batch_size) == (20, 4)
    assert (found.settings.learning_rate, found.settings.weight_decay) == (1e-4, 1e-5)
    assert sum(weight.numel() for weight in build_network(found.card).parameters()) == 18_613_571


def test_one_step_of_the_paper_preset_on_reduced_volumes(tmp_path) -> None:
    found = preset("paper", TYPES)
    rng = np.random.default_rng(0)
    images = [rng.standard_normal((4, 32, 40, 32)).astype(np.float32) for _ in range(4)]
    examples = [Example(str(k), k % 3, lambda k=k: images[k]) for k in range(4)]
    network = build_network(found.card)
    before = network.class_layers.out.weight.detach().clone()
    settings = dataclasses.replace(found.settings, epochs=1, batch_size=2, accumulation=2)
    result = train(network, examples, [], tmp_path, settings=settings, compute=vx.Compute("cpu", threads=1))
    assert np.isfinite(result.training_losses).all()
    assert not torch.equal(network.class_layers.out.weight, before)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_gives_a_score_per_class(name: str) -> None:
    card = preset(name, ("high-grade", "low-grade")).card
    network = build_network(card).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 4, 32, 40, 32)).shape == (1, 2)


def test_a_preset_that_does_not_exist() -> None:
    with pytest.raises(vx.InputError, match="--preset is one of paper, small, small-log-sum-exp, quick; got 'large'"):
        preset("large", TYPES)


def test_presets_that_differ_in_the_pooling_differ_in_nothing_else() -> None:
    average, pooled = (preset(name, ("a", "b")) for name in ("small", "small-log-sum-exp"))
    assert pooled.settings == average.settings
    arguments = {**average.card.arguments, "pooling": "log-sum-exp:4"}
    assert pooled.card == dataclasses.replace(average.card, arguments=arguments)
    shipped = load_model("phantom-grading").card
    assert shipped.arguments == {**arguments, "classes": 3}
    assert shipped.training["settings"] == average.settings.record()
