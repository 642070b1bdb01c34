"""How well a mask, a ranking of parts or a map agrees with an expert's mask.

`best_grouping`, `best_threshold` and `supervoxel_ceiling` look at the scored case's own expert mask to
choose: their figures are of kind `oracle`, and bound what a deployable rule can reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from voxplain.errors import InputError


class BestGrouping(NamedTuple):
    """The best Dice of the highest ranks together (`dice`), and how many ranks those are (`ranks`)."""

    dice: float
    ranks: int


class BestThreshold(NamedTuple):
    """The best Dice of `values > threshold` (`dice`), and that `threshold` in the map's unit."""

    dice: float
    threshold: float


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Dice coefficient 2 |A and B| / (|A| + |B|) of two boolean masks (X, Y, Z), 0 to 1.

    Both empty: 1.0. One empty: 0.0.

    Raises:
        InputError: the masks are not boolean, or differ in shape.
    """
    prediction, reference = _masks(prediction, reference)
    return float(_dice(np.sum(prediction & reference), np.sum(prediction), np.sum(reference)))


def hausdorff95(prediction: np.ndarray, reference: np.ndarray, *, spacing: Sequence[float]) -> float:
    """95 % Hausdorff distance of two boolean masks (X, Y, Z), in mm, at least 0.

    For each surface voxel (a mask voxel with a face towards the outside; the end of the array is outside) the
    distance to the other mask's nearest surface voxel; the 95th percentile in each direction; the larger of
    the two. Along an axis of one voxel, as in a 2D image, there is no outside.

    Both empty: 0.0. One empty: NaN, as there is no distance; say how many cases an average leaves out.

    Args:
        prediction: boolean (X, Y, Z).
        reference: boolean (X, Y, Z).
        spacing: voxel size in mm along X, Y and Z.

    Raises:
        InputError: the masks are not boolean, differ in shape or are not 3D, or spacing is not above 0.
    """
    prediction, reference = _masks(prediction, reference)
    if prediction.ndim != 3 or len(spacing) != 3 or not all(size > 0 for size in spacing):
        raise InputError(
            "a distance needs masks (X, Y, Z) and a voxel size above 0 mm for each axis; "
            f"got shape {prediction.shape} and spacing {tuple(spacing)}"
        )
    if not prediction.any() or not reference.any():
        return np.nan if prediction.any() or reference.any() else 0.0
    faces = ndimage.generate_binary_structure(3, 1)
    for axis, size in enumerate(prediction.shape):
        if size == 1:
            faces = faces.take([1], axis=axis)
    crop = ndimage.find_objects((prediction | reference).astype(np.uint8))[0]
    surfaces = [mask[crop] & ~ndimage.binary_erosion(mask[crop], faces) for mask in (prediction, reference)]
    directed = [
        np.percentile(ndimage.distance_transform_edt(~there, sampling=spacing)[here], 95)
        for here, there in (surfaces, surfaces[::-1])
    ]
    return float(max(directed))


def volume_error(prediction: np.ndarray, reference: np.ndarray, *, voxel_volume: float) -> float:
    """Volume of the prediction minus volume of the reference, boolean masks (X, Y, Z), in ml.

    Above 0 the prediction is too large. Both empty: 0.0. One empty: the other's volume, signed.

    Args:
        prediction: boolean (X, Y, Z).
        reference: boolean (X, Y, Z).
        voxel_volume: volume of a voxel in mm^3 (`Grid.voxel_volume`).

    Raises:
        InputError: the masks are not boolean, or differ in shape; or voxel_volume is not above 0.
    """
    prediction, reference = _masks(prediction, reference)
    if not voxel_volume > 0:
        raise InputError(f"voxel_volume is in mm^3 and above 0; got {voxel_volume}")
    return float((int(prediction.sum()) - int(reference.sum())) * voxel_volume / 1000)


def best_grouping(parts: np.ndarray, scores: np.ndarray, reference: np.ndarray) -> BestGrouping:
    """Best Dice, 0 to 1, of the k highest ranks together over all k (000, evaluation 1), and that k.

    Of equal Dice the smallest k is given. The group of no parts counts (k = 0): an empty reference gives
    (1.0, 0), a reference that no part touches, or no part at all, gives (0.0, 0).

    Args:
        parts: labels (X, Y, Z), 0 where there is no part. Labels without a voxel here take no rank.
        scores: one per label, (N,) for labels 1..N; the highest is rank 1, ties by label number.
        reference: boolean (X, Y, Z); its voxels outside all parts count as missed.

    Raises:
        InputError: shapes differ, reference is not boolean, a label has no score, or a score is NaN.
    """
    curve = _cumulative(*_ranked(parts, scores, reference), _reference_size(reference))
    ranks = int(np.argmax(curve))
    return BestGrouping(float(curve[ranks]), ranks)


def rank_dice(parts: np.ndarray, scores: np.ndarray, reference: np.ndarray, *, ranks: int = 5) -> np.ndarray:
    """Dice, 0 to 1, of each of the highest ranks alone (000, evaluation 2): (ranks,), rank 1 first.

    NaN for ranks beyond the number of parts, so all NaN without parts. An empty reference gives 0.0.

    Args:
        parts: labels (X, Y, Z), 0 where there is no part. Labels without a voxel here take no rank.
        scores: one per label, (N,) for labels 1..N; the highest is rank 1, ties by label number.
        reference: boolean (X, Y, Z).
        ranks: how many ranks.

    Raises:
        InputError: shapes differ, reference is not boolean, a label has no score, a score is NaN, or ranks is
            below 1.
    """
    _check_ranks(ranks)
    hits, sizes = _ranked(parts, scores, reference)
    alone = np.full(ranks, np.nan)
    found = min(ranks, len(sizes))
    alone[:found] = _dice(hits[:found], sizes[:found], _reference_size(reference))
    return alone


def cumulative_dice(parts: np.ndarray, scores: np.ndarray, reference: np.ndarray, *, ranks: int = 5) -> np.ndarray:
    """Dice, 0 to 1, of the highest ranks together (000, evaluation 3): (ranks,), entry k - 1 for ranks 1..k.

    With fewer parts than ranks the last entries are those of all parts. Without parts it is the Dice of an
    empty mask: 1.0 for an empty reference, else 0.0. An empty reference with parts gives 0.0.

    Args:
        parts: labels (X, Y, Z), 0 where there is no part. Labels without a voxel here take no rank.
        scores: one per label, (N,) for labels 1..N; the highest is rank 1, ties by label number.
        reference: boolean (X, Y, Z).
        ranks: how many ranks.

    Raises:
        InputError: shapes differ, reference is not boolean, a label has no score, a score is NaN, or ranks is
            below 1.
    """
    _check_ranks(ranks)
    curve = _cumulative(*_ranked(parts, scores, reference), _reference_size(reference))
    return curve[np.minimum(np.arange(1, ranks + 1), len(curve) - 1)]


def best_threshold(values: np.ndarray, reference: np.ndarray) -> BestThreshold:
    """Best Dice, 0 to 1, of `values > threshold` over all thresholds, with the highest such threshold.

    A threshold only ever cuts between different values; all voxels (threshold minus infinity) and no voxel
    (threshold the maximum) are among the choices, so an empty reference gives Dice 1.0 with nothing marked.
    No voxels at all: Dice 1.0 at minus infinity.

    Args:
        values: a map (X, Y, Z).
        reference: boolean (X, Y, Z).

    Raises:
        InputError: shapes differ, reference is not boolean, or a value is NaN.
    """
    values = np.asarray(values)
    _check_reference(reference, values.shape)
    if np.isnan(values).any():
        raise InputError("a threshold needs numbers; this map holds NaN: find the step that made them")
    order = np.argsort(values, axis=None)[::-1]
    falling = np.append(values.ravel()[order], -np.inf)
    hits = np.append(0, np.cumsum(reference.ravel()[order]))
    # A threshold can mark the n highest voxels where the next one is lower than the last of them.
    sizes = np.append(0, np.flatnonzero(falling[1:] < falling[:-1]) + 1)
    curve = _dice(hits[sizes], sizes, _reference_size(reference))
    best = int(np.argmax(curve))
    return BestThreshold(float(curve[best]), float(falling[sizes[best]]))


def supervoxel_ceiling(parts: np.ndarray, reference: np.ndarray) -> float:
    """The best Dice, 0 to 1, that any union of parts can reach: what the partition itself allows.

    Taking parts by their fraction inside the reference, highest first, passes through the best union, since a
    part raises Dice if and only if its fraction inside exceeds half the Dice that it joins.

    The union of no parts counts: an empty reference gives 1.0, any other without parts 0.0.

    Args:
        parts: labels (X, Y, Z), 0 where there is no part.
        reference: boolean (X, Y, Z).

    Raises:
        InputError: shapes differ, parts are not labels, or reference is not boolean.
    """
    hits, sizes = _overlaps(parts, reference)
    hits, sizes = hits[sizes > 0], sizes[sizes > 0]
    order = np.argsort(-hits / sizes, kind="stable")
    return float(_cumulative(hits[order], sizes[order], _reference_size(reference)).max())


def _dice(hits: np.ndarray, sizes: np.ndarray, reference_size: int) -> np.ndarray:
    """Dice from voxel counts of any shape; 1 where both masks are empty."""
    total = np.asarray(sizes) + reference_size
    return np.where(total == 0, 1.0, 2 * np.asarray(hits) / np.maximum(total, 1))


def _cumulative(hits: np.ndarray, sizes: np.ndarray, reference_size: int) -> np.ndarray:
    """Dice of the first k parts together, (N + 1,), k = 0 first."""
    return _dice(np.append(0, np.cumsum(hits)), np.append(0, np.cumsum(sizes)), reference_size)


def _ranked(parts: np.ndarray, scores: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels inside the reference and voxels in all, of each part that has any, highest rank first."""
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1 or np.isnan(scores).any():
        raise InputError(f"scores are one number per label, (N,), none NaN; got shape {scores.shape}")
    hits, sizes = _overlaps(parts, reference)
    if len(sizes) > len(scores):
        raise InputError(f"every part needs a score: the highest label is {len(sizes)}, the scores are {len(scores)}")
    order = np.argsort(-scores[: len(sizes)], kind="stable")
    order = order[sizes[order] > 0]
    return hits[order], sizes[order]


def _overlaps(parts: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For labels 1 to the highest: voxels inside the reference, and voxels in all."""
    parts = np.asarray(parts)
    if not np.issubdtype(parts.dtype, np.integer) or (parts.size and parts.min() < 0):
        raise InputError(f"parts are whole-number labels of at least 0; got an array of {parts.dtype}")
    _check_reference(reference, parts.shape)
    sizes = np.bincount(parts.ravel(), minlength=1)
    hits = np.bincount(parts[reference], minlength=len(sizes))
    return hits[1:], sizes[1:]


def _masks(prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    if prediction.dtype != bool:
        raise InputError(f"a prediction is a boolean mask, such as labels.data > 0; got {prediction.dtype}")
    _check_reference(reference, prediction.shape)
    return prediction, reference


def _check_reference(reference: np.ndarray, shape: tuple[int, ...]) -> None:
    if reference.dtype != bool:
        raise InputError(f"a reference is a boolean mask, such as labels.data > 0; got {reference.dtype}")
    if reference.shape != shape:
        raise InputError(f"both arrays lie on one grid; got shape {shape} against the reference's {reference.shape}")


def _check_ranks(ranks: int) -> None:
    if ranks < 1:
        raise InputError(f"ranks is how many ranks are measured, at least 1; got {ranks}")


def _reference_size(reference: np.ndarray) -> int:
    return int(np.count_nonzero(reference))
