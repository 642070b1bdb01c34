"""The relevance papers' own figures (000, tables 1 to 5), to be printed beside ours.

Theirs are mean Dice over the 38 test scans (table 1: the 19 validation scans) of BraTS 2020 at 1 mm, for a ResNet-50
that tells high-grade from low-grade gliomas, without intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

_SEGMENTS = (50, 100, 250)
_FILLS = ("blank", "min", "max")
# 000, table 1: for each sequence blank, min, max, each with 50, 100 and 250 supervoxels.
_GRID = {
    "t1": (0.24, 0.27, 0.29, 0.13, 0.15, 0.17, 0.09, 0.1, 0.1),
    "t1ce": (0.27, 0.27, 0.29, 0.17, 0.19, 0.21, 0.1, 0.1, 0.1),
    "t2": (0.37, 0.4, 0.34, 0.21, 0.22, 0.24, 0.1, 0.1, 0.1),
    "flair": (0.33, 0.33, 0.32, 0.24, 0.22, 0.22, 0.1, 0.1, 0.1),
}
# 000, tables 3 and 4.
_RANKS = {"optimal": (0.31, 0.18, 0.10), "blank": (0.25, 0.07, 0.06)}
_TOGETHER = {"optimal": (0.31, 0.34, 0.32, 0.29, 0.25), "blank": (0.25, 0.22, 0.18, 0.16, 0.16)}
# 000, tables 2 and 5. How a region was taken from LIME's coefficients is not said: the figure stands beside the rows
# that may be meant. Grad-CAM is that of the last layer, best threshold.
_COMPARISON = {
    "relevance-map/blank/best-grouping": 0.40,
    "relevance-map/optimal/best-grouping": 0.45,
    "grad-cam/layer4/best-threshold": 0.11,
    "lime/otsu": 0.06,
    "lime/top-5": 0.06,
}
# 000, 3.2: AUC on the test scans (validation 0.86).
_AUC = 0.83


def grid_row(fill: str, channel: str, segments: int) -> str:
    """The name of a cell of the grid, "relevance-map/blank/t2/100"."""
    return f"relevance-map/{fill}/{channel}/{segments}"


def _by_rank(figures: Mapping[str, Sequence[float]], name: str) -> dict[str, float]:
    return {
        f"relevance-map/{fill}/{name}-{rank}": value
        for fill, values in figures.items()
        for rank, value in enumerate(values, start=1)
    }


def _cells() -> dict[str, float]:
    cells = [(fill, segments) for fill in _FILLS for segments in _SEGMENTS]
    return {
        f"{grid_row(fill, channel, segments)}/best-grouping": value
        for channel, values in _GRID.items()
        for (fill, segments), value in zip(cells, values, strict=True)
    }


def _printed(figures: Mapping[str, float]) -> Mapping[str, str]:
    return MappingProxyType({row: f"{value:.2f}" for row, value in figures.items()})


# Table of the study -> row -> the paper's figure, as text.
PAPER: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "classifier": _printed({"network": _AUC}),
        "best-grouping-grid": _printed(_cells()),
        "single-ranks": _printed(_by_rank(_RANKS, "rank")),
        "cumulative-ranks": _printed(_by_rank(_TOGETHER, "top")),
        "comparison": _printed(_COMPARISON),
    }
)
