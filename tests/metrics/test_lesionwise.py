"""Figures of lesions found, against counting by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from voxplain.errors import InputError
from voxplain.metrics.lesionwise import lesion_f1, lesion_precision, lesion_recall, normalised_dice

SHAPE = (4, 3, 2)
LESIONS = arrays(np.int32, SHAPE, elements=st.integers(0, 4))
MASKS = arrays(bool, SHAPE)
NONE, ONE = np.zeros(SHAPE, int), np.ones(SHAPE, int)


def by_hand(lesions: np.ndarray, others: np.ndarray) -> float:
    names = set(lesions.ravel()) - {0}
    hit = sum(any(o for n, o in zip(lesions.ravel(), others.ravel(), strict=True) if n == name) for name in names)
    return hit / len(names)


@given(LESIONS, LESIONS)
def test_shares_are_counted_lesion_by_lesion(predicted: np.ndarray, reference: np.ndarray) -> None:
    if predicted.any() and reference.any():
        precision, recall = by_hand(predicted, reference), by_hand(reference, predicted)
        assert lesion_precision(predicted, reference) == precision
        assert lesion_recall(predicted, reference) == recall
        harmonic = 0 if precision + recall == 0 else 2 / (1 / precision + 1 / recall)
        assert lesion_f1(predicted, reference) == pytest.approx(harmonic)
    assert lesion_f1(predicted, reference) == pytest.approx(lesion_f1(reference, predicted))


def test_empty_sides() -> None:
    assert lesion_precision(NONE, NONE) == lesion_recall(NONE, NONE) == lesion_f1(NONE, NONE) == 1
    assert lesion_precision(NONE, ONE) == lesion_recall(NONE, ONE) == lesion_f1(NONE, ONE) == 0
    assert lesion_precision(ONE, NONE) == lesion_f1(ONE, NONE) == 0
    assert np.isnan(lesion_recall(ONE, NONE))


@pytest.mark.parametrize("wrong", [ONE > 0, ONE * 1.0, -ONE, ONE[1:]])
def test_instances_are_whole_numbers_on_one_grid(wrong: np.ndarray) -> None:
    for figure in (lesion_precision, lesion_recall, lesion_f1):
        with pytest.raises(InputError, match=r"whole numbers|one grid"):
            figure(wrong, ONE)


@given(MASKS, MASKS, st.floats(0.001, 0.9))
def test_normalised_dice_is_dice_at_another_load(a: np.ndarray, b: np.ndarray, load: float) -> None:
    """With every false positive weighted as many times as the negatives would be, the load being what it says."""
    found = normalised_dice(a, b, load=load)
    assert 0 <= found <= 1
    right, wrong, missed = (a & b).sum(), (a & ~b).sum(), (b & ~a).sum()
    if right:
        # Copies of each negative voxel until the reference's share of all voxels is the load.
        copies = b.sum() * (1 - load) / load / max((~b).sum(), 1)
        assert found == pytest.approx(2 * right / (2 * right + copies * wrong + missed))
    else:
        assert found == (not wrong and not missed)


def test_normalised_dice_at_the_masks_own_load_is_dice() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 8, 8, 8)) < 0.3
    plain = 2 * (a & b).sum() / (a.sum() + b.sum())
    assert normalised_dice(a, b, load=b.mean()) == pytest.approx(plain)
    assert normalised_dice(a, b) < plain


def test_normalised_dice_of_masks_that_hold_everything_or_nothing() -> None:
    full, empty = ONE > 0, NONE > 0
    assert normalised_dice(full, full) == normalised_dice(empty, empty) == 1
    assert normalised_dice(full, empty) == normalised_dice(empty, full) == 0
    for load in (0, 1, np.nan):
        with pytest.raises(InputError, match="load is a share"):
            normalised_dice(full, full, load=load)
    with pytest.raises(InputError, match="two boolean masks"):
        normalised_dice(ONE, ONE)
