"""A lesion is copied to the voxel, and lies where it should."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

import voxplain as vx
from voxplain.datasets.phantom import multiple_sclerosis
from voxplain.studies.placements import (
    ORIGINAL,
    OUTSIDE,
    PLACES,
    WHITE,
    clearly_visible,
    copied,
    moved,
    outside_offset,
    placements,
)


@pytest.fixture(scope="module")
def made() -> tuple[vx.Scan, np.ndarray, np.ndarray]:
    phantom = multiple_sclerosis(2)
    pieces, count = ndimage.label(phantom.labels.data > 0)
    sizes = np.bincount(pieces.ravel())[1:]
    number = int(np.argmin(np.abs(sizes - 12))) + 1
    assert count > 3
    return phantom.scan.select(["flair", "t1"]), pieces == number, phantom.labels.data > 0


def test_exactly_the_voxels_are_copied(made: tuple[vx.Scan, np.ndarray, np.ndarray]) -> None:
    scan, lesion, _ = made
    offset = (-3, 4, 2)
    found = copied(scan, lesion, offset)
    there = moved(lesion, offset)
    assert there.sum() == lesion.sum()
    np.testing.assert_array_equal(found.data[:, ~there], scan.data[:, ~there])
    np.testing.assert_array_equal(found.data[:, there], scan.data[:, lesion])
    expected = {tuple(place + np.array(offset)) for place in np.argwhere(lesion)}
    assert {tuple(place) for place in np.argwhere(there)} == expected


def test_places(made: tuple[vx.Scan, np.ndarray, np.ndarray]) -> None:
    scan, lesion, lesions = made
    found = {each.place: each for each in placements(scan, lesion, lesions, seed=0)}
    assert list(found) == list(PLACES)
    brain, spacing = scan.foreground(), scan.grid.spacing
    assert (found[ORIGINAL].scan.data == scan.data).all()
    assert (found[ORIGINAL].region.data == lesion).all()
    for name, each in found.items():
        region = each.region.data > 0
        assert region.sum() == lesion.sum()
        np.testing.assert_array_equal(each.scan.data[:, region], scan.data[:, lesion])
        changed = (each.scan.data != scan.data).any(axis=0)
        if name == PLACES[3]:
            near = ndimage.distance_transform_edt(~lesion, sampling=spacing) <= 3
            around = ndimage.distance_transform_edt(~region, sampling=spacing) <= 3
            assert not (changed & ~around).any()
            np.testing.assert_array_equal(each.scan.data[:, around], scan.data[:, near])
            assert not (around & brain).any()
        elif name != ORIGINAL:
            assert not (changed & ~region).any()
        if name.startswith(OUTSIDE):
            assert not (region & brain).any()
    white = found[WHITE].region.data > 0
    assert ndimage.distance_transform_edt(~lesions, sampling=spacing)[white].min() > 5
    t1 = scan.channel("t1")
    low, high = np.percentile(t1[brain], (70, 95))
    assert ((t1[white] >= low) & (t1[white] <= high)).mean() >= 0.9
    again = {each.place: each for each in placements(scan, lesion, lesions, seed=0)}
    assert again[WHITE].scan.fingerprint == found[WHITE].scan.fingerprint


def test_no_room_outside() -> None:
    brain = np.ones((9, 9, 9), dtype=bool)
    region = np.zeros_like(brain)
    region[4:6, 4, 4] = True
    assert outside_offset(brain, region, (1, 1, 1)) is None
    brain[:5] = False
    # The middle of what is free, which is 5 voxels deep.
    assert outside_offset(brain, region, (1, 1, 1)) == (-2, -2, -2)
    large = np.ones_like(brain)
    assert outside_offset(brain, large, (1, 1, 1)) is None


def test_without_room_places_are_left_out() -> None:
    data = np.random.default_rng(0).uniform(1, 2, (2, 9, 9, 9)).astype(np.float32)
    scan = vx.Scan(data, vx.Grid((9, 9, 9), np.eye(4)), ("flair", "t1"))
    lesion = np.zeros((9, 9, 9), dtype=bool)
    lesion[4, 4, 4] = True
    assert [each.place for each in placements(scan, lesion, np.ones_like(lesion), seed=0)] == [ORIGINAL]


def test_the_clearly_visible_lesion() -> None:
    def table(*lines: tuple[str, float, float]) -> pd.DataFrame:
        columns = ["kind", "volume_mm3", "mean_probability"]
        return pd.DataFrame(lines, columns=columns).assign(lesion=range(1, len(lines) + 1))

    assert clearly_visible(table(("TP", 100, 0.5), ("FP", 100, 0.9), ("TP", 60, 0.8), ("TP", 900, 0.9))) == 3
    assert clearly_visible(table(("TP", 20, 0.5), ("TP", 400, 0.9))) == 1
    assert clearly_visible(table(("FP", 100, 0.9))) is None
    assert clearly_visible(table()) is None
