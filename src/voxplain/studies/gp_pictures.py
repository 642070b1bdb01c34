"""Paper gp's figures, drawn from our own lines: histograms of Dice, confusion matrices, maps (002, figures 5 to 12).

Pictures of real slices stay in the folder of the study: scans must not be handed on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from voxplain import segment
from voxplain.explanation import Explanation
from voxplain.metrics.classification import confusion_matrix
from voxplain.scan import Labels
from voxplain.studies.gp_results import numbers

_POST_HOC = ("heat-map", "occlusion", "guided-backprop")


def histograms(lines: pd.DataFrame, path: Path, *, row: str = "heat-map/otsu") -> None:
    """How Dice is spread over the slices with tumour, one panel per network (002, figure 6)."""
    found = lines[(lines.row == row) & lines.dice.notna()]
    networks = list(dict.fromkeys(found.network))
    if not networks:
        return
    figure = Figure(figsize=(3 * len(networks), 2.6), layout="constrained")
    for place, network in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks, strict=True):
        dice = found.dice[found.network == network]
        place.hist(dice, bins=np.linspace(0, 1, 21), color="tab:blue")
        place.axvline(float(dice.median()), color="black", linewidth=1)
        place.set(title=f"{network}, {row}", xlabel=f"Dice (median {dice.median():.2f}, n = {len(dice)})")
        place.title.set_fontsize(8)
    figure.savefig(path, dpi=110)


def confusions(slices: pd.DataFrame, classes: Sequence[str], path: Path) -> None:
    """Confusion matrices, one panel per network: rows are labels, columns predictions (002, figure 7)."""
    networks = list(dict.fromkeys(slices.network))
    figure = Figure(figsize=(2.6 * len(networks), 2.6), layout="constrained")
    for place, network in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks, strict=True):
        its = slices[slices.network == network]
        matrix = confusion_matrix(numbers(its.label, classes), numbers(its.predicted, classes), classes=len(classes))
        place.imshow(matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
        for (label, predicted), count in np.ndenumerate(matrix):
            place.text(predicted, label, str(count), ha="center", va="center", fontsize=8)
        ticks = range(len(classes))
        place.set_xticks(ticks, classes, fontsize=6, rotation=30)
        place.set_yticks(ticks, classes, fontsize=6)
        place.set_title(network, fontsize=8)
    figure.savefig(path, dpi=110)


def maps_of_slice(pictures: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One slice: for each network its raw heat map, without negatives, and the mask (002, figures 5, 8, 9 and 12).

    In the mask white is right, blue too much, red missed. Networks without a heat map are left out.
    """
    shown = [one for one in pictures if "heat-map" in one["maps"]]
    if not shown:
        return
    figure = Figure(figsize=(9.6, 2.4 * len(shown)), layout="constrained")
    for row, one in zip(figure.subplots(len(shown), 4, squeeze=False), shown, strict=True):
        why: Explanation = one["maps"]["heat-map"]
        values, truth = why.total[..., 0].T, one["slice"].mask.data[..., 0].T > 0
        inside = Labels(one["slice"].scan.foreground(), why.grid)
        mask = segment.otsu(why, everywhere=True, mask=inside).data[..., 0].T > 0
        peak = float(np.abs(values).max()) or 1.0
        _image(row[0], one)
        row[1].imshow(values, cmap="RdBu", vmin=-peak, vmax=peak)
        row[2].imshow(np.maximum(values, 0), cmap="Blues", vmin=0, vmax=peak)
        colours = np.zeros((*truth.shape, 3))
        colours[mask & truth] = (1, 1, 1)
        colours[mask & ~truth] = (0.3, 0.5, 1)
        colours[~mask & truth] = (1, 0.3, 0.3)
        row[3].imshow(colours)
        for place, title in zip(row, (one["network"], "raw heat map", "negatives as 0", "Otsu mask"), strict=True):
            place.set_title(title, fontsize=8)
            place.set_axis_off()
    figure.savefig(path, dpi=110)


def post_hoc(pictures: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One slice, a row per network: the image with the mask's outline, heat map, post-hoc maps (002, figures 10, 11).

    Positive values are blue and negative ones red, as in the paper, each map to its own largest value.
    """
    figure = Figure(figsize=(2.4 * (len(_POST_HOC) + 1), 2.4 * len(pictures)), layout="constrained")
    axes = figure.subplots(len(pictures), len(_POST_HOC) + 1, squeeze=False)
    for row, one in zip(axes, pictures, strict=True):
        _image(row[0], one)
        row[0].set_title(one["network"], fontsize=8)
        for place, name in zip(row[1:], _POST_HOC, strict=True):
            place.imshow(one["slice"].scan.data[0, :, :, 0].T, cmap="gray")
            place.set_title(name, fontsize=8)
            if name in one["maps"]:
                values = one["maps"][name].total[..., 0].T
                peak = float(np.abs(values).max()) or 1.0
                place.imshow(values, cmap="RdBu", vmin=-peak, vmax=peak, alpha=0.6)
            else:
                place.text(0.5, 0.5, "none: opaque", transform=place.transAxes, ha="center", color="white", fontsize=8)
        for place in row:
            place.set_axis_off()
    figure.savefig(path, dpi=110)


def _image(place: Axes, one: Mapping[str, Any]) -> None:
    place.imshow(one["slice"].scan.data[0, :, :, 0].T, cmap="gray")
    if one["slice"].mask.data.any():
        place.contour(one["slice"].mask.data[..., 0].T, [0.5], colors="lime", linewidths=1)
