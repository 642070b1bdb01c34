"""Maps that know no network: edges where the scan has edges, random maps that keep values and smoothness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

import voxplain as vx
from voxplain.metrics.controls import edge_detector, random_map

SHAPE = (20, 18, 16)
GRID = vx.Grid(SHAPE, np.diag([2.0, 1.5, 3.0, 1.0]))
WHOLE = vx.Region("whole", ((0, 20), (0, 18), (0, 16)), 0.9, 2.2, True)
HALVES = (
    vx.Region("right", ((0, 10), (0, 18), (0, 16)), 0.9, 2.2, True),
    vx.Region("left", ((10, 20), (0, 18), (0, 16)), 0.1, -2.2, False),
)


def scan(values: np.ndarray | None = None) -> vx.Scan:
    data = np.random.default_rng(0).normal(50, 5, (2, *SHAPE)) if values is None else np.stack([values, values])
    data[:, :3] = 0
    return vx.Scan(data, GRID, ("flair", "t1"))


def of_parts(regions: tuple[vx.Region, ...] = (WHOLE,)) -> vx.Explanation:
    labels = np.zeros(SHAPE, int)
    labels[3:] = (np.indices(SHAPE)[0] - 3)[3:] // 2 + 1
    labels[10:][labels[10:] > 0] += 20  # no part lies in both halves
    _, labels = np.unique(labels, return_inverse=True)
    labels = labels.reshape(SHAPE)
    scores = np.random.default_rng(1).normal(0, 1, labels.max())
    painted = np.concatenate([[0], scores])[labels][None]
    provenance = {"scan": {"fingerprint": "x"}, "model": {"name": "m"}, "options": {"a": 1}, "explainer": "a:B"}
    return vx.Explanation(
        painted, ("all",), GRID, True, "fall", regions, vx.Labels(labels, GRID), scores, provenance=provenance
    )


def of_voxels(sigma: float, channels: int = 1, regions: tuple[vx.Region, ...] = (WHOLE,)) -> vx.Explanation:
    noise = np.random.default_rng(2).normal(0, 1, (channels, *SHAPE))
    smooth = np.stack([ndimage.gaussian_filter(one, sigma) for one in noise])
    return vx.Explanation(smooth, tuple(f"c{k}" for k in range(channels)), GRID, True, "a.u.", regions)


def test_a_ramp_has_the_same_slope_everywhere_in_millimetres_also_at_the_brains_edge() -> None:
    ramp = 100 + np.indices(SHAPE)[1] * 1.5  # one unit per mm along y
    image = scan(ramp)
    edges = edge_detector(image, of_voxels(1))
    inside = image.foreground()
    expected = 2 / image.channel("flair")[inside].std(dtype=np.float64)
    np.testing.assert_allclose(edges.map[0][inside], expected, rtol=1e-5)
    assert not edges.map[0][~inside].any()
    assert not edges.signed


def test_edges_of_parts_are_their_mean() -> None:
    image, why = scan(), of_parts()
    voxels = edge_detector(image, of_voxels(1)).map[0]
    found = edge_detector(image, why)
    assert why.parts is not None
    assert found.scores is not None
    means = ndimage.mean(voxels, why.parts.data, range(1, len(found.scores) + 1))
    np.testing.assert_allclose(found.scores, means, rtol=1e-5)
    assert found.parts is why.parts
    assert "options" in found.provenance
    assert found.provenance["scan"] == {"fingerprint": "x"}
    assert found.provenance["explainer"] == "control:EdgeDetector"


def test_a_scan_without_contrast_and_an_empty_one_have_no_edges() -> None:
    assert not edge_detector(scan(np.full(SHAPE, 7.0)), of_voxels(1)).map.any()
    assert not edge_detector(vx.Scan(np.zeros((1, *SHAPE)), GRID, ("t1",)), of_voxels(1)).map.any()


def test_an_image_has_edges() -> None:
    grid = vx.Grid((12, 10, 1), np.eye(4))
    data = np.ones((1, 12, 10, 1))
    data[0, 6:] = 3
    whole = vx.Region("whole", ((0, 12), (0, 10), (0, 1)), 0.5, 0.0, True)
    why = vx.Explanation(data, ("all",), grid, False, "u", (whole,))
    edges = edge_detector(vx.Scan(data, grid, ("t1",)), why).map[0, :, 0, 0]
    assert set(np.flatnonzero(edges)) == {5, 6}


def test_scores_of_parts_are_shuffled_within_their_region() -> None:
    why = of_parts(HALVES)
    found = random_map(scan(), why, seed=3)
    assert why.scores is not None
    assert found.scores is not None
    assert not np.array_equal(found.scores, why.scores)
    for region in HALVES:
        inside = why.labels_in(region) - 1
        np.testing.assert_array_equal(np.sort(found.scores[inside]), np.sort(why.scores[inside]))
    assert why.parts is not None
    np.testing.assert_array_equal(found.map[0], np.float32(np.concatenate([[0], found.scores]))[why.parts.data])
    np.testing.assert_array_equal(found.map, random_map(scan(), why, seed=3).map)
    assert not np.array_equal(found.map, random_map(scan(), why, seed=4).map)


@pytest.mark.parametrize("regions", [(WHOLE,), HALVES])
def test_voxel_maps_keep_their_values_and_their_smoothness(regions: tuple[vx.Region, ...]) -> None:
    image, inside = scan(), scan().foreground()

    def steps(values: np.ndarray) -> float:
        """Mean size of the step between neighbours, which smoothness makes small."""
        return float(np.abs(np.diff(values, axis=2)[inside[:, :, 1:]]).mean() / values[inside].std())

    found = {}
    for sigma in (0.5, 1.0, 2.0):
        why = of_voxels(sigma, channels=2, regions=regions)
        drawn = random_map(image, why, seed=0)
        assert drawn.channels == why.channels
        for own, new in zip(why.map, drawn.map, strict=True):
            for region in regions:
                box, brain = region.slices, inside[region.slices]
                np.testing.assert_array_equal(np.sort(own[box][brain]), np.sort(new[box][brain]))
            np.testing.assert_array_equal(own[~inside], new[~inside])
            assert abs(np.corrcoef(own[inside], new[inside])[0, 1]) < 0.5
            found[sigma] = steps(new)
            assert found[sigma] == pytest.approx(steps(own), rel=0.35)
    assert found[0.5] > found[1.0] > found[2.0]


def test_a_map_that_is_the_same_everywhere_stays_so() -> None:
    why = replace(of_voxels(1), map=np.full((1, *SHAPE), 3.0))
    np.testing.assert_array_equal(random_map(scan(), why, seed=0).map, why.map)


@pytest.mark.parametrize("make", [edge_detector, lambda image, why: random_map(image, why, seed=0)])
def test_another_grid_is_refused(make: Callable[..., Any]) -> None:
    other = vx.Scan(scan().data, GRID.flipped(0), ("flair", "t1"))
    with pytest.raises(vx.InputError, match="another grid than the scan"):
        make(other, of_parts())


def test_a_map_without_regions_cannot_be_drawn_anew() -> None:
    with pytest.raises(vx.InputError, match="names none"):
        random_map(scan(), of_parts(()), seed=0)
