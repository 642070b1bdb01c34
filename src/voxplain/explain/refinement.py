"""From coarse to fine: where on a lattice to measure within a budget, and what to expect at all other places."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.interpolate import RBFInterpolator

# In each round the places are chosen by what is known by then; more rounds choose better, but run smaller batches.
_ROUNDS = 4
# Interpolation looks at this many measured neighbours, so that its cost grows in proportion to the places.
_NEIGHBOURS = 50


def refined(
    measure: Callable[[np.ndarray], np.ndarray], places: np.ndarray, budget: int
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Values at all places, at most `budget` of them measured and the others interpolated.

    First come the places on the finest regular sub-lattice that fits the budget; then, in rounds, those whose
    interpolated value is largest in size. `measure` takes indices of places, and `places` (N, 3) holds whole numbers.

    Returns:
        Values (N,), which were measured (N,) boolean, and the root mean square of value - interpolation over the
        places of the rounds, taken just before they were measured (None without rounds). Rounds look where values are
        large, so this error is larger than that of the places left out.
    """
    step = 1
    while (coarse := (places % step == 0).all(axis=1)).sum() > budget:
        step += 1
    if not coarse.any():  # no place lies on so coarse a lattice
        coarse = np.zeros(len(places), dtype=bool)
        coarse[: min(1, len(places))] = True
    known = coarse.copy()
    values = np.zeros(len(places))
    values[known] = measure(np.flatnonzero(known))
    surprises: list[np.ndarray] = []
    for round_number in range(_ROUNDS):
        if known.all() or not known.any():
            break
        expected = _interpolated(values, known, places)
        more = min(int((~known).sum()), (budget - int(known.sum())) // (_ROUNDS - round_number))
        # Ties go by place; known places come last.
        chosen = np.sort(np.argsort(np.where(known, 1.0, -np.abs(expected)), kind="stable")[:more])
        values[chosen] = measure(chosen) if more else 0.0
        known[chosen] = True
        surprises.append(values[chosen] - expected[chosen])
    told = np.concatenate(surprises) if surprises else np.zeros(0)
    error = float(np.sqrt(np.mean(told**2))) if len(told) else None
    return _interpolated(values, known, places), known, error


def _interpolated(values: np.ndarray, known: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Values (N,), those not known replaced by the smoothest function (in 3D) through their known neighbours."""
    if known.all() or not known.any():
        return values
    neighbours = min(_NEIGHBOURS, int(known.sum()))
    smooth = RBFInterpolator(places[known], values[known], neighbors=neighbours, kernel="linear", degree=0)
    found = values.copy()
    found[~known] = smooth(places[~known])
    return found
