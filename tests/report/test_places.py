"""Where to look: always inside the part, even where its centre of mass is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from voxplain.explanation import Explanation
from voxplain.grid import Grid
from voxplain.report.places import most_relevant, places_of_parts
from voxplain.scan import Labels


def test_the_place_of_a_ring_is_on_the_ring() -> None:
    x, y, _ = np.indices((21, 21, 3)) - np.array([10, 10, 0]).reshape(3, 1, 1, 1)
    ring = np.abs(np.hypot(x, y) - 7) < 1
    labels = np.where(ring, 1, 0)
    labels[10, 10, 1] = 3
    places = places_of_parts(Labels(labels, Grid((21, 21, 3), np.diag([1, 1, 5, 1]))))
    assert set(places) == {1, 3}
    assert ring[places[1]]
    assert places[3] == (10, 10, 1)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAL"])
def test_places_are_nearest_to_the_centre_of_mass(
    make_head: Any, parts_map: Callable[..., Explanation], orientation: str
) -> None:
    why = parts_map(make_head((20, 24, 20), 8.0).scan(orientation))
    assert why.parts is not None
    for line in why.ranks().itertuples():
        place = places_of_parts(why.parts)[line.label]
        assert why.parts.data[place] == line.label
        centre = np.array([line.x_mm, line.y_mm, line.z_mm])
        voxels = np.argwhere(why.parts.data == line.label)
        away = np.linalg.norm(why.grid.world(voxels) - centre, axis=1)
        assert np.linalg.norm(why.grid.world(place) - centre) == pytest.approx(away.min())


def test_the_most_relevant_place(
    make_head: Any, parts_map: Callable[..., Explanation], voxel_map: Callable[..., Explanation]
) -> None:
    scan = make_head((20, 24, 20), 8.0).scan()
    why = parts_map(scan)
    assert why.parts is not None
    assert why.scores is not None
    assert why.parts.data[most_relevant(why)] == np.argmax(why.scores) + 1
    smooth = voxel_map(scan)
    assert smooth.total[most_relevant(smooth)] == smooth.total.max()
    zero = voxel_map(scan, zero=True)
    assert most_relevant(zero) == (10, 12, 10)
    mask = np.zeros(scan.grid.shape)
    mask[3:6, 3, 3] = 2
    assert most_relevant(zero, Labels(mask, scan.grid)) == (4, 3, 3)


def test_a_map_without_a_value_above_zero_begins_at_its_lowest() -> None:
    grid = Grid((4, 4, 4), np.eye(4))
    values = np.zeros((1, 4, 4, 4))
    values[0, 1, 2, 3], values[0, 2, 2, 2] = -3, -1
    assert most_relevant(Explanation(values, ("all",), grid, True, "u", ())) == (1, 2, 3)
