"""Networks that forget: block by block from the output, as copies, with signals of the same scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import voxplain as vx
from voxplain.model import Model
from voxplain.randomisation import blocks, cascade

CARD = vx.Card(name="n", channels=("a",), classes=("c",))


def small() -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv3d(1, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
        nn.init.normal_(network[1].bias)
    return Model(network.eval(), CARD)


def state(model: Model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.network.state_dict().items()}


def test_blocks() -> None:
    assert blocks(small()) == ("0", "1", "4")
    assert blocks(Model(nn.Sequential(nn.Sequential(nn.Conv3d(1, 2, 3), nn.Conv3d(2, 1, 3))), CARD)) == ("0.0", "0.1")
    assert blocks(Model(nn.Conv3d(1, 1, 3), CARD)) == ("",)
    assert blocks(Model(nn.Sequential(nn.Conv3d(1, 1, 3)), CARD)) == ("0",)
    assert blocks(Model(nn.ReLU(), CARD)) == ()
    assert list(cascade(Model(nn.ReLU(), CARD))) == []


def test_blocks_of_the_shipped_model_run_from_input_to_output() -> None:
    found = blocks(vx.load_model("tumour-hemisphere"))
    assert found == ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc")


def test_the_cascade_runs_from_the_output_and_ends_with_nothing_learnt() -> None:
    model = small()
    before = state(model)
    steps = list(cascade(model, draws=2))
    assert [(step.layer, step.complete) for step in steps] == [("4", False), ("1", False), ("0", True), ("0", True)]
    for step, changed in zip(steps, (("4",), ("1", "4"), ("0", "1", "4"), ("0", "1", "4")), strict=True):
        for name, value in step.model.network.named_parameters():
            assert torch.equal(value, before[name]) == (not name.startswith(changed)), (step.layer, name)
        for name, value in step.model.network.named_buffers():
            assert torch.equal(value, before[name])
    # What was drawn stays drawn; draws of the whole network are independent.
    kept = [dict(step.model.network.named_parameters())["4.weight"] for step in steps]
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[2], kept[3])
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    assert len({step.model.fingerprint for step in steps} | {model.fingerprint}) == 5


def test_seeds() -> None:
    first, again, other = (list(cascade(small(), seed=seed))[-1].model.fingerprint for seed in (1, 1, 2))
    assert first == again != other


def test_signals_keep_their_scale() -> None:
    network = nn.Conv3d(6, 40, 3)
    with torch.no_grad():
        network.weight.mul_(0.3).add_(0.05)
        network.bias.fill_(2.0)  # type: ignore[union-attr]
    drawn = next(cascade(Model(network, vx.Card(name="n", channels=tuple("abcdef"), classes=("c",))))).model.network
    assert isinstance(drawn, nn.Conv3d)
    assert drawn.weight.mean().item() == pytest.approx(network.weight.mean().item(), abs=0.01)
    assert drawn.weight.std().item() == pytest.approx(network.weight.std().item(), rel=0.1)
    # Values that are all equal have no spread of their own; their size stands for it.
    assert drawn.bias is not None
    assert drawn.bias.std().item() == pytest.approx(2.0, rel=0.4)


def test_zeros_stay_and_whole_numbers_too() -> None:
    network = nn.Linear(4, 3)
    network.register_parameter("steps", nn.Parameter(torch.arange(3), requires_grad=False))
    nn.init.zeros_(network.bias)
    drawn = next(cascade(Model(network, CARD))).model.network
    assert not drawn.bias.any()
    assert torch.equal(drawn.steps, torch.arange(3))
    assert not torch.equal(drawn.weight, network.weight)


def test_torchscript_networks_can_be_randomised() -> None:
    scripted = torch.jit.script(small().network)
    steps = list(cascade(Model(scripted, CARD)))
    assert [step.layer for step in steps] == ["4", "1", "0", "0", "0"]
    image = torch.ones(1, 1, 4, 4, 4)
    outputs = [network(image).detach().numpy() for network in (scripted, *(step.model.network for step in steps))]
    assert len({np.round(output, 6).tobytes() for output in outputs}) == 6


def test_what_is_refused() -> None:
    with pytest.raises(vx.InputError, match=r"no layer 'x'; its blocks are 0, 1, 4"):
        list(cascade(small(), layers=["x"]))
    with pytest.raises(vx.InputError, match="at least 1; got 0"):
        list(cascade(small(), draws=0))
