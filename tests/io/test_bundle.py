"""Models on disk: what is saved comes back, what is not its own is refused, and nothing is ever unpickled."""

from __future__ import annotations

import json
import os
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from voxplain.errors import InputError
from voxplain.explain import GradCAM, RelevanceMap
from voxplain.grid import Grid
from voxplain.io.bundle import load_model, save_model, shipped_models
from voxplain.model import Card, Model
from voxplain.scan import Scan

ARGUMENTS = {"width": 4, "stem_kernel": 3, "in_channels": 1}
CARD: dict[str, Any] = {
    "name": "tiny",
    "channels": ("t2",),
    "classes": ("tumour",),
    "factory": "voxplain.networks.resnet:resnet",
    "arguments": ARGUMENTS,
}


class Malice:
    """Unpickling this makes a file: the proof that somebody unpickled it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def network(tiny_network: Callable[..., nn.Module]) -> nn.Module:
    return tiny_network(in_channels=1)


@pytest.fixture
def folder(network: nn.Module, tmp_path: Path) -> Path:
    return save_model(network, Card(**CARD), tmp_path / "model")


@pytest.fixture
def scan() -> Scan:
    data = np.random.default_rng(0).random((1, 16, 20, 12))
    return Scan(data, Grid((16, 20, 12), np.diag([2.0, 2, 3, 1])), ("t2",))


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_folder_brings_back_the_very_weights(network: nn.Module, folder: Path) -> None:
    model = load_model(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "weights.safetensors"]
    for name, value in network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], value), name
    assert not model.network.training
    assert model.card.channels == ("t2",)
    assert model.card.weights_fingerprint == model.fingerprint == Model(network, model.card).fingerprint
    assert load_model(str(folder)).fingerprint == load_model(folder / "model.json").fingerprint == model.fingerprint
    x = torch.rand(1, 1, 16, 20, 12, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model.network(x), network(x))


def test_half_precision_is_half_the_size_and_read_as_float32(network: nn.Module, tmp_path: Path) -> None:
    whole = save_model(network, Card(**CARD), tmp_path / "whole") / "weights.safetensors"
    half = save_model(network, Card(**CARD), tmp_path / "half", half_precision=True) / "weights.safetensors"
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    model = load_model(half.parent)
    for name, value in network.state_dict().items():
        got = model.network.state_dict()[name]
        assert got.dtype == value.dtype
        assert torch.equal(got, value.half().float() if value.ndim > 1 else value), name


def test_the_card_survives_word_for_word(network: nn.Module, tmp_path: Path) -> None:
    card = Card(
        **CARD,
        activation="softmax",
        threshold=0.3,
        spacing=(1, 2, 3.5),
        orientation="RAS",
        normalisation="min-max",
        region="half",
        shape=(8, 9, 10),
        skull_stripped=True,
        description="Ein Netz für größere Köpfe",
        training={"ids": ["a", "b"], "validation_ids": ["c"], "n": 2},
    )
    loaded = load_model(save_model(network, card, tmp_path / "m")).card
    assert loaded.to_dict() | {"weights_fingerprint": None} == card.to_dict()
    assert loaded.training_ids == {"a", "b", "c"}


def test_weights_of_another_network_are_refused(folder: Path, tiny_network: Callable[..., nn.Module]) -> None:
    save_file(tiny_network(in_channels=1, width=8).state_dict(), folder / "weights.safetensors")
    with pytest.raises(InputError, match=r"holds the weights of another network: \d+ of \d+ tensors differ") as caught:
        load_model(folder)
    assert "expected (" in str(caught.value)
    save_file({"something": torch.ones(3)}, folder / "weights.safetensors")
    with pytest.raises(InputError, match="holds the weights of another network"):
        load_model(folder)


def test_other_weights_of_the_same_network_are_refused(folder: Path, tiny_network: Callable[..., nn.Module]) -> None:
    save_file(tiny_network(seed=1, in_channels=1).state_dict(), folder / "weights.safetensors")
    with pytest.raises(InputError, match="are not those of its card"):
        load_model(folder)


def test_one_changed_number_is_noticed(folder: Path) -> None:
    state = load_file(folder / "weights.safetensors")
    name = next(name for name, value in state.items() if value.ndim == 5)
    state[name][0, 0, 0, 0, 0] += 1e-3
    save_file(state, folder / "weights.safetensors")
    with pytest.raises(InputError, match="are not those of its card"):
        load_model(folder)


def test_a_changed_fingerprint_is_noticed(folder: Path) -> None:
    edit(folder / "model.json", weights_fingerprint="0" * 16)
    with pytest.raises(InputError, match="the card says 0000000000000000"):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -10])
def test_torn_weights_are_refused(folder: Path, keep: int) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="cannot be read as weights"):
        load_model(folder)


def write_malice(path: Path, kind: str, proof: Path) -> Path:
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Malice(proof)))
    elif kind == "state":
        torch.save({"weight": Malice(proof)}, path)
    else:
        torch.save(Malice(proof), path, _use_new_zipfile_serialization=kind == "zip")
    return path


@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy", "state"])
def test_a_pickle_is_never_unpickled(folder: Path, tmp_path: Path, kind: str) -> None:
    proof = tmp_path / "proof"
    warnings.simplefilter("ignore", UserWarning)  # torch frowns at the protocol of a plain pickle
    (folder / "weights.safetensors").unlink()
    write_malice(folder / "weights.pt", kind, proof)
    with pytest.raises(
        InputError, match=r"expected weights.safetensors in .*; found weights.pt, which may hold a pickle"
    ):
        load_model(folder)
    write_malice(folder / "weights.safetensors", kind, proof)
    with pytest.raises(InputError, match="cannot be read as weights"):
        load_model(folder)
    for name in ("model.pt", "model.pth", "network.bin"):
        with pytest.raises(InputError, match="never unpickled"):
            load_model(write_malice(tmp_path / name, kind, proof), CARD)
    for name in ("w.pt", "w.pkl", "w.safetensors"):
        write_malice(tmp_path / name, kind, proof)
        (tmp_path / "card.json").write_text(json.dumps(CARD | {"weights": name}))
        with pytest.raises(InputError, match="pickle") as caught:
            load_model("python:voxplain.networks.resnet:resnet", tmp_path / "card.json")
        assert "\n" not in str(caught.value)
    assert not proof.exists()
    # The proof is one: whoever does unpickle it leaves the folder behind.
    pickle.loads(pickle.dumps(Malice(proof)))
    assert proof.is_dir()


def test_a_python_factory_with_its_card(network: nn.Module, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "w.pt")
    (tmp_path / "card.json").write_text(json.dumps(CARD | {"factory": None, "weights": "w.pt"}))
    model = load_model("python:voxplain.networks.resnet:resnet", tmp_path / "card.json")
    assert model.fingerprint == Model(network, model.card).fingerprint
    with pytest.raises(InputError, match="needs a card"):
        load_model("python:voxplain.networks.resnet:resnet")
    (tmp_path / "w.pt").unlink()
    with pytest.raises(InputError, match="there are no weights at"):
        load_model("python:voxplain.networks.resnet:resnet", tmp_path / "card.json")


@pytest.mark.parametrize(
    "content", [{"state_dict": {"a": torch.ones(1)}, "epoch": 3}, [torch.ones(2)], torch.ones(2), 5]
)
def test_a_checkpoint_that_is_no_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pt")
    (tmp_path / "card.json").write_text(json.dumps(CARD | {"weights": "w.pt"}))
    with pytest.raises(InputError, match=r"w.pt .*a plain state dict"):
        load_model("python:voxplain.networks.resnet:resnet", tmp_path / "card.json")


def test_a_users_own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def build(size=2):\n    return nn.Sequential(nn.Flatten(), nn.Linear(8, size))\n"
        "def nothing():\n    return 7\n"
        "def broken():\n    raise ValueError('no such size')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    card = {"name": "mine", "channels": ["t2"], "classes": ["a", "b"]}
    assert len(load_model("python:my_networks:build", card).card.classes) == 2
    with pytest.raises(InputError, match=r"must return a torch.nn.Module; it returned int"):
        load_model("python:my_networks:nothing", card)
    with pytest.raises(InputError, match=r"cannot build the network with my_networks:broken.*no such size"):
        load_model("python:my_networks:broken", card)
    for name in ("my_networks:other", "no.such.module:build", "my_networks", ":build", "my_networks:"):
        with pytest.raises(InputError, match="cannot build the network"):
            load_model(f"python:{name}", card)
    with pytest.raises(InputError, match=r"cannot build the network.*unexpected keyword"):
        load_model("python:my_networks:build", card | {"arguments": {"depth": 3}})


@pytest.mark.parametrize(
    "factory",
    [
        "os:system",
        "subprocess:run",
        "builtins:eval",
        "voxplain.networksx:y",
        "monai.networks.nets_evil:x",
        "torch:load",
    ],
)
def test_a_card_may_not_name_other_code(folder: Path, tmp_path: Path, factory: str) -> None:
    edit(folder / "model.json", factory=factory, arguments={"command": f"touch {tmp_path / 'proof'}"})
    with pytest.raises(InputError, match=f"factory {factory} is code outside"):
        load_model(folder)
    assert not (tmp_path / "proof").exists()


def test_a_card_may_not_reach_code_that_a_trusted_module_imports(folder: Path, tmp_path: Path) -> None:
    # MONAI's networks import functions that download, and one that unpickles what it has downloaded.
    proof = tmp_path / "proof"
    write_malice(tmp_path / "evil.pth", "zip", proof)
    url = (tmp_path / "evil.pth").as_uri()
    for factory, arguments in (
        ("monai.networks.nets.densenet:load_state_dict_from_url", {"url": url, "model_dir": str(tmp_path / "hub")}),
        ("monai.networks.nets.hovernet:download_url", {"url": url, "filepath": str(proof)}),
    ):
        edit(folder / "model.json", factory=factory, arguments=arguments | {"weights_only": False})
        with pytest.raises(InputError, match=f"factory {factory} .*does not run"):
            load_model(folder)
        assert not proof.exists()
        assert not (tmp_path / "hub").exists()


def test_a_network_of_monai(tmp_path: Path) -> None:
    arguments = {"spatial_dims": 3, "in_channels": 1, "out_channels": 1, "init_features": 4, "growth_rate": 2}
    arguments |= {"block_config": [1, 1]}
    from monai.networks.nets import DenseNet

    card = Card(**(CARD | {"factory": "monai.networks.nets:DenseNet", "arguments": arguments}))
    with torch.random.fork_rng(devices=[]):
        network = DenseNet(**arguments)
        folder = save_model(network, card, tmp_path / "m")
        assert type(load_model(folder).network) is DenseNet


def test_unknown_and_missing_fields_of_a_card_are_named(folder: Path) -> None:
    edit(folder / "model.json", colour="red")
    with pytest.raises(InputError, match="not known: colour"):
        load_model(folder)
    (folder / "model.json").write_text('{"name": "x"}')
    with pytest.raises(InputError, match="missing: channels, classes; not known: none"):
        load_model(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ("[1]", "must be a JSON object"),
        (b"\xff\xfe", "is not JSON"),
        (json.dumps(CARD | {"spacing": 2}), "spacing is a list"),
        (json.dumps(CARD | {"spacing": ["a", "b", "c"]}), "wrong kind"),
        (json.dumps(CARD | {"threshold": "high"}), "wrong kind"),
        (json.dumps(CARD | {"channels": "flair"}), "channels is a list"),
        (json.dumps(CARD | {"channels": [1]}), "names"),
        (json.dumps(CARD | {"arguments": [1]}), "arguments"),
        (json.dumps(CARD | {"training": "long"}), "training"),
        (json.dumps(CARD | {"factory": 3}), "factory"),
    ],
)
def test_a_card_that_cannot_be_read_is_refused(folder: Path, content: str | bytes, said: str) -> None:
    (folder / "model.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=said) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_what_is_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no model .*expected a folder with model.json"):
        load_model(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="expected a model card"):
        load_model(tmp_path / "empty")
    with pytest.raises(InputError, match="leave the card out"):
        load_model(folder, CARD)
    with pytest.raises(InputError, match="needs a card with a factory"):
        save_model(nn.Identity(), Card(name="x", channels=("a",), classes=("b",)), tmp_path / "m")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write into"):
        save_model(nn.Identity(), Card(**CARD), tmp_path / "file" / "m")


@pytest.fixture
def scripted(network: nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "network.pt"
    torch.jit.trace(network, torch.zeros(1, 1, 16, 20, 12)).save(str(path))
    return path


def test_torchscript_can_be_called(scripted: Path, network: nn.Module, scan: Scan, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs a card: expected network.json beside it, or --card"):
        load_model(scripted)
    content = {key: value for key, value in CARD.items() if key not in ("factory", "arguments")}
    (tmp_path / "network.json").write_text(json.dumps(content))
    model = load_model(scripted)
    assert not model.differentiable_inside
    assert model.fingerprint == Model(network, model.card).fingerprint == load_model(scripted, content).fingerprint
    why = RelevanceMap(partition="cubes:12", mask="none", scale="logit")
    got, expected = (why(m, scan).map for m in (model, Model(network, model.card)))
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert expected.max() > 0


def test_torchscript_refuses_what_watches_layers(scripted: Path, scan: Scan) -> None:
    content = {key: value for key, value in CARD.items() if key not in ("factory", "arguments")}
    model = load_model(scripted, content)
    with pytest.raises(InputError, match=r"TorchScript network does not allow.*relevance-map"):
        GradCAM(layer="layer1")(model, scan)
    with pytest.raises(InputError, match="its layers cannot be watched"):
        model.layer("layer1")


def test_shipped_models_load_and_are_small() -> None:
    assert "tumour-hemisphere" in shipped_models()
    for name, path in shipped_models().items():
        model = load_model(name)
        assert model.card.name == name
        assert model.card.weights_fingerprint == model.fingerprint
        assert sum(file.stat().st_size for file in path.iterdir()) <= 8 * 1024**2
        assert model.card.training_ids
        assert "not a medical device" in model.card.description
