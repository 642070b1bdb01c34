"""One picture of an image, its map and its mask side by side, as the gp paper draws them (002, figure 5)."""

from __future__ import annotations

import io

import numpy as np

from voxplain.errors import InputError
from voxplain.explanation import Explanation
from voxplain.report.volumes import window_of
from voxplain.scan import Labels, Scan

_DPI = 100
_INCHES = 3.2


def heat_map_picture(scan: Scan, explanation: Explanation, mask: Labels) -> bytes:
    """The image, its map (red against the class, blue for it), the map's positive part and the mask, as a PNG file.

    All lie on the grid of a scan with Z = 1, whose first sequence is shown; X runs to the right and Y downwards. The
    map's colours are symmetric about 0, which is white.

    Raises:
        InputError: a scan that is no image, or a map or mask on another grid.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if scan.grid.shape[2] != 1:
        raise InputError(f"this picture is of an image (Z = 1); the scan is {scan.grid.shape}: use vx.report")
    for name, grid in (("map", explanation.grid), ("mask", mask.grid)):
        if difference := scan.grid.difference(grid):
            raise InputError(f"the {name} does not lie on the scan's grid: {difference}")
    image, total = scan.data[0, :, :, 0].T, explanation.total[:, :, 0].T
    low, high = window_of(image, image != 0)
    peak = float(np.abs(total).max()) or 1.0
    panels = (
        ("image", image, "gray", low, high),
        (f"map, {explanation.unit}", total, "RdBu", -peak, peak),
        ("positive part", np.maximum(total, 0), "Blues", 0.0, peak),
        ("mask" if mask.data.any() else "mask (empty)", mask.data[:, :, 0].T > 0, "gray", 0.0, 1.0),
    )
    height = np.clip(_INCHES * image.shape[0] * scan.grid.spacing[1] / (image.shape[1] * scan.grid.spacing[0]), 1, 12)
    figure = Figure(figsize=(_INCHES * len(panels), float(height) + 0.9), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (title, values, colours, low, high) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        drawn = axis.imshow(
            values,
            cmap=colours,
            vmin=low,
            vmax=high,
            interpolation="nearest",
            aspect=scan.grid.spacing[1] / scan.grid.spacing[0],
        )
        axis.set_title(title, fontsize=10, parse_math=False)
        axis.set_axis_off()
        axis.set_anchor("N")
        if colours in ("RdBu", "Blues"):
            figure.colorbar(drawn, ax=axis, orientation="horizontal", shrink=0.8, pad=0.02)
    target = io.BytesIO()
    figure.savefig(target, format="png", facecolor="white", metadata={"Software": None})
    return target.getvalue()
