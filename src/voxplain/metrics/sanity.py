"""Does the map speak of the network at all? Its likeness to maps of networks that know nothing (Adebayo 2018)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from voxplain.errors import InputError
from voxplain.explanation import Explanation
from voxplain.metrics.verdict import Verdict
from voxplain.model import Model
from voxplain.randomisation import Randomised, cascade
from voxplain.scan import Scan

# What makes a map of a model on a scan: an explainer, perhaps with its target and seed bound.
Explain = Callable[[Model, Scan], Explanation]

# At a rank correlation of 0.5 two maps have a quarter of the variance of their ranks in common.
THRESHOLD = 0.5
# Values of a map closer to each other than this share of the true map's peak are rounding, and have no ranks.
_ROUNDING = 1e-6


class Similarity(NamedTuple):
    """Spearman correlations of two maps, -1 to 1: of their values, and of their absolute values."""

    values: float
    absolute: float


@dataclass(frozen=True)
class Step:
    """Likeness of the map to that of a network that is random from the output back to `layer`, by region.

    Regions where that network's map is the same everywhere are in `flat`, and have a similarity of 0: it ranks nothing.
    """

    layer: str
    complete: bool
    similarity: dict[str, Similarity]
    flat: tuple[str, ...] = ()


@dataclass(frozen=True)
class WeightRandomisation:
    """How a map changes while its network forgets, layer by layer from the output; `steps` in that order."""

    steps: tuple[Step, ...]
    threshold: float = THRESHOLD

    @property
    def complete(self) -> dict[str, Similarity]:
        """Likeness to maps of fully random networks by region, 0 to 1 for `values`: the mean size of the correlations.

        The size, as a map turned into its negative shows the same places. Draws whose map is flat are left out.
        """
        found: dict[str, list[Similarity]] = {}
        for step in self.steps:
            for region, similarity in step.similarity.items():
                if step.complete and region not in step.flat:
                    found.setdefault(region, []).append(similarity)
        return {
            region: Similarity(
                float(np.mean([abs(draw.values) for draw in draws])), float(np.mean([draw.absolute for draw in draws]))
            )
            for region, draws in found.items()
        }

    @property
    def verdict(self) -> Verdict:
        """Passed where the likeness to fully random networks' maps lies below the threshold in every region."""
        if not self.steps:
            return Verdict("not tested", "the network has no weights that could be drawn anew")
        if not any(step.similarity for step in self.steps):
            return Verdict(
                "not tested",
                "the map is the same everywhere, or has fewer than two parts, so it has no ranks to compare",
            )
        if not self.complete:
            return Verdict("not tested", "networks with random weights give a map that is the same everywhere")
        return _below(self.complete, self.threshold, "a network that knows nothing")


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman rank correlation of two arrays of one shape, -1 to 1; ties share their mean rank.

    0.0 where either is the same everywhere: it ranks nothing. NaN with fewer than two values, so also without any.

    Raises:
        InputError: shapes differ, or a value is NaN or infinite.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape:
        raise InputError(f"a rank correlation needs two arrays of one shape; got {first.shape} and {second.shape}")
    if not np.isfinite(first).all() or not np.isfinite(second).all():
        raise InputError("maps are compared by rank, and these hold NaN or infinity: mend them first")
    if first.size < 2:
        return np.nan
    ranks = [rankdata(values.ravel()) for values in (first, second)]
    ranks = [values - values.mean() for values in ranks]
    size = float(np.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1])))
    return float(np.clip(ranks[0] @ ranks[1] / size, -1, 1)) if size > 0 else 0.0


def rank_similarity(first: Explanation, second: Explanation, *, scan: Scan) -> dict[str, Similarity]:
    """How alike two maps of one scan rank places, by region of the first: Spearman, -1 to 1.

    Over the scores of parts where both have the same parts, else over the voxels of the brain, of maps summed over
    their sequences. Regions with fewer than two parts or voxels, or where the first map is the same everywhere, are
    left out; a second map that is the same everywhere gives 0.

    Raises:
        InputError: the maps lie on different grids, name no regions, or hold NaN.
    """
    if difference := first.grid.difference(second.grid) or first.grid.difference(scan.grid):
        raise InputError(f"maps are compared on one grid, that of the scan; these differ: {difference}")
    if not first.regions:
        raise InputError("maps are compared region by region, and this explanation names none; give it its regions")
    found = {}
    for region, values in _values_by_region(first, second, scan).items():
        mine, others = values
        if mine.size >= 2 and np.ptp(mine) > 0:
            found[region] = Similarity(spearman(mine, others), spearman(np.abs(mine), np.abs(others)))
    return found


def weight_randomisation(
    explain: Explain,
    model: Model,
    scan: Scan,
    *,
    explanation: Explanation | None = None,
    networks: Iterable[Randomised] | None = None,
    threshold: float = THRESHOLD,
) -> WeightRandomisation:
    """Cascading weight randomisation (Adebayo 2018, 3.1): explain networks that forget, from the output backwards.

    The verdict rests on fully random networks: a map that still ranks places as theirs do speaks of the scan, not of
    what the network has learnt. The caller's network is never changed.

    Args:
        explain: makes a map of a model on a scan; it should draw the same samples each time (a seed).
        model: the trained model.
        scan: the scan.
        explanation: what `explain` gives for the trained model, where it is known already.
        networks: the networks that forget; by default what `cascade(model)` gives.
        threshold: Spearman correlation from which the maps are too much alike, above 0 to 1.

    Raises:
        InputError: a threshold outside of that, or what the explainer raises.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"threshold is a rank correlation above 0 and at most 1; got {threshold}")
    explanation = explain(model, scan) if explanation is None else explanation
    steps = []
    for network in cascade(model) if networks is None else networks:
        other = explain(network.model, scan)
        similarity = rank_similarity(explanation, other, scan=scan)
        rounding = _ROUNDING * float(np.abs(explanation.total).max())
        flat = tuple(
            region
            for region, (_, values) in _values_by_region(explanation, other, scan).items()
            if region in similarity and np.ptp(values) <= rounding
        )
        similarity |= {region: Similarity(0.0, 0.0) for region in flat}
        steps.append(Step(network.layer, network.complete, similarity, flat))
    return WeightRandomisation(tuple(steps), threshold)


def label_randomisation(
    explanation: Explanation, shuffled: Explanation, *, scan: Scan, threshold: float = THRESHOLD
) -> tuple[dict[str, Similarity], Verdict]:
    """Data randomisation (Adebayo 2018, 3.2): likeness to the map of a network that was trained on shuffled labels.

    Both maps are of the same explainer and scan; the second network has the same architecture and training, but its
    labels were shuffled, so that whatever it learnt says nothing of the class.

    Returns:
        Similarity by region, -1 to 1, and the verdict: passed below the threshold in every region, "not tested" where
        either map is the same everywhere.

    Raises:
        InputError: the maps lie on different grids, or the threshold is not above 0 and at most 1.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"threshold is a rank correlation above 0 and at most 1; got {threshold}")
    similarity = rank_similarity(explanation, shuffled, scan=scan)
    pairs = _values_by_region(explanation, shuffled, scan)
    similarity = {region: found for region, found in similarity.items() if np.ptp(pairs[region][1]) > 0}
    if not similarity:
        return {}, Verdict("not tested", "one of the maps is the same everywhere, so it has no ranks to compare")
    return similarity, _below(similarity, threshold, "a network trained on shuffled labels")


def _below(similarity: dict[str, Similarity], threshold: float, whose: str) -> Verdict:
    most = max(abs(found.values) for found in similarity.values())
    if most < threshold:
        return Verdict("passed", f"the map of {whose} ranks places differently: below {threshold:g}")
    return Verdict("failed", f"the map of {whose} ranks places much alike: not below {threshold:g}")


def _values_by_region(first: Explanation, second: Explanation, scan: Scan) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What is compared in each region of the first: scores of shared parts, or the voxels of the brain."""
    shared = (
        first.parts is not None and second.parts is not None and np.array_equal(first.parts.data, second.parts.data)
    )
    found = {}
    for region in first.regions:
        if shared:
            assert first.scores is not None
            assert second.scores is not None
            chosen = first.labels_in(region) - 1
            found[region.name] = (first.scores[chosen], second.scores[chosen])
        else:
            inside = scan.foreground()[region.slices]
            found[region.name] = (first.total[region.slices][inside], second.total[region.slices][inside])
    return found
