"""Static three-plane pictures: a scan, its map, and the outlines of masks, for print and for pages without a viewer."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from skimage.measure import find_contours

from voxplain.errors import InputError
from voxplain.explanation import Explanation
from voxplain.report.colours import MASK_COLOUR, TRUTH_COLOUR, Scale, colour_tables, overlay, scale_of_explanation
from voxplain.report.places import Voxel, most_relevant
from voxplain.report.volumes import View, view_of, window_of
from voxplain.scan import Labels, Scan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Which axes of a RAS volume run across and up each picture, and the letters at its left, right, top and bottom.
# Radiological: the patient's right is on the picture's left.
_PLANES = {
    "axial": (0, 1, "RLAP"),
    "coronal": (0, 2, "RLSI"),
    "sagittal": (1, 2, "APSI"),
}
_DPI = 100
_DASHES = (4.0, 2.2)
_INK, _MUTED = "#f2f4f7", "#aeb8c4"


def planes(
    scan: Scan,
    explanation: Explanation | None = None,
    mask: Labels | None = None,
    truth: Labels | None = None,
    channel: str | None = None,
    *,
    at: Voxel | None = None,
    width: int = 1500,
) -> bytes:
    """An axial, a coronal and a sagittal slice side by side, as a PNG file of `width` pixels.

    The map lies over the sequence `channel` (the first by default), the mask's outline is solid, that of the expert
    mask dashed; all lie on the scan's grid. `at` is the voxel of the scan through which the slices go, by default the
    most relevant place. Radiological: the patient's right is on the left. An image with Z = 1 gives one picture.

    Raises:
        InputError: an image lies on another grid, the scan has no such sequence, or the voxel is outside of it.
    """
    for name, image in (("map", explanation), ("mask", mask), ("expert mask", truth)):
        if image is not None and (difference := scan.grid.difference(image.grid)):
            raise InputError(f"the {name} does not lie on the scan's grid: {difference}")
    if at is None:
        at = _default_place(scan, explanation, mask)
    if not all(0 <= i < size for i, size in zip(at, scan.grid.shape, strict=True)):
        raise InputError(f"the slices go through a voxel of the scan, of shape {scan.grid.shape}; got {at}")
    view = view_of(scan, mask, truth)
    centre = np.clip(view.voxel(at), 0, np.array(view.grid.shape) - 1)
    foreground = scan.foreground()
    values = scan.channel(channel or scan.channels[0])
    low, high = window_of(values, foreground)
    grey = np.clip((view.take(values).astype(np.float64) - low) / (high - low), 0, 1)
    if not foreground.all():
        grey = np.where(view.take(foreground), grey, 0)
    scale = None if explanation is None else scale_of_explanation(explanation)
    colours = None
    if explanation is not None and scale is not None:
        colours = overlay(view.take(explanation.total), scale)
    figure, axes = _panels(view, width, bar=scale is not None)
    for name, axis in axes.items():
        across, up, letters = _PLANES[name]
        through = 3 - across - up
        _draw_slice(axis, grey, colours, view, name, centre)
        for labels, colour, dashes in ((mask, MASK_COLOUR, None), (truth, TRUTH_COLOUR, _DASHES)):
            if labels is not None:
                outline = np.take(view.take(labels.data) > 0, centre[through], axis=through)
                _draw_outline(axis, outline, _shape_mm(view, across, up), colour, dashes)
        for letter, x, y in zip(letters, (0.02, 0.98, 0.5, 0.5), (0.5, 0.5, 0.985, 0.015), strict=True):
            axis.text(
                x,
                y,
                letter,
                transform=axis.transAxes,
                color=_MUTED,
                fontsize=11,
                ha="center" if x == 0.5 else "left" if x < 0.5 else "right",
                va="center" if y == 0.5 else "top" if y > 0.5 else "bottom",
            )
    if explanation is not None and scale is not None:
        _draw_bar(figure, scale, explanation.unit)
    _draw_legend(figure, view, centre, channel or scan.channels[0], mask, truth)
    target = io.BytesIO()
    figure.savefig(target, format="png", facecolor="black", metadata={"Software": None})
    return target.getvalue()


def _default_place(scan: Scan, explanation: Explanation | None, mask: Labels | None) -> Voxel:
    if explanation is not None:
        return most_relevant(explanation, mask)
    x, y, z = (size // 2 for size in scan.grid.shape)
    if mask is not None and mask.data.any():
        x, y, z = (round(float(index.mean())) for index in np.nonzero(mask.data))
    return x, y, z


def _shape_mm(view: View, across: int, up: int) -> tuple[float, float]:
    return tuple(view.grid.shape[axis] * view.grid.spacing[axis] for axis in (across, up))  # type: ignore[return-value]


def _panels(view: View, width: int, *, bar: bool) -> tuple[Figure, dict[str, Axes]]:
    """A black figure with one pair of axes per plane, all at one scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    flat = [name for name, (across, up, _) in _PLANES.items() if view.grid.shape[3 - across - up] == 1]
    names = flat[:1] or list(_PLANES)
    sizes = {name: _shape_mm(view, *_PLANES[name][:2]) for name in names}
    gap, foot = width * 0.012, width * (0.075 if bar else 0.045)
    if len(names) == 1:
        width = min(width, 900)
    per_mm = (width - gap * (len(names) + 1)) / sum(across for across, _ in sizes.values())
    # A column of voxels must not make a picture of a hundred thousand lines.
    per_mm = min(per_mm, 2 * width / max(up for _, up in sizes.values()))
    height = max(up for _, up in sizes.values()) * per_mm + 2 * gap + foot
    gap = (width - sum(across for across, _ in sizes.values()) * per_mm) / (len(names) + 1)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="black")
    FigureCanvasAgg(figure)
    axes, left = {}, gap
    for name, (across, up) in sizes.items():
        bottom = foot + (height - foot - up * per_mm) / 2
        axes[name] = figure.add_axes((left / width, bottom / height, across * per_mm / width, up * per_mm / height))
        axes[name].axis("off")
        left += across * per_mm + gap
    return figure, axes


def _draw_slice(
    axis: Axes, grey: np.ndarray, colours: np.ndarray | None, view: View, name: str, centre: np.ndarray
) -> None:
    across, up, _ = _PLANES[name]
    through = 3 - across - up
    wide, high = _shape_mm(view, across, up)

    def turned(volume: np.ndarray) -> np.ndarray:
        # Columns run across, rows downwards.
        image = np.swapaxes(np.take(volume, centre[through], axis=through), 0, 1)[::-1]
        # The patient's right, and the face, come first.
        return image[:, ::-1]

    extent: Any = (0, wide, 0, high)
    axis.imshow(turned(grey), cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="bilinear")
    if colours is not None:
        axis.imshow(turned(colours), extent=extent, interpolation="nearest")
    place = [(centre[i] + 0.5) * view.grid.spacing[i] for i in (across, up)]
    x = wide - place[0]
    tick = 0.035 * max(wide, high)
    for start, stop in (((x, x), (0, tick)), ((x, x), (high - tick, high))):
        axis.plot(start, stop, color=_MUTED, linewidth=0.8)
    for start, stop in (((0, tick), (place[1], place[1])), ((wide - tick, wide), (place[1], place[1]))):
        axis.plot(start, stop, color=_MUTED, linewidth=0.8)
    axis.set_xlim(0, wide)
    axis.set_ylim(0, high)


def _draw_outline(
    axis: Axes, inside: np.ndarray, size: tuple[float, float], colour: str, dashes: tuple[float, float] | None
) -> None:
    from matplotlib.patheffects import Normal, Stroke

    step = np.array(size) / inside.shape
    for contour in find_contours(np.pad(inside, 1).astype(float), 0.5):
        across, up = ((contour - 1 + 0.5) * step).T
        axis.plot(
            size[0] - across,
            up,
            color=colour,
            linewidth=1.6,
            linestyle="solid" if dashes is None else (0, dashes),
            path_effects=[Stroke(linewidth=3.2, foreground="black", alpha=0.55), Normal()],
        )


def _draw_bar(figure: Figure, scale: Scale, unit: str) -> None:
    """The colour bar with its ends in the map's unit, at the foot on the right."""
    positive, negative = colour_tables(scale)
    table = positive if negative is None else np.concatenate([negative[::-1], positive])
    inches = figure.get_size_inches() * _DPI
    height = 12 / inches[1]
    axis = figure.add_axes((0.62, 36 / inches[1], 0.36, height))
    axis.imshow(table[None], aspect="auto", extent=(-1 if scale.diverging else 0, 1, 0, 1))
    axis.set_yticks([])
    ends = ((-1, -scale.peak), (0, 0.0), (1, scale.peak)) if scale.diverging else ((0, 0.0), (1, scale.peak))
    axis.set_xticks([place for place, _ in ends], [f"{value:.3g}" for _, value in ends])
    for text, (place, _) in zip(axis.get_xticklabels(), ends, strict=True):
        text.set_horizontalalignment("right" if place == 1 else "center" if scale.diverging and place == 0 else "left")
    axis.tick_params(colors=_INK, labelsize=10, length=0, pad=4)
    for spine in axis.spines.values():
        spine.set_visible(False)
    figure.text(
        0.61, 36 / inches[1] + height / 2, unit, color=_INK, fontsize=11, ha="right", va="center", parse_math=False
    )


def _draw_legend(
    figure: Figure, view: View, centre: np.ndarray, channel: str, mask: Labels | None, truth: Labels | None
) -> None:
    """Sequence and place in mm, and what the outlines are, at the foot on the left."""
    from matplotlib.lines import Line2D

    height = float(figure.get_size_inches()[1]) * _DPI
    x, y, z = view.grid.world(centre)
    figure.text(
        0.012,
        44 / height,
        f"{channel}    x {x:.1f}   y {y:.1f}   z {z:.1f} mm",
        color=_INK,
        fontsize=11,
        va="center",
        parse_math=False,
    )
    left = 0.012
    for labels, words, colour, dashes in (
        (mask, "mask", MASK_COLOUR, None),
        (truth, "expert mask", TRUTH_COLOUR, _DASHES),
    ):
        if labels is None:
            continue
        figure.add_artist(
            Line2D(
                [left, left + 0.03],
                [20 / height, 20 / height],
                color=colour,
                linewidth=2,
                linestyle="solid" if dashes is None else (0, dashes),
            )
        )
        text = words if labels.data.any() else f"{words} (empty)"
        figure.text(left + 0.036, 20 / height, text, color=_INK, fontsize=11, va="center")
        left += 0.036 + 0.012 * len(text) + 0.02
