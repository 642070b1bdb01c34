"""The pictures of paper grading: the right slices, the right side, and the paper's colours where asked for."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from voxplain.errors import InputError
from voxplain.explanation import Explanation
from voxplain.metrics.reliability import reliability_curve
from voxplain.report.depths import contact_sheet, depths_picture
from voxplain.report.grading_figures import confusion_picture, reliability_picture
from voxplain.scan import Labels, Scan

FACTS = {"facts": {"whole": {"layer_grid_mm": [4.0, 4.5, 5.0]}}}


def pixels(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG")
    return imread(io.BytesIO(png))[..., :3]


def made(make_head: Any, orientation: str = "LPS") -> tuple[Scan, Explanation, dict[str, Labels]]:
    """A head with a tumour on the patient's right, and a map that lies there."""
    head = make_head((20, 24, 20), 8.0)
    scan = head.scan(orientation)
    centre = scan.grid.index(head.scan("LPS").grid.world([5, 8, 12]))
    away = np.linalg.norm(np.moveaxis(np.indices(scan.grid.shape), 0, -1) - centre, axis=-1)
    regions = {name: Labels((away < size).astype(int), scan.grid) for name, size in (("WT", 4), ("TC", 3), ("ET", 2))}
    why = Explanation(np.exp(-(away**2) / 8)[None], ("all",), scan.grid, False, "x", (), provenance=FACTS)
    return scan, why, regions


def panels(picture: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Mean colourfulness of each panel's left and right half."""
    height, width = picture.shape[0] // rows, picture.shape[1] // columns
    found = np.zeros((rows, columns, 2))
    for row in range(rows):
        for column in range(columns):
            cut = picture[row * height : (row + 1) * height, column * width : (column + 1) * width]
            colour = np.ptp(cut, axis=2) > 0.25
            found[row, column] = colour[:, : width // 2].mean(), colour[:, width // 2 :].mean()
    return found


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR"])
def test_map_and_segmentation_lie_on_the_patients_right(make_head: Any, orientation: str) -> None:
    scan, why, regions = made(make_head, orientation)
    picture = pixels(depths_picture(scan, why, regions, title="grad-cam"))
    found = panels(picture[: int(0.93 * len(picture))], 3, 4)
    # Radiological: the patient's right is on the left of the picture. The scan alone has no colour.
    for column in (0, 1, 3):
        left, right = found[:, column].sum(axis=0)
        assert left > 3 * right
        assert left > 0.02
    assert found[:, 2].max() < 0.01
    reference = pixels(depths_picture(*made(make_head), title="grad-cam"))
    assert reference.shape == picture.shape
    assert np.abs(reference - picture).mean() < 0.02


def test_the_papers_colours_are_pure(make_head: Any) -> None:
    picture = pixels(depths_picture(*made(make_head), title="grad-cam", colours="paper"))
    heat = picture[: len(picture) // 3, picture.shape[1] // 4 : picture.shape[1] // 2]
    # Dark blue where nothing contributes: the whole slice is coloured.
    blue = (heat[..., 2] > 0.4) & (heat[..., 0] < 0.1) & (heat[..., 1] < 0.1)
    assert blue.mean() > 0.3
    with pytest.raises(InputError, match="colours are uniform or paper; got 'rainbow'"):
        depths_picture(*made(make_head), title="grad-cam", colours="rainbow")


def test_without_a_tumour_slices_are_spread_over_the_head(make_head: Any) -> None:
    scan, why, regions = made(make_head)
    empty = {name: Labels(np.zeros(scan.grid.shape, dtype=int), scan.grid) for name in regions}
    picture = pixels(depths_picture(scan, why, empty, title="grad-cam"))
    assert panels(picture[: int(0.93 * len(picture))], 3, 4)[:, 0].max() < 0.01


def test_a_sheet_has_a_panel_per_layer(make_head: Any) -> None:
    scan, why, regions = made(make_head)
    maps = {f"block{number}": why for number in range(6)}
    picture = pixels(contact_sheet(scan, maps, tumour=regions["WT"]))
    coloured = panels(picture, 2, 4).max(axis=2) > 0.01
    assert coloured.tolist() == [[True] * 4, [True, True, False, False]]
    assert pixels(contact_sheet(scan, {"block1": why})).shape[1] < picture.shape[1]
    for given, words in (({}, "at least one map"), ({"a": made(make_head, "RAS")[1]}, "not lie on the scan's grid")):
        with pytest.raises(InputError, match=words):
            contact_sheet(scan, given)


def test_figures_of_classes() -> None:
    curve = reliability_curve(np.array([0, 1, 1, 1]), np.array([0.4, 0.6, 0.9, 0.95]))
    assert pixels(reliability_picture({"network": curve})).std() > 0.01
    matrix = np.array([[3, 0, 1], [0, 0, 0], [2, 1, 4]])
    assert pixels(confusion_picture(matrix, ["a", "b", "c"])).std() > 0.05
    assert pixels(confusion_picture(np.zeros((2, 2)), ["a", "b"])).std() > 0.01
