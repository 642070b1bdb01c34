import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from voxplain.errors import InputError
from voxplain.metrics.localisation import (
    mass_inside,
    mass_on_empty_slices,
    peak_distance,
    peak_inside,
    place_of_evidence,
)

SHAPE = (4, 3, 2)
maps = arrays(np.float32, SHAPE, elements=st.floats(-5, 5, width=32))
masks = arrays(np.bool_, SHAPE)


@given(maps, masks)
def test_the_mass_is_a_share_and_the_rest_is_outside(values: np.ndarray, mask: np.ndarray) -> None:
    inside, outside = mass_inside(values, mask), mass_inside(values, ~mask)
    if (values > 0).any():
        assert 0 <= inside <= 1
        assert inside + outside == pytest.approx(1)
        kept = [value for value in values[mask].tolist() if value > 0]
        total = sum(value for value in values.ravel().tolist() if value > 0)
        assert inside == pytest.approx(sum(kept) / total)
    else:
        assert np.isnan(inside)


@given(maps, masks)
def test_the_peak_is_inside_where_its_distance_is_0(values: np.ndarray, mask: np.ndarray) -> None:
    found, far = peak_inside(values, mask), peak_distance(values, mask, spacing=(1, 2, 3))
    if values.max() == values.min():
        assert np.isnan(found)
        assert np.isnan(far)
    elif not mask.any():
        assert found == 0
        assert np.isnan(far)
    else:
        assert (found == 1) == (far == 0)


def test_distances_are_in_mm() -> None:
    values, mask = np.zeros(SHAPE), np.zeros(SHAPE, dtype=bool)
    values[3, 2, 0], mask[0, 0, 0] = 1, True
    assert peak_distance(values, mask, spacing=(2, 3, 10)) == pytest.approx(np.hypot(6, 6))
    values[0, 0, 1] = 1
    assert peak_distance(values, mask, spacing=(2, 3, 10)) == pytest.approx((np.hypot(6, 6) + 10) / 2)
    assert peak_inside(values, mask) == 0


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="on one grid"):
        mass_inside(np.zeros((2, 2, 2)), np.zeros((2, 2, 1)))
    with pytest.raises(InputError, match="NaN or infinity"):
        peak_inside(np.full((2, 2, 2), np.nan), np.zeros((2, 2, 2)))


@pytest.mark.parametrize(
    ("bright", "outside", "expected"),
    [
        ({(2, 2, 2): 5.0}, 0.0, "in"),
        ({(2, 2, 2): 1.0, (15, 15, 15): 0.9}, 0.0, "in"),  # more than half lies inside
        # 27 voxels of 8,000 are 0.34 %; one of them at 5 and all others at 1 hold 0.39 %, less than twice that.
        ({(2, 2, 2): 5.0}, 1.0, "beside"),
        ({(2, 2, 2): 60.0}, 1.0, "in"),
        ({(7, 2, 2): 5.0}, 0.0, "beside"),
        ({(12, 2, 2): 5.0}, 0.0, "away"),
        ({}, 0.0, None),
        ({}, 1.0, None),
    ],
)
def test_where_the_evidence_lies(bright: dict, outside: float, expected: str | None) -> None:
    mask = np.zeros((20, 20, 20), dtype=bool)
    mask[1:4, 1:4, 1:4] = True
    values = np.full(mask.shape, outside)
    for place, value in bright.items():
        values[place] = value
    found = place_of_evidence(values, mask, inside=np.ones_like(mask), spacing=(2, 2, 2))
    assert found == expected


def test_without_a_region_nothing_is_said() -> None:
    values = np.random.default_rng(0).random((4, 4, 4))
    assert place_of_evidence(values, values > 2, inside=values > 0, spacing=(1, 1, 1)) is None


def test_a_map_that_says_nothing_is_not_in_a_region_of_half_the_head() -> None:
    inside = np.ones((20, 20, 20), dtype=bool)
    mask = np.arange(20)[:, None, None] < 11
    mask = np.broadcast_to(mask, inside.shape)
    values = np.ones(inside.shape)
    values[19, 0, 0] = 1.01
    assert place_of_evidence(values, mask, inside=inside, spacing=(2, 2, 2)) == "away"
    assert place_of_evidence(np.where(mask, 1, 0.2), mask, inside=inside, spacing=(2, 2, 2)) == "in"


@given(maps, masks, masks)
def test_slices_without_the_region(values: np.ndarray, mask: np.ndarray, inside: np.ndarray) -> None:
    found = mass_on_empty_slices(values, mask, inside=inside, axis=0)
    head = [x for x in range(SHAPE[0]) if inside[x].any()]
    empty = [x for x in head if not mask[x].any()]
    assert (found["slices"], found["of"]) == (len(empty), len(head))
    positive = {x: sum(v for v in values[x][inside[x]].tolist() if v > 0) for x in head}
    if sum(positive.values()) > 0:
        assert found["mass"] == pytest.approx(sum(positive[x] for x in empty) / sum(positive.values()))
        assert 0 <= found["peak"] <= 1
        highest = max(values[x][inside[x]].max() for x in head)
        there = max((values[x][inside[x]].max() for x in empty), default=0)
        assert found["peak"] == pytest.approx(max(there, 0) / highest)
    else:
        assert np.isnan(found["mass"])
    assert found["volume"] == pytest.approx(sum(inside[x].sum() for x in empty) / max(1, inside.sum()))
