"""How many inputs fit into memory at a time."""

from __future__ import annotations

import torch
from torch import nn

from voxplain.compute import Compute

# Larger batches gain nothing on a CPU and little on a GPU, but make progress bars jump.
_LARGEST_BATCH = 16
# Layers of a TorchScript network cannot be watched; their outputs are taken to be this many times the input's size.
_SCRIPTED_ACTIVATIONS_PER_INPUT = 100


class ActivationMeter:
    """Adds up the bytes of all layers' outputs in one pass: an upper bound of what one input needs."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self.bytes = 0

    def __enter__(self) -> ActivationMeter:
        leaves = [m for m in self._network.modules() if not any(m.children())]
        self._handles = (
            []
            if isinstance(self._network, torch.jit.ScriptModule)
            else [leaf.register_forward_hook(self._add) for leaf in leaves]
        )
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _add(self, _module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            self.bytes += output.numel() * output.element_size()

    def batch_size(self, inputs: torch.Tensor, compute: Compute) -> int:
        """How many inputs like the one measured run at a time within the memory limit; at least one."""
        if compute.batch_size is not None:
            return compute.batch_size
        size = inputs.numel() * inputs.element_size()
        needed = size + (self.bytes or size * _SCRIPTED_ACTIVATIONS_PER_INPUT)
        return int(max(1, min(_LARGEST_BATCH, compute.memory_bytes // needed)))
