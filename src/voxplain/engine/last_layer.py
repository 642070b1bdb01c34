"""Which feature maps a network's last layer reads, found by watching one pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import nn


def last_features(network: nn.Module, run: Callable[[], object], *, dims: int) -> str | None:
    """Name of the outermost module whose output the last layer with weights reads, in the pass that `run` makes.

    Where what it reads is made by no module of its own, such as a concatenation, it is the module that was done last
    before it. Modules without feature maps, (B, channels) and `dims` axes, do not count; None where there is none.
    """
    done: list[tuple[str, weakref.ref[torch.Tensor]]] = []
    found: str | None = None

    def before(_module: nn.Module, inputs: tuple[object, ...]) -> None:
        nonlocal found
        # Containers hand on what is made inside of them, and identities what they read.
        same = [name for name, output in done if inputs and output() is inputs[0]]
        every = [name for name, _ in done]
        found = min(same, key=lambda name: name.count(".")) if same else every[-1] if every else None

    def after(name: str) -> Callable[[nn.Module, object, object], None]:
        def keep(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, torch.Tensor) and output.ndim == 2 + dims:
                done.append((name, weakref.ref(output)))

        return keep

    handles = []
    try:
        for name, module in network.named_modules():
            if name:
                handles.append(module.register_forward_hook(after(name)))
            if not [*module.children()] and [*module.parameters()]:
                handles.append(module.register_forward_pre_hook(before))
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found
