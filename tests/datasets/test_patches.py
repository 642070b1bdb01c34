"""Patches hold what they say, in the orientation they say, lesion by lesion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import voxplain as vx
from voxplain.datasets.patches import Volume, draw, volume_of
from voxplain.model import Card
from voxplain.scan import Labels, Scan

CARD = Card(name="n", channels=("flair", "t1"), classes=("background", "lesion"), activation="softmax")
PATCH = (8, 8, 8)


def _scan(shape: tuple[int, int, int] = (24, 20, 22)) -> tuple[Scan, Labels]:
    random = np.random.default_rng(0)
    data = np.zeros((2, *shape), dtype=np.float32)
    data[:, 4:-4, 4:-4, 4:-4] = random.uniform(1, 2, (2, shape[0] - 8, shape[1] - 8, shape[2] - 8))
    mask = np.zeros(shape, dtype=int)
    mask[6:8, 6:8, 6:8] = 1
    mask[10, 12, 14] = 1
    mask[11, 13, 14] = 1  # an edge, so that both are one lesion
    grid = vx.Grid(shape, np.diag([1.0, 1, 1, 1]))
    # What is bright says which voxel is which lesion.
    data[0] += 10 * mask
    return Scan(data, grid, ("flair", "t1")), Labels(mask, grid)


@pytest.fixture(scope="module")
def volume() -> Volume:
    return volume_of("a", *_scan(), CARD, PATCH)


def test_a_volume_numbers_its_lesions(volume: Volume) -> None:
    assert volume.blobs.max() == 2
    assert len(volume.places) == 2
    assert {int(volume.blobs[tuple(place)]) for place in volume.places} == {1, 2}
    assert (volume.image[(slice(None), *volume.brain.T)] != 0).any(axis=0).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_patches_are_aligned_with_their_lesions(volume: Volume, seed: int) -> None:
    image, blobs = draw([volume], PATCH, np.random.default_rng(seed))
    assert image.shape == (2, *PATCH)
    assert blobs.shape == PATCH
    assert (image.dtype, blobs.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(image[0] > 5, blobs > 0)
    assert set(np.unique(blobs)) | {0} == set(range(int(blobs.max()) + 1))
    # Lesions do not touch, so that numbers are those of the patch's own components.
    assert ndimage.label(blobs > 0, ndimage.generate_binary_structure(3, 2))[1] == blobs.max()


def test_lesions_are_drawn_by_their_share(volume: Volume) -> None:
    random = np.random.default_rng(0)
    always = [draw([volume], PATCH, random, lesions=1)[1].any() for _ in range(50)]
    assert all(always)
    counts = np.zeros(3)
    for _ in range(400):
        _, blobs = draw([volume], PATCH, random, lesions=1)
        sizes = np.bincount(blobs.ravel())[1:]
        counts[[2 if size == 2 else 1 for size in sizes]] += 1
    # In half of the patches as often as the other, in half of them by a fifth of all voxels: 0.35 to 0.65.
    assert 0.38 < counts[2] / counts[1] < 0.8


def test_volumes_are_drawn_by_weight() -> None:
    scan, labels = _scan()
    marked = [
        volume_of(name, Scan(scan.data * scale, scan.grid, scan.channels), labels, CARD, PATCH, weight)
        for name, scale, weight in (("a", 1, 3.0), ("b", 100, 1.0))
    ]
    random = np.random.default_rng(1)
    bright = np.mean([draw(marked, PATCH, random)[0].max() > 50 for _ in range(400)])
    assert 0.15 < bright < 0.35


def test_small_scans_are_padded_to_a_patch_or_refused() -> None:
    grid = vx.Grid((12, 12, 12), np.eye(4))
    data = np.zeros((2, 12, 12, 12))
    data[:, 4:7, 4:7, 4:7] = 1
    scan, labels = Scan(data, grid, ("flair", "t1")), Labels(np.zeros((12, 12, 12), dtype=int), grid)
    found = volume_of("a", scan, labels, CARD, (12, 12, 12))
    assert found.blobs.shape == (12, 12, 12)
    image, blobs = draw([found], (12, 12, 12), np.random.default_rng(0))
    assert image.any()
    assert not blobs.any()
    with pytest.raises(vx.InputError, match="does not fit into a scan"):
        volume_of("a", scan, labels, CARD, (16, 8, 8))
