"""Whether a map points at a known region: how much of it lies inside, and where its peak is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from voxplain.errors import InputError


def mass_inside(values: np.ndarray, mask: np.ndarray) -> float:
    """Share of a map's positive values that lies inside of a region, 0 to 1; negative values count as nothing.

    A map that says nothing of where has the share of the region's volume on average. NaN where no value is positive;
    0 where the region is empty.

    Args:
        values: the map, (X, Y, Z), any unit.
        mask: the region, (X, Y, Z), boolean.

    Raises:
        InputError: shapes differ, or a value is NaN or infinite.
    """
    values, mask = _aligned(values, mask)
    positive = np.clip(values, 0, None).astype(np.float64)
    total = positive.sum()
    return float(positive[mask].sum() / total) if total > 0 else np.nan


def peak_inside(values: np.ndarray, mask: np.ndarray) -> float:
    """The pointing game (Zhang 2018): 1 if the highest voxel lies inside of a region, else 0.

    Where several voxels are highest, the share of them inside. NaN for a map that is the same everywhere; 0 where the
    region is empty. Arguments and errors as for `mass_inside`.
    """
    values, mask = _aligned(values, mask)
    highest = _highest(values)
    return float(mask[highest].mean()) if highest is not None else np.nan


def peak_distance(values: np.ndarray, mask: np.ndarray, *, spacing: Sequence[float]) -> float:
    """Distance in mm from a map's highest voxel to a region's nearest voxel, 0 inside.

    Where several voxels are highest, the mean over them. NaN for a map that is the same everywhere, and where the
    region is empty. Arguments and errors as for `mass_inside`; `spacing` is the size of a voxel in mm.
    """
    values, mask = _aligned(values, mask)
    highest = _highest(values)
    if highest is None or not mask.any():
        return np.nan
    return float(ndimage.distance_transform_edt(~mask, sampling=tuple(spacing))[highest].mean())


def _highest(values: np.ndarray) -> np.ndarray | None:
    """Where a map is highest, boolean; None where it is the same everywhere."""
    if not values.size or values.max() == values.min():
        return None
    found: np.ndarray = values == values.max()
    return found


def _aligned(values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, mask = np.asarray(values), np.asarray(mask) > 0
    if values.shape != mask.shape:
        raise InputError(f"a map and a region lie on one grid; got {values.shape} and {mask.shape}")
    if not np.isfinite(values).all():
        raise InputError("the map holds NaN or infinity: mend it first")
    return values, mask
