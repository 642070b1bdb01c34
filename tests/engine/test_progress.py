"""What long work says: nothing unasked, lines in a log now and then, with what is left."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from voxplain.engine import progress


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A log file in place of a terminal, and a clock by which every item takes 20 seconds."""
    said = io.StringIO()
    clock = iter(range(0, 100_000, 20))
    monkeypatch.setattr(progress, "console", Console(file=said, width=80))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    return said


def test_a_log_gets_a_line_now_and_then(log: io.StringIO) -> None:
    assert list(progress.tracked("abcdef", "explaining", shown=True)) == list("abcdef")
    # 40, 80 and 120 seconds; the last item needs no line.
    assert log.getvalue().splitlines() == [
        "explaining: 2/6, about 80 s to go",
        "explaining: 4/6, about 40 s to go",
    ]


@pytest.mark.parametrize(("total", "said"), [(4, "making: 2/4, about 40 s to go\n"), (None, "making: 2\nmaking: 4\n")])
def test_items_that_do_not_know_how_many_they_are(log: io.StringIO, total: int | None, said: str) -> None:
    assert list(progress.tracked(iter(range(4)), "making", shown=True, total=total)) == [0, 1, 2, 3]
    assert log.getvalue() == said


def test_nothing_is_said_unasked(log: io.StringIO) -> None:
    assert list(progress.tracked(range(9), "explaining", shown=False)) == list(range(9))
    assert log.getvalue() == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=said, width=80, force_terminal=True))
    assert list(progress.tracked([1, 2], "explaining", shown=True)) == [1, 2]
    assert "explaining" in said.getvalue()
