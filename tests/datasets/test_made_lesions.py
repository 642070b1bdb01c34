"""Made lesions: where they lie, how they look, and what they must leave alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import voxplain as vx
from voxplain.brain_tissue import white_matter
from voxplain.datasets import phantom
from voxplain.datasets.made_lesions import paint_lesions
from voxplain.scan import Labels, Scan


@pytest.fixture(scope="module")
def head() -> Scan:
    return phantom.glioma(2, grade=None).scan


@pytest.fixture(scope="module")
def shapes(head: Scan) -> Labels:
    return Labels(phantom.multiple_sclerosis(3).labels.on(head.grid).data, head.grid)


def test_lesions_are_bright_on_flair_and_dark_on_t1_and_nothing_else_changes(head: Scan, shapes: Labels) -> None:
    painted, labels = paint_lesions(head, shapes, seed=1)
    inside = labels.data > 0
    white = white_matter(head)
    assert inside.sum() > 0.5 * (shapes.data > 0).sum()
    flair, t1 = painted.channel("flair") - head.channel("flair"), painted.channel("t1") - head.channel("t1")
    assert flair[inside].mean() > 0.1 * white["flair"]
    assert t1[inside].mean() < -0.05 * white["t1"]
    # Tissue only becomes brighter on FLAIR and darker on T1, and only near lesions.
    assert flair.min() >= -1e-3
    assert t1.max() <= 1e-3
    far = ~np.asarray(ndimage.binary_dilation(inside, iterations=4))
    assert not flair[far].any()
    assert not t1[far].any()
    for other in ("t1ce", "t2"):
        np.testing.assert_array_equal(painted.channel(other), head.channel(other))
    np.testing.assert_array_equal(painted.foreground(), head.foreground())


def test_edges_are_lesion_in_part(head: Scan) -> None:
    centre = np.argwhere(head.foreground()).mean(axis=0).astype(int) + np.array([12, 0, 10])
    data = np.zeros(head.grid.shape, dtype=int)
    data[tuple(slice(c - 4, c + 5) for c in centre)] = 1
    painted, labels = paint_lesions(head, Labels(data, head.grid), seed=0)
    change = painted.channel("flair") - head.channel("flair")
    inside = labels.data > 0
    rim = ndimage.binary_dilation(inside) & ~inside & head.foreground()
    core = ndimage.binary_erosion(inside, iterations=2)
    assert 0 < change[rim].mean() < 0.8 * change[core].mean()


def test_known_lesions_stay_as_they_are(head: Scan, shapes: Labels) -> None:
    there = np.argwhere(shapes.data > 0)
    known = np.zeros(head.grid.shape, dtype=int)
    known[tuple(there[len(there) // 2])] = 1
    painted, labels = paint_lesions(head, shapes, seed=1, known=Labels(known, head.grid))
    assert labels.data[known > 0].all()
    made = (labels.data > 0) & (known == 0)
    near = ndimage.distance_transform_edt(known == 0, sampling=head.grid.spacing)
    assert near[made].min() > 2.0
    assert set(np.unique(labels.data)) == {0, 1}
    assert painted.grid is head.grid


def test_nothing_lies_in_fluid_or_outside_the_brain(head: Scan) -> None:
    everywhere = Labels(np.ones(head.grid.shape, dtype=int), head.grid)
    _, labels = paint_lesions(head, everywhere, seed=0)
    t1 = head.channel("t1")
    assert not labels.data[~head.foreground()].any()
    assert t1[labels.data > 0].min() > 0.5 * white_matter(head)["t1"]


def test_no_lesion_changes_nothing(head: Scan) -> None:
    painted, labels = paint_lesions(head, Labels(np.zeros(head.grid.shape, dtype=int), head.grid))
    np.testing.assert_array_equal(painted.data, head.data)
    assert not labels.data.any()


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_one_seed_is_one_painting(head: Scan, shapes: Labels, seed: int) -> None:
    first, labels = paint_lesions(head, shapes, seed=seed)
    again, same = paint_lesions(head, shapes, seed=seed)
    np.testing.assert_array_equal(first.data, again.data)
    np.testing.assert_array_equal(labels.data, same.data)
    assert np.isfinite(first.data).all()


def test_scans_without_what_it_needs_are_refused(head: Scan, shapes: Labels) -> None:
    with pytest.raises(vx.InputError, match="white and grey matter are found on T1"):
        paint_lesions(head.select(["flair"]), shapes)
    with pytest.raises(vx.InputError, match="painted on flair and t1"):
        paint_lesions(head.select(["t1"]), shapes)
    other = Labels(np.zeros((2, 2, 2), dtype=int), vx.Grid((2, 2, 2), np.eye(4)))
    with pytest.raises(vx.InputError, match="known lesions lie on the scan's grid"):
        paint_lesions(head, shapes, known=other)
