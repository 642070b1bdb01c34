"""What the map of one lesion says: extremes, what speaks for and against, each sequence's share, and its reach.

Maps are signed and in their own unit (logit per intensity unit for Instance SmoothGrad); nothing is rescaled, so that
figures of lesions can be put beside each other (paper instance, 004, sections 2.5, 3.2 and 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from voxplain.errors import InputError

# 004, 2.5: values from -0.1 to 0.1 are left out of the distributions.
SMALL = 0.1
REACH_MM = 60.0


class Signed(NamedTuple):
    """Median and count of a map's values above a threshold, and of those below minus that threshold."""

    positive: float
    negative: float
    positive_count: int
    negative_count: int


def signed_medians(values: np.ndarray, *, small: float = SMALL) -> Signed:
    """Medians of the values above `small` and of those below -`small`, in the map's unit (004, 2.5 and 3.2).

    NaN, with a count of 0, where no value of that sign is left. For the inside of a lesion give `values[region]`.

    Args:
        values: of one sequence's map, any shape.
        small: values from -`small` to `small` are left out; at least 0.

    Raises:
        InputError: `small` is below 0.
    """
    if not 0 <= small < math.inf:
        raise InputError(f"small is the size of values that are left out, at least 0; got {small}")
    above, below = values[values > small], values[values < -small]
    return Signed(_median(above), _median(below), above.size, below.size)


def extremes(values: np.ndarray) -> tuple[float, float]:
    """Highest and lowest value of one sequence's map, in its unit (004, Fig. 11); NaN of no voxels."""
    return (float(values.max()), float(values.min())) if values.size else (np.nan, np.nan)


def channel_shares(values: np.ndarray) -> np.ndarray:
    """Each sequence's share of the map, (K,), 0 to 1: its sum of |values| over that of all sequences.

    NaN throughout for a map of zeros.

    Args:
        values: the maps, (K, X, Y, Z).
    """
    sums = np.abs(values.reshape(len(values), -1)).sum(axis=1, dtype=np.float64)
    total = sums.sum()
    return sums / total if total > 0 else np.full(len(values), np.nan)


def distance_profile(
    values: np.ndarray,
    region: np.ndarray,
    *,
    spacing: Sequence[float],
    step: float = 1.0,
    reach: float = REACH_MM,
) -> np.ndarray:
    """Mean |map|, summed over sequences, by distance from the lesion's border: (1 + reach / step,), in the map's unit.

    The first value is that of the lesion's own voxels; value d is of the voxels whose centre lies above (d - 1) and at
    most d steps away from the nearest centre of a lesion voxel. NaN where no voxel lies so far away.

    Args:
        values: the maps, (K, X, Y, Z).
        region: the lesion, boolean (X, Y, Z).
        spacing: voxel size in mm, along X, Y and Z.
        step: of the distance, in mm.
        reach: up to which distance, in mm.

    Raises:
        InputError: the lesion is empty or on another grid, or step or reach are no distances.
    """
    if values.ndim != 4 or values.shape[1:] != region.shape:
        raise InputError(
            f"expected maps (K, X, Y, Z) and a lesion (X, Y, Z) on one grid; got {values.shape} and {region.shape}"
        )
    if not region.any():
        raise InputError("the lesion has no voxel; a distance is from at least one")
    if not (0 < step <= reach < math.inf):
        raise InputError(f"step and reach are distances in mm, 0 < step <= reach; got {step} and {reach}")
    count = math.floor(reach / step + 1e-9)
    # No voxel within reach lies outside of this box, and distances to the lesion are the same in it.
    (around,) = ndimage.find_objects(region.astype(np.int8))
    box = tuple(
        slice(max(0, side.start - math.ceil(reach / size)), side.stop + math.ceil(reach / size))
        for side, size in zip(around, spacing, strict=True)
    )
    away = ndimage.distance_transform_edt(~region[box], sampling=spacing)
    shell = np.ceil(away / step - 1e-9).astype(np.int64).ravel()
    near = shell <= count
    strength = np.abs(values[(slice(None), *box)]).sum(axis=0, dtype=np.float64).ravel()
    counts = np.bincount(shell[near], minlength=count + 1)
    sums = np.bincount(shell[near], weights=strength[near], minlength=count + 1)
    return np.divide(sums, counts, out=np.full(count + 1, np.nan), where=counts > 0)


def fades_at(profile: np.ndarray, *, step: float = 1.0, share: float = 0.01) -> float:
    """The distance in mm beyond which a profile stays below a share of its peak, as of `distance_profile`.

    The outer border of the last shell that is not below. 0 where nothing outside of the lesion reaches the share; NaN
    for a map of zeros, and where the last shell that is known has not faded.

    Args:
        profile: (D,), the lesion itself first; NaN where there are no voxels.
        step: of the distance, in mm.
        share: of the peak, above 0 and below 1.

    Raises:
        InputError: `share` is no such share.
    """
    if not 0 < share < 1:
        raise InputError(f"share is above 0 and below 1, such as 0.01; got {share}")
    known = np.flatnonzero(~np.isnan(profile))
    peak = profile[known].max(initial=0)
    if peak <= 0:
        return np.nan
    last = int(known[profile[known] >= share * peak][-1])
    return np.nan if last == known[-1] else last * step


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if values.size else np.nan
