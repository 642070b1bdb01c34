import numpy as np
import pytest
from scipy import ndimage

import voxplain as vx
from voxplain.metrics.network_free import NETWORK_FREE, bright_flair, network_free_masks, network_free_rankings


def made(spacing: float = 2.0, channels: tuple[str, ...] = ("flair", "t1"), seed: int = 0) -> vx.Scan:
    """A ball of noise on exact zeros with two bright balls in it, the second smaller and brighter."""
    rng = np.random.default_rng(seed)
    x, y, z = np.indices((30, 28, 26)) - 14
    data = np.where(x**2 + y**2 + z**2 < 150, rng.normal(100, 5, (30, 28, 26)), 0)
    data[(x + 5) ** 2 + y**2 + z**2 < 16] += 120
    data[(x - 6) ** 2 + y**2 + z**2 < 6] += 300
    grid = vx.Grid(data.shape, np.diag([spacing, spacing, spacing, 1.0]))
    return vx.Scan(np.stack([data] * len(channels)), grid, channels)


def explained(scan: vx.Scan) -> vx.Explanation:
    parts = np.where(scan.foreground(), 1 + (np.indices(scan.grid.shape)[0] // 3), 0)
    _, parts = np.unique(parts, return_inverse=True)
    labels = vx.Labels(parts.reshape(scan.grid.shape), scan.grid)
    scores = np.linspace(-1, 1, int(labels.data.max()))
    painted = np.concatenate([[0], scores])[labels.data][None]
    region = vx.Region("whole", ((0, 30), (0, 28), (0, 26)), 0.9, 2.2, True)
    return vx.Explanation(painted, ("all",), scan.grid, True, "x", (region,), labels, scores)


@pytest.mark.parametrize("spacing", [1.0, 2.0])
def test_flair_mask_is_the_largest_bright_component_after_smoothing_in_mm(spacing):
    scan = made(spacing)
    flair = scan.channel("flair").astype(float)
    brain = flair[flair != 0]
    score = np.where(flair != 0, (flair - brain.mean()) / brain.std(), 0)
    bright = (ndimage.gaussian_filter(score, 2 / spacing) > 1.2) & (flair != 0)
    pieces, count = ndimage.label(bright, np.ones((3, 3, 3)))
    sizes = ndimage.sum_labels(bright, pieces, range(1, count + 1))
    np.testing.assert_array_equal(network_free_masks(scan)["intensity/flair"], pieces == 1 + np.argmax(sizes))
    assert count > 1 or spacing == 1


def test_whole_brain_is_everything_but_background_also_in_a_region():
    scan = made()
    region = vx.Region("right", ((0, 14), (0, 28), (0, 26)), 0.5, 0.0, True)
    np.testing.assert_array_equal(network_free_masks(scan)["whole-brain"], scan.channel("t1") != 0)
    inside = network_free_masks(scan, region)
    assert inside["whole-brain"].shape == (14, 28, 26)
    # The z-score is the whole brain's, the component that of the region.
    assert inside["intensity/flair"].any()


def test_scans_without_flair_have_no_row_of_it():
    scan = made(channels=("t1", "t2"))
    assert list(network_free_masks(scan)) == ["whole-brain"]
    assert {row for row, _ in network_free_rankings(scan, explained(scan), seed=0)} == {"random-rank"}


def test_a_constant_and_an_empty_flair_give_empty_masks():
    grid = vx.Grid((6, 6, 6), np.eye(4))
    for value in (0.0, 7.0):
        scan = vx.Scan(np.full((1, 6, 6, 6), value), grid, ("flair",))
        assert not network_free_masks(scan)["intensity/flair"].any()


def test_rankings_keep_the_parts_and_rank_by_mean_flair_and_by_chance():
    scan = made()
    why = explained(scan)
    rankings = network_free_rankings(scan, why, seed=3)
    assert {row for row, _ in rankings} <= set(NETWORK_FREE)
    (intensity,) = [ranked for row, ranked in rankings if row == "intensity/supervoxel-rank"]
    assert why.parts is not None
    means = ndimage.mean(scan.channel("flair"), why.parts.data, range(1, len(why.scores) + 1))
    np.testing.assert_allclose(intensity.scores, means, rtol=1e-5)
    np.testing.assert_allclose(intensity.map[0][why.parts.data == 2], means[1], rtol=1e-5)
    draws = [ranked.scores for row, ranked in rankings if row == "random-rank"]
    assert len(draws) == 20
    assert not np.array_equal(draws[0], draws[1])
    again = [ranked.scores for row, ranked in network_free_rankings(scan, why, seed=3) if row == "random-rank"]
    np.testing.assert_array_equal(draws, again)


def test_a_map_without_parts_has_no_rankings():
    scan = made()
    region = vx.Region("whole", ((0, 30), (0, 28), (0, 26)), 0.9, 2.2, True)
    why = vx.Explanation(scan.data[:1], ("all",), scan.grid, False, "x", (region,))
    assert network_free_rankings(scan, why, seed=0) == []


def test_bright_flair_of_a_slice():
    score = np.zeros((40, 50))
    score[5:12, 5:12] = 4
    score[20:32, 20:30] = 3
    inside = np.ones_like(score, dtype=bool)
    found = bright_flair(score, inside=inside, spacing=(2.0, 2.0))
    bright = ndimage.gaussian_filter(score, 1) > 1.2
    np.testing.assert_array_equal(found, bright & (np.indices(score.shape)[0] > 15))
    inside[15:] = False
    np.testing.assert_array_equal(bright_flair(score, inside=inside, spacing=(2.0, 2.0)), bright & inside)
    assert not bright_flair(score * 0, inside=inside, spacing=(2.0, 2.0)).any()
    with pytest.raises(vx.InputError, match="a spacing above 0 mm for each axis"):
        bright_flair(score, inside=inside, spacing=(2.0, 2.0, 2.0))
