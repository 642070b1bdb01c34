"""Whether a map points at a known region: how much of it lies inside, and where its peak is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from voxplain.errors import InputError

# What `place_of_evidence` calls in, beside and away.
_FEW = 8
_HALF, _TIMES_ITS_SHARE, _BESIDE_MM = 0.5, 2.0, 10.0


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
    peaks = np.argwhere(highest)
    if len(peaks) > _FEW:
        return float(ndimage.distance_transform_edt(~mask, sampling=tuple(spacing))[highest].mean())
    # From few voxels it is quicker to look at each of the region's than to find every voxel's distance to it.
    there = np.argwhere(mask) * np.asarray(spacing)
    return float(np.mean([np.sqrt(((there - peak * np.asarray(spacing)) ** 2).sum(axis=1).min()) for peak in peaks]))


def place_of_evidence(
    values: np.ndarray, mask: np.ndarray, *, inside: np.ndarray, spacing: Sequence[float]
) -> str | None:
    """Where a map's evidence lies: "in" a region, "beside" it, or "away" from it; None where that cannot be said.

    "in": of the way from the region's share of the head to all of it, the share of the positive values that lies in the
    region goes half or more (of a small region: half of them lie there); or the highest voxel lies there, and the
    region holds twice its share of them or more. "beside": the highest voxel lies at most 10 mm from the region.
    "away": all else. None where no value is positive, the map is the same everywhere, or the region is empty.

    Args:
        values: the map, (X, Y, Z), any unit.
        mask: the region, (X, Y, Z), boolean.
        inside: the head, (X, Y, Z), boolean: of its volume the region has a share, which is what it would hold of a map
            that says nothing.
        spacing: the size of a voxel in mm.

    Raises:
        InputError: shapes differ, or a value is NaN or infinite.
    """
    values, mask = _aligned(values, mask)
    _, inside = _aligned(values, inside)
    mass = mass_inside(values, mask)
    distance = peak_distance(values, mask, spacing=spacing)
    if np.isnan(mass) or np.isnan(distance):
        return None
    share = float(mask.sum()) / float((inside | mask).sum())
    if mass - share >= _HALF * (1 - share) or (distance == 0 and mass >= _TIMES_ITS_SHARE * share):
        return "in"
    return "beside" if distance <= _BESIDE_MM else "away"


def mass_on_empty_slices(values: np.ndarray, mask: np.ndarray, *, inside: np.ndarray, axis: int) -> dict[str, float]:
    """How a map behaves on slices of the head that hold nothing of a region (003, V.D looks at them, unmeasured).

    Args:
        values: the map, (X, Y, Z), any unit.
        mask: the region, (X, Y, Z), boolean.
        inside: the head, (X, Y, Z), boolean; slices outside of it do not count.
        axis: that across the slices.

    Returns:
        "slices": how many slices of the head hold nothing of the region; "of": how many it has; "mass": the share of
        the map's positive values on them; "volume": their share of the head, which is what a map that says nothing
        has there; "peak": their highest value as a share of the map's. NaN where no value is positive.

    Raises:
        InputError: shapes differ, or a value is NaN or infinite.
    """
    values, mask = _aligned(values, mask)
    _, inside = _aligned(values, inside)
    others = tuple(other for other in range(3) if other != axis)
    head = inside.any(axis=others)
    empty = head & ~mask.any(axis=others)
    positive = np.where(inside, np.clip(values, 0, None), 0).astype(np.float64)
    along, highest = positive.sum(axis=others), positive.max(axis=others)
    total, peak = along.sum(), highest.max(initial=0)
    return {
        "slices": float(empty.sum()),
        "of": float(head.sum()),
        "mass": float(along[empty].sum() / total) if total > 0 else np.nan,
        "volume": float(inside.sum(axis=others)[empty].sum() / max(1, inside.sum())),
        "peak": float(highest[empty].max(initial=0) / peak) if peak > 0 else np.nan,
    }


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
