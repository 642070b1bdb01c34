"""A 2D network along a 3D scan: every slice of the scan belongs to one input, and its map is what a hand would find."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import voxplain as vx
from voxplain.grid import resample
from voxplain.networks.self_explaining import SelfExplaining
from voxplain.preparation import prepare

CPU = vx.Compute(device="cpu", threads=1)
ALONG = {"axial": "IS", "coronal": "PA", "sagittal": "LR"}
ALL_48 = sorted(
    "".join(codes) for axes in itertools.permutations(["LR", "PA", "IS"]) for codes in itertools.product(*axes)
)
SPACINGS = st.tuples(*[st.sampled_from([0.7, 1.0, 1.5, 2.0, 3.1])] * 3)


class Itself(SelfExplaining):
    """Its heat map is the sum of its channels, so that a map says where each voxel went."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__(channels, 1, spatial_dims=2, pooling="max")
        nn.init.ones_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return x


def card(**fields: Any) -> vx.Card:
    content: dict[str, Any] = {"name": "n", "channels": ("t1",), "classes": ("c",), "spatial_dims": 2}
    return vx.Card(**(content | fields))


def affine_of(orientation: str, spacing: tuple[float, ...]) -> np.ndarray:
    affine = np.zeros((4, 4))
    for axis, (code, size) in enumerate(zip(orientation, spacing, strict=True)):
        world = next(i for i, pair in enumerate(("LR", "PA", "IS")) if code in pair)
        affine[world, axis] = size if code in "RAS" else -size
    affine[:, 3] = [3.25, -40, 12.5, 1]
    return affine


def a_scan(shape: tuple[int, ...], orientation: str, spacing: tuple[float, ...], channels: int = 1) -> vx.Scan:
    data = np.random.default_rng(1).uniform(1, 9, (channels, *shape))
    return vx.Scan(data, vx.Grid(shape, affine_of(orientation, spacing)), ("t1", "t2")[:channels])


@st.composite
def worlds(draw: st.DrawFn) -> tuple[vx.Scan, vx.Card]:
    plane = draw(st.sampled_from(list(ALONG)))
    shape, spacing = draw(st.tuples(*[st.integers(3, 7)] * 3)), draw(SPACINGS)
    scan = a_scan(shape, draw(st.sampled_from(ALL_48)), spacing, draw(st.integers(1, 2)))
    # Some slices hold nothing.
    across = scan.grid.axis(ALONG[plane])
    data = scan.data.copy()
    for index in draw(st.sets(st.integers(0, shape[across] - 1), max_size=shape[across] - 1)):
        data[(slice(None),) * (1 + across) + (index,)] = 0
    orientation = draw(st.none() | st.sampled_from([codes for codes in ALL_48 if codes[2] in ALONG[plane]]))
    fields = {"spacing": draw(st.none() | SPACINGS), "normalisation": draw(st.sampled_from(["none", "z-score"]))}
    its_card = card(channels=scan.channels, slices=plane, orientation=orientation, **fields)
    return vx.Scan(data, scan.grid, scan.channels), its_card


def by_hand(scan: vx.Scan, its_card: vx.Card) -> np.ndarray:
    """The map (X, Y, Z) of `Itself`, slice after slice: the whole scan as a 3D network reads it, cut and stacked."""
    plane = ALONG[its_card.slices]
    across = scan.grid.axis(plane)
    codes = "".join(code for code in scan.grid.orientation if code not in plane) + scan.grid.orientation[across]
    fields = {"spatial_dims": 3, "slices": None, "orientation": its_card.orientation or codes}
    (whole,) = prepare(scan, vx.Card(**(its_card.to_dict() | fields)))
    lattice = whole.input.grid
    found = np.zeros(scan.grid.shape, np.float32)
    places = lattice.world([(0, 0, k) for k in range(lattice.shape[2])])
    direction = scan.grid.affine[:3, across] / scan.grid.spacing[across]
    for k in range(scan.grid.shape[across]):
        at = [0, 0, 0]
        at[across] = k
        far = np.abs((places - scan.grid.world(at)) @ direction)
        nearest = int(np.flatnonzero(far <= far.min() + 1e-6)[0])
        piece = whole.input.data[..., nearest : nearest + 1].sum(axis=0, keepdims=True)
        if not whole.foreground[..., nearest].any():
            continue
        here = lattice.window((0, 0, nearest), (*lattice.shape[:2], 1))
        # The scan's slice, moved onto the plane of the network's.
        shape = list(scan.grid.shape)
        shape[across] = 1
        target = scan.grid.window(at, shape)
        affine = target.affine.copy()
        affine[:3, 3] += direction * ((places[nearest] - target.world((0, 0, 0))) @ direction)
        # Whichever is thicker, the slice is taken as a whole.
        thick = here.affine.copy()
        thick[:3, 2] *= scan.grid.spacing[across] / here.spacing[2]
        moved = resample(piece, vx.Grid(here.shape, thick), vx.Grid(target.shape, affine))[0]
        found[(slice(None),) * across + (slice(k, k + 1),)] = moved
    return found


@given(world=worlds())
def test_the_volumes_map_is_that_of_its_slices(world: tuple[vx.Scan, vx.Card]) -> None:
    scan, its_card = world
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        why = vx.HeatMap()(vx.Model(Itself(len(scan.channels)).eval(), its_card), scan, compute=CPU)
    np.testing.assert_allclose(why.total, by_hand(scan, its_card), atol=1e-4)
    if its_card.spacing is None and its_card.normalisation == "none":
        np.testing.assert_array_equal(why.total, scan.data.sum(axis=0))


@given(world=worlds())
def test_the_boxes_are_a_partition_of_the_scans_slices(world: tuple[vx.Scan, vx.Card]) -> None:
    scan, its_card = world
    full = vx.Scan(np.maximum(scan.data, 0.5), scan.grid, scan.channels)
    found = prepare(full, its_card)
    covered = np.zeros(scan.grid.shape, int)
    for one in found:
        covered[tuple(slice(*side) for side in one.box)] += 1
        assert one.input.grid.shape[2] == 1
        assert one.foreground.any()
    np.testing.assert_array_equal(covered, 1)
    across = scan.grid.axis(ALONG[its_card.slices])
    assert [one.name for one in found] == [f"{its_card.slices} {one.box[across][0]:03d}" for one in found]
    assert found == sorted(found, key=lambda one: one.box[across])


def test_a_coarser_network_reads_pairs_of_slices() -> None:
    scan = a_scan((4, 5, 7), "LPS", (1, 1, 1))
    found = prepare(scan, card(slices="axial", spacing=(1, 1, 2)))
    assert [one.box[2] for one in found] == [(0, 2), (2, 4), (4, 7)]
    np.testing.assert_allclose(found[1].input.data[..., 0], scan.data[..., 2:4].mean(axis=-1), rtol=1e-6)
    assert found[0].record["slices"] == {"plane": "axial", "explained": 3, "of": 3}


def test_a_finer_network_reads_each_slice_once() -> None:
    scan = a_scan((4, 5, 6), "RAS", (1, 1, 3))
    found = prepare(scan, card(slices="axial", spacing=(1, 1, 1)))
    assert [one.box[2] for one in found] == [(k, k + 1) for k in range(6)]
    for k, one in enumerate(found):
        np.testing.assert_allclose(one.input.data, scan.data[..., k : k + 1], rtol=1e-6)


def test_slices_share_the_normalisation_of_the_whole_scan() -> None:
    data = a_scan((4, 5, 6), "LPS", (1, 1, 1)).data.copy()
    data[0, :, :, 2] = 0
    scan = vx.Scan(data, vx.Grid((4, 5, 6), affine_of("LPS", (1, 1, 1))), ("t1",))
    found = prepare(scan, card(slices="axial", normalisation="z-score"))
    values = data[data != 0].astype(np.float64)
    assert [one.name for one in found] == [f"axial {k:03d}" for k in (0, 1, 3, 4, 5)]
    for one in found:
        k = one.box[2][0]
        expected = (data[..., k : k + 1] - values.mean()) / values.std()
        np.testing.assert_allclose(one.input.data, expected, atol=1e-5)
        assert one.record is found[0].record


def test_slices_are_cut_and_padded_in_their_plane() -> None:
    data = np.zeros((1, 8, 5, 3))
    data[0, 2:6, 1:4, :2] = 3
    data[0, 0, 0, 2] = 1  # outside of the window, so nothing of the last slice is left
    scan = vx.Scan(data, vx.Grid((8, 5, 3), affine_of("LPS", (1, 1, 1))), ("t1",))
    with pytest.warns(UserWarning, match="4% of what is not background lies outside"):
        found = prepare(scan, card(slices="axial", shape=(6, 9, 1)))
    assert [one.name for one in found] == ["axial 000", "axial 001"]
    assert found[0].input.data.shape == (1, 6, 9, 1)
    np.testing.assert_array_equal(found[0].input.data[0, :, 2:7, 0], data[0, 1:7, :, 0])
    assert 0 < found[0].record["cut"]["foreground_left_out"] < 0.05
    with pytest.warns(UserWarning, match=r"\d+% of what is not background lies outside the 2 x 3 pixels"):
        prepare(scan, card(slices="axial", shape=(2, 3, 1)))
    corner = np.zeros((1, 8, 5, 3))
    corner[0, 0, 0] = 1
    with (
        pytest.warns(UserWarning, match="100% of what is not background"),
        pytest.raises(vx.InputError, match="no axial slice holds anything but background within the 2 x 3 pixels"),
    ):
        prepare(vx.Scan(corner, scan.grid, ("t1",)), card(slices="axial", shape=(2, 3, 1)))


def test_an_empty_volume_is_refused() -> None:
    scan = vx.Scan(np.zeros((1, 4, 4, 4)), vx.Grid((4, 4, 4), np.eye(4)), ("t1",))
    with pytest.raises(vx.InputError, match="zero in every voxel"):
        prepare(scan, card(slices="axial"))


def test_an_image_is_one_slice_however_thick() -> None:
    scan = a_scan((6, 5, 1), "LPS", (2, 2, 1))
    for spacing in (None, (2.0, 2.0, 5.0), (2.0, 2.0, 0.2)):
        (one,) = prepare(scan, card(slices="axial", spacing=spacing))
        assert one.name == "axial 000"
        np.testing.assert_array_equal(one.input.data, scan.data)
        (one,) = prepare(scan, card(spacing=spacing))
        np.testing.assert_array_equal(one.input.data, scan.data)
    with pytest.raises(vx.InputError, match="reads coronal slices; this scan of 6 x 5 x 1 voxels"):
        prepare(scan, card(slices="coronal"))


def test_a_stack_thinner_than_half_a_slice_keeps_its_own_slices() -> None:
    scan = a_scan((6, 5, 2), "LPS", (1, 1, 1))
    found = prepare(scan, card(slices="axial", spacing=(1, 1, 5)))
    assert [one.box[2] for one in found] == [(0, 1), (1, 2)]
    np.testing.assert_array_equal(found[1].input.data, scan.data[..., 1:])


def test_volumes_need_slices_and_images_their_size() -> None:
    with pytest.raises(vx.InputError, match="set the card's slices to axial, coronal or sagittal"):
        prepare(a_scan((4, 4, 4), "LPS", (1, 1, 1)), card())
    image = a_scan((256, 128, 1), "LPS", (1, 1, 1))
    with pytest.raises(vx.InputError, match="images of 512 x 512 pixels; this one has 256 x 128: resize it"):
        prepare(image, card(shape=(512, 512, 1)))
    with pytest.raises(vx.InputError, match="images of 512 x 128 pixels; this one has 256 x 128: resize it"):
        prepare(image, card(shape=(256, 512, 1), spacing=(0.5, 1, 1), orientation="PRS"))
    assert prepare(image, card(shape=(256, 256, 1), spacing=(1, 0.5, 1)))[0].input.grid.shape == (256, 256, 1)
    with pytest.raises(vx.InputError, match="another plane"):
        prepare(image, card(orientation="LSA"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"slices": "oblique"}, "slices is one of None, axial, coronal, sagittal; got 'oblique'"),
        ({"slices": "axial", "spatial_dims": 3}, "slices are for networks that read images: set spatial_dims to 2"),
        ({"slices": "axial", "region": "half"}, "reads whole slices: set the card's region to whole"),
        ({"slices": "axial", "orientation": "LSP"}, "third axis of the card's orientation is that across its axial"),
        ({"slices": "sagittal", "orientation": "LPS"}, r"sagittal slices \(L or R\); got 'LPS'"),
        ({"slices": "axial", "shape": (8, 8, 8)}, r"shape for a network that reads images is \(X, Y, 1\)"),
        ({"shape": (8, 8, 2)}, r"shape for a network that reads images is \(X, Y, 1\)"),
        ({"absent": ("d",)}, "absent names classes that say that nothing is there; d is not among its classes c"),
        ({"absent": "c"}, "absent is a list"),
    ],
)
def test_cards_that_make_no_sense_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(vx.InputError, match=said):
        card(**fields)


def test_what_holds_of_every_slice_is_said_once() -> None:
    scan = a_scan((60, 50, 4), "LPS", (1, 1, 1))
    model = vx.Model(Itself().eval(), card(slices="axial"))
    compute = vx.Compute(device="cpu", threads=1, memory="1KB", progress=True)
    with pytest.warns(UserWarning, match=r"^axial 000 and 3 more: one input takes about") as caught:
        why = vx.HeatMap()(model, scan, compute=compute)
    assert len(caught) == len(why.provenance["warnings"]) == 1
    assert why.provenance["passes"] == {"forward": 8, "backward": 0}


def test_a_lesion_in_some_slices_is_explained_there_alone() -> None:
    scan = a_scan((8, 6, 5), "RAS", (1, 1, 2))
    region = np.zeros(scan.grid.shape, int)
    region[2:5, 1:4, 2:4] = 1
    target = vx.RegionScore("c", vx.Labels(region, scan.grid))
    model = vx.Model(nn.Conv2d(1, 1, 1).eval(), card(slices="axial"))
    with pytest.warns(UserWarning, match="the region lies in 2 of the 5 parts"):
        why = vx.RelevanceMap(partition="cubes:4", effect="signed")(model, scan, target=target, compute=CPU)
    assert [one.name for one in why.regions] == ["axial 002", "axial 003"]
    assert why.map[0, ..., 2:4].any()
    assert not why.map[0, ..., [0, 1, 4]].any()
