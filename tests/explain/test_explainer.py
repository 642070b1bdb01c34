"""The template keeps its promises even where a method is careless."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import voxplain as vx
from voxplain.engine.probe import Probe
from voxplain.explain.explainer import Relevance

CPU = vx.Compute(device="cpu", threads=1)
SHAPE = (6, 5, 4)
SCAN = vx.Scan(np.random.default_rng(0).uniform(1, 2, (1, *SHAPE)), vx.Grid(SHAPE, np.eye(4)), ("t1",))
CARD = vx.Card(name="net", channels=("t1",), classes=("c",))


def model() -> vx.Model:
    return vx.Model(nn.Sequential(nn.Conv3d(1, 1, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten()).eval(), CARD)


@dataclass(frozen=True)
class Careless(vx.Explainer):
    """Does whatever it is told to, and tidies nothing up."""

    name, family, needs, cost = "careless", "test", "calls", "1"

    def __post_init__(self) -> None:
        object.__setattr__(self, "act", lambda probe: None)

    def doing(self, act: Callable[[Probe], Relevance | None]) -> "Careless":
        object.__setattr__(self, "act", act)
        return self

    def _relevance(self, probe: Probe) -> Relevance:
        return self.act(probe) or Relevance(unit="x", signed=True, map=probe.input)


HOOKS = {
    "forward": lambda layer: layer.register_forward_hook(lambda *_: None),
    "forward pre": lambda layer: layer.register_forward_pre_hook(lambda *_: None),
    "backward": lambda layer: layer.register_full_backward_hook(lambda *_: None),
    "backward pre": lambda layer: layer.register_full_backward_pre_hook(lambda *_: None),
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("sort", HOOKS)
def test_hooks_that_a_method_forgets_are_removed_and_the_users_own_stay(sort: str, fails: bool) -> None:
    net = model()
    layer = net.network[0]
    for register in HOOKS.values():
        register(layer)

    def hooks() -> list[list[int]]:
        return [[*found] for key, found in sorted(vars(layer).items()) if key.endswith("_hooks") and found is not None]

    before = hooks()

    def forget(probe: Probe) -> None:
        HOOKS[sort](layer)
        assert hooks() != before
        if fails:
            raise ZeroDivisionError

    if fails:
        with pytest.raises(ZeroDivisionError):
            Careless().doing(forget)(net, SCAN, compute=CPU)
    else:
        Careless().doing(forget)(net, SCAN, compute=CPU)
    assert hooks() == before


def test_a_method_that_changes_modes_and_asks_for_gradients_changes_nothing() -> None:
    net = model()
    net.network[0].bias.requires_grad_(False)

    def meddle(probe: Probe) -> None:
        assert not any(module.training for module in net.network.modules())
        assert not any(parameter.requires_grad for parameter in net.network.parameters())
        net.network.train().requires_grad_(True)

    Careless().doing(meddle)(net, SCAN, compute=CPU)
    assert not any(module.training for module in net.network.modules())
    assert [parameter.requires_grad for parameter in net.network.parameters()] == [True, False]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (Relevance(unit="x", signed=True), "neither a map nor parts"),
        (Relevance(unit="x", signed=True, map=np.zeros(SHAPE)), "wrong shape"),
        (Relevance(unit="x", signed=True, map=np.zeros((2, *SHAPE))), "wrong shape"),
        (Relevance(unit="x", signed=True, map=np.full((1, *SHAPE), np.nan)), "not finite"),
        (
            Relevance(unit="x", signed=True, parts=vx.Labels(np.ones(SHAPE), SCAN.grid), scores=np.zeros(2)),
            "wrong shape",
        ),
        (
            Relevance(unit="x", signed=True, parts=vx.Labels(np.ones(SHAPE), SCAN.grid), scores=np.array([np.inf])),
            "not finite",
        ),
    ],
)
def test_a_result_that_makes_no_sense_is_a_defect_said_loudly(result: Relevance, message: str) -> None:
    with pytest.raises(AssertionError, match=f"careless returned .*{message}"):
        Careless().doing(lambda probe: result)(model(), SCAN, compute=CPU)


def test_one_map_per_sequence_keeps_its_names() -> None:
    both = vx.Scan(np.concatenate([SCAN.data, SCAN.data + 1]), SCAN.grid, ("t1", "t2"))
    net = vx.Model(
        nn.Sequential(nn.Conv3d(2, 1, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten()),
        vx.Card(name="net", channels=("t2", "t1"), classes=("c",)),
    )
    act = lambda probe: Relevance(  # noqa: E731
        unit="x", signed=True, channels=probe.prepared.input.channels, map=probe.input
    )
    why = Careless().doing(act)(net, both, compute=CPU)
    assert why.channels == ("t2", "t1")
    np.testing.assert_array_equal(why.map, both.select(("t2", "t1")).data)


def test_randomness_comes_from_the_seed_alone() -> None:
    act = lambda probe: Relevance(unit="x", signed=True, map=probe.rng.normal(size=(1, *SHAPE)))  # noqa: E731
    maps = [Careless().doing(act)(model(), SCAN, seed=seed, compute=CPU).map for seed in (0, 0, 1)]
    np.testing.assert_array_equal(maps[0], maps[1])
    assert (maps[0] != maps[2]).all()


def test_warnings_of_the_preparation_are_given_and_recorded() -> None:
    small = vx.Card(name="net", channels=("t1",), classes=("c",), skull_stripped=True)
    data = np.zeros((1, 8, 8, 8))
    data[:, 2:6, 2:6, 2:6] = 1
    scan = vx.Scan(data, vx.Grid((8, 8, 8), np.eye(4)), ("t1",))
    with pytest.warns(UserWarning, match="less than a brain"):
        why = Careless()(vx.Model(model().network, small), scan, compute=CPU)
    assert "less than a brain" in why.provenance["warnings"][0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Careless()(model(), SCAN, compute=CPU).provenance["warnings"] == []


def test_a_network_of_several_outputs_is_explained_by_name() -> None:
    net = nn.Sequential(nn.Conv3d(1, 3, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten()).eval()
    card = vx.Card(name="net", channels=("t1",), classes=("a", "b", "c"), activation="softmax")
    with torch.no_grad():
        logits = net(torch.tensor(SCAN.data[None]))[0].double()
    for index, name in enumerate(card.classes):
        (region,) = Careless()(vx.Model(net, card), SCAN, target=vx.ClassScore(name), compute=CPU).regions
        assert region.logit == pytest.approx(float(logits[index]))
        assert region.probability == pytest.approx(float(torch.softmax(logits, dim=0)[index]))


def test_replay_of_a_method_that_is_not_known_here() -> None:
    net = model()
    provenance = Careless()(net, SCAN, compute=CPU).provenance
    with pytest.raises(vx.InputError, match="no explainer elsewhere:Method; known: "):
        vx.replay({**provenance, "explainer": "elsewhere:Method"}, net, SCAN)
