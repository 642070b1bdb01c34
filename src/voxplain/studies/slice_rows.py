"""What needs no network on a slice: the rows beside every heat map of a 2D network.

For BraTS slices there is a fifth one, `voxplain.metrics.network_free.bright_flair`, on the slice or on its whole scan.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from voxplain.errors import InputError
from voxplain.segment import multi_otsu_threshold, otsu_threshold

SLICE_ROWS = ("intensity/otsu", "intensity/multi-otsu", "centre-disc", "random-map")

# A disc of this radius on a picture of this width holds much of what lies in the middle of a head.
_DISC_RADIUS = 30
_DISC_WIDTH = 256


def network_free_slice_masks(
    image: np.ndarray,
    *,
    threshold: Callable[[np.ndarray], float | None] = otsu_threshold,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The masks of `SLICE_ROWS`, bool (H, W) each, of one channel of a slice (H, W).

    `threshold` and `seed` are those of the random map: give the rule that makes masks of the heat maps beside it.
    """
    return {
        "intensity/otsu": otsu(image),
        "intensity/multi-otsu": multi_otsu(image),
        "centre-disc": centre_disc(image),
        "random-map": random_map(image, threshold=threshold, seed=seed),
    }


def otsu(image: np.ndarray) -> np.ndarray:
    """Pixels of a slice (H, W), in any unit, above its Otsu threshold over all pixels, air included: bool (H, W).

    Empty where all pixels are equal.

    Raises:
        InputError: the slice is not (H, W), or holds NaN or infinity.
    """
    return _above(image, otsu_threshold)


def multi_otsu(image: np.ndarray) -> np.ndarray:
    """Pixels of a slice (H, W) in the top one of its three multi-Otsu classes, air included: bool (H, W).

    Empty where all pixels are equal.

    Raises:
        InputError: the slice is not (H, W), or holds NaN or infinity.
    """
    return _above(image, multi_otsu_threshold)


def centre_disc(image: np.ndarray) -> np.ndarray:
    """A disc in the middle of a slice (H, W), bool (H, W): radius 30 where the shorter side is 256, in proportion.

    Raises:
        InputError: the slice is not (H, W).
    """
    _check(image)
    height, width = image.shape
    down, right = np.ogrid[:height, :width]
    distance = np.hypot(down - (height - 1) / 2, right - (width - 1) / 2)
    return np.asarray(distance <= _DISC_RADIUS * min(height, width) / _DISC_WIDTH)


def random_map(
    image: np.ndarray, *, threshold: Callable[[np.ndarray], float | None] = otsu_threshold, seed: int = 0
) -> np.ndarray:
    """A random map (each pixel 0 to 1, independent) of the size of a slice (H, W), through a threshold: bool (H, W).

    Args:
        image: the slice, of which only the size counts.
        threshold: from a map to the threshold that its mask lies above; None marks nothing.
        seed: the same seed draws the same map.

    Raises:
        InputError: the slice is not (H, W).
    """
    _check(image)
    return _above(np.random.default_rng(seed).random(image.shape), threshold)


def _above(image: np.ndarray, threshold: Callable[[np.ndarray], float | None]) -> np.ndarray:
    _check(image)
    cut = threshold(image)
    return np.zeros(image.shape, dtype=bool) if cut is None else image > cut


def _check(image: np.ndarray) -> None:
    if image.ndim != 2:
        raise InputError(f"expected one channel of a slice, (H, W); got shape {image.shape}; pick a channel first")
