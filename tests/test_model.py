"""A network and its card."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from voxplain.errors import InputError
from voxplain.model import Card, Model, weights_fingerprint

CARD: dict[str, Any] = {"name": "n", "channels": ("t1", "t2"), "classes": ("tumour",)}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"activation": "relu"}, "activation is one of sigmoid, softmax; got 'relu'"),
        ({"normalisation": "zscore"}, "normalisation is one of none, min-max, z-score"),
        ({"region": "left"}, "region is one of whole, half"),
        ({"spatial_dims": 4}, "spatial_dims is one of 2, 3; got 4"),
        ({"channels": ()}, "at least one channel"),
        ({"classes": ()}, "at least one channel and one class"),
        ({"channels": ("t1", "t1")}, "channels come twice"),
        ({"classes": ("a", "a")}, "classes come twice"),
        ({"channels": "flair"}, "channels is a list; got 'flair'"),
        ({"threshold": 0}, "probability between 0 and 1"),
        ({"threshold": 1}, "probability between 0 and 1"),
        ({"calibration": (0, 1)}, "calibration is a scale above 0 and a shift"),
        ({"calibration": (-1, 1)}, "calibration is a scale above 0 and a shift"),
        ({"calibration": (1,)}, "calibration is a scale above 0 and a shift"),
        ({"calibration": (1, float("nan"))}, "calibration is a scale above 0 and a shift"),
        ({"spacing": (1, 1)}, "spacing is three positive numbers"),
        ({"spacing": (1, 0, 1)}, "spacing is three positive numbers"),
        ({"spacing": (1, float("nan"), 1)}, "spacing is three positive numbers"),
        ({"shape": (8, -8, 8)}, "shape is three positive numbers"),
        ({"window": (96, 96)}, "window is three positive numbers"),
        ({"window": (96, 96, 0.5)}, "window is three whole numbers of voxels"),
        ({"window": (96, 96, 1), "spatial_dims": 2}, "windows are for networks that read whole volumes"),
        ({"window": (96, 96, 96), "region": "half"}, "windows are for networks that read whole volumes"),
        ({"overlap": 1}, "overlap is a share of the window"),
        ({"overlap": float("nan")}, "overlap is a share of the window"),
        ({"name": 3}, "name is of the wrong kind"),
        ({"training": None}, "training is of the wrong kind"),
        ({"channels": ("t1", 2)}, "names"),
    ],
)
def test_cards_that_make_no_sense_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Card(**(CARD | fields))


def test_lists_become_tuples_and_back() -> None:
    card = Card.from_dict(CARD | {"channels": ["t1", "t2"], "spacing": [1, 2, 3]})
    assert card.channels == ("t1", "t2")
    assert card.spacing == (1, 2, 3)
    assert Card.from_dict(card.to_dict()) == card


@pytest.mark.parametrize("calibration", [("a", "b"), (None, 1), 2])
def test_a_calibration_of_the_wrong_kind_is_refused(calibration: Any) -> None:
    with pytest.raises(InputError, match="calibration"):
        Card(**CARD, calibration=calibration)


def test_the_seen_cases_are_those_trained_on_and_those_that_chose_the_epoch() -> None:
    card = Card(**CARD, training={"ids": ["a"], "validation_ids": ["b"], "other": ["c"]})
    assert card.training_ids == {"a", "b"}
    assert Card(**CARD).training_ids == frozenset()


def test_the_fingerprint_is_of_names_shapes_and_values() -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}
    one = weights_fingerprint(state)
    assert one == weights_fingerprint(dict(reversed(state.items())))
    assert one == weights_fingerprint({name: value.to(torch.float16) for name, value in state.items()})
    for other in (
        state | {"a": state["a"].reshape(3, 2)},
        state | {"a": state["a"] + 1e-6},
        {"c": state["a"], "b": state["b"]},
        {"a": state["a"]},
    ):
        assert weights_fingerprint(other) != one


def test_layers_by_name(tiny_network: Callable[..., nn.Module]) -> None:
    model = Model(tiny_network(), Card(**(CARD | {"channels": ("a", "b", "c", "d")})))
    assert model.layers[0] == "conv1"
    assert model.layer("layer1.0.conv1") is model.network.get_submodule("layer1.0.conv1")
    for name in ("layer9", "", "layer1.9", "conv1.weight"):
        with pytest.raises(InputError, match=f"no layer '{name}'; it has conv1.*layer4.*layer1.0.conv1"):
            model.layer(name)


def test_the_card_and_the_network_agree_on_dimensions() -> None:
    flat, deep = nn.Conv2d(2, 1, 3), nn.Conv3d(2, 1, 3)
    Model(flat, Card(**CARD, spatial_dims=2))
    Model(deep, Card(**CARD))
    Model(nn.Sequential(flat, deep), Card(**CARD))
    with pytest.raises(InputError, match="spatial_dims 3, but the network is made of Conv2d: set spatial_dims to 2"):
        Model(flat, Card(**CARD))
    with pytest.raises(InputError, match="spatial_dims 2, but the network is made of Conv3d"):
        Model(deep, Card(**CARD, spatial_dims=2))
    with pytest.raises(InputError, match="made of Conv2d"):
        Model(torch.jit.script(flat), Card(**CARD))
