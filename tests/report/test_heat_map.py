"""The picture beside a picture's map: four panels, upright, red against the class and blue for it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import voxplain as vx
from voxplain.report.heat_map import heat_map_picture


def an_image(depth: int = 1) -> tuple[vx.Scan, vx.Explanation, vx.Labels]:
    shape = (40, 30, depth)
    grid = vx.Grid(shape, np.diag([-1.0, -1, 1, 1]))
    values = np.zeros((1, *shape))
    values[0, :10, :8] = -2  # top left
    values[0, 30:, 22:] = 3  # bottom right
    region = vx.Region("whole", ((0, 40), (0, 30), (0, depth)), 0.9, 2.0, True)
    why = vx.Explanation(values, ("all",), grid, True, "logit", (region,))
    return vx.Scan(np.ones((1, *shape)), grid, ("image",)), why, vx.Labels(values[0] > 0, grid)


def test_negative_is_red_positive_blue_and_top_is_top() -> None:
    pixels = np.asarray(Image.open(io.BytesIO(heat_map_picture(*an_image()))).convert("RGB")).astype(int)
    height, width = pixels.shape[0] * 3 // 4, pixels.shape[1]  # the colour bars lie below
    red = np.argwhere((pixels[:height, :, 0] - pixels[:height, :, 2]) > 60)
    blue = np.argwhere((pixels[:height, :, 2] - pixels[:height, :, 0]) > 60)
    panel = width // 4
    assert set((red[:, 1] // panel).tolist()) == {1}
    assert set((blue[:, 1] // panel).tolist()) == {1, 2}
    assert red[:, 0].max() < blue[:, 0].min()
    assert red[:, 1].max() < blue[:, 1].min()


def test_the_same_map_gives_the_same_file() -> None:
    assert heat_map_picture(*an_image()) == heat_map_picture(*an_image())


def test_volumes_and_other_grids_are_refused() -> None:
    with pytest.raises(vx.InputError, match="this picture is of an image"):
        heat_map_picture(*an_image(2))
    scan, why, mask = an_image()
    other = vx.Labels(mask.data, vx.Grid(mask.grid.shape, np.eye(4)))
    with pytest.raises(vx.InputError, match="the mask does not lie on the scan's grid"):
        heat_map_picture(scan, why, other)
