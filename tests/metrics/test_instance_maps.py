"""Figures of one lesion's map, against counting voxel by voxel."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from voxplain.errors import InputError
from voxplain.metrics.instance_maps import channel_shares, distance_profile, extremes, fades_at, signed_medians

SPACING = (1.0, 2.0, 1.5)
SHAPE = (5, 4, 6)
VALUES = arrays(np.float64, (2, *SHAPE), elements=st.floats(-3, 3, allow_subnormal=False))


@given(VALUES)
def test_medians_leave_small_values_out(values: np.ndarray) -> None:
    found = signed_medians(values)
    above = sorted(v for v in values.ravel() if v > 0.1)
    below = sorted(v for v in values.ravel() if v < -0.1)
    assert (found.positive_count, found.negative_count) == (len(above), len(below))
    for value, ordered in ((found.positive, above), (found.negative, below)):
        if ordered:
            middle = len(ordered) // 2
            expected = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
            assert value == pytest.approx(expected)
        else:
            assert math.isnan(value)
    assert extremes(values) == (max(values.ravel()), min(values.ravel()))


def test_values_at_the_limit_count_for_nothing() -> None:
    found = signed_medians(np.array([0.1, -0.1, 0.2, -0.4, -0.6]))
    assert found == (0.2, -0.5, 1, 2)
    assert signed_medians(np.array([0.05, -0.05]), small=0) == (0.05, -0.05, 1, 1)
    assert all(map(math.isnan, extremes(np.zeros(0))))
    with pytest.raises(InputError, match="at least 0"):
        signed_medians(np.zeros(3), small=-1)


def test_shares() -> None:
    values = np.zeros((2, 2, 2, 2))
    values[0, 0, 0, 0], values[0, 1, 1, 1], values[1, 0, 1, 0] = 2, -1, -1
    np.testing.assert_allclose(channel_shares(values), [0.75, 0.25])
    assert np.isnan(channel_shares(np.zeros((2, 2, 2, 2)))).all()


@given(VALUES, arrays(bool, SHAPE), st.sampled_from([1.0, 0.7, 2.5]), st.sampled_from([3.0, 8.0]))
def test_the_profile_is_what_brute_force_finds(
    values: np.ndarray, region: np.ndarray, step: float, reach: float
) -> None:
    if not region.any():
        return
    found = distance_profile(values, region, spacing=SPACING, step=step, reach=reach)
    lesion = np.argwhere(region) * SPACING
    shells: dict[int, list[float]] = {}
    for place in itertools.product(*map(range, SHAPE)):
        away = np.linalg.norm(lesion - np.array(place) * SPACING, axis=1).min()
        shells.setdefault(math.ceil(away / step - 1e-9), []).append(float(np.abs(values[(slice(None), *place)]).sum()))
    assert len(found) == math.floor(reach / step + 1e-9) + 1
    for number, value in enumerate(found):
        if number in shells:
            assert value == pytest.approx(np.mean(shells[number]))
        else:
            assert np.isnan(value)


def test_the_profile_of_a_lesion_far_from_the_border_is_cut_off_at_its_reach() -> None:
    values, region = np.ones((1, 40, 9, 9)), np.zeros((40, 9, 9), dtype=bool)
    region[20, 4, 4] = True
    values[0, 0] = 100  # further away than the reach
    np.testing.assert_allclose(distance_profile(values, region, spacing=(1, 1, 1), reach=10), 1)


def test_where_a_map_dies_away() -> None:
    profile = np.array([10.0, 5.0, 0.05, 0.2, 0.09, 0.0])
    # The third shell rises above 1 % of the peak again.
    assert fades_at(profile) == 3
    assert fades_at(profile, step=0.5) == 1.5
    assert fades_at(profile, share=0.3) == 1
    assert fades_at(np.array([10.0, 0.0])) == 0
    assert fades_at(np.array([10.0, np.nan, 5, 0, np.nan])) == 2
    assert math.isnan(fades_at(np.array([10.0, 5.0])))
    assert math.isnan(fades_at(np.zeros(4)))
    with pytest.raises(InputError, match="share"):
        fades_at(profile, share=1)


@pytest.mark.parametrize(
    ("values", "region", "options"),
    [
        (np.zeros((1, *SHAPE)), np.zeros(SHAPE, bool), {}),
        (np.zeros(SHAPE), np.ones(SHAPE, bool), {}),
        (np.zeros((1, 2, 2, 2)), np.ones(SHAPE, bool), {}),
        (np.zeros((1, *SHAPE)), np.ones(SHAPE, bool), {"step": 0}),
        (np.zeros((1, *SHAPE)), np.ones(SHAPE, bool), {"reach": 0.5}),
    ],
)
def test_what_has_no_profile(values: np.ndarray, region: np.ndarray, options: dict[str, float]) -> None:
    with pytest.raises(InputError):
        distance_profile(values, region, spacing=SPACING, **options)
