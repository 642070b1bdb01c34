"""Dropping lesions, against the lesions that are left in the volumes themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from voxplain.errors import InputError
from voxplain.metrics.lesion_filter import figures_of_kept, touching
from voxplain.metrics.lesionwise import lesion_f1, lesion_precision, lesion_recall

LABELS = arrays(np.int32, (3, 3, 2), elements=st.integers(0, 4))


def numbered(labels: np.ndarray) -> np.ndarray:
    """The same lesions as numbers 1 to N without gaps."""
    return np.searchsorted(np.unique(labels[labels > 0]), labels) * 1 + (labels > 0) if labels.any() else labels


@given(LABELS, LABELS, st.lists(st.booleans(), min_size=4, max_size=4))
def test_figures_are_those_of_the_volumes_that_are_left(
    predicted: np.ndarray, expert: np.ndarray, kept: list[bool]
) -> None:
    expert = np.where(expert > 0, numbered(expert), 0)
    touches = touching(predicted, expert)
    keep = np.array([kept[number - 1] for number in touches], dtype=bool)
    left = np.where(np.isin(predicted, [number for number in touches if kept[number - 1]]), predicted, 0)
    found = figures_of_kept(list(touches.values()), keep, experts=int(expert.max()))
    whole = (lesion_precision(left, expert), lesion_recall(left, expert), lesion_f1(left, expert))
    np.testing.assert_allclose(found, whole)


@given(LABELS, LABELS)
def test_touching_by_brute_force(lesions: np.ndarray, others: np.ndarray) -> None:
    expected = {
        number: tuple(other for other in range(1, 5) if ((lesions == number) & (others == other)).any())
        for number in range(1, 5)
        if (lesions == number).any()
    }
    assert touching(lesions, others) == expected


def test_a_lesion_may_find_two_and_two_may_find_one() -> None:
    # Lesion 1 touches experts 1 and 2, lesion 2 touches expert 2, lesion 3 none; expert 3 is missed.
    touches = [(1, 2), (2,), ()]
    assert figures_of_kept(touches, np.array([True, True, True]), experts=3)[:2] == pytest.approx((2 / 3, 2 / 3))
    assert figures_of_kept(touches, np.array([True, False, False]), experts=3)[:2] == pytest.approx((1, 2 / 3))
    assert figures_of_kept(touches, np.array([False, True, False]), experts=3)[:2] == pytest.approx((1, 1 / 3))
    assert figures_of_kept(touches, np.zeros(3, dtype=bool), experts=3) == (0, 0, 0)


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="got 2 and"):
        figures_of_kept([(1,), ()], np.array([True]), experts=1)
    with pytest.raises(InputError, match="numbered 1 to 1; got 2"):
        figures_of_kept([(2,)], np.array([True]), experts=1)
    with pytest.raises(InputError, match="one grid"):
        touching(np.zeros((2, 2, 2), dtype=int), np.zeros((2, 2, 3), dtype=int))
