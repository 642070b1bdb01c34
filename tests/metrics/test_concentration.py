"""Entropy and top share: closed forms, ranges, both empty cases, and what does not matter to them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import voxplain as vx
from voxplain.metrics.concentration import relevance_entropy, top_share

SCORES = arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6))


@pytest.mark.parametrize("count", [2, 3, 100])
def test_an_even_map_and_a_map_of_one_part(count: int) -> None:
    assert relevance_entropy(np.full(count, 0.3)) == pytest.approx(1)
    assert top_share(np.full(count, 0.3)) == pytest.approx(1 / count)
    alone = np.zeros(count)
    alone[count // 2] = 1e-300
    assert relevance_entropy(alone) == 0
    assert top_share(alone) == 1


def test_two_parts_by_hand() -> None:
    # -(0.25 log 0.25 + 0.75 log 0.75) / log 2
    assert relevance_entropy(np.array([1.0, 3.0])) == pytest.approx(0.811278124459)
    assert top_share(np.array([1.0, 3.0])) == 0.75
    # Parts without relevance take part in the maximum: four equal ones of sixteen.
    assert relevance_entropy(np.array([5.0] * 4 + [0.0] * 12)) == pytest.approx(0.5)
    assert top_share(np.array([5.0] * 4 + [0.0] * 12), ranks=3) == 0.75


@given(SCORES)
def test_range_scale_sign_and_order_do_not_matter(scores: np.ndarray) -> None:
    entropy, share = relevance_entropy(scores), top_share(scores)
    if not scores.any():
        assert np.isnan([entropy, share]).all()
        return
    assert 0 <= entropy <= 1
    assert 1 / len(scores) - 1e-12 <= share <= 1
    for same in (scores * -2.5, scores[::-1], np.abs(scores)):
        assert relevance_entropy(same) == pytest.approx(entropy, abs=1e-9)
        assert top_share(same) == pytest.approx(share, abs=1e-9)
    assert top_share(scores, ranks=len(scores) + 1) == pytest.approx(1)


def test_nothing_to_share_out() -> None:
    for scores in (np.zeros(5), np.zeros(0), np.zeros(1)):
        assert np.isnan(relevance_entropy(scores))
        assert np.isnan(top_share(scores))
    assert relevance_entropy(np.ones(1)) == 0
    assert top_share(np.ones(1)) == 1


@pytest.mark.parametrize("scores", [np.array([1.0, np.nan]), np.array([np.inf]), np.ones((2, 2)), np.array(1.0)])
def test_scores_that_are_none(scores: np.ndarray) -> None:
    for measure in (relevance_entropy, top_share):
        with pytest.raises(vx.InputError, match="one finite number per part"):
            measure(scores)


def test_no_ranks() -> None:
    with pytest.raises(vx.InputError, match="at least 1; got 0"):
        top_share(np.ones(3), ranks=0)
