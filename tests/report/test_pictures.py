"""Static pictures: the right place, the right side, all odd maps."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from voxplain.errors import InputError
from voxplain.explanation import Explanation
from voxplain.grid import Grid
from voxplain.report.pictures import planes
from voxplain.scan import Labels, Scan


def pixels(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG")
    return imread(io.BytesIO(png))[..., :3]


def colourful(picture: np.ndarray) -> np.ndarray:
    return np.ptp(picture, axis=2) > 0.15


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "AIL"])
def test_one_scan_gives_one_picture_in_every_orientation(
    make_head: Any, parts_map: Callable[..., Explanation], top_mask: Any, orientation: str
) -> None:
    head = make_head((20, 24, 20), 8.0)
    pictures = []
    for code in ("LPS", orientation):
        scan = head.scan(code)
        centre = scan.grid.index(head.scan("LPS").grid.world([13, 7, 12]))
        away = np.linalg.norm(np.moveaxis(np.indices(scan.grid.shape), 0, -1) - centre, axis=-1)
        blob = np.exp(-(away**2) / 8)
        why = Explanation(blob[None], ("all",), scan.grid, False, "x", ())
        pictures.append(pixels(planes(scan, why, Labels(blob > 0.5, scan.grid), channel="t2", width=900)))
    np.testing.assert_allclose(pictures[0], pictures[1], atol=0.01)


def test_the_patients_left_is_on_the_right(make_head: Any) -> None:
    scan = make_head((20, 24, 20), 8.0).scan("RAS")
    blob = np.zeros(scan.grid.shape)
    x, y, z = np.rint(scan.grid.index([-30, 0, 0])).astype(int)
    blob[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2] = 1
    picture = pixels(planes(scan, Explanation(blob[None], ("all",), scan.grid, False, "x", ()), width=900))
    axial = colourful(picture[: int(0.85 * len(picture)), : picture.shape[1] // 3])
    columns = np.flatnonzero(axial.any(axis=0))
    assert columns.min() > 0.55 * axial.shape[1]


def test_odd_maps_give_pictures(make_head: Any, voxel_map: Callable[..., Explanation]) -> None:
    scan = make_head((20, 24, 20), 8.0).scan()
    empty = Labels(np.zeros(scan.grid.shape), scan.grid)
    plain = pixels(planes(scan, width=600))
    assert plain.max() > 0.3
    for why in (voxel_map(scan, zero=True), voxel_map(scan, signed=True), voxel_map(scan, channels=3)):
        assert pixels(planes(scan, why, empty, empty, width=600)).shape[1] == 600
    unit = Explanation(why.map, why.channels, scan.grid, False, "$<b>\\frac", why.regions)
    assert pixels(planes(scan, unit, width=600)).shape[1] == 600


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flat_image_gives_one_picture(axis: int) -> None:
    shape = [40, 50, 30]
    shape[axis] = 1
    grid = Grid((shape[0], shape[1], shape[2]), np.diag([1.0, 1, 1, 1]))
    data = np.random.default_rng(0).random((1, *shape)) - 0.5
    scan = Scan(data, grid, ("x",))
    picture = pixels(planes(scan, Explanation(np.abs(data), ("x",), grid, False, "u", ())))
    assert picture.shape[1] == 900


def test_what_does_not_fit_is_refused(make_head: Any, parts_map: Callable[..., Explanation]) -> None:
    scan = make_head((20, 24, 20), 8.0).scan("LPS")
    other = make_head((20, 24, 20), 8.0).scan("RAS")
    with pytest.raises(InputError, match="the map does not lie on the scan's grid: orientation LPS against RAS"):
        planes(scan, parts_map(other))
    with pytest.raises(InputError, match="no sequence 'adc'"):
        planes(scan, channel="adc")
    with pytest.raises(InputError, match="go through a voxel of the scan"):
        planes(scan, at=(20, 0, 0))


def test_a_column_of_voxels_gives_a_picture_of_bounded_size() -> None:
    grid = Grid((1, 1, 3000), np.eye(4))
    scan = Scan(np.ones((1, *grid.shape)), grid, ("t1",))
    picture = imread(io.BytesIO(planes(scan, Explanation(scan.data, ("all",), grid, False, "u", ()))))
    assert max(picture.shape[:2]) < 3000
