"""The colours of maps and outlines, one set for the viewer and the static pictures.

Unsigned maps run along a part of matplotlib's inferno. Signed maps run from dark grey at zero to pale blue (against)
and pale orange (for the class), both arms with lightness rising in equal steps and equal at equal distance from zero,
so that they read the same to every eye and on every projector.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from voxplain.explanation import Explanation

# Told apart by lightness and by line (solid, dashed), not by hue alone.
MASK_COLOUR = "#4fe0ff"
TRUTH_COLOUR = "#ffffff"

OPACITY = 0.75
_STEPS = 256
# Below this part of inferno colours drown in the scan's black.
_INFERNO_FROM = 0.2
_LIGHTNESS = (24.0, 90.0)
# Control points of a quadratic curve in the a*, b* plane of CIELAB, zero first.
_WARM = ((0.0, 0.0), (78.0, 50.0), (2.0, 48.0))
_COOL = ((0.0, 0.0), (14.0, -84.0), (-20.0, -16.0))


@dataclass(frozen=True)
class Scale:
    """How a map is coloured: `peak` is the value of the last colour, `threshold` where the map begins to fade.

    Values below the threshold fade with the square of their distance to zero, so that nothing is cut off unseen.
    `diverging` maps are coloured on both sides of zero, out to -peak and peak.
    """

    peak: float
    threshold: float
    diverging: bool


def scale_of(values: np.ndarray, *, signed: bool) -> Scale:
    """The scale of a map of any shape: symmetric about zero where there are negative values, fading below 20 %."""
    diverging = signed or bool(values.min(initial=0) < 0)
    peak = float(np.abs(values).max(initial=0)) if diverging else float(values.max(initial=0))
    return Scale(peak, 0.2 * peak, diverging)


def scale_of_explanation(explanation: Explanation) -> Scale:
    """The scale of an explanation's map, summed over its channels."""
    return scale_of(explanation.total, signed=explanation.signed)


def colour_tables(scale: Scale) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours (256, 3) uint8 from zero to the peak, and those from zero to minus the peak where there are any."""
    return (_arm(_WARM), _arm(_COOL)) if scale.diverging else (_inferno(), None)


def overlay(values: np.ndarray, scale: Scale, opacity: float = OPACITY) -> np.ndarray:
    """Values of any shape as colours (..., 4), floats of 0 to 1; zero is clear."""
    positive, negative = colour_tables(scale)
    size = np.abs(values) if scale.diverging else np.maximum(values, 0)
    share = size / scale.peak if scale.peak > 0 else np.zeros_like(size)
    index = np.clip(share * (_STEPS - 1), 0, _STEPS - 1).astype(int)
    colours = positive[index] / 255
    if negative is not None:
        colours = np.where((values < 0)[..., None], negative[index] / 255, colours)
    threshold = scale.threshold if scale.threshold > 0 else np.inf
    alpha = np.where(size >= threshold, opacity, opacity * np.minimum(size / threshold, 1) ** 2)
    return np.concatenate([colours, alpha[..., None]], axis=-1)


@cache
def _inferno() -> np.ndarray:
    # matplotlib takes longer to import than all the rest of voxplain's front door, and only reports need it.
    from matplotlib import colormaps

    return np.rint(colormaps["inferno"](np.linspace(_INFERNO_FROM, 1, _STEPS))[:, :3] * 255).astype(np.uint8)


@cache
def _arm(points: tuple[tuple[float, float], ...]) -> np.ndarray:
    from skimage.color import lab2rgb

    first, bend, last = (np.array(point) for point in points)
    along = np.linspace(0, 1, _STEPS)[:, None]
    hue = (1 - along) ** 2 * first + 2 * along * (1 - along) * bend + along**2 * last
    lightness = _LIGHTNESS[0] + along * (_LIGHTNESS[1] - _LIGHTNESS[0])
    return np.rint(lab2rgb(np.concatenate([lightness, hue], axis=1)) * 255).astype(np.uint8)
