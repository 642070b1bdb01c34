"""Scans and labels: frozen, checked, honest about their grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from voxplain.errors import InputError
from voxplain.grid import Grid
from voxplain.scan import Labels, Scan

GRID = Grid((3, 4, 5), np.diag([1.0, 2, 3, 1]))


def data(channels: int = 2) -> np.ndarray:
    return np.arange(channels * 60, dtype=np.float64).reshape(channels, 3, 4, 5)


def test_a_scan_is_float32_frozen_and_its_own() -> None:
    for given in (data(), data().astype(np.float32), np.asfortranarray(data().astype(np.float32)), data()[::1]):
        scan = Scan(given, GRID, ("t1", "t2"))
        assert scan.data.dtype == np.float32
        assert scan.data.flags.c_contiguous
        given[0, 0, 0, 0] = -7
        assert scan.data[0, 0, 0, 0] == 0
        with pytest.raises(ValueError, match="read-only"):
            scan.data[0, 0, 0, 0] = 1
        with pytest.raises(AttributeError):
            scan.grid = GRID  # type: ignore[misc]


def test_a_read_only_view_does_not_follow_its_base() -> None:
    base = data().astype(np.float32)
    view = base[:]
    view.setflags(write=False)
    scan = Scan(view, GRID, ("t1", "t2"))
    base[:] = 5
    assert scan.data[1, 2, 3, 4] == 119


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 3, 4, 5), (3, 4, 5), (2, 3, 4, 5, 1)])
def test_a_scan_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected \(2, 3, 4, 5\) for channels t1, t2; got "):
        Scan(np.zeros(shape), GRID, ("t1", "t2"))


def test_doubled_channels_are_named() -> None:
    with pytest.raises(InputError, match="given twice: t1"):
        Scan(data(), GRID, ("t1", "t1"))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_numbers_that_are_none_are_counted(value: float) -> None:
    bad = data()
    bad[1, 0, 0, :2] = value
    with np.errstate(over="ignore"), pytest.raises(InputError, match="sequence t2 holds 2 voxels"):
        Scan(bad, GRID, ("t1", "t2"))


def test_channels_by_name() -> None:
    scan = Scan(data(), GRID, ("t1", "t2"))
    np.testing.assert_array_equal(scan.channel("t2"), data()[1])
    turned = scan.select(["t2", "t1"])
    assert turned.channels == ("t2", "t1")
    np.testing.assert_array_equal(turned.data, data()[::-1])
    assert scan.select(("t1", "t2")) is scan
    for call in (lambda: scan.channel("flair"), lambda: scan.select(["flair"])):
        with pytest.raises(InputError, match="no sequence 'flair'; it has t1, t2"):
            call()


def test_foreground_is_where_any_channel_is_not_zero() -> None:
    values = np.zeros((2, 3, 4, 5))
    values[0, 0, 0, 0], values[1, 2, 3, 4] = 1, -1
    foreground = Scan(values, GRID, ("a", "b")).foreground()
    assert np.argwhere(foreground).tolist() == [[0, 0, 0], [2, 3, 4]]


def test_the_fingerprint_is_of_voxels_grid_and_names() -> None:
    scan = Scan(data(), GRID, ("t1", "t2"))
    changed = data()
    changed[0, 0, 0, 1] += 1e-3
    assert scan.fingerprint == Scan(data().astype(np.float32), Grid((3, 4, 5), GRID.affine), ("t1", "t2")).fingerprint
    others = [
        Scan(changed, GRID, ("t1", "t2")),
        Scan(data(), GRID.flipped(0), ("t1", "t2")),
        Scan(data(), GRID, ("t1", "t3")),
        scan.select(["t2", "t1"]),
    ]
    assert len({scan.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_labels() -> None:
    values = np.zeros((3, 4, 5), bool)
    values[0, 0, :3] = True
    mask = Labels(values, GRID)
    assert mask.data.dtype == np.int32
    assert mask.count == 1
    assert mask.volume == pytest.approx(3 * 6 / 1000)
    with pytest.raises(ValueError, match="read-only"):
        mask.data[0, 0, 0] = 0
    four = np.zeros((3, 4, 5))
    four[0, 0, :4] = [1, 4, 4, 9]
    assert Labels(four, GRID).count == 3
    assert Labels(np.zeros((3, 4, 5)), GRID).count == 0


@pytest.mark.parametrize("value", [0.5, -1, 2**40])
def test_labels_are_whole_numbers_from_zero(value: float) -> None:
    values = np.zeros((3, 4, 5))
    values[1, 1, 1] = value
    with pytest.raises(InputError, match="whole numbers of at least 0"):
        Labels(values, GRID)


@pytest.mark.filterwarnings("error")
def test_labels_that_are_not_a_number_are_refused_without_noise() -> None:
    with pytest.raises(InputError, match="whole numbers of at least 0"):
        Labels(np.full((3, 4, 5), np.nan), GRID)


def test_labels_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"labels of shape \(3, 4, 4\) do not lie on a grid of shape \(3, 4, 5\)"):
        Labels(np.zeros((3, 4, 4)), GRID)


def test_both_move_between_grids() -> None:
    scan, labels = Scan(data(), GRID, ("t1", "t2")), Labels(data(1)[0] % 7, GRID)
    turned = GRID.reoriented("IPR")
    one: Any = scan.on(turned)
    np.testing.assert_array_equal(one.data, scan.data.transpose(0, 3, 2, 1)[:, ::-1, ::-1])
    np.testing.assert_array_equal(one.on(GRID).data, scan.data)
    np.testing.assert_array_equal(labels.on(turned).on(GRID).data, labels.data)
