"""How many inputs fit into memory at a time: measured on the first pass, not guessed."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from voxplain.compute import Compute

# Larger batches gain nothing on a CPU and little on a GPU, but make progress bars jump.
_LARGEST_BATCH = 16
# Beyond the tensors that live stand what libraries allocate for themselves, and freed pieces that the C library cannot
# hand back: resident memory of ResNets, U-Nets and DenseNets was up to this much of what is counted here (glibc 2.36).
UNSEEN = 1.4
# oneDNN holds a convolution's weights in two further orders while it runs.
_REORDERED_WEIGHTS = 2
# ... and copies of other maps than channels-last ones in blocks of so many channels.
_BLOCK = 16
# An input is small for PyTorch where a plane across its last axis has at most so many numbers, and the kernel is small.
_SMALL = 20480


@dataclass(frozen=True)
class Needs:
    """What passes over inputs like the one measured need, in bytes.

    Attributes:
        single: one input alone, input and output included.
        each: every input of a batch.
        once: a batch, however large.
        arithmetic: multiply-accumulates of the convolutions of one pass; 0 where they were not counted.
    """

    single: int
    each: int
    once: int
    arithmetic: int = 0

    def batch_size(self, memory_bytes: int, compute: Compute) -> int:
        """How many inputs run at a time within so many bytes; at least one, and what `compute` fixes."""
        if compute.batch_size is not None:
            return compute.batch_size
        if self.single > memory_bytes:  # the last batch may have but one
            return 1
        return int(max(1, min(_LARGEST_BATCH, (memory_bytes - self.once) // max(1, self.each))))


class MemoryMeter:
    """Measures the memory of one pass over one input, made inside of `with MemoryMeter(device) as meter`.

    On the CPU it follows every tensor that an operator makes, those of TorchScript included, from when it comes to be
    until it goes, and adds what convolutions allocate for themselves. On CUDA the allocator itself keeps count.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tensors = _LiveTensors()
        self._before = 0

    def __enter__(self) -> MemoryMeter:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            self._tensors.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._device.type != "cuda":
            self._tensors.__exit__(*error)

    @property
    def needs(self) -> Needs:
        """What was measured."""
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device) - self._before
            return Needs(math.ceil(UNSEEN * peak), math.ceil(UNSEEN * peak), 0)
        seen = self._tensors
        single, each, once = (math.ceil(UNSEEN * size) for size in (seen.single, seen.each, seen.once))
        return Needs(single, each, once, seen.arithmetic)


class _LiveTensors(TorchDispatchMode):
    """Follows tensors' memory through every operator that runs.

    Attributes:
        single, each, once, arithmetic: as in `Needs`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.single = self.each = self.once = self.arithmetic = 0
        self._live = 0
        # Address -> the memory block, to see it go.
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Spare a run the second and the memory that loading torch's compiler takes: nothing is compiled here."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count."""
        # What is handed in unseen, such as the network's weights, was there before.
        for tensor in _tensors_in((args, kwargs)):
            self._follow(tensor, new=False)
        output = function(*args, **(kwargs or {}))
        for tensor in _tensors_in(output):
            self._follow(tensor, new=True)
        single = each = weights = 0
        if function.overloadpacket is torch.ops.aten.convolution:
            single, each, weights = _scratch_of_convolution(output, *args)
            self.arithmetic += output.numel() * args[1][0].numel()
        self.single = max(self.single, self._live + single + weights)
        self.each = max(self.each, self._live + each)
        self.once = max(self.once, weights)
        return output

    def _follow(self, tensor: torch.Tensor, *, new: bool) -> None:
        if tensor.device.type != "cpu":
            return
        block = tensor.untyped_storage()
        address, size = block.data_ptr(), block.nbytes() if new else 0
        if not address or address in self._known:
            return

        def gone(_: object) -> None:
            del self._known[address]
            self._live -= size

        self._known[address] = weakref.ref(block, gone)
        self._live += size


def _tensors_in(values: Any) -> Iterator[torch.Tensor]:
    """The tensors in an operator's arguments or outputs: alone, or in lists, tuples and dictionaries."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors_in(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors_in(value)


def _scratch_of_convolution(
    output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> tuple[int, int, int]:
    """Bytes that a convolution on the CPU allocates for a single input, for each of several, and for its weights.

    As resident memory on PyTorch 2.13 says: oneDNN works on channels-last tensors as they are, transposed convolutions
    apart, and otherwise on copies of input and output in blocks of channels. Single small inputs PyTorch leaves to its
    own kernels, which write all windows that are read into a matrix.
    """
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(input.ndim)
    as_it_is = not transposed and input.shape[1] > 1 and last is not None and input.is_contiguous(memory_format=last)
    written = bytes_in_blocks(output)
    # The output itself is written when the copy of the input is gone.
    each = 0 if as_it_is else max(bytes_in_blocks(input) + written - _bytes(output), written)
    small = groups == 1 and min(weight.shape[-2:]) <= 3 and input[..., 0].numel() <= _SMALL
    own_kernel = not transposed and (small or not torch.backends.mkldnn.is_available())
    if not transposed and groups == 1 and weight[0, 0].numel() == 1:
        # Windows of one voxel never go to oneDNN, so that several inputs need as much each; the matrix is the input.
        own_kernel, each = False, max(each, _bytes(input))
    single = weight[0].numel() * output[:, 0].numel() * output.element_size() + _bytes(input) if own_kernel else each
    return single, each, _REORDERED_WEIGHTS * _bytes(weight)


def bytes_in_blocks(tensor: torch.Tensor) -> int:
    """Bytes of a copy whose channels come in whole blocks."""
    return _bytes(tensor) // tensor.shape[1] * -(-tensor.shape[1] // _BLOCK) * _BLOCK


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU's allocator, had no memory left (PyTorch has no one type for both)."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in words or "can't allocate memory" in words
