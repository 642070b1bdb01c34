"""Which layers of a network are its blocks, and how fine the grid of each is, found by watching one pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

# A module with more grids inside than where it comes from and where it goes is not one block, but several.
_GRIDS = 2


def grids_of(network: nn.Module, run: Callable[[], object], *, dims: int) -> dict[str, tuple[int, ...]]:
    """The grid of every module's first output in one pass, by its name, where that is (B, channels) and `dims` axes."""
    grids: dict[str, tuple[int, ...]] = {}

    def keep(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, torch.Tensor) and output.ndim == 2 + dims:
                grids.setdefault(name, tuple(output.shape[2:]))

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in network.named_modules() if name]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return grids


def blocks(network: nn.Module, run: Callable[[], object], *, dims: int) -> dict[str, tuple[int, ...]]:
    """The grid of every block's output, by the block's name, in the order in which they are done.

    A block is an outermost module that holds others, changes its grid once at most, and gives feature maps, (B,
    channels) and `dims` axes: layer1 to layer4 of a ResNet, dense blocks and transitions of a DenseNet. Of a network
    that has none, it is every layer with weights.
    """
    grids = grids_of(network, run, dims=dims)
    modules = {name: module for name, module in network.named_modules() if name}
    found: list[str] = []
    for name, module in modules.items():
        inside = {grids[other] for other in grids if other.startswith(f"{name}.")}
        within_another = any(name.startswith(f"{other}.") for other in found)
        if name in grids and [*module.children()] and [*module.parameters()] and not within_another:
            found += [name] if len(inside) <= _GRIDS else []
    if not found:
        found = [name for name in grids if not [*modules[name].children()] and [*modules[name].parameters()]]
    return {name: grid for name, grid in grids.items() if name in found}
