"""Volumes for the page: every voxel at its own millimetres, whatever the orientation, crop and steps."""

from __future__ import annotations

import base64
import gzip
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from voxplain.grid import Grid
from voxplain.report.volumes import Packed, pack_labels, pack_map, pack_scan, view_of, window_of
from voxplain.scan import Labels, Scan


def unpack(packed: Packed) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(packed.base64)))


def oblique(shape: tuple[int, int, int] = (20, 30, 12)) -> Scan:
    angle = 0.3
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.2, 0.9, 3.5])
    affine[:3, 3] = [11, -70, 33]
    rng = np.random.default_rng(0)
    data = np.zeros((1, *shape), np.float32)
    data[0, 4:15, 6:20, 3:10] = rng.integers(1, 3000, (11, 14, 7))
    return Scan(data, Grid(shape, affine), ("flair",))


@pytest.mark.parametrize("case", ["RAS", "LPS", "PIR", "oblique"])
def test_every_voxel_keeps_its_value_and_its_millimetres(make_head: Any, case: str) -> None:
    scan = oblique() if case == "oblique" else make_head((26, 30, 28), 8.0).scan(case)
    view = view_of(scan)
    image = unpack(pack_scan(scan.data[0], scan.foreground(), view))
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert np.prod(image.shape) < np.prod(scan.grid.shape)
    np.testing.assert_allclose(image.affine, view.grid.affine, rtol=1e-6)
    for voxel in np.argwhere(scan.foreground())[::97]:
        x, y, z = view.voxel(voxel)
        assert image.dataobj[x, y, z] == scan.data[(0, *voxel)]
        np.testing.assert_allclose(
            image.affine[:3, :3] @ (x, y, z) + image.affine[:3, 3], scan.grid.world(voxel), atol=1e-3
        )
        np.testing.assert_allclose(view.grid.world((x, y, z)), scan.grid.world(voxel), atol=1e-9)


def test_the_view_holds_brain_and_masks() -> None:
    scan = oblique()
    mask = np.zeros(scan.grid.shape, int)
    mask[19, 29, 11] = 1
    view = view_of(scan, Labels(mask, scan.grid), None)
    assert view.stop == (20, 30, 12)
    assert view.start == (2, 4, 1)
    assert view.take(mask).sum() == 1
    empty = Scan(np.zeros((1, 4, 5, 6)), Grid((4, 5, 6), np.eye(4)), ("x",))
    assert view_of(empty).grid.shape == (4, 5, 6)


def values_of(packed: Packed) -> np.ndarray:
    return np.asarray(unpack(packed).dataobj.get_unscaled()) * packed.slope + packed.intercept


def test_intensities_that_are_no_whole_numbers_are_off_by_half_a_step_at_most() -> None:
    scan = oblique()
    values = scan.data[0] / 7
    packed = pack_scan(values, scan.foreground(), view_of(scan))
    assert np.abs(values_of(packed) - view_of(scan).take(values)).max() <= values.max() / 4095 / 2 * 1.01
    assert packed.clipped is None


def test_a_background_amid_negative_intensities_stays_black() -> None:
    scan = oblique()
    inside = scan.foreground()
    values = np.where(inside, scan.data[0] / 500 - 3, 0).astype(np.float32)
    view = view_of(scan)
    packed = pack_scan(values, inside, view)
    codes = np.asarray(unpack(packed).dataobj.get_unscaled())
    np.testing.assert_array_equal(codes == packed.background, ~view.take(inside))
    assert codes[view.take(inside)].min() > packed.background
    low, high = window_of(values, inside)
    assert low < -2
    assert high > 2


def test_large_scans_take_a_byte_a_voxel_and_say_what_is_clipped() -> None:
    rng = np.random.default_rng(0)
    values = rng.gamma(2, 100, (120, 120, 120)).astype(np.float32)
    values[5, 5, 5] = 1e5
    scan = Scan(values[None], Grid(values.shape, np.eye(4)), ("t1",))
    packed = pack_scan(values, scan.foreground(), view_of(scan))
    image = unpack(packed)
    assert image.get_data_dtype() == np.uint8
    assert packed.clipped == 255
    codes = np.asarray(image.dataobj.get_unscaled())
    assert codes[5, 5, 5] == 255
    kept = codes < 255
    assert np.abs(values_of(packed) - values)[kept].max() <= packed.slope / 2 * 1.01


def test_maps_keep_zero_and_sign_and_labels_their_numbers() -> None:
    scan = oblique()
    view = view_of(scan)
    values = np.where(scan.foreground(), scan.data[0] - 1500, 0) / 1e4
    packed = pack_map(values, view, exact=False)
    back = values_of(packed)
    assert (back[view.take(values) == 0] == 0).all()
    assert np.abs(back - view.take(values)).max() <= np.abs(values).max() / 4095 / 2 * 1.01
    np.testing.assert_array_equal(values_of(pack_map(values, view, exact=True)), view.take(values).astype(np.float32))
    assert not values_of(pack_map(values * 0, view, exact=False)).any()
    for highest in (1, 300, 70000):
        labels = Labels(np.where(scan.foreground(), highest, 0), scan.grid)
        assert values_of(pack_labels(labels, view)).max() == highest


def test_the_same_volume_gives_the_same_bytes() -> None:
    scan = oblique()
    first, second = (pack_scan(scan.data[0], scan.foreground(), view_of(scan)) for _ in range(2))
    assert first == second
