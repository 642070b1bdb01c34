from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxplain import segment
from voxplain.errors import InputError
from voxplain.explanation import Explanation, Region
from voxplain.grid import Grid
from voxplain.scan import Labels

GRID = Grid((8, 6, 4), np.diag([2.0, 1.0, 3.0, 1.0]))
WHOLE = Region("whole", ((0, 8), (0, 6), (0, 4)), 0.9, 2.0, True)
LEFT = Region("left", ((0, 4), (0, 6), (0, 4)), 0.9, 2.0, True)
RIGHT = Region("right", ((4, 8), (0, 6), (0, 4)), 0.1, -2.0, False)
HALVES = (LEFT, RIGHT)
EACH = pytest.mark.parametrize(
    "cut",
    [
        segment.otsu,
        segment.multi_otsu,
        segment.top_ranks,
        lambda explanation, **options: segment.fixed(explanation, threshold=0.5, **options),
    ],
    ids=["otsu", "multi_otsu", "top_ranks", "fixed"],
)


def of_voxels(values: np.ndarray, *, regions: tuple[Region, ...] = (WHOLE,), signed: bool = False) -> Explanation:
    return Explanation(values[None], ("all",), GRID, signed, "probability", regions)


def of_parts(
    parts: np.ndarray,
    scores: np.ndarray | list[float],
    *,
    regions: tuple[Region, ...] = (WHOLE,),
    signed: bool = False,
) -> Explanation:
    values = np.append(0.0, scores)[parts]
    return Explanation(
        values[None], ("all",), GRID, signed, "probability", regions, Labels(parts, GRID), np.asarray(scores)
    )


def slabs() -> np.ndarray:
    """Parts 1..8, one for each index along X."""
    return np.broadcast_to(np.arange(1, 9)[:, None, None], GRID.shape).copy()


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=GRID.shape).astype(np.float32)


def between(values: np.ndarray, cuts: tuple[float, ...]) -> float:
    """Otsu's criterion itself: the variance between the classes that the cuts make; a value on a cut lies below it."""
    classes = np.searchsorted(cuts, values, side="left")
    found = [values[classes == label] for label in range(len(cuts) + 1)]
    return sum(len(part) * (part.mean() - values.mean()) ** 2 for part in found)


def best_cuts(values: np.ndarray, classes: int) -> tuple[float, ...]:
    """Otsu by trying every choice of cuts."""
    values = values.ravel().astype(float)
    return max(combinations(np.unique(values)[:-1], classes - 1), key=lambda cuts: between(values, cuts))


# Thresholds


@given(st.integers(0, 10_000), st.integers(2, 60))
@settings(max_examples=30, deadline=None)
def test_otsu_threshold_is_the_best_of_every_cut(seed: int, n: int) -> None:
    values = np.random.default_rng(seed).random(n) ** 3
    assert segment.otsu_threshold(values) == best_cuts(values, 2)[0]


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_multi_otsu_threshold_is_the_highest_of_the_best_cuts(classes: int) -> None:
    for seed in range(3):
        values = np.append([0, 255], np.random.default_rng(seed).integers(1, 255, size=16))
        assert segment.multi_otsu_threshold(values, classes=classes) == best_cuts(values, classes)[-1]


def test_few_values_are_not_carried_over_by_the_width_of_a_bin() -> None:
    # skimage.filters.threshold_otsu puts the threshold in the middle of the bin that holds 0.2, so just below it.
    assert segment.otsu_threshold(np.array([0.1, 0.2, 0.8, 0.15])) == 0.2


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [3.5], [-1.0] * 9])
def test_nothing_to_tell_apart_gives_no_threshold(values: list[float]) -> None:
    assert segment.otsu_threshold(np.array(values)) is None
    assert segment.multi_otsu_threshold(np.array(values)) is None


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 1e-12), (-5, 5e6), (1, 1 + 1e-15), (0, 255)])
def test_two_values_are_told_apart_whatever_their_scale(low: float, high: float) -> None:
    values = np.array([[low, high, low]])
    assert segment.otsu_threshold(values) == segment.multi_otsu_threshold(values) == low


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_thresholds_refuse_what_is_no_number(bad: float) -> None:
    for function in (segment.otsu_threshold, segment.multi_otsu_threshold):
        with pytest.raises(InputError, match="finite"):
            function(np.array([0.0, 1.0, bad]))


# The values that a threshold is computed over


def test_voxel_wise_otsu_is_over_the_region() -> None:
    values = np.abs(noise())
    mask = segment.otsu(of_voxels(values))
    assert np.array_equal(mask.data, values > np.float32(best_cuts(values, 2)[0]))
    assert mask.grid is GRID


def test_channels_are_summed() -> None:
    maps = np.abs(np.stack([noise(1), noise(2)]))
    explanation = Explanation(maps, ("t1", "t2"), GRID, False, "probability", (WHOLE,))
    assert np.array_equal(segment.otsu(explanation).data, segment.otsu(of_voxels(maps.sum(axis=0))).data)


def test_mask_says_which_voxels_count() -> None:
    values = np.abs(noise())
    inside = np.zeros(GRID.shape, dtype=int)
    inside[2:6, 1:5] = 4
    values[inside == 0] *= 100
    found = segment.otsu(of_voxels(values), mask=Labels(inside, GRID)).data
    threshold = best_cuts(values[inside > 0], 2)[0]
    assert np.array_equal(found, (inside > 0) & (values > np.float32(threshold)))


def test_mask_leaves_out_parts_that_lie_outside() -> None:
    inside = np.zeros(GRID.shape, dtype=int)
    inside[:4, 1:] = 1
    explanation = of_parts(slabs(), [0.1, 0.2, 0.15, 0.9, 50, 60, 70, 80])
    found = segment.otsu(explanation, mask=Labels(inside, GRID)).data
    expected = np.zeros_like(inside)
    expected[3, 1:] = 1
    assert np.array_equal(found, expected)


def test_parts_count_once_whatever_their_size() -> None:
    parts = np.ones(GRID.shape, dtype=int)
    parts[0, 0, :4] = [2, 3, 4, 5]
    scores = np.array([0.1, 0.5, 0.9, 0.95, 1.0])
    kept = np.flatnonzero(scores > best_cuts(scores, 2)[0]) + 1
    assert np.array_equal(segment.otsu(of_parts(parts, scores)).data, np.isin(parts, kept))


@given(st.permutations(range(8)), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_how_parts_are_numbered_changes_nothing(order: list[int], seed: int) -> None:
    scores = np.random.default_rng(seed).random(8)
    renumbered = np.argsort(order)[slabs() - 1] + 1
    for cut in (segment.otsu, segment.multi_otsu, segment.top_ranks):
        first, second = cut(of_parts(slabs(), scores)), cut(of_parts(renumbered, scores[order]))
        assert np.array_equal(first.data, second.data)


@given(st.integers(0, 1000), st.floats(1e-6, 1e6))
@settings(max_examples=20, deadline=None)
def test_otsu_does_not_depend_on_the_unit(seed: int, factor: float) -> None:
    scores = np.random.default_rng(seed).integers(0, 100, size=8) / 100
    first, second = segment.otsu(of_parts(slabs(), scores)), segment.otsu(of_parts(slabs(), scores * factor))
    assert np.array_equal(first.data, second.data)


def test_only_positive_values_of_a_signed_map_are_evidence() -> None:
    values = noise()
    values[0] = -40
    positive = np.maximum(values, 0)
    for cut in (segment.otsu, segment.multi_otsu):
        signed, suppressed = cut(of_voxels(values, signed=True)), cut(of_voxels(positive))
        assert np.array_equal(signed.data, suppressed.data)
        assert not cut(of_voxels(-positive, signed=True)).data.any()
    explanation = of_parts(slabs(), [-9, -8, 0, 0, 0, 0, 0.5, 0.1], signed=True)
    assert np.unique(slabs()[segment.otsu(explanation).data > 0]).tolist() == [7]
    assert np.unique(slabs()[segment.top_ranks(explanation, count=5).data > 0]).tolist() == [7, 8]


# Regions


@EACH
def test_only_positive_regions_get_a_mask(cut) -> None:
    explanation = of_parts(slabs(), [0.1, 0.9, 0.2, 0.15, 0.1, 0.2, 0.8, 0.15], regions=HALVES)
    assert np.unique(slabs()[cut(explanation).data > 0]).tolist() == [2]
    assert np.unique(slabs()[cut(explanation, everywhere=True).data > 0]).tolist() == [2, 7]


def test_each_region_has_its_own_threshold() -> None:
    values = np.abs(noise())
    values[4:] *= 100
    found = segment.otsu(of_voxels(values, regions=HALVES), everywhere=True).data
    for half in (slice(0, 4), slice(4, 8)):
        threshold = best_cuts(values[half], 2)[0]
        assert np.array_equal(found[half], values[half] > np.float32(threshold))


@EACH
def test_no_positive_region_gives_an_empty_mask(cut) -> None:
    assert cut(of_parts(slabs(), np.arange(8.0), regions=(RIGHT,))).volume == 0


@EACH
def test_no_region_at_all_is_refused(cut) -> None:
    with pytest.raises(InputError, match="region"):
        cut(of_parts(slabs(), np.arange(8.0), regions=()))


# Empty and all-equal maps


@EACH
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_equal_values_give_an_empty_mask(cut, value: float) -> None:
    assert cut(of_parts(slabs(), np.full(8, value))).volume == 0


@EACH
def test_no_voxel_inside_the_mask_gives_an_empty_mask(cut) -> None:
    nowhere = Labels(np.zeros(GRID.shape, dtype=int), GRID)
    assert cut(of_parts(slabs(), np.arange(8.0)), mask=nowhere).volume == 0


@EACH
def test_no_part_gives_an_empty_mask(cut) -> None:
    assert cut(of_parts(np.zeros(GRID.shape, dtype=int), [])).volume == 0


def test_equal_voxels_give_an_empty_mask() -> None:
    for cut in (segment.otsu, segment.multi_otsu):
        assert cut(of_voxels(np.full(GRID.shape, 0.7, dtype=np.float32))).volume == 0


# Multi-Otsu


def test_multi_otsu_keeps_the_top_class() -> None:
    scores = [0, 0.02, 0.01, 0.6, 0.62, 0.61, 0.95, 1.0]
    found = segment.multi_otsu(of_parts(slabs(), scores))
    assert np.unique(slabs()[found.data > 0]).tolist() == [7, 8]
    found = segment.multi_otsu(of_parts(slabs(), scores), classes=2)
    assert np.unique(slabs()[found.data > 0]).tolist() == [4, 5, 6, 7, 8]


def test_offset_lowers_the_top_threshold_but_not_below_0() -> None:
    scores = np.array([0, 0.02, 0.01, 0.4, 0.42, 0.41, 0.95, 1.0])
    top = best_cuts(scores, 3)[-1]
    for offset in (0.0, 0.01, 0.3, 5.0):
        found = segment.multi_otsu(of_parts(slabs(), scores), offset=offset)
        kept = np.flatnonzero(scores > max(top - offset, 0)) + 1
        assert np.array_equal(found.data, np.isin(slabs(), kept))
    assert not (found.data[0] > 0).any()


def test_too_few_values_for_the_classes_fall_to_otsu() -> None:
    explanation = of_parts(slabs(), [0, 0, 0, 0, 0, 0, 1, 1])
    found = segment.multi_otsu(explanation, classes=3)
    assert np.unique(slabs()[found.data > 0]).tolist() == [7, 8]


# Top ranks


@pytest.mark.parametrize(
    ("count", "kept"), [(1, [3]), (2, [2, 3]), (3, [2, 3, 6]), (8, [1, 2, 3, 5, 6, 8]), (99, [1, 2, 3, 5, 6, 8])]
)
def test_top_ranks_breaks_ties_by_label_and_leaves_out_zeros(count: int, kept: list[int]) -> None:
    explanation = of_parts(slabs(), [0.1, 0.7, 0.9, 0, 0.1, 0.7, 0, 0.2])
    assert np.unique(slabs()[segment.top_ranks(explanation, count=count).data > 0]).tolist() == kept


def test_a_single_part_is_rank_1() -> None:
    parts = np.zeros(GRID.shape, dtype=int)
    parts[1:3] = 1
    assert np.array_equal(segment.top_ranks(of_parts(parts, [0.4])).data, parts)


def test_a_part_across_two_regions_is_marked_only_in_the_positive_one() -> None:
    parts = np.ones(GRID.shape, dtype=int)
    parts[0] = 2
    found = segment.top_ranks(of_parts(parts, [0.8, 0.1], regions=HALVES)).data
    assert found[1:4].all()
    assert found.sum() == 3 * 24


def test_voxel_wise_maps_have_no_ranks() -> None:
    with pytest.raises(InputError, match="RelevanceMap"):
        segment.top_ranks(of_voxels(noise()))


# Fixed


def test_fixed_is_absolute_and_does_not_include_the_threshold() -> None:
    values = np.full(GRID.shape, 0.3, dtype=np.float32)
    assert segment.fixed(of_voxels(values), threshold=0.3).volume == 0
    assert segment.fixed(of_voxels(values), threshold=0.29).count == 1
    values[2] = 0.5
    assert np.array_equal(segment.fixed(of_voxels(values), threshold=0.3).data, values > 0.4)


def test_fixed_refuses_negative_evidence() -> None:
    with pytest.raises(InputError, match="signed"):
        segment.fixed(of_voxels(noise(), signed=True), threshold=-0.1)
    with pytest.raises(InputError, match="probability"):
        segment.fixed(of_voxels(noise()), threshold=np.nan)


# Components


def blobs() -> np.ndarray:
    """Three components of 1, 2 (joined at a corner only) and 4 voxels; a voxel is 6 mm^3."""
    values = np.zeros(GRID.shape, dtype=np.float32)
    values[0, 0, 0] = 1
    values[0, 4, 0] = values[1, 5, 1] = 1
    values[5:7, 2:4, 2] = 1
    return values


@pytest.mark.parametrize(("smallest", "voxels"), [(0, 7), (6, 7), (6.1, 6), (12, 6), (12.1, 4), (24, 4), (25, 0)])
def test_smallest_is_in_mm3(smallest: float, voxels: int) -> None:
    assert segment.otsu(of_voxels(blobs()), smallest=smallest).data.sum() == voxels


@pytest.mark.parametrize(("components", "voxels"), [(None, 7), (1, 4), (2, 6), (3, 7), (9, 7)])
def test_components_keeps_the_largest_with_26_neighbours(components: int | None, voxels: int) -> None:
    assert segment.otsu(of_voxels(blobs()), components=components).data.sum() == voxels


def test_components_of_one_size_are_taken_in_voxel_order() -> None:
    values = np.zeros(GRID.shape, dtype=np.float32)
    values[5, 0, 0] = values[2, 3, 3] = values[2, 5, 0] = 1
    found = segment.otsu(of_voxels(values), components=1)
    assert np.argwhere(found.data).tolist() == [[2, 3, 3]]


def test_components_count_within_each_region() -> None:
    both = (LEFT, Region("right", RIGHT.box, 0.9, 2.0, True))
    found = segment.otsu(of_voxels(blobs(), regions=both), components=1).data
    assert found[:4].sum() == 2
    assert found[4:].sum() == 4


# Bad options


@EACH
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"smallest": -1.0}, "mm"),
        ({"smallest": np.nan}, "mm"),
        ({"components": 0}, "components"),
        ({"mask": Labels(np.ones((8, 6, 4), dtype=int), Grid((8, 6, 4), np.eye(4)))}, "grid"),
    ],
)
def test_bad_options_are_refused(cut, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        cut(of_parts(slabs(), np.arange(8.0)), **options)


@pytest.mark.parametrize("options", [{"classes": 1}, {"classes": 6}, {"offset": -0.1}, {"offset": np.inf}])
def test_bad_multi_otsu_options_are_refused(options: dict) -> None:
    with pytest.raises(InputError):
        segment.multi_otsu(of_voxels(noise()), **options)


def test_top_ranks_refuses_a_count_of_0() -> None:
    with pytest.raises(InputError, match="count"):
        segment.top_ranks(of_parts(slabs(), np.arange(8.0)), count=0)
