"""Lesion instances: how they are numbered, which of them are right, and where there are none."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage import measure

import voxplain as vx
from voxplain.lesions import COLUMNS, find_lesions, instances, true_negatives

AFFINE = np.array([[-1.5, 0, 0, 11], [0, 1, 0, -30], [0, 0, 2, 7], [0, 0, 0, 1.0]])
MASKS = arrays(bool, (6, 5, 4))


def labels(data: np.ndarray, affine: np.ndarray = AFFINE) -> vx.Labels:
    return vx.Labels(data, vx.Grid(data.shape, affine))


def as_sets(found: np.ndarray) -> list[frozenset[int]]:
    """The lesions in the order of their numbers, each as the flat indices of its voxels."""
    flat = np.ascontiguousarray(found).ravel()
    return [frozenset(np.flatnonzero(flat == number).tolist()) for number in range(1, int(flat.max()) + 1)]


@given(MASKS, st.sampled_from([0.0, 5.0, 9.0, 12.5]))
def test_lesions_are_the_components_of_another_library_by_size(mask: np.ndarray, smallest: float) -> None:
    found = instances(labels(mask), smallest=smallest)
    pieces = measure.label(mask, connectivity=2)  # faces and edges: 18 neighbours
    expected = [set(np.flatnonzero(pieces.ravel() == n).tolist()) for n in range(1, pieces.max() + 1)]
    expected = sorted((s for s in expected if 3.0 * len(s) >= smallest), key=lambda s: (-len(s), min(s)))
    assert as_sets(found.data) == [frozenset(s) for s in expected]


@given(MASKS, st.permutations(range(3)), st.lists(st.booleans(), min_size=3, max_size=3))
def test_however_the_axes_lie_the_lesions_are_the_same(mask: np.ndarray, order: list[int], flips: list[bool]) -> None:
    flipped = tuple(axis for axis, flip in enumerate(flips) if flip)
    turned = np.flip(mask.transpose(order), flipped)
    affine = np.diag([*np.array([1.5, 1.0, 2.0])[order], 1.0])
    found = instances(labels(turned, affine)).data
    back = np.flip(found, flipped).transpose(np.argsort(order))
    plain = instances(labels(mask)).data
    assert set(as_sets(back)) == set(as_sets(plain))
    assert [len(s) for s in as_sets(back)] == [len(s) for s in as_sets(plain)]


@given(MASKS)
def test_memory_order_changes_nothing(mask: np.ndarray) -> None:
    for other in (np.asfortranarray(mask), mask.transpose(2, 0, 1).copy().transpose(1, 2, 0)):
        np.testing.assert_array_equal(instances(labels(other)).data, instances(labels(mask)).data)


@pytest.mark.parametrize(("step", "together"), [((1, 0, 0), 1), ((1, 1, 0), 1), ((0, 1, -1), 1), ((1, 1, 1), 2)])
def test_faces_and_edges_join_and_corners_do_not(step: tuple[int, int, int], together: int) -> None:
    mask = np.zeros((5, 5, 5), dtype=bool)
    mask[2, 2, 2] = mask[tuple(np.array((2, 2, 2)) + step)] = True
    assert instances(labels(mask), smallest=0).count == together


def test_equal_lesions_by_their_first_voxel_and_the_smallest_in_mm3() -> None:
    mask = np.zeros((9, 7, 5), dtype=bool)
    mask[6, 1, 1:3] = mask[0, 5, 2:4] = mask[3, 0:3, 4] = mask[8, 6, 4] = True
    # Voxels of 3 mm^3: lesions of 6, 6, 9 and 3.
    found = instances(labels(mask)).data
    assert (found[3, 0, 4], found[0, 5, 2], found[6, 1, 1], found[8, 6, 4]) == (1, 2, 3, 0)
    assert instances(labels(mask), smallest=6).count == 3
    assert instances(labels(mask), smallest=6.1).count == 1
    for wrong in (-1, np.nan, np.inf):
        with pytest.raises(vx.InputError, match="smallest is a volume in mm"):
            instances(labels(mask), smallest=wrong)


def made() -> tuple[vx.Labels, vx.Labels, np.ndarray]:
    """A prediction of three lesions and a reference of other labels, whose second lesion it misses."""
    mask, reference = np.zeros((2, 10, 8, 8), dtype=int)
    mask[0:3, 0:3, 0] = 1  # at the border; one voxel of it in the reference
    mask[5:7, 5:7, 5] = 1  # in the reference, whole
    mask[9, 0:2, 7] = 1  # nowhere in it
    reference[2:4, 2:4, 0] = 4
    reference[5:7, 5:7, 5] = 9
    reference[8:10, 6:8, 0] = 4
    reference[0, 7, 7] = 1  # 3 mm^3: no lesion
    probability = np.linspace(0, 1, mask.size).reshape(mask.shape).astype(np.float32)
    return labels(mask), labels(reference), probability


def test_right_wrong_and_missed() -> None:
    mask, reference, probability = made()
    found = find_lesions(mask, probability=probability, reference=reference)
    assert tuple(found.table.columns) == COLUMNS
    assert found.table["kind"].tolist() == ["TP", "TP", "FP", "FN"]
    assert found.numbers == (1, 2, 3, 4)
    assert found.table["volume_mm3"].tolist() == [27.0, 12.0, 6.0, 12.0]
    np.testing.assert_array_equal(found.labels.data > 0, (mask.data > 0) | (found.labels.data == 4))
    np.testing.assert_array_equal(found.labels.data == 4, (reference.data == 4) & (np.indices((10, 8, 8))[0] >= 8))
    np.testing.assert_array_equal(found.predicted.data > 0, mask.data > 0)
    for line in found.table.itertuples():
        inside = found.labels.data == line.lesion
        centre = mask.grid.world(np.argwhere(inside)).mean(axis=0)
        np.testing.assert_allclose((line.x_mm, line.y_mm, line.z_mm), centre)
        assert line.mean_probability == pytest.approx(probability[inside].mean(), rel=1e-6)
        assert line.max_probability == probability[inside].max()


@pytest.mark.parametrize("with_reference", [False, True])
def test_nothing_found_is_an_empty_table(with_reference: bool) -> None:
    mask, reference, probability = made()
    empty = labels(np.zeros(mask.data.shape, int))
    found = find_lesions(empty, probability=probability, reference=empty if with_reference else None)
    assert len(found.table) == 0
    assert tuple(found.table.columns) == COLUMNS
    assert not found.labels.data.any()
    with pytest.raises(vx.InputError, match="there is no lesion 1; no lesion was found"):
        found.check(1)
    missed = find_lesions(empty, probability=probability, reference=reference)
    assert missed.table["kind"].tolist() == ["FN"] * 3


def test_without_reference_or_probability() -> None:
    mask, _, _ = made()
    found = find_lesions(mask)
    assert found.table["kind"].tolist() == [""] * 3
    assert found.table["mean_probability"].isna().all()
    found.check(3)
    with pytest.raises(vx.InputError, match="there is no lesion 4; there are lesions 1 to 3"):
        found.check(4)


def test_a_reference_on_another_grid_is_refused() -> None:
    mask, reference, probability = made()
    shifted = vx.Labels(reference.data, reference.grid.window((1, 0, 0), reference.grid.shape))
    with pytest.raises(vx.InputError, match="the reference lies on another grid than the scan: same shape"):
        find_lesions(mask, reference=shifted)
    with pytest.raises(vx.InputError, match="expected a probability for each"):
        find_lesions(mask, probability=probability[1:])


def test_tables_are_written_and_read_as_they_are(tmp_path) -> None:
    mask, reference, probability = made()
    table = find_lesions(mask, probability=probability, reference=reference).table
    table.to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.tsv", sep="\t"), table, check_dtype=False)


# Spheres without a lesion


BRAIN = ((np.indices((40, 44, 36)) - np.array([20, 22, 18])[:, None, None, None]) ** 2).sum(axis=0) < 17**2


def spheres(**options: object) -> tuple[vx.Labels, np.ndarray]:
    lesion = np.zeros(BRAIN.shape, dtype=bool)
    lesion[18:24, 20:26, 16:22] = True
    found = true_negatives(
        labels(BRAIN, np.eye(4)), labels(lesion, np.eye(4)), labels(np.roll(lesion, 6, axis=0), np.eye(4)), **options
    )
    return found, lesion | np.roll(lesion, 6, axis=0)


def test_ten_spheres_of_93_mm3_away_from_all_else() -> None:
    found, lesion = spheres(seed=3)
    assert found.count == 10
    assert np.bincount(found.data.ravel())[1:].tolist() == [93] * 10
    assert BRAIN[found.data > 0].all()
    places = [np.argwhere(found.data == number) for number in range(1, 11)]
    for one, other in itertools.combinations([*places, np.argwhere(lesion)], 2):
        assert np.abs(one[:, None] - other[None]).max(axis=-1).min() > 1
    for place in places:
        assert np.linalg.norm(place - place.mean(axis=0), axis=1).max() == pytest.approx(8**0.5)
    np.testing.assert_array_equal(spheres(seed=3)[0].data, found.data)
    assert (spheres(seed=4)[0].data != found.data).any()


def test_spheres_are_round_in_mm() -> None:
    affine = np.diag([1, 2, 0.5, 1])
    brain = np.zeros((30, 20, 60), dtype=bool)
    brain[2:-2, 2:-2, 2:-2] = True
    nothing = labels(np.zeros(brain.shape, int), affine)
    found = true_negatives(labels(brain, affine), nothing, count=1)
    place = np.argwhere(found.data) * (1, 2, 0.5)
    assert len(place) == pytest.approx(93, abs=5)
    assert np.ptp(place, axis=0).tolist() == pytest.approx([5, 5, 5], abs=1.1)


def test_where_there_is_no_room() -> None:
    with pytest.warns(UserWarning, match=r"there is room for \d+ of 10000 spheres of 93 mm"):
        found, _ = spheres(count=10_000)
    assert 10 < found.count < 1000
    brain, tiny = labels(BRAIN, np.eye(4)), np.zeros(BRAIN.shape, dtype=bool)
    tiny[20:24, 20:24, 20:24] = True
    with pytest.raises(vx.InputError, match="no room for a sphere of 93 mm"):
        true_negatives(labels(tiny, np.eye(4)), labels(~BRAIN, np.eye(4)))
    with pytest.raises(vx.InputError, match="the prediction lies on another grid than the brain"):
        true_negatives(brain, labels(BRAIN, np.diag([2, 1, 1, 1])))
    with pytest.raises(vx.InputError, match="count is at least 1"):
        true_negatives(brain, brain, count=0)
