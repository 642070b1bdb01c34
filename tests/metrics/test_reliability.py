"""Calibration against a table worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxplain.errors import InputError
from voxplain.metrics.reliability import expected_calibration_error, reliability_curve

# Two bins: 0.1, 0.2 and 0.3 of which one came; 0.5, 0.9 and 1.0 of which two came.
PROBABILITIES = np.array([0.1, 0.2, 0.3, 0.5, 0.9, 1.0])
LABELS = np.array([0, 1, 0, 1, 0, 1])


def test_a_table_by_hand() -> None:
    curve = reliability_curve(LABELS, PROBABILITIES, bins=2)
    np.testing.assert_allclose(curve.probability, [0.2, 0.8])
    np.testing.assert_allclose(curve.observed, [1 / 3, 2 / 3])
    assert curve.cases.tolist() == [3, 3]
    expected = 0.5 * abs(0.2 - 1 / 3) + 0.5 * abs(0.8 - 2 / 3)
    assert expected_calibration_error(LABELS, PROBABILITIES, bins=2) == pytest.approx(expected)


def test_edges_belong_to_the_bin_that_they_begin_and_one_to_the_last() -> None:
    edges = np.arange(11) / 10
    assert reliability_curve(np.zeros(11, dtype=int), edges).cases.tolist() == [1] * 9 + [2]


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=40), st.integers(1, 12))
def test_every_case_is_in_one_bin(cases: list[tuple[bool, float]], bins: int) -> None:
    labels, probabilities = np.array([label for label, _ in cases], dtype=int), np.array([p for _, p in cases])
    curve = reliability_curve(labels, probabilities, bins=bins)
    assert curve.cases.sum() == len(cases)
    assert np.nansum(curve.observed * curve.cases) == pytest.approx(labels.sum())
    assert np.nansum(curve.probability * curve.cases) == pytest.approx(probabilities.sum())
    assert 0 <= expected_calibration_error(labels, probabilities, bins=bins) <= 1


def test_right_and_wrong_to_the_utmost() -> None:
    labels = np.array([0, 0, 1, 1])
    assert expected_calibration_error(labels, labels.astype(float)) == 0
    assert expected_calibration_error(labels, 1.0 - labels) == 1


def test_no_case_has_no_error() -> None:
    assert np.isnan(expected_calibration_error(np.zeros(0, dtype=int), np.zeros(0)))
    assert np.isnan(reliability_curve(np.zeros(0, dtype=int), np.zeros(0)).observed).all()


@pytest.mark.parametrize(
    ("labels", "probabilities", "bins", "message"),
    [
        ([0, 1], [0.5], 10, "one label and one probability"),
        ([0, 2], [0.5, 0.5], 10, "labels are 0 or 1; got 0, 2"),
        ([0, 1], [0.5, 1.5], 10, "from 0 to 1"),
        ([0, 1], [0.5, np.nan], 10, "no NaN"),
        ([0, 1], [0.5, 0.5], 0, "at least 1 bin; got 0"),
    ],
)
def test_what_is_refused(labels: list[int], probabilities: list[float], bins: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        reliability_curve(np.array(labels), np.array(probabilities), bins=bins)
