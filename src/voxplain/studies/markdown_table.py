"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table_line(cells: Sequence[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"
