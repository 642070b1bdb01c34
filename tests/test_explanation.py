"""What an explainer returns: its checks, its ranks, its scaling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from voxplain.errors import InputError
from voxplain.explanation import Explanation, Region
from voxplain.grid import Grid
from voxplain.scan import Labels

AFFINE = np.array([[-2.0, 0, 0, 10], [0, 1, 0, -5], [0, 0, 3, 0], [0, 0, 0, 1]])
GRID = Grid((4, 3, 2), AFFINE)
LEFT = Region("left", ((0, 2), (0, 3), (0, 2)), 0.9, 2.2, True)
RIGHT = Region("right", ((2, 4), (0, 3), (0, 2)), 0.2, -1.4, False)


def of_parts(**changes: Any) -> Explanation:
    parts = np.zeros(GRID.shape, int)
    parts[0] = 1
    parts[1, :, 0] = 2
    parts[2:, 0, 0] = 3
    parts[3, 2, 1] = 4
    scores = np.array([0.25, 0.5, 0.5, 0.0])
    values = np.concatenate([[0], scores])[parts][None]
    fields = {"parts": Labels(parts, GRID), "scores": scores, "map": values, "grid": GRID} | changes
    return Explanation(channels=("all",), signed=False, unit="|change|", regions=(LEFT, RIGHT), **fields)


def test_ranks_most_relevant_first_and_ties_by_label() -> None:
    table = of_parts().ranks()
    assert list(table.columns) == ["rank", "label", "score", "volume_ml", "x_mm", "y_mm", "z_mm", "region"]
    assert table["rank"].tolist() == [1, 2, 3, 4]
    assert table["label"].tolist() == [2, 3, 1, 4]
    assert table["score"].tolist() == [0.5, 0.5, 0.25, 0.0]
    assert table["region"].tolist() == ["left", "right", "left", "right"]
    np.testing.assert_allclose(table["volume_ml"], np.array([3, 2, 6, 1]) * 6 / 1000)
    # Centres by hand: part 2 is x index 1, y 0..2, z 0; part 3 x 2..3; part 1 x 0, y 0..2, z 0..1; part 4 one voxel.
    np.testing.assert_allclose(table[["x_mm", "y_mm", "z_mm"]], [[8, -4, 0], [5, -5, 0], [10, -4, 1.5], [4, -3, 3]])


def test_voxel_wise_maps_have_no_ranks() -> None:
    with pytest.raises(InputError, match="this one is voxel-wise"):
        of_parts(parts=None, scores=None).ranks()


def test_scaled_to_0_100() -> None:
    scaled = of_parts().scaled()
    assert scaled.unit == "0-100"
    assert (scaled.map.min(), scaled.map.max()) == (0, 100)
    assert scaled.scores is not None
    np.testing.assert_allclose(scaled.scores, [50, 100, 100, 0])
    assert of_parts().unit == "|change|"
    signed = of_parts(parts=None, scores=None, map=np.linspace(-1, 3, 24).reshape(1, 4, 3, 2)).scaled()
    assert (signed.map.min(), signed.map.max()) == (0, 100)
    flat = of_parts(parts=None, scores=None, map=np.full((1, 4, 3, 2), 7)).scaled()
    assert not flat.map.any()


def test_maps_and_scores_are_frozen() -> None:
    explanation = of_parts()
    for array in (explanation.map, explanation.scores):
        assert array is not None
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    assert explanation.map.dtype == np.float32


def test_the_total_sums_the_channels() -> None:
    values = np.random.default_rng(0).normal(size=(2, 4, 3, 2)).astype(np.float32)
    explanation = Explanation(values, ("a", "b"), GRID, True, "u", (LEFT, RIGHT))
    np.testing.assert_allclose(explanation.total, values[0] + values[1], rtol=1e-6)


def test_regions_are_boxes() -> None:
    explanation = of_parts()
    assert explanation.map[0][LEFT.slices].shape == (2, 3, 2)
    assert explanation.labels_in(LEFT).tolist() == [1, 2]
    assert explanation.labels_in(RIGHT).tolist() == [3, 4]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"map": np.zeros((1, 4, 3, 3))}, r"expected \(1, 4, 3, 2\), got \(1, 4, 3, 3\)"),
        ({"map": np.zeros((4, 3, 2))}, r"expected \(1, 4, 3, 2\), got \(4, 3, 2\)"),
        ({"scores": None}, "come together, or not at all"),
        ({"parts": None}, "come together, or not at all"),
        ({"scores": np.zeros(3)}, "one score per part"),
        ({"parts": Labels(np.zeros((4, 3, 3)), Grid((4, 3, 3), AFFINE))}, "parts lie on the map's grid; these differ"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        of_parts(**changes)
