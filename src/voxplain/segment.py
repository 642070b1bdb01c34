"""From a map to a mask: Otsu, multi-Otsu, top ranks and a fixed threshold, for each judged region.

The rules that all four share:

- A region gets a mask only where the network called it positive; `everywhere=True` asks for all regions.
- Where the method scored parts, the values are the scores of the region's parts, each part counting once
  whatever its size, and the mask is every voxel of the parts that are kept. Otherwise the values are the
  voxels of `Explanation.total`.
- Only positive values of a signed map are evidence: negative ones count as 0.
- `mask` (labels; anything above 0 is inside) says which voxels count, usually the brain: parts that have no
  voxel inside are left out of the values, and no voxel outside is ever marked. By default every voxel of the
  region counts, air included, which draws a voxel-wise Otsu threshold towards 0.
- `smallest` (mm^3) drops connected components (26 neighbours) below that volume, `components` keeps the
  largest ones; both count within each region. Of components of equal size the one whose first voxel comes
  first (by X, then Y, then Z) counts as larger.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_multiotsu, threshold_otsu

from voxplain.errors import InputError
from voxplain.explanation import Explanation
from voxplain.scan import Labels

_NEIGHBOURS_26 = np.ones((3, 3, 3), dtype=bool)
_BINS = 256


def otsu(
    explanation: Explanation,
    *,
    smallest: float = 0.0,
    components: int | None = None,
    everywhere: bool = False,
    mask: Labels | None = None,
) -> Labels:
    """The parts, or voxels, above the Otsu threshold of their region.

    Args:
        explanation: the map.
        smallest: components below this volume, in mm^3, are dropped.
        components: how many connected components a region keeps, largest first; None keeps all.
        everywhere: regions that the network called negative get a mask too.
        mask: which voxels count, on the explanation's grid; None counts every voxel of the region.

    Returns:
        Labels (X, Y, Z) of 0 and 1 on the explanation's grid. Nothing is marked where no region is positive,
        where no voxel counts, or where all values are equal.

    Raises:
        InputError: an option is out of range, the mask lies on another grid, or no region is named.
    """
    return _segment(
        explanation,
        lambda values: _above(values, otsu_threshold(values)),
        smallest=smallest,
        components=components,
        everywhere=everywhere,
        mask=mask,
    )


def multi_otsu(
    explanation: Explanation,
    *,
    classes: int = 3,
    offset: float = 0.0,
    smallest: float = 0.0,
    components: int | None = None,
    everywhere: bool = False,
    mask: Labels | None = None,
) -> Labels:
    """The parts, or voxels, in the top class of the multi-Otsu thresholds of their region.

    Args:
        explanation: the map.
        classes: how many classes the values are split into, 2 to 5 (5 takes seconds).
        offset: subtracted from the top threshold, in the map's unit; what remains is at least 0 (002).
        smallest: components below this volume, in mm^3, are dropped.
        components: how many connected components a region keeps, largest first; None keeps all.
        everywhere: regions that the network called negative get a mask too.
        mask: which voxels count, on the explanation's grid; None counts every voxel of the region.

    Returns:
        Labels (X, Y, Z) of 0 and 1 on the explanation's grid. A region with fewer different values than
        classes (in 256 bins) is split by Otsu, with the same offset. Nothing is marked where no region is
        positive, where no voxel counts, or where all values are equal.

    Raises:
        InputError: an option is out of range, the mask lies on another grid, or no region is named.
    """
    if not 0 <= offset < np.inf:
        raise InputError(f"offset is a number of at least 0 in the map's unit; got {offset}")
    _check_classes(classes)

    def top_class(values: np.ndarray) -> np.ndarray:
        threshold = multi_otsu_threshold(values, classes=classes)
        return _above(values, None if threshold is None else max(threshold - offset, 0.0))

    return _segment(
        explanation,
        top_class,
        smallest=smallest,
        components=components,
        everywhere=everywhere,
        mask=mask,
    )


def top_ranks(
    explanation: Explanation,
    *,
    count: int = 1,
    smallest: float = 0.0,
    components: int | None = None,
    everywhere: bool = False,
    mask: Labels | None = None,
) -> Labels:
    """The parts with the highest scores of their region together (000, evaluation 3); ties by label number.

    Args:
        explanation: a map of parts.
        count: how many parts are taken in each region; fewer where fewer have a score above 0.
        smallest: components below this volume, in mm^3, are dropped.
        components: how many connected components a region keeps, largest first; None keeps all.
        everywhere: regions that the network called negative get a mask too.
        mask: which voxels count, on the explanation's grid; None counts every voxel of the region.

    Returns:
        Labels (X, Y, Z) of 0 and 1 on the explanation's grid. Nothing is marked where no region is positive,
        where no part has a score above 0, or where two or more parts all have the same score (nothing is
        ranked then).

    Raises:
        InputError: the map is voxel-wise, an option is out of range, the mask lies on another grid, or no
            region is named.
    """
    if explanation.parts is None:
        raise InputError(
            "ranks need a method that scores parts, such as RelevanceMap or LIME; this map is voxel-wise: "
            "use otsu, multi_otsu or fixed"
        )
    if count < 1:
        raise InputError(f"count is how many ranks are taken, at least 1; got {count}")

    def highest(scores: np.ndarray) -> np.ndarray:
        kept = np.zeros(len(scores), dtype=bool)
        if len(scores) > 1 and np.ptp(scores) == 0:
            return kept
        kept[np.argsort(-scores, kind="stable")[:count]] = True
        return kept & (scores > 0)

    return _segment(
        explanation,
        highest,
        smallest=smallest,
        components=components,
        everywhere=everywhere,
        mask=mask,
    )


def fixed(
    explanation: Explanation,
    *,
    threshold: float,
    smallest: float = 0.0,
    components: int | None = None,
    everywhere: bool = False,
    mask: Labels | None = None,
) -> Labels:
    """The parts, or voxels, above one absolute threshold.

    Args:
        explanation: the map.
        threshold: in the map's unit (`Explanation.unit`); a value equal to it is not above it. At least 0 for
            signed maps, whose negative values are no evidence.
        smallest: components below this volume, in mm^3, are dropped.
        components: how many connected components a region keeps, largest first; None keeps all.
        everywhere: regions that the network called negative get a mask too.
        mask: which voxels count, on the explanation's grid; None counts every voxel of the region.

    Returns:
        Labels (X, Y, Z) of 0 and 1 on the explanation's grid. Nothing is marked where no region is positive
        or no voxel counts; where all values are equal, all or none of them lie above the threshold.

    Raises:
        InputError: an option is out of range, the mask lies on another grid, or no region is named.
    """
    if np.isnan(threshold) or (explanation.signed and threshold < 0):
        raise InputError(
            f"threshold is a number in the map's unit ({explanation.unit}), at least 0 for a signed map; "
            f"got {threshold}"
        )
    return _segment(
        explanation,
        lambda values: _above(values, float(threshold)),
        smallest=smallest,
        components=components,
        everywhere=everywhere,
        mask=mask,
    )


def otsu_threshold(values: np.ndarray) -> float | None:
    """The Otsu threshold of values of any shape: the highest value of the lower class, whose equals are not kept.

    Every cut between two different values is tried, without a histogram: a bin is wide enough to carry a part
    into the wrong class where there are few of them. None when there are no values, or all are equal.

    Raises:
        InputError: a value is NaN or infinite.
    """
    levels, counts = np.unique(_finite(values), return_counts=True)
    return float(threshold_otsu(hist=(counts, levels))) if len(levels) > 1 else None


def multi_otsu_threshold(values: np.ndarray, *, classes: int = 3) -> float | None:
    """The highest multi-Otsu threshold of values of any shape: the highest value below the top class.

    The values are sorted into 256 bins of equal width between their lowest and highest. Where fewer bins than
    classes hold a value it is the Otsu threshold; None when there are no values, or all are equal.

    Raises:
        InputError: a value is NaN or infinite, or classes is not 2 to 5.
    """
    _check_classes(classes)
    values = _finite(values)
    if values.size == 0 or values.min() == values.max():
        return None
    share = (values - values.min()) / np.ptp(values)
    bins = np.minimum(share * _BINS, _BINS - 1).astype(int)
    held = np.bincount(bins) / values.size
    try:
        last = threshold_multiotsu(hist=(held, np.arange(_BINS)), classes=classes)[-1]
    except ValueError:
        return otsu_threshold(values)
    return float(values[bins <= last].max())


def _segment(
    explanation: Explanation,
    choose: Callable[[np.ndarray], np.ndarray],
    *,
    smallest: float,
    components: int | None,
    everywhere: bool,
    mask: Labels | None,
) -> Labels:
    """The one walk over regions: `choose` gets a region's values (n,) and returns which are kept, (n,)."""
    _check_shared(explanation, smallest, components, mask)
    voxel_volume = explanation.grid.voxel_volume
    result = np.zeros(explanation.grid.shape, dtype=bool)
    for region in explanation.regions:
        if not (region.positive or everywhere):
            continue
        box = region.slices
        inside = np.ones_like(result[box]) if mask is None else mask.data[box] > 0
        if explanation.parts is None or explanation.scores is None:
            found = np.zeros_like(inside)
            found[inside] = choose(_evidence(explanation, explanation.total[box][inside]))
        else:
            parts = explanation.parts.data[box]
            labels = np.unique(parts[inside])
            labels = labels[labels > 0]
            kept = labels[choose(_evidence(explanation, explanation.scores[labels - 1]))]
            found = inside & np.isin(parts, kept)
        result[box] |= _components(found, voxel_volume, smallest, components)
    return Labels(result, explanation.grid)


def _evidence(explanation: Explanation, values: np.ndarray) -> np.ndarray:
    return np.maximum(values, 0) if explanation.signed else values


def _above(values: np.ndarray, threshold: float | None) -> np.ndarray:
    return np.zeros(values.shape, dtype=bool) if threshold is None else values > threshold


def _components(found: np.ndarray, voxel_volume: float, smallest: float, components: int | None) -> np.ndarray:
    """The mask (X, Y, Z) without components below `smallest` mm^3, then its `components` largest."""
    if smallest == 0 and components is None:
        return found
    pieces, _ = ndimage.label(found, structure=_NEIGHBOURS_26)
    sizes = np.bincount(pieces.ravel())[1:]
    kept = np.argsort(-sizes, kind="stable")[:components]
    # A voxel of 1 mm whose affine was rounded may measure 0.9999999 mm^3.
    kept = kept[sizes[kept] * voxel_volume >= smallest * (1 - 1e-6)]
    return np.isin(pieces, kept + 1)


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64).ravel()
    if not np.isfinite(values).all():
        raise InputError("a threshold needs finite values; these hold NaN or infinity: leave those voxels out")
    return values


def _check_classes(classes: int) -> None:
    if not 2 <= classes <= 5:
        raise InputError(f"multi-Otsu splits into 2 to 5 classes; got {classes}")


def _check_shared(explanation: Explanation, smallest: float, components: int | None, mask: Labels | None) -> None:
    if not 0 <= smallest < np.inf:
        raise InputError(f"smallest is a volume in mm^3, at least 0; got {smallest}")
    if components is not None and components < 1:
        raise InputError(f"components is how many components are kept, at least 1, or None for all; got {components}")
    if not explanation.regions:
        raise InputError("a mask is made per judged region, and this explanation names none; give it its regions")
    difference = None if mask is None else explanation.grid.difference(mask.grid)
    if difference:
        raise InputError(f"the mask lies on another grid than the map: {difference}; bring it over with mask.on(grid)")
