"""Timing side by side: pairs of runs in turn, their ratio with its spread, and peak memory."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

Result = TypeVar("Result")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Memory that this process holds now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


@dataclass(eq=False)
class Run(Generic[Result]):
    """One timed run: what it gave, seconds, and by how much it raised the process's memory at its peak."""

    result: Result
    seconds: float
    peak_bytes: int


def timed(work: Callable[[], Result]) -> Run[Result]:
    """Run once, under a watch on memory that looks 100 times a second."""
    gc.collect()
    before, peak, done = resident_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], resident_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return Run(result, seconds, max(peak[0], resident_bytes()) - before)


@dataclass(eq=False)
class Paired:
    """Seconds per unit of work of two contestants, run in turn."""

    theirs: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    their_peak: int = 0
    our_peak: int = 0

    def add(self, theirs: Run, their_units: int, ours: Run, our_units: int) -> None:
        """One pair of runs, each divided by how much it did."""
        self.theirs.append(theirs.seconds / their_units)
        self.ours.append(ours.seconds / our_units)
        self.their_peak = max(self.their_peak, theirs.peak_bytes)
        self.our_peak = max(self.our_peak, ours.peak_bytes)

    @property
    def ratios(self) -> np.ndarray:
        """How many times faster ours was in each pair."""
        return np.array(self.theirs) / np.array(self.ours)

    def ratio(self) -> tuple[float, float, float]:
        """Median ratio, smallest, largest."""
        return float(np.median(self.ratios)), float(self.ratios.min()), float(self.ratios.max())
