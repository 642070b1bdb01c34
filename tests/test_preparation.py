"""From the scan to the network's input, voxel by voxel, and back."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxplain.errors import InputError
from voxplain.grid import Grid, resample
from voxplain.io.nifti import read
from voxplain.model import Card
from voxplain.preparation import Prepared, prepare
from voxplain.scan import Scan

ORIENTATIONS = ("LPS", "RAS", "PIR", "SLA", "RPI")
MakeCard = Callable[..., Card]


def lay_back(prepared: list[Prepared], maps: list[np.ndarray], grid: Grid) -> np.ndarray:
    """What the template does with the maps of a scan's regions."""
    whole = np.full((1, *grid.shape), np.nan, dtype=np.float32)
    for region, values in zip(prepared, maps, strict=True):
        start, shape = [low for low, _ in region.box], [high - low for low, high in region.box]
        box = tuple(slice(low, high) for low, high in region.box)
        assert np.isnan(whole[(0, *box)]).all(), "the boxes of the two halves overlap"
        whole[(slice(None), *box)] = resample(values, region.input.grid, grid.window(start, shape))
    return whole


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("shape", [(40, 48, 40), (41, 47, 39)])
def test_each_half_holds_the_voxels_that_it_should(
    make_head: Any, half_card: MakeCard, orientation: str, shape: tuple[int, int, int]
) -> None:
    head = make_head(shape)
    first, second = prepare(head.scan(orientation), half_card())
    # By index in the head's own LPS array: the patient's right half as it lies, the left half read from its far end.
    plane, width = head.plane, shape[0] - head.plane
    wide = max(plane, width)
    assert (first.name, second.name) == ("right", "left")
    assert first.input.data.shape[1] == second.input.data.shape[1] == wide
    middle = [(np.flatnonzero(head.brain.any(axis=other))[[0, -1]].sum() + 1) / 2 for other in ((0, 2), (0, 1))]
    shift = [int(np.floor(m - n / 2 + 0.5)) for m, n in zip(middle, shape[1:], strict=True)]
    assert shift == [0, 0], "the made head sits in the middle of its grid"
    np.testing.assert_array_equal(first.input.data[:, wide - plane :], head.volumes[:, :plane])
    np.testing.assert_array_equal(second.input.data[:, wide - width :], head.volumes[:, : plane - 1 : -1])
    assert not first.input.data[:, : wide - plane].any()
    # The last plane of both is the one beside the mid-sagittal face.
    np.testing.assert_array_equal(first.input.data[:, -1], head.volumes[:, plane - 1])
    np.testing.assert_array_equal(second.input.data[:, -1], head.volumes[:, plane])
    np.testing.assert_array_equal(first.foreground, (first.input.data != 0).any(axis=0))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("shape", [(40, 48, 40), (41, 47, 39)])
def test_inputs_laid_back_are_the_scan(
    make_head: Any, half_card: MakeCard, orientation: str, shape: tuple[int, int, int]
) -> None:
    scan = make_head(shape).scan(orientation)
    halves = prepare(scan, half_card())
    whole = lay_back(halves, [half.input.data[:1] for half in halves], scan.grid)
    np.testing.assert_array_equal(whole[0], scan.data[0])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_smaller_window_loses_only_what_lies_outside_of_it(
    make_head: Any, half_card: MakeCard, orientation: str
) -> None:
    head = make_head()
    scan = head.scan(orientation)
    halves = prepare(scan, half_card(shape=(18, 44, 36)))
    assert [half.input.data.shape for half in halves] == [(4, 18, 44, 36)] * 2
    np.testing.assert_array_equal(halves[0].input.data, head.volumes[:, 2:20, 2:46, 2:38])
    np.testing.assert_array_equal(halves[1].input.data, head.volumes[:, 37:19:-1, 2:46, 2:38])
    whole = lay_back(halves, [half.input.data[:1] for half in halves], scan.grid)
    expected = np.zeros_like(head.volumes[0])
    expected[2:38, 2:46, 2:38] = head.volumes[0, 2:38, 2:46, 2:38]
    back = Scan(whole, scan.grid, ("map",)).on(scan.grid.reoriented("LPS"))
    np.testing.assert_array_equal(back.data[0], expected)
    assert halves[0].record["cut"]["brain_left_out"] < 0.02


def test_a_window_larger_than_the_scan_is_padded_with_background(make_head: Any, half_card: MakeCard) -> None:
    head = make_head()
    first, second = prepare(head.scan(), half_card(shape=(24, 52, 44)))
    np.testing.assert_array_equal(first.input.data[:, 4:, 2:-2, 2:-2], head.volumes[:, :20])
    np.testing.assert_array_equal(second.input.data[:, 4:, 2:-2, 2:-2], head.volumes[:, :19:-1])
    assert np.count_nonzero(first.input.data) == np.count_nonzero(head.volumes[:, :20])


def test_the_brain_left_out_of_a_small_window_is_said(make_head: Any, half_card: MakeCard) -> None:
    with pytest.warns(UserWarning, match=r"\d+% of the brain lies outside"):
        halves = prepare(make_head().scan(), half_card(shape=(12, 30, 24)))
    assert halves[0].record["cut"]["brain_left_out"] > 0.3


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("shape", [(40, 48, 40), (41, 47, 39)])
def test_resampling_keeps_the_plane_and_the_order(
    make_head: Any, half_card: MakeCard, orientation: str, shape: tuple[int, int, int]
) -> None:
    head = make_head(shape)
    scan = head.scan(orientation)
    first, second = prepare(scan, half_card(spacing=(8, 8, 8)))
    assert first.record["resampled"] is True
    assert first.input.grid.spacing == pytest.approx((8, 8, 8))
    # Blocks of 2 x 2 x 2 count from the plane outwards across, and from the card's first face along.
    for half, side in ((first, head.volumes[:, : head.plane][:, ::-1]), (second, head.volumes[:, head.plane :])):
        pairs = side.shape[1] // 2
        across = side[:, : 2 * pairs].reshape(4, pairs, 2, *shape[1:]).mean(axis=2)
        for axis in (2, 3):
            count = across.shape[axis] // 2
            across = np.take(across, range(2 * count), axis=axis)
            parts = (*across.shape[:axis], count, 2, *across.shape[axis + 1 :])
            across = across.reshape(parts).mean(axis=axis + 1)
        got = half.input.data[:, ::-1][:, :pairs, : across.shape[2], : across.shape[3]]
        np.testing.assert_allclose(got, across, rtol=1e-5)
    # A map of ones laid back marks every voxel of the scan that the inputs cover, and no half marks the other's.
    ones = [np.full((1, *half.input.grid.shape), value, np.float32) for value, half in enumerate((first, second), 1)]
    whole = lay_back([first, second], ones, scan.grid)
    back = resample(whole, scan.grid, scan.grid.reoriented("LPS"), nearest=True)[0]
    brain = head.brain
    assert set(np.unique(back[: head.plane][brain[: head.plane]])) == {1.0}
    assert set(np.unique(back[head.plane :][brain[head.plane :]])) == {2.0}


def test_min_max_and_its_background(make_head: Any, half_card: MakeCard) -> None:
    head = make_head()
    scan = head.scan()
    data = scan.data.copy()
    data[1, 20, 20, 20] = -500.0
    scan = Scan(data, scan.grid, scan.channels)
    first, second = prepare(scan, half_card(normalisation="min-max", shape=(24, 52, 44)))
    both = np.concatenate([first.input.data, second.input.data[:, ::-1]], axis=1)
    for index in range(4):
        assert both[index].min() == pytest.approx(0, abs=1e-6)
        assert both[index].max() == pytest.approx(1, abs=1e-6)
    assert first.background[0] == 0
    assert first.background[1] == pytest.approx(500 / (500 + data[1].max()), rel=1e-6)
    # What was 0, and what was padded, is exactly the background: filling it with background changes nothing.
    for half in (first, second):
        outside = ~half.foreground
        background = np.asarray(half.background, dtype=np.float32)[:, None]
        np.testing.assert_array_equal(half.input.data[:, outside], np.broadcast_to(background, (4, outside.sum())))


@pytest.mark.parametrize("lowest", [-0.1, -7.3, -333.3, 0.0, 12.7])
def test_background_is_exactly_what_zero_became(half_card: MakeCard, lowest: float) -> None:
    data = np.random.default_rng(5).uniform(lowest, 900, (1, 6, 8, 6))
    data[0, :3], data[0, 4, 4, 4] = 0, lowest
    card = half_card(channels=("t2",), region="whole", skull_stripped=False, normalisation="min-max", shape=(8, 8, 8))
    (whole,) = prepare(Scan(data, Grid((6, 8, 6), np.diag([-1.0, -1, 1, 1])), ("t2",)), card)
    air = whole.input.data[0][~whole.foreground]
    assert air.size > 3 * 8 * 6
    assert set(air.tolist()) == {whole.background[0]}


def test_z_score_over_non_zero_voxels_of_the_whole_scan(make_head: Any, half_card: MakeCard) -> None:
    head = make_head()
    first, second = prepare(head.scan(), half_card(normalisation="z-score"))
    assert first.background == (0.0,) * 4
    for index in range(4):
        values = head.volumes[index][head.brain].astype(np.float64)
        expected = np.where(head.brain, (head.volumes[index] - values.mean()) / values.std(), 0)
        np.testing.assert_allclose(first.input.data[index], expected[:20], atol=1e-5)
        np.testing.assert_allclose(second.input.data[index], expected[:19:-1], atol=1e-5)


def test_tissue_is_normalised_by_itself_and_air_is_one_value(half_card: MakeCard) -> None:
    random = np.random.default_rng(5)
    data = random.uniform(0, 7, (1, 8, 10, 6))
    data[0, 2:6, 2:8, 1:5] = random.uniform(60, 255, (4, 6, 4))
    data[0, 3, 3, 3] = 255
    card = half_card(
        channels=("t1ce",),
        region="whole",
        skull_stripped=False,
        normalisation="tissue",
        spacing=None,
        shape=(10, 10, 6),
    )
    (whole,) = prepare(Scan(data, Grid((8, 10, 6), np.diag([-1.0, -1, 1, 1])), ("t1ce",)), card)
    tissue = data[0][data[0] > 8]
    found = whole.input.data[0][1:9]
    inside = data[0] > 8
    np.testing.assert_allclose(found[inside], (tissue - tissue.mean()) / tissue.std(), atol=1e-4)
    assert set(found[~inside].tolist()) == {whole.background[0]}
    assert whole.background[0] == pytest.approx(-tissue.mean() / tissue.std(), rel=1e-5)
    # What was padded is air as well.
    assert set(whole.input.data[0][[0, 9]].ravel().tolist()) == {whole.background[0]}


@pytest.mark.parametrize("normalisation", ["none", "min-max", "z-score", "tissue"])
def test_a_constant_sequence_stays_finite(half_card: MakeCard, normalisation: str) -> None:
    data = np.full((1, 6, 8, 6), 7.0)
    card = half_card(channels=("t2",), region="whole", skull_stripped=False, normalisation=normalisation)
    (whole,) = prepare(Scan(data, Grid((6, 8, 6), np.eye(4)), ("t2",)), card)
    assert np.isfinite(whole.input.data).all()


def test_the_order_of_channels_in_the_scan_does_not_matter(make_head: Any, half_card: MakeCard) -> None:
    head = make_head()
    card = half_card(normalisation="z-score", channels=("t1ce", "t2", "flair", "t1"))
    expected = prepare(head.scan(), card)
    shuffled = prepare(head.scan(order=("t2", "t1", "flair", "t1ce")), card)
    for one, other in zip(expected, shuffled, strict=True):
        assert one.input.channels == ("t1ce", "t2", "flair", "t1")
        np.testing.assert_array_equal(one.input.data, other.input.data)


def test_a_missing_channel_is_named(make_head: Any, half_card: MakeCard) -> None:
    with pytest.raises(InputError, match="missing: t1ce") as caught:
        prepare(make_head().scan(order=("flair", "t1", "t2")), half_card())
    assert "the scan has flair, t1, t2" in str(caught.value)


def test_an_all_zero_sequence_is_named(make_head: Any, half_card: MakeCard) -> None:
    scan = make_head().scan()
    data = scan.data.copy()
    data[2] = 0
    with pytest.raises(InputError, match="sequence t1ce is zero in every voxel"):
        prepare(Scan(data, scan.grid, scan.channels), half_card())


def test_a_scan_with_its_skull_is_refused(make_head: Any, half_card: MakeCard) -> None:
    scan = make_head().scan()
    with pytest.raises(InputError, match=r"skull-stripped head on a background of exactly 0; here 100%"):
        prepare(Scan(scan.data + 10, scan.grid, scan.channels), half_card())
    bigger = Scan(scan.data, Grid(scan.grid.shape, scan.grid.affine @ np.diag([1.4, 1.4, 1.4, 1])), scan.channels)
    with pytest.raises(InputError, match="strip the skull first"):
        prepare(bigger, half_card())


def test_too_little_brain_is_warned_about(make_head: Any, half_card: MakeCard) -> None:
    scan = make_head().scan()
    smaller = Scan(scan.data, Grid(scan.grid.shape, scan.grid.affine @ np.diag([0.5, 0.5, 0.5, 1])), scan.channels)
    with pytest.warns(UserWarning, match="less than a brain"):
        prepare(smaller, half_card())


def test_a_rotated_head_is_refused(make_head: Any, half_card: MakeCard) -> None:
    with pytest.raises(InputError, match="not aligned with the grid's axes"):
        prepare(make_head((48, 52, 40), tilt=np.pi / 4).scan(), half_card())


@pytest.mark.parametrize("orientation", ["LPS", "RAS"])
def test_a_head_off_the_middle_is_cut_at_the_brains_own_plane(
    make_head: Any, half_card: MakeCard, orientation: str
) -> None:
    head = make_head((46, 48, 40), plane=20)
    with pytest.warns(UserWarning, match="the cut follows the brain"):
        halves = prepare(head.scan(orientation), half_card(shape=(18, 44, 36)))
    assert "plane of symmetry" in halves[0].record["midsagittal_plane"]
    assert halves[0].record["plane_mm"][0] == 0
    np.testing.assert_array_equal(halves[0].input.data, head.volumes[:, 2:20, 2:46, 2:38])
    np.testing.assert_array_equal(halves[1].input.data, head.volumes[:, 37:19:-1, 2:46, 2:38])


def test_a_head_in_the_middle_brings_no_warning(make_head: Any, half_card: MakeCard) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        halves = prepare(make_head().scan(), half_card())
    assert halves[0].record["midsagittal_plane"].startswith("middle of the grid")


def test_networks_and_scans_of_other_dimensions_are_refused(make_head: Any, half_card: MakeCard) -> None:
    with pytest.raises(InputError, match="a 2D network reads images"):
        prepare(make_head().scan(), half_card(spatial_dims=2, region="whole"))
    flat = Scan(np.ones((4, 8, 8, 1)), Grid((8, 8, 1), np.eye(4)), ("flair", "t1", "t1ce", "t2"))
    with pytest.raises(InputError, match="a 3D network reads volumes"):
        prepare(flat, half_card(region="whole", skull_stripped=False))
    (whole,) = prepare(flat, half_card(spatial_dims=2, region="whole", skull_stripped=False, orientation=None))
    assert whole.input.data.shape == (4, 8, 8, 1)


def test_a_whole_region_is_turned_cut_and_laid_back(half_card: MakeCard) -> None:
    rng = np.random.default_rng(3)
    scan = Scan(rng.random((1, 9, 12, 7)), Grid((9, 12, 7), np.diag([2.0, 2, 2, 1])), ("t2",))
    card = half_card(channels=("t2",), region="whole", skull_stripped=False, shape=(7, 14, 6))
    (whole,) = prepare(scan, card)
    assert whole.box == ((0, 9), (0, 12), (0, 7))
    turned = scan.data[0, ::-1, ::-1]
    expected = np.zeros((7, 14, 6), np.float32)
    expected[:, 1:13] = turned[1:8, :, :6]
    np.testing.assert_array_equal(whole.input.data[0], expected)
    back = lay_back([whole], [whole.input.data], scan.grid)[0]
    np.testing.assert_array_equal(back[1:8, :, :6], scan.data[0, 1:8, :, :6])
    assert not back[:, :, 6].any()


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1)], ids=str)
def test_the_box_of_the_head_is_stretched_to_the_shape_and_laid_back(flips: tuple[int, int, int]) -> None:
    data = np.zeros((1, 20, 24, 16), dtype=np.float32)
    data[0, 4:14, 6:21, 3:11] = 5
    data[0, 4, 6, 3] = 9
    affine = np.diag([1.0, 1.0, 2.0, 1.0]) @ np.diag([*flips, 1])
    scan = Scan(data, Grid((20, 24, 16), affine), ("t1",))
    card = Card(name="net", channels=("t1",), classes=("a",), orientation="RAS", shape=(5, 30, 8), fit="stretch")
    (found,) = prepare(scan, card)
    assert found.input.grid.shape == (5, 30, 8)
    assert found.input.grid.orientation == "RAS"
    np.testing.assert_allclose(found.input.grid.spacing, (2, 0.5, 2))
    assert found.foreground.all()
    first, last = (scan.grid.world(place) for place in ((3.5, 5.5, 2.5), (13.5, 20.5, 10.5)))
    corners = found.input.grid.world([(-0.5, -0.5, -0.5), (4.5, 29.5, 7.5)])
    np.testing.assert_allclose(corners, np.sort([first, last], axis=0))
    assert found.record["box"]["shape"] == [10, 15, 8]
    # A map of ones lies on the box and nowhere else.
    back = resample(np.ones(found.map_grid.shape, dtype=np.float32), found.map_grid, scan.grid)
    np.testing.assert_array_equal(back > 0, data[0] > 0)


def test_a_stretched_card_needs_a_shape_and_no_spacing() -> None:
    rest: dict[str, Any] = {"name": "net", "channels": ("t1",), "classes": ("a",), "fit": "stretch"}
    with pytest.raises(InputError, match="give the card a shape"):
        Card(**rest)
    with pytest.raises(InputError, match="neither"):
        Card(**rest, shape=(8, 8, 8), spacing=(1, 1, 1))
    assert Card(**rest, shape=(8, 8, 8)).to_dict()["fit"] == "stretch"
    assert "fit" not in Card(**(rest | {"fit": "cut"})).to_dict()


def test_one_millimetre_comes_to_the_same_as_two(data_folder: Path, half_card: MakeCard) -> None:
    card = half_card(normalisation="z-score", spacing=(2, 2, 2), shape=(40, 96, 76))
    fine, coarse = (read(data_folder / f"glioma_{size}mm" / "Brats18_CBICA_APZ_1") for size in (1, 2))
    for one, two in zip(prepare(fine, card), prepare(coarse, card), strict=True):
        assert one.record["resampled"]
        assert not two.record["resampled"]
        assert one.name == two.name
        assert one.input.grid.difference(two.input.grid) is None
        assert float(np.abs(one.input.data - two.input.data).max()) < 0.02


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("window", [(4, 4, 4), (30, 16, 44)])
def test_a_scan_is_cut_to_its_head_and_laid_back(orientation: str, window: tuple[int, int, int]) -> None:
    inside = np.zeros((40, 36, 38), dtype=bool)
    inside[12:20, 2:10, 16:30] = True
    data = np.where(inside, np.random.default_rng(0).uniform(1, 2, inside.shape), 0)[None].astype(np.float32)
    grid = Grid(inside.shape, np.diag([2.0, 2, 2, 1]))
    scan = Scan(data, grid, ("t1",))
    scan = scan.on(grid.reoriented(orientation))
    card = Card(name="n", channels=("t1",), classes=("a",), orientation="RAS", window=window, fit="head")
    (prepared,) = prepare(scan, card)
    # The box with a margin of 4 voxels, where the scan has so many, or the window where that is larger.
    assert prepared.input.grid.shape == tuple(map(max, (16, 14, 22), window))
    assert prepared.input.data.sum() == pytest.approx(data.sum(), rel=1e-6)
    assert int(prepared.foreground.sum()) == int(inside.sum())
    np.testing.assert_allclose(lay_back([prepared], [prepared.input.data], scan.grid)[0], scan.data[0], atol=1e-6)
    assert prepared.record["cut"]["shape"] == list(prepared.input.grid.shape)


def test_a_head_is_read_whole() -> None:
    rest: dict[str, Any] = {"name": "net", "channels": ("t1",), "classes": ("a",), "fit": "head"}
    with pytest.raises(InputError, match="read whole: region whole, and neither shape nor slices"):
        Card(**rest, shape=(8, 8, 8))
    with pytest.raises(InputError, match="read whole"):
        Card(**rest, region="half")
    assert Card(**rest, window=(8, 8, 8)).to_dict()["fit"] == "head"
