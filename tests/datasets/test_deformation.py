"""Scans bent at random: image and labels go together, in millimetres, and what was background stays background."""

from __future__ import annotations

import numpy as np
import pytest

import voxplain as vx
from voxplain.datasets import deformation
from voxplain.datasets.deformation import deformed
from voxplain.grid import Grid
from voxplain.scan import Labels, Scan

# Voxels that are no cubes: a rotation counted in voxels would shear.
GRID = Grid((60, 50, 24), np.diag([1.0, 1.2, 2.5, 1.0]))


def millimetres() -> np.ndarray:
    """(3, X, Y, Z) from the middle of the grid."""
    index = np.indices(GRID.shape, dtype=float)
    middle = (np.array(GRID.shape) - 1) / 2
    found: np.ndarray = (index - middle[:, None, None, None]) * np.array(GRID.spacing)[:, None, None, None]
    return found


def ball(centre: tuple[float, float, float], radius: float) -> np.ndarray:
    found: np.ndarray = np.linalg.norm(millimetres() - np.array(centre)[:, None, None, None], axis=0) <= radius
    return found


def head() -> tuple[Scan, Labels]:
    brain, lesion = ball((0, 0, 0), 24), ball((9, -6, 4), 5)
    return Scan(np.stack([brain + 9.0 * lesion, 2.0 * brain]), GRID, ("flair", "t1")), Labels(lesion, GRID)


def test_image_and_labels_go_together() -> None:
    scan, labels = head()
    moved, numbers = deformed(scan, labels, seed=3)
    there, before = numbers.data > 0, labels.data > 0
    assert set(np.unique(numbers.data)) == {0, 1}
    assert (there != before).any()
    # Interpolated, the lesion is above half of its contrast where the nearest voxel was lesion.
    bright = moved.channel("flair") > 5.5
    assert np.count_nonzero(bright & there) > 0.9 * max(np.count_nonzero(bright), np.count_nonzero(there))
    assert moved.grid is scan.grid or moved.grid.matches(scan.grid)
    assert moved.channels == scan.channels
    # Background is exactly 0 in all sequences, as readers of skull-stripped scans expect.
    brain = moved.foreground()
    assert 0.5 < brain.sum() / scan.foreground().sum() < 1.6
    assert not moved.data[:, ~brain].any()
    np.testing.assert_array_equal(scan.data[1], 2.0 * ball((0, 0, 0), 24))


def test_without_scaling_and_bending_it_is_a_rotation_in_millimetres(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deformation, "_SCALE", 0.0)
    monkeypatch.setattr(deformation, "_BEND_MM", 0.0)
    scan, labels = head()
    where = millimetres()
    for seed in range(5):
        _, numbers = deformed(scan, labels, seed=seed)
        there = numbers.data > 0
        assert there.sum() == pytest.approx((labels.data > 0).sum(), rel=0.1)
        old, new = where[:, labels.data > 0].mean(axis=1), where[:, there].mean(axis=1)
        assert np.linalg.norm(new) == pytest.approx(np.linalg.norm(old), abs=0.4)
        assert np.linalg.norm(new - old) > 0.3


def test_a_seed_repeats_itself_and_others_differ() -> None:
    scan, labels = head()
    one, again, other = (deformed(scan, labels, seed=seed)[0].data for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_labels_on_another_grid_are_refused() -> None:
    scan, _ = head()
    other = Labels(np.zeros((2, 2, 2), dtype=int), Grid((2, 2, 2), np.eye(4)))
    with pytest.raises(vx.InputError, match="labels lie on the scan's grid"):
        deformed(scan, other)
