"""Models on disk: a folder of `model.json` and `weights.safetensors`, a TorchScript file, or a Python factory.

Nothing here unpickles: weights are safetensors, or a state dict read with `weights_only=True`.
"""

from __future__ import annotations

import importlib
import importlib.resources
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from voxplain.errors import InputError
from voxplain.io.atomic import output_folder, write_json, writing
from voxplain.model import Card, Model, weights_fingerprint

_CARD, _WEIGHTS = "model.json", "weights.safetensors"
# A card may come from anywhere, so it may only name code that builds networks and nothing else. Whoever types
# "python:pkg.mod:factory" vouches for that code.
_TRUSTED_PACKAGES = ("voxplain.networks.", "monai.networks.nets.")


def shipped_models() -> dict[str, Path]:
    """The models that come with voxplain, by name."""
    root = Path(str(importlib.resources.files("voxplain"))) / "shipped"
    if not root.is_dir():
        return {}
    return {folder.name: folder for folder in sorted(root.iterdir()) if (folder / _CARD).is_file()}


def load_model(source: str | Path, card: str | Path | Card | Mapping[str, Any] | None = None) -> Model:
    """Load a network and its card.

    `source` is the name of a shipped model, a folder with `model.json` and `weights.safetensors`, a TorchScript file
    (its card is `card`, or the file of the same name ending in .json), or "python:package.module:factory" with a
    `card`.

    Raises:
        InputError: nothing there, a card that cannot be read, weights of another network, or a pickle.
    """
    text = str(source)
    if text.startswith("python:"):
        return _from_factory(text, card)
    path = Path(source)
    if path.is_dir() or (not path.exists() and text in shipped_models()):
        if card is not None:
            raise InputError(f"{text} brings its own {_CARD}; leave the card out")
        return _from_folder(path if path.is_dir() else shipped_models()[text])
    if path.is_file():
        return _from_file(path, card)
    raise InputError(
        f"there is no model {text}; expected a folder with {_CARD}, a TorchScript file, python:pkg.mod:factory, "
        f"or a shipped model ({', '.join(shipped_models()) or 'none is installed'})"
    )


def save_model(network: nn.Module, card: Card, folder: str | Path, *, half_precision: bool = False) -> Path:
    """Write `model.json` and `weights.safetensors`; the card's factory and arguments must rebuild the network.

    With `half_precision` weights are stored in 16 bits (statistics of normalisation layers stay in 32): half the
    size, read back as float32.
    """
    if card.factory is None:
        raise InputError("a model folder needs a card with a factory that builds the network")
    folder = output_folder(folder)
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    if half_precision:
        state = {name: value.half() if value.ndim > 1 else value for name, value in state.items()}
    content = card.to_dict() | {"weights_fingerprint": weights_fingerprint(state)}
    with writing(folder / _WEIGHTS) as temporary:
        save_file(state, temporary)
    write_json(content, folder / _CARD)
    return folder


def build_network(card: Card) -> nn.Module:
    """The network that a card's factory and arguments build, with weights as the factory draws them.

    Raises:
        InputError: the card names no factory, or none that voxplain trusts or that takes these arguments.
    """
    if card.factory is None or not _is_trusted(card.factory):
        raise InputError(f"a card from which a network is built names a factory of voxplain; got {card.factory}")
    return _call_factory(card.factory, card.arguments)


def _from_folder(folder: Path) -> Model:
    card = _read_card(folder / _CARD)
    if card.factory is None:
        raise InputError(f"{folder / _CARD} names no factory, so the network cannot be built")
    if not _is_trusted(card.factory):
        raise InputError(
            f"the card's factory {card.factory} is code outside voxplain.networks and monai.networks.nets, which "
            f"voxplain does not run on a file's word; if you trust it: --model python:{card.factory} with a card"
        )
    weights = folder / _WEIGHTS
    if not weights.is_file():
        others = [path.name for path in folder.iterdir() if path.suffix in (".pt", ".pth", ".bin", ".pkl", ".ckpt")]
        found = f"; found {', '.join(others)}, which may hold a pickle and is not read" if others else ""
        raise InputError(f"expected {_WEIGHTS} in {folder}{found}; convert with voxplain.save_model")
    network = _call_factory(card.factory, card.arguments)
    _load_weights(network, weights)
    model = Model(network.eval(), card)
    if card.weights_fingerprint not in (None, model.fingerprint):
        raise InputError(
            f"the weights in {folder} are not those of its card (fingerprint {model.fingerprint}, the card says "
            f"{card.weights_fingerprint}): put back the file that belongs to it"
        )
    return model


def _from_file(path: Path, card: str | Path | Card | Mapping[str, Any] | None) -> Model:
    if path.name == _CARD:
        return load_model(path.parent, card)
    try:
        network = torch.jit.load(str(path), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{path.name} is not a TorchScript file; a pickled network or checkpoint is never unpickled, since that "
            "runs code: save a folder with voxplain.save_model, export with torch.jit.trace, or load the network as "
            "python:pkg.mod:factory"
        ) from error
    if card is None and not path.with_suffix(".json").is_file():
        raise InputError(
            f"a TorchScript file needs a card: expected {path.with_suffix('.json').name} beside it, or --card"
        )
    return Model(network.eval(), _as_card(card if card is not None else path.with_suffix(".json")))


def _from_factory(text: str, card: str | Path | Card | Mapping[str, Any] | None) -> Model:
    if card is None:
        raise InputError(f"{text} needs a card (--card card.json): channels, classes, spacing, normalisation, ...")
    found = _as_card(card)
    if "" not in sys.path:
        sys.path.insert(0, "")  # the user's own module, in the folder where the command is typed
    network = _call_factory(text.removeprefix("python:"), found.arguments)
    if found.weights is not None:
        beside = Path(card).parent if isinstance(card, str | Path) else Path()
        _load_weights(network, beside / found.weights)
    return Model(network.eval(), found)


def _as_card(card: str | Path | Card | Mapping[str, Any]) -> Card:
    if isinstance(card, Card):
        return card
    return Card.from_dict(card) if isinstance(card, Mapping) else _read_card(Path(card))


def _read_card(path: Path) -> Card:
    if not path.is_file():
        raise InputError(f"expected a model card {path}; there is no such file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"the model card {path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"the model card {path} must be a JSON object")
    try:
        return Card.from_dict(content)
    except TypeError as error:
        raise InputError(f"the model card {path} has a field of the wrong kind: {error}") from error


def _is_trusted(name: str) -> bool:
    """Whether a factory both stands and was written in a trusted package: modules also hold what they import."""
    if not f"{name.partition(':')[0]}.".startswith(_TRUSTED_PACKAGES):
        return False
    written_in = inspect.getmodule(_factory(name))
    return written_in is not None and f"{written_in.__name__}.".startswith(_TRUSTED_PACKAGES)


def _factory(name: str) -> Callable[..., object]:
    module_name, _, attribute = name.partition(":")
    try:
        found: Callable[..., object] = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"cannot build the network with {name}: {error}") from error
    return found


def _call_factory(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    factory = _factory(name)
    try:
        network = factory(**arguments)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"cannot build the network with {name}({dict(arguments)}): {error}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{name} must return a torch.nn.Module; it returned {type(network).__name__}")
    return network


def _load_weights(network: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise InputError(f"there are no weights at {path}")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        raise InputError(
            f"{path.name} cannot be read as weights; expected safetensors, or a plain state dict (pickles are never "
            f"unpickled): {' '.join(str(error).split())[:120]}"
        ) from error
    except Exception as error:
        # torch raises pickle.UnpicklingError for whatever is more than tensors; naming the type would import pickle.
        if type(error).__name__ != "UnpicklingError":
            raise
        raise InputError(
            f"{path.name} is a pickle that holds more than tensors, and unpickling runs code: "
            "save its state dict as safetensors"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(
            f"{path.name} is not a plain state dict (tensors by name); take the state dict out of the checkpoint and "
            "save it as safetensors"
        )
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    if wanted != given:
        odd = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        first = odd[0]
        raise InputError(
            f"{path.name} holds the weights of another network: {len(odd)} of {len(wanted)} tensors differ, first "
            f"{first}: expected {wanted.get(first, 'none')}, got {given.get(first, 'none')}"
        )
    network.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    )
