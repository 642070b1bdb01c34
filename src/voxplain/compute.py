"""How to run, never what is computed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch

from voxplain.errors import InputError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size_in_words(size: int) -> str:
    """Bytes in a form that `Compute.memory` reads, rounded up: "1.4GB"."""
    unit = max((unit for unit in _UNITS if _UNITS[unit] <= max(1, size)), key=lambda unit: _UNITS[unit])
    amount = size / _UNITS[unit]
    return f"{math.ceil(amount * 10) / 10 if amount < 10 and unit else math.ceil(amount):g}{unit}B"


@dataclass(frozen=True)
class Compute:
    """How to run: recorded beside a result, never part of its identity.

    `device` is "auto" (the first CUDA device, else the CPU), "cpu", "cuda" or "cuda:N"; `memory` a limit such as "4GB"
    for what perturbed inputs, their activations and what the engine keeps may take on the device, beyond the loaded
    scan and network and a few volumes for the method's own maps; `threads` the CPU threads (all of PyTorch's own choice
    when None); `batch_size` fixes how many inputs run at a time (else it follows from `memory`); `engine` is "full"
    (every perturbed input runs whole), "incremental" (only what a perturbation can change is computed again; scores
    agree with full passes to rounding) or "auto" (incremental on the CPU wherever that saves more work than it costs);
    `dtype` is "float32", or "bfloat16", in which convolutions and linear layers then work,
    on weights rounded as they are used (not with engine "incremental"); `progress` shows bars.

    Raises:
        InputError: a value that cannot be read, or a device that is not there.
    """

    device: str = "auto"
    memory: str = "2GB"
    threads: int | None = None
    batch_size: int | None = None
    engine: str = "auto"
    dtype: str = "float32"
    progress: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise InputError(f"device is auto, cpu, cuda or cuda:N; got {self.device!r}")
        if self.device.startswith("cuda"):
            count = torch.cuda.device_count()
            wanted = int(self.device.partition(":")[2] or 0)
            if wanted >= count:
                raise InputError(f"device {self.device} is not there; CUDA devices found: {count}; use --device cpu")
        if self.engine not in ("auto", "full", "incremental"):
            raise InputError(f"engine is auto, full or incremental; got {self.engine!r}")
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"dtype is float32 or bfloat16; got {self.dtype!r}")
        # Folded norms and cut boxes round differently: in bfloat16 by more than what a part changes.
        if self.dtype == "bfloat16" and self.engine == "incremental":
            raise InputError("the incremental engine is exact in float32 only; bfloat16 needs engine full or auto")
        if self.memory_bytes < 1:
            raise InputError(f"memory must be more than nothing; got {self.memory!r}")
        for name, value in (("threads", self.threads), ("batch_size", self.batch_size)):
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1; got {value}")

    @property
    def memory_bytes(self) -> int:
        """The memory limit in bytes."""
        found = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?)i?B?\s*", self.memory, flags=re.IGNORECASE)
        try:
            if found is not None:
                return int(float(found[1]) * _UNITS[found[2].upper()])
        except (ValueError, OverflowError):
            pass
        raise InputError(f"memory is a size such as 4GB or 800MB; got {self.memory!r}")

    @property
    def torch_device(self) -> torch.device:
        """The device as PyTorch names it."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def precision(self) -> AbstractContextManager[object]:
        """What the network's passes run in, so that they work in `dtype`; it leaves the weights as they are."""
        return torch.autocast(self.torch_device.type, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Set the number of threads and switch a caller's own autocast off, and put both back."""
        before = torch.get_num_threads()
        try:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            # What passes run in is said by `dtype` alone, and recorded. Autocast keeps its 16-bit copies of the weights
            # until the outermost one ends, which is this one: a training within would run on the weights of its first
            # step for ever.
            with torch.autocast(self.torch_device.type, enabled=False, cache_enabled=False):
                yield
        finally:
            torch.set_num_threads(before)
