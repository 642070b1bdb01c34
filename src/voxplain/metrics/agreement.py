"""How alike several maps of one scan rank the same parts: what is left of a ranking when an option is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from voxplain.errors import InputError
from voxplain.explanation import Explanation
from voxplain.metrics.sanity import spearman

# Scores closer to each other than this share of the highest of all compared maps are rounding, and have no ranks.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Agreement:
    """How alike N maps rank the parts of one region: symmetric arrays (N, N), in the order of the maps.

    `correlation` holds Spearman rank correlations, -1 to 1; `overlap` the share, 0 to 1, of the `top` highest parts
    that two maps have in common, which is `top / parts` on average for two random rankings. `first` is the label of
    each map's highest part, 0 where it has none. NaN where there is nothing to compare: see `agreement`.
    """

    region: str
    parts: int
    top: int
    correlation: np.ndarray
    overlap: np.ndarray
    first: tuple[int, ...]


def top_overlap(first: np.ndarray, second: np.ndarray, *, k: int = 3) -> float:
    """Share of common parts among the k highest of two lists of scores (N,), 0 to 1; ties by position, first first.

    NaN where there are no more than k parts: all of them are among the k highest, whatever the scores.

    Raises:
        InputError: shapes differ, k is below 1, or a score is NaN or infinite.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise InputError(f"the overlap needs two lists of scores of one length; got {first.shape} and {second.shape}")
    if k < 1:
        raise InputError(f"k is the number of highest parts that are compared, at least 1; got {k}")
    if not np.isfinite(first).all() or not np.isfinite(second).all():
        raise InputError("parts are compared by rank, and these scores hold NaN or infinity: mend them first")
    if first.size <= k:
        return np.nan
    highest = [set(np.argsort(-scores, kind="stable")[:k].tolist()) for scores in (first, second)]
    return len(highest[0] & highest[1]) / k


def agreement(explanations: Sequence[Explanation], *, k: int = 3) -> list[Agreement]:
    """How alike maps of one scan rank the same parts, region by region: rank correlation and overlap of the k highest.

    Made for maps that differ in one option, such as the fill. Highest is most positive, as in `Explanation.ranks`;
    ties go by label number. A map whose scores are all equal in a region, up to rounding (1e-6 of the highest absolute
    score of all maps), ranks nothing there: its correlations and overlaps are NaN, the one with itself included. So
    are correlations in a region of fewer than two parts, and overlaps in one of no more than k.

    Raises:
        InputError: fewer than two maps, maps without parts, of other parts or other regions, k below 1, or scores that
            are NaN or infinite.
    """
    if len(explanations) < 2:
        raise InputError(f"agreement is between two maps or more; got {len(explanations)}")
    if k < 1:
        raise InputError(f"k is the number of highest parts that are compared, at least 1; got {k}")
    scores = _scores_of_the_same_parts(explanations)
    if not np.isfinite(scores).all():
        raise InputError("maps are compared by rank, and these scores hold NaN or infinity: mend them first")
    rounding = _ROUNDING * float(np.abs(scores).max(initial=0))
    found = []
    for region in explanations[0].regions:
        labels = explanations[0].labels_in(region)
        here = scores[:, labels - 1]
        ranked = [bool(len(labels)) and bool(np.ptp(values) > rounding) for values in here]
        correlation, overlap = (np.full((len(here), len(here)), np.nan) for _ in range(2))
        for index in np.flatnonzero(ranked):
            correlation[index, index] = 1.0
            overlap[index, index] = top_overlap(here[index], here[index], k=k)
        for a, b in combinations(np.flatnonzero(ranked).tolist(), 2):
            correlation[a, b] = correlation[b, a] = spearman(here[a], here[b])
            overlap[a, b] = overlap[b, a] = top_overlap(here[a], here[b], k=k)
        first = tuple(
            int(labels[np.argmax(values)]) if has_ranks else 0 for values, has_ranks in zip(here, ranked, strict=True)
        )
        found.append(Agreement(region.name, len(labels), min(k, len(labels)), correlation, overlap, first))
    return found


def _scores_of_the_same_parts(explanations: Sequence[Explanation]) -> np.ndarray:
    """The scores of all maps, (maps, parts)."""
    reference = explanations[0]
    if not reference.regions:
        raise InputError("maps are compared region by region, and this explanation names none; give it its regions")
    scores = []
    for explanation in explanations:
        if explanation.parts is None or explanation.scores is None or reference.parts is None:
            raise InputError("only maps of parts (such as a relevance map) can be compared part by part")
        if difference := reference.grid.difference(explanation.grid):
            raise InputError(f"maps are compared on one grid, that of the scan; these differ: {difference}")
        if not np.array_equal(reference.parts.data, explanation.parts.data):
            raise InputError(
                "maps are compared on the same parts, and these have others; "
                "make them with the same partition, segments, compactness, channel and mask"
            )
        if [(r.name, r.box) for r in explanation.regions] != [(r.name, r.box) for r in reference.regions]:
            raise InputError("maps are compared region by region, and these name other regions")
        scores.append(explanation.scores)
    return np.stack(scores)
