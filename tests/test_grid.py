"""Where voxels lie in the world, whatever is done to their grid."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxplain.errors import InputError
from voxplain.grid import Grid, resample

ALL_48 = sorted(
    "".join(codes) for axes in itertools.permutations(["LR", "PA", "IS"]) for codes in itertools.product(*axes)
)
shapes = st.tuples(*[st.integers(1, 9)] * 3)
spacings = st.tuples(*[st.sampled_from([0.5, 0.9375, 1.0, 1.2, 2.0, 3.3])] * 3)
orientations = st.sampled_from(ALL_48)


def affine_of(orientation: str, spacing: tuple[float, ...], origin: tuple[float, ...]) -> np.ndarray:
    """An axis-parallel affine written down by hand."""
    affine = np.zeros((4, 4))
    for axis, (code, size) in enumerate(zip(orientation, spacing, strict=True)):
        world = next(i for i, pair in enumerate(("LR", "PA", "IS")) if code in pair)
        affine[world, axis] = size if code in "RAS" else -size
    affine[:, 3] = [*origin, 1]
    return affine


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    origin = draw(st.tuples(*[st.floats(-200, 200, width=16)] * 3))
    return Grid(draw(shapes), affine_of(draw(orientations), draw(spacings), origin))


def image(grid: Grid, channels: int = 1) -> np.ndarray:
    """Another number in every voxel."""
    count = channels * int(np.prod(grid.shape))
    return np.random.default_rng(0).permutation(count).reshape(channels, *grid.shape).astype(np.float32)


def positions(grid: Grid) -> np.ndarray:
    """World coordinates (X, Y, Z, 3) of all voxels, straight from the affine."""
    index = np.stack([*np.indices(grid.shape), np.ones(grid.shape)], axis=-1)
    return (index @ grid.affine.T)[..., :3]


def assert_same_picture(one: tuple[np.ndarray, Grid], other: tuple[np.ndarray, Grid]) -> None:
    """The same values at the same places in the world."""
    tables = []
    for data, grid in (one, other):
        places = positions(grid).reshape(-1, 3).round(3) + 0.0
        order = np.lexsort(places.T)
        tables.append((places[order], data.reshape(-1)[order]))
    np.testing.assert_allclose(tables[0][0], tables[1][0], atol=2e-3)
    np.testing.assert_array_equal(tables[0][1], tables[1][1])


@given(grid=grids())
def test_spacing_orientation_and_volume_are_read_off_the_affine(grid: Grid) -> None:
    assert grid.orientation == "".join(nib.aff2axcodes(grid.affine))
    assert grid.voxel_volume == pytest.approx(np.prod(grid.spacing))
    for axis in range(3):
        step = grid.world(np.eye(3)[axis]) - grid.world((0, 0, 0))
        assert np.linalg.norm(step) == pytest.approx(grid.spacing[axis])
        assert grid.axis({"L": "LR", "R": "LR", "P": "PA", "A": "PA"}.get(grid.orientation[axis], "IS")) == axis


@given(grid=grids(), point=st.tuples(*[st.floats(-300, 300)] * 3))
def test_world_and_index_are_inverse(grid: Grid, point: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(grid.world(grid.index(point)), point, atol=1e-6)
    np.testing.assert_allclose(grid.world(np.indices(grid.shape).reshape(3, -1).T), positions(grid).reshape(-1, 3))


@given(grid=grids(), orientation=orientations)
def test_reoriented_keeps_every_voxel_in_its_place(grid: Grid, orientation: str) -> None:
    turned = grid.reoriented(orientation)
    assert turned.orientation == orientation
    data = image(grid)
    moved = resample(data, grid, turned)
    assert_same_picture((data, grid), (moved, turned))
    np.testing.assert_array_equal(resample(moved, turned, grid), data)
    assert turned.reoriented(grid.orientation).difference(grid) is None


@given(grid=grids(), axis=st.integers(0, 2))
def test_flipped_keeps_every_voxel_in_its_place(grid: Grid, axis: int) -> None:
    mirrored, data = grid.flipped(axis), image(grid)
    flipped = resample(data, grid, mirrored)
    np.testing.assert_array_equal(flipped, np.flip(data, 1 + axis))
    assert_same_picture((data, grid), (flipped, mirrored))
    np.testing.assert_array_equal(resample(flipped, mirrored, grid), data)
    assert mirrored.flipped(axis).difference(grid) is None


@given(grid=grids(), start=st.tuples(*[st.integers(-4, 8)] * 3), shape=shapes)
def test_a_window_copies_by_index_and_pads(grid: Grid, start: tuple[int, ...], shape: tuple[int, int, int]) -> None:
    window, data = grid.window(start, shape), image(grid, 2)
    cut = resample(data, grid, window, outside=-1)
    assert cut.shape == (2, *shape)
    padded = np.pad(data, [(0, 0), *[(4, 20)] * 3], constant_values=-1)
    box = tuple(slice(4 + s, 4 + s + n) for s, n in zip(start, shape, strict=True))
    np.testing.assert_array_equal(cut, padded[(slice(None), *box)])
    np.testing.assert_allclose(window.world((0, 0, 0)), grid.world(start), atol=1e-9)


@given(grid=grids(), spacing=spacings)
def test_with_spacing_keeps_the_first_face_and_the_field_of_view(grid: Grid, spacing: tuple[float, ...]) -> None:
    other = grid.with_spacing(spacing)
    assert other.spacing == pytest.approx(spacing)
    assert other.orientation == grid.orientation
    np.testing.assert_allclose(other.world([-0.5] * 3), grid.world([-0.5] * 3), atol=1e-6)
    for axis in range(3):
        old, new = grid.shape[axis] * grid.spacing[axis], other.shape[axis] * spacing[axis]
        assert abs(new - old) <= spacing[axis] / 2 + 1e-4 or other.shape[axis] == 1


@given(grid=grids(), spacing=spacings, where=st.tuples(*[st.floats(0, 1)] * 3))
def test_with_spacing_keeps_the_faces_that_it_is_told_to_keep(
    grid: Grid, spacing: tuple[float, ...], where: tuple[float, ...]
) -> None:
    faces = [round(w * n) for w, n in zip(where, grid.shape, strict=True)]
    other = grid.with_spacing(spacing, faces)
    found = other.index(grid.world(np.array(faces) - 0.5)) + 0.5
    np.testing.assert_allclose(found, found.round(), atol=1e-5)


@given(grid=grids())
def test_resampling_onto_itself_copies_exactly(grid: Grid) -> None:
    data = image(grid, 3)
    copied = resample(data, grid, grid)
    np.testing.assert_array_equal(copied, data)
    assert copied.dtype == data.dtype
    assert not np.shares_memory(copied, data)


@given(grid=grids(), axis=st.integers(0, 2), orientation=orientations, share=st.floats(0, 1))
def test_two_halves_one_mirrored_lay_back_exactly(grid: Grid, axis: int, orientation: str, share: float) -> None:
    turned = grid.reoriented(orientation)
    data = resample(image(grid), grid, turned)
    face = round(share * turned.shape[axis])
    back = np.full((1, *grid.shape), -1, np.float32)
    for low, high, mirror in ((0, face, False), (face, turned.shape[axis], True)):
        if low == high:
            continue
        start, shape = [0, 0, 0], list(turned.shape)
        start[axis], shape[axis] = low, high - low
        half = turned.window(start, shape)
        half = half.flipped(axis) if mirror else half
        piece = resample(data, turned, half)
        expected = np.take(data, range(low, high), axis=1 + axis)
        np.testing.assert_array_equal(piece, np.flip(expected, 1 + axis) if mirror else expected)
        back = np.maximum(back, resample(piece, half, grid, outside=-1))
    np.testing.assert_array_equal(back, image(grid))


@given(grid=grids(), factor=st.integers(2, 4))
def test_a_coarser_grid_holds_block_means(grid: Grid, factor: int) -> None:
    fine = Grid(tuple(n * factor for n in grid.shape), grid.affine)
    coarse = fine.with_spacing([s * factor for s in fine.spacing])
    assert coarse.shape == grid.shape
    data = image(fine, 2)
    x, y, z = grid.shape
    blocks = data.reshape(2, x, factor, y, factor, z, factor).mean(axis=(2, 4, 6))
    np.testing.assert_allclose(resample(data, fine, coarse), blocks, rtol=1e-5)


@given(grid=grids(), spacing=spacings, values=st.tuples(*[st.floats(-3, 3, width=16)] * 4))
def test_a_linear_ramp_stays_linear_between_voxels(
    grid: Grid, spacing: tuple[float, ...], values: tuple[float, ...]
) -> None:
    fine = grid.with_spacing([min(new, old) for new, old in zip(spacing, grid.spacing, strict=True)])
    source, target = (positions(g) @ np.array(values[:3]) + values[3] for g in (grid, fine))
    got = resample(source[None], grid, fine)[0]
    index = grid.index(positions(fine))
    inside = ((index >= 0) & (index <= np.array(grid.shape) - 1)).all(axis=-1)
    np.testing.assert_allclose(got[inside], target[inside], atol=1e-6 * (1 + np.abs(source).max()))


@given(grid=grids(), spacing=spacings, value=st.floats(-1e4, 1e4, width=32))
def test_a_constant_stays_constant(grid: Grid, spacing: tuple[float, ...], value: float) -> None:
    target = grid.with_spacing(spacing)
    got = resample(np.full((1, *grid.shape), value, np.float32), grid, target, outside=value)
    np.testing.assert_allclose(got, value, rtol=1e-5)


@given(grid=grids(), spacing=spacings)
def test_averages_stay_between_smallest_and_largest(grid: Grid, spacing: tuple[float, ...]) -> None:
    data = image(grid).astype(np.float64)
    got = resample(data, grid, grid.with_spacing(spacing), outside=data.min())
    assert got.min() >= data.min() - 1e-9
    assert got.max() <= data.max() + 1e-9


@given(grid=grids(), spacing=spacings, orientation=orientations)
def test_nearest_makes_no_new_labels(grid: Grid, spacing: tuple[float, ...], orientation: str) -> None:
    labels = np.random.default_rng(1).choice([0, 1, 2, 4], grid.shape).astype(np.int32)
    got = resample(labels, grid, grid.with_spacing(spacing).reoriented(orientation), nearest=True)
    assert got.dtype == labels.dtype
    assert set(np.unique(got)) <= set(np.unique(labels)) | {0}
    # Up and back down by a whole factor loses nothing.
    fine = grid.with_spacing([s / 3 for s in grid.spacing])
    up = resample(labels, grid, fine, nearest=True)
    np.testing.assert_array_equal(up, labels.repeat(3, 0).repeat(3, 1).repeat(3, 2))
    np.testing.assert_array_equal(resample(up, fine, grid, nearest=True), labels)


def test_whole_numbers_are_rounded_not_cut_off() -> None:
    fine = Grid((2, 2, 2), np.eye(4))
    coarse = fine.with_spacing((2, 2, 2))
    assert resample(np.array([[[2, 3], [3, 3]], [[3, 3], [3, 3]]]), fine, coarse).item() == 3


def test_outside_of_the_field_of_view() -> None:
    grid = Grid((4, 1, 1), np.eye(4))
    wide = grid.window((-2, 0, 0), (8, 1, 1))
    got = resample(np.array([5.0, 6, 7, 8]).reshape(4, 1, 1), grid, wide, outside=-9)
    assert got.ravel().tolist() == [-9, -9, 5, 6, 7, 8, -9, -9]


@pytest.mark.parametrize("degrees", [3, 30, 45, 90.8])
def test_a_rotation_is_refused(degrees: float) -> None:
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    grid = Grid((8, 8, 8), np.eye(4))
    with pytest.raises(InputError, match="rotated against each other"):
        resample(np.zeros((1, 8, 8, 8)), grid, Grid((8, 8, 8), turn))


def test_oblique_grids_that_are_turned_alike_are_one_family() -> None:
    angle = 0.3
    turn = np.eye(4)
    turn[:3, :3] = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    grid = Grid((5, 6, 7), turn @ np.diag([2.0, 2, 3, 1]))
    data = image(grid)
    for orientation in ALL_48:
        turned = grid.reoriented(orientation)
        np.testing.assert_array_equal(resample(resample(data, grid, turned), turned, grid), data)


def test_data_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(3, 3, 2\) do not lie on a grid of shape \(3, 3, 3\)"):
        resample(np.zeros((3, 3, 2)), Grid((3, 3, 3), np.eye(4)), Grid((3, 3, 3), np.eye(4)))


@given(grid=grids())
def test_a_grid_matches_itself_and_headers_rounded_otherwise(grid: Grid) -> None:
    assert grid.difference(Grid(grid.shape, grid.affine.astype(np.float32))) is None
    assert grid.matches(grid)


def test_difference_says_what_differs() -> None:
    grid = Grid((10, 12, 14), np.diag([1.0, 1, 2, 1]))
    moved = grid.affine.copy()
    moved[0, 3] += 3

    def difference(other: Grid) -> str:
        found = grid.difference(other)
        assert found is not None
        assert found == other.difference(grid) or "against" in found
        return found

    assert difference(Grid((10, 12, 13), grid.affine)) == "shape (10, 12, 14) against (10, 12, 13)"
    assert difference(Grid(grid.shape, np.diag([1.0, 1, 2.5, 1]))) == "spacing 1 x 1 x 2 mm against 1 x 1 x 2.5 mm"
    assert difference(grid.flipped(0)) == "orientation RAS against LAS"
    assert "up to 3 mm apart" in difference(Grid(grid.shape, moved))
    moved[0, 3] = 0.005
    assert grid.difference(Grid(grid.shape, moved)) is None
    moved[0, 3] = 0.05
    assert grid.difference(Grid(grid.shape, moved)) is not None


@given(grid=grids())
def test_the_fingerprint_knows_grids_apart_and_not_zeros(grid: Grid) -> None:
    negative_zeros = np.where(grid.affine == 0, -0.0, grid.affine)
    assert Grid(grid.shape, negative_zeros).fingerprint == grid.fingerprint
    assert grid.window((1, 0, 0), grid.shape).fingerprint != grid.fingerprint


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 0), (3, 3, 3, 3)])
def test_a_shape_has_three_positive_numbers(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="three axes of at least one voxel"):
        Grid(shape, np.eye(4))  # type: ignore[arg-type]


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.eye(3), np.full((4, 4), np.nan), np.diag([1.0, 0, 1, 1])])
def test_an_affine_must_be_invertible(affine: np.ndarray) -> None:
    with pytest.raises(InputError, match="invertible 4 x 4 affine"):
        Grid((2, 2, 2), affine)


@pytest.mark.parametrize("orientation", ["RA", "RAX", "RRS", "RLS", "ras", "", "RASP"])
def test_an_orientation_is_three_axis_codes(orientation: str) -> None:
    with pytest.raises(InputError, match="three axis codes"):
        Grid((2, 2, 2), np.eye(4)).reoriented(orientation)


def test_a_grid_is_frozen_and_keeps_its_own_affine() -> None:
    affine = np.eye(4)
    grid = Grid((2, 2, 2), affine)
    affine[0, 0] = 9
    assert grid.affine[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 2
