from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_hausdorff_distance
from torch import as_tensor

from voxplain.errors import InputError
from voxplain.metrics import overlap

SHAPE = (5, 4, 3)
NONE = np.zeros(SHAPE, dtype=bool)
ALL = np.ones(SHAPE, dtype=bool)
MASKS = arrays(bool, SHAPE)
QUICK = settings(max_examples=40, deadline=None)


def naive_dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    a, b = set(np.flatnonzero(prediction)), set(np.flatnonzero(reference))
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0


def blob(seed: int, share: float = 0.3) -> np.ndarray:
    return np.random.default_rng(seed).random(SHAPE) < share


# Dice


@given(MASKS, MASKS)
@QUICK
def test_dice_is_symmetric_between_0_and_1_and_counts_voxels(a: np.ndarray, b: np.ndarray) -> None:
    assert overlap.dice(a, b) == overlap.dice(b, a) == pytest.approx(naive_dice(a, b))
    assert 0 <= overlap.dice(a, b) <= 1
    assert overlap.dice(a, a) == 1


def test_dice_of_empty_masks() -> None:
    assert overlap.dice(NONE, NONE) == 1
    assert overlap.dice(NONE, ALL) == overlap.dice(ALL, NONE) == 0


@pytest.mark.parametrize(
    ("prediction", "reference", "words"),
    [(ALL.astype(float), ALL, "float64"), (ALL, ALL.astype(int), "int64"), (ALL, ALL[:-1], "one grid")],
)
def test_masks_are_boolean_and_on_one_grid(prediction: np.ndarray, reference: np.ndarray, words: str) -> None:
    for call in (
        lambda: overlap.dice(prediction, reference),
        lambda: overlap.hausdorff95(prediction, reference, spacing=(1, 1, 1)),
        lambda: overlap.volume_error(prediction, reference, voxel_volume=1),
    ):
        with pytest.raises(InputError, match=words):
            call()


# Hausdorff distance


def naive_surface(mask: np.ndarray, axes: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    padded = np.pad(mask, 1)
    found = []
    for index in np.argwhere(mask):
        for axis in axes:
            for step in (-1, 1):
                neighbour = index + 1
                neighbour[axis] += step
                if not padded[tuple(neighbour)]:
                    found.append(tuple(index))
    return np.array(sorted(set(found)), dtype=float)


def naive_hausdorff95(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...], axes=(0, 1, 2)) -> float:
    distances = np.linalg.norm(
        (naive_surface(a, axes)[:, None] - naive_surface(b, axes)[None]) * np.array(spacing), axis=-1
    )
    return max(np.percentile(distances.min(axis=1), 95), np.percentile(distances.min(axis=0), 95))


@given(MASKS, MASKS, st.sampled_from([(1.0, 1.0, 1.0), (2.0, 0.5, 3.0)]))
@QUICK
def test_hausdorff95_against_every_pair_of_surface_voxels(
    a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]
) -> None:
    distance = overlap.hausdorff95(a, b, spacing=spacing)
    if a.any() and b.any():
        assert distance == pytest.approx(naive_hausdorff95(a, b, spacing))
        assert distance == overlap.hausdorff95(b, a, spacing=spacing)
    else:
        assert distance == 0 if a.any() == b.any() else np.isnan(distance)


def test_hausdorff95_against_monai() -> None:
    rng = np.random.default_rng(1)
    centres = np.indices((20, 18, 12)).reshape(3, -1).T
    for _ in range(3):
        masks = [
            (np.linalg.norm((centres - rng.uniform(6, 12, 3)) * [1, 1, 2], axis=1) < rng.uniform(4, 8)).reshape(
                20, 18, 12
            )
            for _ in range(2)
        ]
        theirs = compute_hausdorff_distance(
            *(as_tensor(mask)[None, None].float() for mask in masks),
            include_background=True,
            percentile=95,
            spacing=[1.0, 1.0, 2.0],
        )
        assert overlap.hausdorff95(*masks, spacing=(1, 1, 2)) == pytest.approx(float(theirs), rel=1e-5)


def test_hausdorff95_of_a_shifted_box_is_the_shift_in_mm() -> None:
    a, b = np.zeros((12, 6, 6), dtype=bool), np.zeros((12, 6, 6), dtype=bool)
    a[1, 2:4, 2:4], b[8, 2:4, 2:4] = True, True
    assert overlap.hausdorff95(a, b, spacing=(2.5, 1, 1)) == pytest.approx(7 * 2.5)
    assert overlap.hausdorff95(a, a, spacing=(2.5, 1, 1)) == 0


def test_hausdorff95_of_a_2d_image_takes_the_outline_only() -> None:
    a, b = np.zeros((12, 12, 1), dtype=bool), np.zeros((12, 12, 1), dtype=bool)
    a[1:11, 1:11], b[4:8, 4:8] = True, True
    flat = overlap.hausdorff95(a, b, spacing=(1, 1, 5))
    assert flat == pytest.approx(naive_hausdorff95(a, b, (1, 1, 5), axes=(0, 1)))
    assert flat != pytest.approx(naive_hausdorff95(a, b, (1, 1, 5)))


@pytest.mark.parametrize("spacing", [(1, 1), (1, 0, 1), (1, -1, 1), (1, 1, np.nan)])
def test_hausdorff95_refuses_a_spacing_that_is_none(spacing: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="voxel size"):
        overlap.hausdorff95(ALL, ALL, spacing=spacing)


# Volume


def test_volume_error_is_signed_and_in_ml() -> None:
    assert overlap.volume_error(ALL, NONE, voxel_volume=8) == pytest.approx(60 * 8 / 1000)
    assert overlap.volume_error(NONE, ALL, voxel_volume=8) == pytest.approx(-60 * 8 / 1000)
    assert overlap.volume_error(NONE, NONE, voxel_volume=8) == 0
    with pytest.raises(InputError, match="mm"):
        overlap.volume_error(ALL, ALL, voxel_volume=0)


# Ranks


def naive_order(parts: np.ndarray, scores: np.ndarray) -> list[int]:
    present = [label for label in range(1, len(scores) + 1) if (parts == label).any()]
    return sorted(present, key=lambda label: (-scores[label - 1], label))


PARTS = arrays(np.int32, SHAPE, elements=st.integers(0, 6))
SCORES = arrays(float, 6, elements=st.sampled_from([0.0, 0.1, 0.5, 0.5, 1.0]))


@given(PARTS, SCORES, MASKS)
@QUICK
def test_ranks_against_a_walk_from_the_highest_down(
    parts: np.ndarray, scores: np.ndarray, reference: np.ndarray
) -> None:
    order = naive_order(parts, scores)
    walk = [naive_dice(np.isin(parts, order[:k]), reference) for k in range(len(order) + 1)]
    best = overlap.best_grouping(parts, scores, reference)
    assert best.dice == pytest.approx(max(walk))
    assert walk[best.ranks] == pytest.approx(max(walk))

    together = overlap.cumulative_dice(parts, scores, reference, ranks=4)
    assert together == pytest.approx([walk[min(k, len(order))] for k in (1, 2, 3, 4)])

    alone = overlap.rank_dice(parts, scores, reference, ranks=4)
    expected = [naive_dice(parts == label, reference) for label in order[:4]]
    assert alone[: len(expected)] == pytest.approx(expected)
    assert np.isnan(alone[len(expected) :]).all()


@given(PARTS, SCORES, MASKS)
@QUICK
def test_supervoxel_ceiling_against_every_union(parts: np.ndarray, scores: np.ndarray, reference: np.ndarray) -> None:
    unions = [union for k in range(7) for union in combinations(range(1, 7), k)]
    best = max(naive_dice(np.isin(parts, union), reference) for union in unions)
    assert overlap.supervoxel_ceiling(parts, reference) == pytest.approx(best)
    assert overlap.best_grouping(parts, scores, reference).dice <= overlap.supervoxel_ceiling(parts, reference) + 1e-12


def test_equal_scores_are_ranked_by_label_and_the_smallest_grouping_wins() -> None:
    parts = np.zeros(SHAPE, dtype=int)
    parts[0], parts[1], parts[2] = 3, 1, 2
    reference = parts == 1
    scores = np.array([0.5, 0.5, 0.5])
    assert overlap.rank_dice(parts, scores, reference, ranks=3).tolist() == [1, 0, 0]
    assert overlap.best_grouping(parts, scores, reference) == (1.0, 1)


def test_a_half_is_ranked_by_its_own_parts() -> None:
    parts = np.zeros(SHAPE, dtype=int)
    parts[0], parts[1], parts[4] = 1, 2, 3
    scores, reference = np.array([0.1, 0.2, 0.9]), parts == 2
    assert overlap.rank_dice(parts[:2], scores, reference[:2], ranks=2).tolist() == [1, 0]


def test_ranks_of_empty_references_and_no_parts() -> None:
    parts, scores = np.ones(SHAPE, dtype=int), np.array([0.3])
    assert overlap.best_grouping(parts, scores, NONE) == (1.0, 0)
    assert overlap.best_grouping(NONE.astype(int), np.array([]), ALL) == (0.0, 0)
    assert overlap.supervoxel_ceiling(parts, NONE) == 1
    assert overlap.supervoxel_ceiling(NONE.astype(int), ALL) == 0
    assert overlap.rank_dice(parts, scores, NONE, ranks=1).tolist() == [0]
    assert overlap.cumulative_dice(parts, scores, NONE, ranks=2).tolist() == [0, 0]
    assert np.isnan(overlap.rank_dice(NONE.astype(int), np.array([]), ALL)).all()
    assert overlap.cumulative_dice(NONE.astype(int), np.array([]), ALL).tolist() == [0] * 5
    assert overlap.cumulative_dice(NONE.astype(int), np.array([]), NONE, ranks=1).tolist() == [1]


@pytest.mark.parametrize(
    ("parts", "scores", "words"),
    [
        (np.full(SHAPE, 3), [0.1, 0.2], "score"),
        (np.ones(SHAPE, dtype=int), [np.nan], "NaN"),
        (np.ones(SHAPE, dtype=int), [[0.1]], "shape"),
        (np.ones(SHAPE), [0.1], "labels"),
        (np.full(SHAPE, -1), [0.1], "labels"),
        (np.ones((2, 2, 2), dtype=int), [0.1], "one grid"),
    ],
)
def test_bad_parts_and_scores_are_refused(parts: np.ndarray, scores: list, words: str) -> None:
    for function in (overlap.best_grouping, overlap.rank_dice, overlap.cumulative_dice):
        with pytest.raises(InputError, match=words):
            function(parts, np.array(scores), ALL)


def test_no_ranks_are_refused() -> None:
    for function in (overlap.rank_dice, overlap.cumulative_dice):
        with pytest.raises(InputError, match="ranks"):
            function(np.ones(SHAPE, dtype=int), np.array([1.0]), ALL, ranks=0)


# Best threshold


@given(arrays(np.float32, SHAPE, elements=st.sampled_from([-2, -0.5, 0, 0.25, 0.25, 3])), MASKS)
@QUICK
def test_best_threshold_against_every_threshold(values: np.ndarray, reference: np.ndarray) -> None:
    cuts = [-np.inf, *np.unique(values).tolist()]
    expected = max(naive_dice(values > cut, reference) for cut in cuts)
    best = overlap.best_threshold(values, reference)
    assert best.dice == pytest.approx(expected)
    assert naive_dice(values > best.threshold, reference) == pytest.approx(expected)
    higher = [naive_dice(values > cut, reference) for cut in cuts if cut > best.threshold]
    assert all(other < best.dice for other in higher)


@given(st.integers(0, 1000), st.floats(-3, 3, width=32))
@QUICK
def test_no_threshold_beats_the_best(seed: int, threshold: float) -> None:
    values = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    reference = blob(seed + 1)
    assert overlap.best_threshold(values, reference).dice >= overlap.dice(values > threshold, reference)


def test_best_threshold_never_cuts_through_equal_values() -> None:
    values = np.array([1, 1, 1, 0.0]).reshape(4, 1, 1)
    reference = np.array([True, False, False, False]).reshape(4, 1, 1)
    assert overlap.best_threshold(values, reference) == (0.5, 0.0)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float64])
def test_best_threshold_takes_any_kind_of_number(dtype: type) -> None:
    reference = blob(3)
    assert overlap.best_threshold(reference.astype(dtype), reference) == (1.0, 0.0)


def test_best_threshold_of_empty_references_and_maps() -> None:
    values = np.arange(60.0).reshape(SHAPE)
    assert overlap.best_threshold(values, NONE) == (1.0, 59.0)
    assert overlap.best_threshold(values, ALL) == (1.0, -np.inf)
    assert overlap.best_threshold(np.zeros((0, 2, 2)), np.zeros((0, 2, 2), dtype=bool)) == (1.0, -np.inf)


def test_best_threshold_refuses_nan_and_other_grids() -> None:
    with pytest.raises(InputError, match="NaN"):
        overlap.best_threshold(np.full(SHAPE, np.nan), ALL)
    with pytest.raises(InputError, match="one grid"):
        overlap.best_threshold(np.zeros((2, 2, 2)), ALL)
