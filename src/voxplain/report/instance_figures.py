"""Pictures of the instance study: violins of the maps' extremes by class, and curves of what context is worth."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 100
_COLOURS = {"TP": "#2a7f62", "FP": "#c8553d", "FN": "#d9a441", "TN": "#7a869a"}


def violins(groups: Sequence[tuple[str, Mapping[str, Mapping[str, np.ndarray]]]], unit: str) -> bytes:
    """Distributions of maxima and minima by class, a row of panels per group, as a PNG (004, Fig. 11).

    Args:
        groups: a title, and for "maximum" and "minimum" the values of each class; a class without any stays empty.
        unit: of the maps.
    """
    figure = _figure(9.0, 2.9 * max(1, len(groups)))
    axes = figure.subplots(max(1, len(groups)), 2, squeeze=False)
    for row, (title, extremes) in zip(axes, groups, strict=False):
        for axis, (name, classes) in zip(row, extremes.items(), strict=True):
            for place, (kind, values) in enumerate(classes.items(), start=1):
                if len(values) > 1 and np.ptp(values) > 0:
                    drawn = axis.violinplot([values], positions=[place], showextrema=False, widths=0.8)
                    for body in drawn["bodies"]:
                        body.set_facecolor(_COLOURS.get(kind, "grey"))
                axis.plot(np.full(len(values), place), values, ".", color=_COLOURS.get(kind, "grey"), markersize=3)
                if len(values):
                    axis.hlines(np.median(values), place - 0.3, place + 0.3, color="black")
            axis.set_xticks(range(1, len(classes) + 1), [f"{kind}\nn = {len(v)}" for kind, v in classes.items()])
            axis.set_title(f"{title}: {name}", fontsize=9, parse_math=False)
            axis.set_ylabel(unit, fontsize=8)
    return _png(figure)


def context_curves(sets: Sequence[tuple[str, pd.DataFrame]], threshold: float) -> bytes:
    """Lesions detected and their mean score by the distance that is shown, as a PNG (004, Fig. 13).

    Args:
        sets: a title, and a table with the columns mm, n, mean, sd (over lesions) and detected.
        threshold: of detection, drawn as a line.
    """
    figure = _figure(9.0, 3.4)
    counts, scores = figure.subplots(1, 2)
    for number, (title, lines) in enumerate(sets):
        colour = f"C{number}"
        total = int(lines["n"].max()) if len(lines) else 0
        if not total:
            continue
        counts.plot(lines["mm"], lines["detected"], color=colour, marker=".", label=f"{title} (n = {total})")
        scores.plot(lines["mm"], lines["mean"], color=colour, marker=".")
        spread = lines["sd"].fillna(0)
        scores.fill_between(lines["mm"], lines["mean"] - spread, lines["mean"] + spread, color=colour, alpha=0.2)
    scores.axhline(threshold, color="grey", linestyle=":")
    counts.set_ylabel("lesions detected")
    scores.set_ylabel("mean score, and its deviation over lesions")
    for axis in (counts, scores):
        axis.set_xlabel("mm shown around the lesion")
        axis.set_ylim(bottom=0)
    if counts.get_legend_handles_labels()[0]:
        counts.legend(fontsize=8)
    return _png(figure)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format="png", facecolor="white", metadata={"Software": None})
    return target.getvalue()
