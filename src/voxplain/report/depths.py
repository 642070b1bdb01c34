"""The pictures of paper grading (003): segmentation, map and scan at several depths; and one map per layer."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from voxplain.errors import InputError
from voxplain.explanation import Explanation
from voxplain.report.colours import OPACITY, overlay, scale_of
from voxplain.report.volumes import View, view_of, window_of
from voxplain.scan import Labels, Scan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("uniform", "paper")
# Parts of a tumour, drawn over each other in this order: oedema, core, enhancing tumour. The paper has pure red, green
# and blue, which colour-blind readers cannot tell apart; ours are those of Okabe and Ito.
_PARTS = {"uniform": ("#d55e00", "#009e73", "#56b4e9"), "paper": ("#ff0000", "#00ff00", "#0000ff")}
_PART_NAMES = ("oedema", "non-enhancing", "enhancing")
_REGIONS = ("WT", "TC", "ET")
_PAPERS_TABLE = "jet"
_INCHES = 2.3
_DPI = 110
_INK, _BACK = "#f2f4f7", "black"


def depths_picture(
    scan: Scan,
    explanation: Explanation,
    regions: Mapping[str, Labels],
    *,
    title: str,
    depths: int = 3,
    channel: str | None = None,
    colours: str = "uniform",
) -> bytes:
    """Axial slices at several depths, a row each: segmentation, heat map, scan, map over the scan (003, fig. 1).

    The depths are spread over the whole tumour, or over the head where there is none. Radiological: the patient's right
    is on the left. A PNG file.

    Args:
        scan: the scan.
        explanation: the map, on the scan's grid.
        regions: masks WT, TC and ET on the scan's grid.
        title: what is shown.
        depths: how many slices.
        channel: the sequence that is shown; FLAIR by default, else the first.
        colours: "uniform" (perceptually uniform), or "paper" (dark blue to dark red; red, green and blue parts).

    Raises:
        InputError: an image on another grid, no such colours, or a scan of one slice.
    """
    view, grey = _seen(scan, explanation, regions, channel, colours)
    parts = np.zeros(view.grid.shape, dtype=int)
    for number, name in enumerate(_REGIONS, start=1):
        parts[view.take(regions[name].data) > 0] = number
    heat = view.take(explanation.total)
    columns = ("segmentation", "heat map", "scan", "heat map over the scan")
    levels = _levels(view, view.take(regions["WT"].data) > 0, grey > 0, depths)
    figure, axes = _panels(len(levels), len(columns), view)
    for row, level in enumerate(levels):
        flat = _axial(grey, level)
        pictures = (flat, np.zeros_like(flat), flat, flat)
        for column, picture in enumerate(pictures):
            axis = axes[row][column]
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect=_aspect(view), interpolation="bilinear")
            if row == 0:
                axis.set_title(columns[column], color=_INK, fontsize=9)
        axes[row][0].imshow(_painted(_axial(parts, level), colours), aspect=_aspect(view), interpolation="nearest")
        for column, alone in ((1, True), (3, False)):
            shown = _heated(_axial(heat, level), heat, colours, alone=alone)
            axes[row][column].imshow(shown, aspect=_aspect(view), interpolation="nearest")
        z = float(view.grid.world((0, 0, level))[2])
        axes[row][0].text(0.03, 0.04, f"z {z:.0f} mm", color=_INK, fontsize=8, transform=axes[row][0].transAxes)
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=name) for colour, name in zip(_PARTS[colours], _PART_NAMES, strict=True)]
    figure.legend(handles=handles, loc="lower left", ncols=3, frameon=False, labelcolor=_INK, fontsize=8)
    figure.text(0.99, 0.012, f"{title}; R is on the left", color=_INK, fontsize=8, ha="right", parse_math=False)
    return _png(figure)


def contact_sheet(
    scan: Scan,
    maps: Mapping[str, Explanation],
    *,
    tumour: Labels | None = None,
    channel: str | None = None,
    colours: str = "uniform",
) -> bytes:
    """One axial slice with each map over it, first block first, its name and the size of its cells in mm above.

    The slice is that in which the tumour is largest, or without one that of the first map's peak. A PNG file.

    Raises:
        InputError: no map, an image on another grid, no such colours, or a scan of one slice.
    """
    if not maps:
        raise InputError("a contact sheet shows at least one map; got none")
    first = next(iter(maps.values()))
    regions = {} if tumour is None else {"WT": tumour}
    view, grey = _seen(scan, first, regions, channel, colours)
    if tumour is not None and tumour.data.any():
        level = int((view.take(tumour.data) > 0).sum(axis=(0, 1)).argmax())
    else:
        level = int(view.take(first.total).max(axis=(0, 1)).argmax())
    columns = min(4, len(maps))
    figure, axes = _panels(-(-len(maps) // columns), columns, view, above=0.3)
    every = [axis for row in axes for axis in row]
    for axis, (name, why) in zip(every, maps.items(), strict=False):
        if difference := scan.grid.difference(why.grid):
            raise InputError(f"the map of {name} does not lie on the scan's grid: {difference}")
        heat = view.take(why.total)
        axis.imshow(_axial(grey, level), cmap="gray", vmin=0, vmax=1, aspect=_aspect(view), interpolation="bilinear")
        axis.imshow(_heated(_axial(heat, level), heat, colours, alone=False), aspect=_aspect(view))
        if tumour is not None:
            inside = _axial(view.take(tumour.data) > 0, level).astype(float)
            if inside.any():
                axis.contour(inside, levels=[0.5], colors="white", linewidths=0.9)
        # Of halves the cells are the same.
        facts = next(iter(why.provenance["facts"].values()))
        cells = " x ".join(f"{step:.1f}" for step in facts["layer_grid_mm"])
        axis.set_title(f"{name}\n{cells} mm", color=_INK, fontsize=8, parse_math=False)
    for axis in every[len(maps) :]:
        axis.set_visible(False)
    return _png(figure)


def _seen(
    scan: Scan, explanation: Explanation, regions: Mapping[str, Labels], channel: str | None, colours: str
) -> tuple[View, np.ndarray]:
    """The view of the scan and one of its sequences there, from 0 to 1."""
    if colours not in COLOURS:
        raise InputError(f"colours are {' or '.join(COLOURS)}; got {colours!r}")
    if scan.grid.shape[scan.grid.axis("SI")] == 1:
        raise InputError("depths are those of a volume; the scan has a single axial slice")
    grids = {"map": explanation.grid} | {name: region.grid for name, region in regions.items()}
    for name, grid in grids.items():
        if difference := scan.grid.difference(grid):
            raise InputError(f"the {name} does not lie on the scan's grid: {difference}")
    view, foreground = view_of(scan, *regions.values()), scan.foreground()
    values = scan.channel(channel or ("flair" if "flair" in scan.channels else scan.channels[0]))
    low, high = window_of(values, foreground)
    grey = np.clip((view.take(values).astype(np.float64) - low) / (high - low), 0, 1)
    return view, np.where(view.take(foreground), grey, 0)


def _levels(view: View, tumour: np.ndarray, head: np.ndarray, depths: int) -> list[int]:
    """Slices spread over the tumour, or over the head without one, from the top down."""
    inside = tumour if tumour.any() else head
    there = np.flatnonzero(inside.any(axis=(0, 1)))
    if not len(there):
        return [view.grid.shape[2] // 2]
    places = np.linspace(0, 1, depths + 2)[1:-1]
    chosen = {int(there[round(place * (len(there) - 1))]) for place in places}
    return sorted(chosen, reverse=True)


def _axial(volume: np.ndarray, level: int) -> np.ndarray:
    """A slice of a RAS volume as it is looked at: the face up, the patient's right on the left."""
    return np.swapaxes(volume[:, :, level], 0, 1)[::-1, ::-1]


def _aspect(view: View) -> float:
    return float(view.grid.spacing[1] / view.grid.spacing[0])


def _painted(parts: np.ndarray, colours: str) -> np.ndarray:
    from matplotlib.colors import to_rgba

    table = np.array([(0, 0, 0, 0), *(to_rgba(colour, OPACITY) for colour in _PARTS[colours])])
    found: np.ndarray = table[parts]
    return found


def _heated(values: np.ndarray, whole: np.ndarray, colours: str, *, alone: bool) -> np.ndarray:
    """A slice of a map as colours (..., 4); `alone` on nothing, else clear enough to see the scan through."""
    scale = scale_of(whole, signed=False)
    if colours == "uniform":
        return overlay(values, scale)
    from matplotlib import colormaps

    share = np.clip(values / scale.peak, 0, 1) if scale.peak > 0 else np.zeros(values.shape)
    found: np.ndarray = colormaps[_PAPERS_TABLE](share)
    found[..., 3] = 1.0 if alone else 0.45
    return found


def _panels(rows: int, columns: int, view: View, *, above: float = 0.0) -> tuple[Figure, np.ndarray]:
    """A black figure with so many axes for axial slices."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wide, high = (view.grid.shape[axis] * view.grid.spacing[axis] for axis in (0, 1))
    height = rows * (_INCHES * high / wide + above) + 0.5
    figure = Figure(figsize=(_INCHES * columns, height), dpi=_DPI, facecolor=_BACK)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=0.005, right=0.995, top=1 - (0.25 + above) / height, bottom=0.28 / height, wspace=0.02,
        hspace=0.02 + above / _INCHES,
    )  # fmt: skip
    for axis in axes.ravel():
        axis.axis("off")
    return figure, axes


def _png(figure: Figure) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format="png", facecolor=_BACK, metadata={"Software": None})
    return target.getvalue()
