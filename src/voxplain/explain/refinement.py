"""From coarse to fine: where on a lattice to measure within a budget, and what to estimate at all other places."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.interpolate import RBFInterpolator

# In each round the places are chosen by what is known by then; more rounds choose better, but run smaller batches.
_ROUNDS = 4
# Interpolation looks at this many measured neighbours, so that its cost grows in proportion to the places.
_NEIGHBOURS = 50


def refined(
    measure: Callable[[np.ndarray], np.ndarray], places: np.ndarray, budget: int, guess: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Values at all places, at most `budget` of them measured and the others estimated.

    An estimate is the guess, scaled to what is known, and the smoothest function (in 3D) through what the guess missed
    at measured neighbours. First measured are the places on the finest regular sub-lattice that fits the budget; then,
    in rounds, those where that function is largest in size: where the guess is wrong, or, without one, where values
    are large. `measure` takes indices of places, `places` (N, 3) holds whole numbers, and `guess` (N,) is in any unit.

    Returns:
        Values (N,), which were measured (N,) boolean, and the root mean square of value - estimate over the places of
        the rounds, taken just before they were measured (None without rounds). Rounds look where estimates are
        doubtful, so this error is larger than that of the places left out.
    """
    guess = np.zeros(len(places)) if guess is None else guess
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
        scaled, missed = _estimated(values, known, places, guess)
        more = min(int((~known).sum()), (budget - int(known.sum())) // (_ROUNDS - round_number))
        # Ties go by place; known places come last.
        chosen = np.sort(np.argsort(np.where(known, 1.0, -np.abs(missed)), kind="stable")[:more])
        values[chosen] = measure(chosen) if more else 0.0
        known[chosen] = True
        surprises.append(values[chosen] - (scaled + missed)[chosen])
    told = np.concatenate(surprises) if surprises else np.zeros(0)
    error = float(np.sqrt(np.mean(told**2))) if len(told) else None
    if not known.all() and known.any():
        values = np.where(known, values, np.add(*_estimated(values, known, places, guess)))
    return values, known, error


def _estimated(
    values: np.ndarray, known: np.ndarray, places: np.ndarray, guess: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The guess scaled to the known values by least squares, and what it misses, interpolated; both (N,)."""
    size = float(guess[known] @ guess[known])
    scaled = guess * (float(guess[known] @ values[known]) / size if size > 0 else 0.0)
    missed = values - scaled
    neighbours = min(_NEIGHBOURS, int(known.sum()))
    smooth = RBFInterpolator(places[known], missed[known], neighbors=neighbours, kernel="linear", degree=0)
    missed[~known] = smooth(places[~known])
    return scaled, missed
