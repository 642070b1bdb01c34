"""Does the network's score hang on what the map calls relevant? Deletion and insertion curves (Petsiuk 2018, RISE)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from voxplain.errors import InputError
from voxplain.metrics.verdict import Verdict

# Runs the network: from coalitions of kept parts, boolean (S, M), to the probability of each, (S,).
Scores = Callable[[np.ndarray], np.ndarray]

# Of the parts' volume: where a curve is read. Densest at the beginning, where good orders differ from poor ones.
SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8)
# A random order of fewer parts is too often the right one.
FEWEST_PARTS = 5
# Where filling everything changes the probability by less, there is nothing that an order could show.
SMALLEST_FALL = 0.1
# Scores of one input differ by this much between batches.
_ROUNDING = 1e-6


class Areas(NamedTuple):
    """Areas under the curves of one order, probabilities from 0 to 1: low `deletion` and high `insertion` are good."""

    deletion: float
    insertion: float


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Deletion and insertion of one map on one input of the network, beside those of controls on the same parts.

    `areas` holds, by row, one pair of areas per order: "map", and a row for each control. `shares` (P,), `deletion`
    (P,) and `insertion` (P,) are the map's curves: the share of volume taken away (or brought in), 0 to 1, and the
    probabilities there. `untested` says why there is nothing to compare, None where there is.
    """

    areas: dict[str, tuple[Areas, ...]]
    shares: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    untested: str | None = None

    @property
    def full(self) -> float:
        """The probability of the whole input."""
        return float(self.deletion[0])

    @property
    def empty(self) -> float:
        """The probability of the input with every part filled."""
        return float(self.deletion[-1])

    def against(self, row: str) -> Verdict:
        """Passed where the map's area is lower under deletion and higher under insertion than that of a control.

        A control of several draws (random orders) must not be better in any of them: by chance one may be as good. A
        map that is itself a random order passes against n of them in at most 1 of n + 1 cases. A control that was not
        run leaves the map untested.
        """
        if self.untested is not None:
            return Verdict("not tested", self.untested)
        if row not in self.areas:
            return Verdict("not tested", f"there is no {row} here")
        (own,), others = self.areas["map"], self.areas[row]
        margin = _ROUNDING if len(others) > 1 else -_ROUNDING
        lost = {
            "deletion": any(other.deletion < own.deletion - margin for other in others),
            "insertion": any(other.insertion > own.insertion + margin for other in others),
        }
        if any(lost.values()):
            curves = " and ".join(curve for curve, beaten in lost.items() if beaten)
            return Verdict("failed", f"{row} does {'better' if margin > 0 else 'as well or better'} in {curves}")
        return Verdict("passed", f"{row} does {'no better' if margin > 0 else 'worse'} in deletion and insertion")


def faithfulness(
    relevance: np.ndarray,
    volumes: np.ndarray,
    scores: Scores,
    *,
    controls: Sequence[tuple[str, np.ndarray]] = (),
    shares: Sequence[float] = SHARES,
) -> Faithfulness:
    """Deletion and insertion curves of a ranking of parts, from the most to the least relevant, and of its controls.

    Deletion fills one part after the other, insertion brings one after the other into the input with all parts filled.
    A curve is the probability over the share of the parts' volume, from 0 to 1, and is read at the smallest group of
    highest ranks that holds each of `shares`; its area (trapezoids) is therefore a probability from 0 to 1, and needs
    no further normalisation. Ties go by the order in which parts are given.

    Nothing but the clean and the empty input and the map's own curves is run where the comparison would say nothing:
    fewer than 5 parts, all relevances equal, or a probability that falls by less than 0.1 when every part is filled.
    No parts: nothing is run, and areas are NaN.

    Args:
        relevance: (M,), high is relevant.
        volumes: (M,), above 0, in any unit.
        scores: runs the network on coalitions of kept parts.
        controls: rows of relevances (M,) that take the same way; several of one name are draws of one control.
        shares: ascending, between 0 and 1.

    Raises:
        InputError: shapes differ, a relevance is NaN or infinite, a volume is not above 0, or shares are none such.
    """
    relevance, volumes = np.asarray(relevance, dtype=np.float64), np.asarray(volumes, dtype=np.float64)
    rows = [("map", relevance), *((row, np.asarray(values, dtype=np.float64)) for row, values in controls)]
    _check(rows, volumes, np.asarray(shares, dtype=np.float64))
    count = len(relevance)
    if not count:
        nothing = np.full(2, np.nan)
        return Faithfulness({"map": (Areas(np.nan, np.nan),)}, np.array([0.0, 1.0]), nothing, nothing, "no parts")
    designs = [_Design.of(values, volumes, shares) for _, values in rows]
    ends = np.array([[True] * count, [False] * count])
    found = np.asarray(scores(np.concatenate([ends, designs[0].coalitions])), dtype=np.float64)
    full, empty = float(found[0]), float(found[1])
    deletion, insertion = designs[0].curves(full, empty, found[2:])
    areas: dict[str, tuple[Areas, ...]] = {"map": (designs[0].areas(deletion, insertion),)}
    untested = _untested(relevance, full, empty)
    if untested is None and len(rows) > 1:
        found = np.asarray(scores(np.concatenate([design.coalitions for design in designs[1:]])), dtype=np.float64)
        ends_of = np.cumsum([len(design.coalitions) for design in designs[1:]])
        for (row, _), design, its in zip(rows[1:], designs[1:], np.split(found, ends_of[:-1]), strict=True):
            areas[row] = (*areas.get(row, ()), design.areas(*design.curves(full, empty, its)))
    return Faithfulness(areas, designs[0].shares, deletion, insertion, untested)


@dataclass(frozen=True, eq=False)
class _Design:
    """The coalitions that one order runs, (2 P - 4, M): deletion's, then insertion's; `shares` (P,) has both ends."""

    shares: np.ndarray
    coalitions: np.ndarray

    @classmethod
    def of(cls, relevance: np.ndarray, volumes: np.ndarray, shares: Sequence[float]) -> _Design:
        order = np.argsort(-relevance, kind="stable")
        held = np.cumsum(volumes[order]) / volumes.sum()
        # The smallest group that holds a share; rounding must not make it one part larger.
        sizes = np.unique(np.searchsorted(held, np.asarray(shares) - 1e-9) + 1)
        sizes = sizes[sizes < len(order)]
        rank = np.empty(len(order), dtype=int)
        rank[order] = np.arange(len(order))
        gone = rank[None] < sizes[:, None]
        return cls(np.array([0.0, *held[sizes - 1], 1.0]), np.concatenate([~gone, gone]))

    def curves(self, full: float, empty: float, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        without, brought = np.split(scores, 2)
        return np.array([full, *without, empty]), np.array([empty, *brought, full])

    def areas(self, deletion: np.ndarray, insertion: np.ndarray) -> Areas:
        return Areas(float(np.trapezoid(deletion, self.shares)), float(np.trapezoid(insertion, self.shares)))


def _untested(relevance: np.ndarray, full: float, empty: float) -> str | None:
    if len(relevance) < FEWEST_PARTS:
        return f"too few parts to tell a good order by: {len(relevance)}; expected at least {FEWEST_PARTS}"
    if np.ptp(relevance) == 0:
        return "all parts are equally relevant, so the map gives no order"
    if full - empty < SMALLEST_FALL:
        return (
            f"filling every part takes the probability from {full:.3f} to {empty:.3f}, a fall of less than "
            f"{SMALLEST_FALL}"
        )
    return None


def _check(rows: Sequence[tuple[str, np.ndarray]], volumes: np.ndarray, shares: np.ndarray) -> None:
    for row, values in rows:
        if values.ndim != 1 or values.shape != volumes.shape:
            raise InputError(
                f"expected one relevance and one volume per part, (M,); got {values.shape} for {row} and "
                f"{volumes.shape} volumes"
            )
        if not np.isfinite(values).all():
            raise InputError(f"relevances of {row} are NaN or infinite; mend the map first")
    if not (np.isfinite(volumes) & (volumes > 0)).all():
        raise InputError("every part has a volume above 0; leave out labels without a voxel")
    if shares.ndim != 1 or not ((shares > 0) & (shares < 1)).all() or (np.diff(shares) <= 0).any():
        raise InputError(f"shares are ascending numbers between 0 and 1; got {shares.tolist()}")
