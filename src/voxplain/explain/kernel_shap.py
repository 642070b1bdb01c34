"""KernelSHAP on parts: Shapley values by a weighted regression over coalitions (Lundberg 2017)."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from math import comb
from typing import ClassVar

import numpy as np

from voxplain.engine.probe import Probe
from voxplain.errors import InputError
from voxplain.explain.explainer import Relevance
from voxplain.explain.parts import PartsExplainer
from voxplain.explain.perturbation import features, scores_of_coalitions


@dataclass(frozen=True)
class KernelSHAP(PartsExplainer):
    """Shapley value of each part: its share in the score of the scan minus the score with all parts filled.

    A regression over coalitions of kept parts, weighted by the Shapley kernel, whose coefficients add up to that
    difference (Lundberg 2017, theorem 2). As many sizes of coalition as `samples` allow, from the smallest and the
    largest on, are run in full; of the rest, coalitions are drawn together with their complements. With 2^parts - 2
    samples or more every coalition is run, and the values are exact. Positive where a part speaks for the class. A
    part that its fill does not change has 0, as Shapley values must, and takes no part in the fit.
    """

    name: ClassVar[str] = "kernel-shap"
    cost: ClassVar[str] = "2 + one pass per different coalition (at most `samples`)"

    samples: int = field(default=1000, metadata={"help": "coalitions at most, besides the full and the empty one"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2:
            raise InputError(f"samples must be at least 2, a coalition and its complement; got {self.samples}")

    def _relevance(self, probe: Probe) -> Relevance:
        parts = self._parts(probe)
        known = features(probe, parts, self._fill())
        count = len(known.labels)
        if self.samples < 2 * count and self.samples < 2**count - 2:
            raise InputError(
                f"the Shapley values of {count} parts need at least {2 * count} samples; got {self.samples}: "
                "give more samples or fewer segments"
            )
        coalitions, weights = shapley_coalitions(count, self.samples, probe.rng)
        clean = probe.clean_score(self.scale)
        everything_filled = np.zeros((min(1, count), count), dtype=bool)
        scores = scores_of_coalitions(probe, known, np.concatenate([everything_filled, coalitions]), self.scale)
        # Differences, so that a score that never moves gives exact zeros.
        empty = float(scores[0]) if count else clean
        values = shapley_values(coalitions, weights, scores[1:] - empty, clean - empty)
        return Relevance(
            unit=f"Shapley value of {self.scale}",
            signed=True,
            parts=parts,
            scores=known.scores_by_label(values, int(parts.data.max())),
            facts={
                "parts": int(parts.data.max()),
                "features": count,
                "coalitions": len(coalitions),
                "exact": len(coalitions) >= 2**count - 2,
                "score_all_filled": empty,
                "score_difference": clean - empty,
                "sum_of_values": float(values.sum()),
                "passes": probe.forwards,
            },
        )


def shapley_coalitions(count: int, samples: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The design: at most `samples` different coalitions, neither empty nor full, and what each weighs.

    Returns:
        Boolean (S, count) and weights (S,) that add up to 1, by the Shapley kernel (Lundberg 2017, theorem 2): a size s
        weighs (count - 1) / (s (count - s)), shared by all coalitions of that size.
    """
    if count < 2:
        return np.zeros((0, count), dtype=bool), np.zeros(0)
    sizes = np.arange(1, count // 2 + 1)
    # A size goes together with its complement, which is another size unless it is the middle one.
    mass = (1 + (sizes != count - sizes)) / (sizes * (count - sizes))
    mass /= mass.sum()
    rows: list[np.ndarray] = []
    weights: list[float] = []
    complete = 0
    for size, share in zip(sizes.tolist(), mass, strict=True):
        coalitions = comb(count, size) * (1 if 2 * size == count else 2)
        # A size that would be drawn half as often as it has coalitions is better run in full: no draw comes twice.
        left = samples - len(rows)
        if 2**count - 2 > samples and (left < coalitions or 2 * left * share / mass[size - 1 :].sum() < coalitions):
            break
        for members in combinations(range(count), size):
            kept = np.zeros(count, dtype=bool)
            kept[list(members)] = True
            rows += [kept] if 2 * size == count else [kept, ~kept]
        weights += [share / coalitions] * coalitions
        complete = size
    left = samples - len(rows)
    if complete < len(sizes) and left >= 2:
        drawn = rng.choice(sizes[complete:], size=left // 2, p=mass[complete:] / mass[complete:].sum())
        # The first `size` places of a random order are a random coalition of that size.
        places = rng.random((len(drawn), count)).argsort(axis=1).argsort(axis=1)
        kept_rows = places < drawn[:, None]
        different, times = np.unique(np.concatenate([kept_rows, ~kept_rows]), axis=0, return_counts=True)
        rows += list(different)
        weights += (times / times.sum() * mass[complete:].sum()).tolist()
    total = np.array(weights)
    return np.array(rows, dtype=bool), total / total.sum()


def shapley_values(coalitions: np.ndarray, weights: np.ndarray, gains: np.ndarray, difference: float) -> np.ndarray:
    """The estimator: weighted least squares under the condition that the values add up to the difference, (M,).

    `gains` (S,) are the coalitions' scores minus the empty one's; `difference` is the full one's.
    """
    count = coalitions.shape[1]
    if count < 2:
        return np.full(count, difference)
    members = coalitions.astype(np.float64)
    weighted = members.T * weights
    # The condition enters by a Lagrange multiplier.
    system = np.ones((count + 1, count + 1))
    system[:count, :count] = weighted @ members
    system[count, count] = 0
    return np.linalg.lstsq(system, np.append(weighted @ gains, difference), rcond=None)[0][:count]
