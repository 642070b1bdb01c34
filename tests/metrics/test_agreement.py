"""Agreement of maps on the same parts: against scipy and sets, and what is defined where nothing is ranked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import voxplain as vx
from voxplain.metrics.agreement import agreement, top_overlap
from voxplain.partition import cubes

GRID = vx.Grid((8, 4, 4), np.diag([2.0, 2, 2, 1]))
PARTS = cubes(GRID, edge=4.0)
COUNT = int(PARTS.data.max())
LEFT = vx.Region("left", ((0, 4), (0, 4), (0, 4)), 0.9, 2.2, True)
RIGHT = vx.Region("right", ((4, 8), (0, 4), (0, 4)), 0.1, -2.2, False)


def made(scores: np.ndarray, regions: tuple[vx.Region, ...] = (LEFT, RIGHT)) -> vx.Explanation:
    painted = np.concatenate([[0.0], scores])[PARTS.data][None]
    return vx.Explanation(painted, ("all",), GRID, True, "u", regions, PARTS, scores)


@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(1, 9))
def test_against_scipy_and_sets_region_by_region(seed: int, maps: int, k: int) -> None:
    scores = np.random.default_rng(seed).permuted(np.arange(maps * COUNT, dtype=float)).reshape(maps, COUNT) - COUNT
    found = agreement([made(one) for one in scores], k=k)
    assert [one.region for one in found] == ["left", "right"]
    for one, region in zip(found, (LEFT, RIGHT), strict=True):
        labels = made(scores[0]).labels_in(region)
        assert one.parts == len(labels) == 8
        assert one.top == min(k, 8)
        for a in range(maps):
            assert one.first[a] == labels[np.argmax(scores[a][labels - 1])]
            for b in range(maps):
                mine, other = scores[a][labels - 1], scores[b][labels - 1]
                assert one.correlation[a, b] == pytest.approx(stats.spearmanr(mine, other).statistic)
                tops = [set(sorted(labels, key=lambda label: -scores[i][label - 1])[:k]) for i in (a, b)]
                expected = len(tops[0] & tops[1]) / k if k < 8 else np.nan
                assert one.overlap[a, b] == pytest.approx(expected, nan_ok=True)


def test_reversed_ranks_have_minus_one_and_nothing_in_common() -> None:
    rising = np.arange(COUNT, dtype=float)
    left, _ = agreement([made(rising), made(-rising)])
    np.testing.assert_allclose(left.correlation, [[1, -1], [-1, 1]])
    np.testing.assert_array_equal(left.overlap, [[1, 0], [0, 1]])


def test_ties_go_by_label() -> None:
    assert top_overlap(np.array([1.0, 1, 1, 1]), np.array([9.0, 8, 7, 0])) == 1.0
    assert top_overlap(np.array([1.0, 1, 1, 1]), np.array([0.0, 8, 7, 9])) == pytest.approx(2 / 3)


def test_a_map_that_ranks_nothing_agrees_with_nothing() -> None:
    ranked = np.arange(COUNT, dtype=float)
    flat = np.zeros(COUNT)
    # Equal up to the rounding of a 32-bit score, which is no ranking either.
    nearly = 0.3 + 1e-9 * ranked
    for one in agreement([made(ranked), made(flat), made(nearly), made(ranked)]):
        for matrix in (one.correlation, one.overlap):
            assert np.isnan(matrix[1]).all()
            assert np.isnan(matrix[2]).all()
            np.testing.assert_array_equal(matrix[np.ix_([0, 3], [0, 3])], 1)
        assert one.first[1] == one.first[2] == 0
        assert one.first[0] == one.first[3] > 0


def test_all_maps_flat() -> None:
    for one in agreement([made(np.zeros(COUNT))] * 2):
        assert np.isnan(one.correlation).all()
        assert one.first == (0, 0)


def test_fewer_parts_than_k_have_no_overlap() -> None:
    rising = np.arange(COUNT, dtype=float)
    for k in (8, 20):
        left, _ = agreement([made(rising), made(rising**2)], k=k)
        assert left.top == 8
        assert np.isnan(left.overlap).all()
        assert left.correlation[0, 1] == 1
    assert np.isnan(top_overlap(np.array([1.0, 2, 3]), np.array([1.0, 2, 3])))
    assert np.isnan(top_overlap(np.zeros(0), np.zeros(0)))


def test_a_single_part_and_a_region_without_parts() -> None:
    whole = vx.Labels(np.ones(GRID.shape, int) * (np.arange(8) < 4)[:, None, None], GRID)
    one = vx.Explanation(whole.data[None] * 0.5, ("all",), GRID, True, "u", (LEFT, RIGHT), whole, np.array([0.5]))
    left, right = agreement([one, one])
    assert (left.parts, right.parts) == (1, 0)
    assert np.isnan(left.correlation).all()
    assert np.isnan(right.overlap).all()


def test_what_cannot_be_compared_is_refused() -> None:
    why = made(np.arange(COUNT, dtype=float))
    other = cubes(GRID, edge=8.0)
    parts = int(other.data.max())
    others = replace(why, parts=other, scores=np.ones(parts))
    for maps, said in (
        ([why], "two maps or more; got 1"),
        ([why, others], "same parts, and these have others"),
        ([why, replace(why, parts=None, scores=None)], "only maps of parts"),
        ([replace(why, parts=None, scores=None), why], "only maps of parts"),
        ([replace(why, regions=())] * 2, "names none"),
        ([why, replace(why, regions=(LEFT,))], "other regions"),
        ([why, replace(why, scores=np.full(COUNT, np.nan))], "NaN or infinity"),
    ):
        with pytest.raises(vx.InputError, match=said):
            agreement(maps)
    far = vx.Grid(GRID.shape, np.diag([3.0, 2, 2, 1]))
    moved = replace(why, grid=far, parts=vx.Labels(PARTS.data, far))
    with pytest.raises(vx.InputError, match="these differ: spacing"):
        agreement([why, moved])
    with pytest.raises(vx.InputError, match="at least 1; got 0"):
        agreement([why, why], k=0)
    with pytest.raises(vx.InputError, match="at least 1; got 0"):
        top_overlap(np.ones(3), np.ones(3), k=0)
    with pytest.raises(vx.InputError, match="one length"):
        top_overlap(np.ones(3), np.ones(2))
    with pytest.raises(vx.InputError, match="NaN or infinity"):
        top_overlap(np.array([1.0, np.nan]), np.ones(2))
