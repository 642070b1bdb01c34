"""From coarse to fine on a lattice of places."""

import numpy as np
import pytest

import voxplain as vx
from voxplain.explain.refinement import refined

PLACES = np.argwhere(np.ones((12, 10, 8), dtype=bool))


def bump(places: np.ndarray) -> np.ndarray:
    """Smooth, with a peak of 1 at a place of no coarse lattice."""
    return np.exp(-(((places - (7, 3, 5)) / 2.0) ** 2).sum(axis=1))


class Measured:
    def __init__(self, places: np.ndarray, function=bump) -> None:
        self.places, self.function, self.calls = places, function, []

    def __call__(self, chosen: np.ndarray) -> np.ndarray:
        self.calls.append(chosen)
        return self.function(self.places[chosen])


def test_all_places_within_the_budget_are_measured_in_one_go() -> None:
    measure = Measured(PLACES)
    values, known, error = refined(measure, PLACES, len(PLACES))
    assert [len(call) for call in measure.calls] == [len(PLACES)]
    np.testing.assert_array_equal(values, bump(PLACES))
    assert known.all()
    assert error is None


@pytest.mark.parametrize("budget", [1, 2, 20, 150, 300, 959])
def test_never_measures_more_than_the_budget_and_nothing_twice(budget: int) -> None:
    measure = Measured(PLACES)
    values, known, _ = refined(measure, PLACES, budget)
    asked = np.concatenate(measure.calls)
    assert len(asked) == len(set(asked.tolist())) == known.sum() <= budget
    assert known.sum() == budget or budget < 20
    np.testing.assert_array_equal(values[known], bump(PLACES)[known])


def test_finds_the_peak_and_errs_less_with_more() -> None:
    errors = []
    for budget in (60, 150, 400):
        values, _, error = refined(Measured(PLACES), PLACES, budget)
        errors.append(np.sqrt(np.mean((values - bump(PLACES)) ** 2)))
        assert error is not None
        # What it says of itself is not less than what it is.
        assert error > errors[-1] or error < 0.01
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01
    assert values.argmax() == bump(PLACES).argmax()


def test_zeros_stay_exact_zeros() -> None:
    values, _, error = refined(Measured(PLACES, lambda places: np.zeros(len(places))), PLACES, 100)
    assert not values.any()
    assert error == 0


@pytest.mark.parametrize("places", [np.zeros((0, 3), int), np.array([[1, 1, 1]]), np.array([[1, 1, 0], [3, 5, 0]])])
@pytest.mark.parametrize("budget", [1, 2, 5])
def test_few_places(places: np.ndarray, budget: int) -> None:
    values, known, _ = refined(Measured(places), places, budget)
    assert known.sum() == min(budget, len(places))
    assert len(values) == len(places)


def test_places_in_one_plane() -> None:
    """A 2D image has windows in one plane only."""
    flat = PLACES[PLACES[:, 2] == 5]
    values, _, _ = refined(Measured(flat), flat, 60)
    assert np.sqrt(np.mean((values - bump(flat)) ** 2)) < 0.05


@pytest.mark.parametrize(
    "options", [{"passes": 0}, {"passes": 9, "partition": "slic"}, {"passes": 9, "partition": "cubes:8", "stride": 8.0}]
)
def test_a_budget_needs_windows_that_overlap(options: dict[str, object]) -> None:
    with pytest.raises(vx.InputError, match="passes must be at least 1"):
        vx.Occlusion(**options)


def rough(places: np.ndarray) -> np.ndarray:
    """What no smooth function follows from place to place."""
    return np.sin(places @ np.array([12.9898, 78.233, 37.719])) * bump(places)


def test_a_guess_that_knows_the_details_spares_measurements() -> None:
    truth = rough(PLACES)
    guess = 7.0 * truth + 0.5 * bump(PLACES)  # in another unit, and off by something smooth
    alone, _, _ = refined(Measured(PLACES, rough), PLACES, 150)
    guided, known, error = refined(Measured(PLACES, rough), PLACES, 150, guess)
    assert known.sum() == 150
    missed = [float(np.sqrt(np.mean((values - truth) ** 2))) for values in (alone, guided)]
    assert missed[1] < 0.2 * missed[0]
    assert error is not None
    assert error < 0.1 * np.abs(truth).max()


def test_a_guess_that_knows_nothing_does_little_harm() -> None:
    guess = np.random.default_rng(0).normal(size=len(PLACES))
    missed = []
    for given in (None, guess):
        values, _, _ = refined(Measured(PLACES), PLACES, 150, given)
        missed.append(float(np.sqrt(np.mean((values - bump(PLACES)) ** 2))))
    assert missed[1] < 0.02 + 2 * missed[0]


def test_measurement_goes_where_the_guess_is_wrong() -> None:
    wrong = bump(PLACES)
    measure = Measured(PLACES, lambda places: 0.3 + bump(places))
    refined(measure, PLACES, 150, np.full(len(PLACES), 1.0))
    later = np.concatenate(measure.calls[1:])
    assert wrong[later].mean() > 3 * wrong.mean()
