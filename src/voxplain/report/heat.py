"""Tables whose cells are shaded by what they hold: numbers first, colour second, so that they read without colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class HeatCell:
    """A cell of a table: what it says, how deep its shade is (0 to 1), and whether the number is negative."""

    words: str
    shade: float
    negative: bool = False


@dataclass(frozen=True)
class HeatTable:
    """A table of shaded cells: its caption, what stands above the names of its rows, its columns and (name, cells)."""

    caption: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]


def heat_cell(value: float, words: str, *, peak: float = 1.0) -> HeatCell:
    """The cell of a number, as deep as its share of the peak; NaN has no shade and is said with a dash."""
    if np.isnan(value):
        return HeatCell("–", 0.0)
    shade = min(abs(value) / peak, 1.0) if peak > 0 else 0.0
    return HeatCell(words.replace("-", "−"), round(shade, 3), value < 0)
