"""Networks that know less and less: copies of a model whose layers are drawn anew, from the output backwards."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from voxplain.errors import InputError
from voxplain.model import Model


@dataclass(frozen=True, eq=False)
class Randomised:
    """A copy of a model whose weights are random from the output back to `layer`; all of them where `complete`."""

    layer: str
    model: Model
    complete: bool


def blocks(model: Model) -> tuple[str, ...]:
    """Names of the outermost modules that hold weights, in the order in which the network registers them.

    Where one module holds all weights, its own modules are named instead; a network that is one layer has the name "".
    """
    prefix, module = "", model.network
    while True:
        found = [(name, child) for name, child in module.named_children() if [*child.parameters()]]
        if not found:
            return (prefix,) if [*module.parameters()] else ()
        if len(found) > 1:
            return tuple(_joined(prefix, name) for name, _ in found)
        prefix, module = _joined(prefix, found[0][0]), found[0][1]


def cascade(
    model: Model, *, seed: int = 0, draws: int = 3, layers: Sequence[str] | None = None
) -> Iterator[Randomised]:
    """Cascading randomisation (Adebayo 2018, 3.1): block after block from the output on, the earlier ones staying so.

    Every weight tensor is drawn anew from a normal distribution with its own mean and standard deviation (its own size
    where all its values are equal), so that signals keep their scale, whatever the layers are; buffers, such as the
    statistics of batch norm, stay. The last step draws all weights; it comes `draws` times, independently, as a single
    random network can be a freak. The caller's network is never touched: each step is a copy.

    Args:
        model: the trained model.
        seed: the same seed gives the same networks.
        draws: how many networks without any trained weight, at least 1.
        layers: names of modules, from the input to the output; `blocks(model)` by default.

    Raises:
        InputError: no such layer, layers given as none at all, or draws below 1.
    """
    layers = blocks(model) if layers is None else tuple(layers)
    known = {name for name, _ in model.network.named_modules()}
    if unknown := [name for name in layers if name not in known]:
        raise InputError(f"the network has no layer {unknown[0]!r}; its blocks are {', '.join(blocks(model))}")
    if draws < 1:
        raise InputError(f"draws is how many fully random networks are made, at least 1; got {draws}")
    generator = torch.Generator().manual_seed(seed)
    network = model.network
    for layer in layers[:0:-1]:
        network = copy.deepcopy(network)
        _draw(dict(network.named_modules())[layer], generator)
        yield Randomised(layer, Model(network, model.card), complete=False)
    for _ in range(draws if layers else 0):
        network = copy.deepcopy(model.network)
        _draw(network, generator)
        yield Randomised(layers[0], Model(network, model.card), complete=True)


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _draw(module: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for weight in module.parameters():
            if not weight.is_floating_point() or not weight.numel():
                continue
            mean, spread = float(weight.mean()), float(weight.std(correction=0))
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            weight.copy_(mean + (spread or abs(mean)) * noise)
