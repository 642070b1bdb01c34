"""What long work says while it runs: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True)
Item = TypeVar("Item")
# How often a log gets a line, at most.
_SECONDS_BETWEEN_LINES = 30.0


def tracked(
    items: Iterable[Item], description: str, *, shown: bool, total: int | None = None
) -> Generator[Item, None, None]:
    """Pass items on and say how many are done and what time remains (on standard error), where it is wanted.

    A terminal shows a bar; a file or a cluster's log gets a line every 30 seconds at most, and none for work that is
    shorter. `total` is how many there are, for items that do not know.
    """
    if not shown:
        yield from items
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            yield from progress.track(items, total=total, description=description)
    else:
        yield from _told(items, description, len(items) if total is None and isinstance(items, Sized) else total)


def _told(items: Iterable[Item], description: str, total: int | None) -> Generator[Item, None, None]:
    started = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last < _SECONDS_BETWEEN_LINES or done == total:
            continue
        last = now
        left = "" if total is None else f", about {(now - started) / done * (total - done):.0f} s to go"
        console.print(f"{description}: {done}{'' if total is None else f'/{total}'}{left}", highlight=False)
