"""Supervoxels and cubes: whole, connected, numbered without gaps, aware of millimetres."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import ndimage

from voxplain.errors import InputError
from voxplain.grid import Grid
from voxplain.partition import cubes, supervoxels
from voxplain.scan import Labels

FACES = ndimage.generate_binary_structure(3, 1)


def assert_partition(labels: Labels, mask: np.ndarray, *, connected: bool = True) -> None:
    found = labels.data
    np.testing.assert_array_equal(found > 0, mask)
    assert np.unique(found[found > 0]).tolist() == list(range(1, labels.count + 1))
    if connected:
        for label in range(1, labels.count + 1):
            assert ndimage.label(found == label, FACES)[1] == 1, f"part {label} is in pieces"


def blobs(shape: tuple[int, int, int] = (20, 22, 14), channels: int = 1, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(channels, *shape))
    return ndimage.gaussian_filter(noise, (0, 2, 2, 2)) * 10


def ball(shape: tuple[int, int, int] = (20, 22, 14)) -> np.ndarray:
    index = np.indices(shape).reshape(3, -1).T
    away = ((index - (np.array(shape) - 1) / 2) / (np.array(shape) / 2.2)) ** 2
    return (away.sum(axis=1) <= 1).reshape(shape)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("compactness", [0.1, 1, 30])
def test_supervoxels_cover_the_mask_and_hang_together(channels: int, masked: bool, compactness: float) -> None:
    image, grid = blobs(channels=channels), Grid((20, 22, 14), np.diag([1.0, 1, 2, 1]))
    mask = ball() if masked else None
    parts = supervoxels(image, grid, segments=40, compactness=compactness, mask=mask)
    assert_partition(parts, ball() if masked else np.ones(grid.shape, bool))
    assert 10 <= parts.count <= 2000


def test_supervoxels_repeat_and_leave_the_image_alone() -> None:
    image, grid = blobs(), Grid((20, 22, 14), np.eye(4))
    before = image.copy()
    one, other = (supervoxels(image, grid, segments=30, mask=ball()) for _ in range(2))
    np.testing.assert_array_equal(one.data, other.data)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("axis", [0, 2])
def test_supervoxels_know_millimetres(axis: int, masked: bool) -> None:
    shape, spacing = [24, 24, 24], [1.0, 1.0, 1.0]
    shape[axis], spacing[axis] = 8, 4.0
    x, y, z = shape
    mask = ball((x, y, z)) if masked else None
    grid = Grid((x, y, z), np.diag([*spacing, 1]))
    parts = supervoxels(blobs((x, y, z)) * 0.01, grid, segments=27, compactness=100, mask=mask)
    assert_partition(parts, np.ones((x, y, z), bool) if mask is None else mask)
    large = [box for n, box in enumerate(ndimage.find_objects(parts.data), 1) if (parts.data == n).sum() > 30]
    extents = np.array([[s.stop - s.start for s in box] for box in large]) * spacing
    # In mm, parts are about as long along the axis whose voxels are long as along the others.
    assert 0.6 < extents[:, axis].mean() / np.delete(extents, axis, axis=1).mean() < 1.7


@pytest.mark.parametrize("voxels", [1, 3])
def test_a_small_mask_on_long_voxels_loses_nothing(voxels: int) -> None:
    mask = np.zeros((9, 9, 5), bool)
    mask[4, 2 : 2 + 2 * voxels : 2, 3] = True
    parts = supervoxels(blobs((9, 9, 5)), Grid((9, 9, 5), np.diag([1.0, 1, 5, 1])), mask=mask)
    assert_partition(parts, mask)


def test_supervoxels_follow_an_edge() -> None:
    image = np.zeros((1, 16, 16, 16))
    image[:, 7:] = 5
    parts = supervoxels(image, Grid((16, 16, 16), np.eye(4)), segments=20, compactness=0.1).data
    assert not set(np.unique(parts[:7])) & set(np.unique(parts[7:]))


@pytest.mark.parametrize("voxels", [1, 3, 30])
def test_more_segments_than_voxels(voxels: int) -> None:
    mask = np.zeros((8, 8, 8), bool)
    mask.reshape(-1)[100 : 100 + voxels] = True
    parts = supervoxels(blobs((8, 8, 8)), Grid((8, 8, 8), np.eye(4)), segments=100, mask=mask)
    assert_partition(parts, mask)


def test_an_empty_mask_and_a_constant_image() -> None:
    grid = Grid((8, 8, 8), np.eye(4))
    assert supervoxels(blobs((8, 8, 8)), grid, mask=np.zeros(grid.shape, bool)).count == 0
    parts = supervoxels(np.full((1, 8, 8, 8), 3.0), grid, segments=8)
    assert_partition(parts, np.ones(grid.shape, bool))
    assert parts.count >= 2


def test_a_flat_scan_has_parts_too() -> None:
    grid = Grid((20, 20, 1), np.eye(4))
    assert_partition(supervoxels(blobs((20, 20, 1)), grid, segments=12), np.ones(grid.shape, bool))


@hypothesis_settings(max_examples=25)
@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    spacing=st.tuples(*[st.sampled_from([0.5, 1.0, 2.0, 5.0])] * 3),
    edge=st.floats(0.1, 40),
    masked=st.booleans(),
)
def test_cubes(shape: tuple[int, int, int], spacing: tuple[float, ...], edge: float, masked: bool) -> None:
    grid = Grid(shape, np.diag([*spacing, 1]))
    mask = np.random.default_rng(0).random(shape) < 0.5 if masked else None
    labels = cubes(grid, edge=edge, mask=mask)
    assert_partition(labels, np.ones(shape, bool) if mask is None else mask, connected=False)
    size = [max(1, round(edge / s)) for s in spacing]
    for box in ndimage.find_objects(labels.data):
        for axis in range(3):
            assert box[axis].stop - box[axis].start <= size[axis]
            assert box[axis].start // size[axis] == (box[axis].stop - 1) // size[axis]


def test_a_cube_by_hand() -> None:
    labels = cubes(Grid((4, 2, 2), np.diag([1.0, 2, 2, 1])), edge=2)
    assert labels.count == 8
    assert labels.data[:, 0, 0].tolist() == [1, 1, 5, 5]
    assert labels.data[0].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("options", [{"segments": 0}, {"compactness": 0}, {"compactness": -1}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        supervoxels(blobs(), Grid((20, 22, 14), np.eye(4)), **options)


@pytest.mark.parametrize("edge", [0, -3, float("nan"), float("inf")])
def test_edges_out_of_range_are_refused(edge: float) -> None:
    with pytest.raises(InputError, match="edge of the cubes"):
        cubes(Grid((3, 3, 3), np.eye(4)), edge=edge)
