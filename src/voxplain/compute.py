"""How to run, never what is computed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from voxplain.errors import InputError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Compute:
    """How to run: recorded beside a result, never part of its identity.

    `device` is "auto" (the first CUDA device, else the CPU), "cpu", "cuda" or "cuda:N"; `memory` a limit for one
    batch of inputs and activations such as "4GB"; `threads` the CPU threads (all of PyTorch's own choice when None);
    `batch_size` fixes how many inputs run at a time (else it follows from `memory`); `engine` is "full" (every
    perturbed input runs whole) or "incremental" (only what a perturbation can change is computed again; scores agree
    with full passes to rounding); `progress` shows bars.

    Raises:
        InputError: a value that cannot be read, or a device that is not there.
    """

    device: str = "auto"
    memory: str = "2GB"
    threads: int | None = None
    batch_size: int | None = None
    engine: str = "full"
    progress: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise InputError(f"device is auto, cpu, cuda or cuda:N; got {self.device!r}")
        if self.device.startswith("cuda"):
            count = torch.cuda.device_count()
            wanted = int(self.device.partition(":")[2] or 0)
            if wanted >= count:
                raise InputError(f"device {self.device} is not there; CUDA devices found: {count}; use --device cpu")
        if self.engine not in ("full", "incremental"):
            raise InputError(f"engine is full or incremental; got {self.engine!r}")
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

    @contextmanager
    def running(self) -> Iterator[None]:
        """Set the number of threads, and put it back."""
        before = torch.get_num_threads()
        try:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            yield
        finally:
            torch.set_num_threads(before)
