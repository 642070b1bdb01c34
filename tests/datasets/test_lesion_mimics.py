"""Mimics: where they lie, how they look, and what they must leave alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from voxplain.brain_tissue import white_matter
from voxplain.datasets import lesion_mimics, phantom
from voxplain.datasets.lesion_mimics import MIMICS, paint_mimics
from voxplain.errors import InputError
from voxplain.grid import Grid
from voxplain.scan import Labels, Scan


@pytest.fixture(scope="module")
def head() -> Scan:
    return phantom.glioma(2, grade=None).scan


@pytest.fixture(scope="module")
def known(head: Scan) -> Labels:
    """Everything right of the mid-plane but for a gap: mimics may lie left of it only."""
    x = head.grid.world(np.stack(np.indices(head.grid.shape), axis=-1))[..., 0]
    return Labels(head.foreground() & (x > 4), head.grid)


@pytest.fixture(scope="module")
def clean(head: Scan) -> tuple[Scan, Labels]:
    """Painted without noise and ghost, so that what changed is mimic."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lesion_mimics, "_NOISE", (0.0, 0.0))
        patch.setattr(lesion_mimics, "_GHOST", (0.0, 0.0))
        return paint_mimics(head, seed=1)


def test_they_are_bright_on_flair_and_hardly_dark_on_t1(head: Scan, clean: tuple[Scan, Labels]) -> None:
    painted, labels = clean
    white = white_matter(head)
    inside = labels.data > 0
    flair, t1 = painted.channel("flair"), painted.channel("t1")
    assert flair[inside].mean() > 1.1 * white["flair"]
    assert (flair >= head.channel("flair") - 1e-3).all()
    assert (t1 >= 0.8 * head.channel("t1") - 1e-3).all()
    assert (t1 <= 1.05 * head.channel("t1") + 1e-3).all()
    # Nothing changes but near mimics, and no other sequence at all.
    far = ~ndimage.binary_dilation(inside, iterations=4)
    for name in ("flair", "t1"):
        np.testing.assert_array_equal(painted.channel(name)[far], head.channel(name)[far])
    for name in ("t1ce", "t2"):
        np.testing.assert_array_equal(painted.channel(name), head.channel(name))


def test_they_lie_in_tissue_where_their_rules_say(head: Scan, clean: tuple[Scan, Labels]) -> None:
    _, labels = clean
    t1 = ndimage.gaussian_filter(head.channel("t1"), 0.35) / white_matter(head)["t1"]
    assert head.foreground()[labels.data > 0].all()
    assert t1[labels.data > 0].min() >= 0.55
    world = head.grid.world(np.argwhere(labels.data == MIMICS["septum"]))
    assert np.abs(world[:, 0]).max(initial=0) < 1.2
    depth = ndimage.distance_transform_edt(head.foreground(), sampling=head.grid.spacing)
    spots = labels.data == MIMICS["cortical spot"]
    assert spots.any()
    assert depth[spots].max() < 20 + 3
    caps = head.grid.world(np.argwhere(labels.data == MIMICS["cap"]))
    assert len(caps)
    # Ventricles lie within 28 mm of the mid-plane and above the cisterns, rims within 3 mm of them.
    assert np.abs(caps[:, 0]).max() <= 28 + 3
    assert caps[:, 2].min() > 2 - 3
    assert world[:, 2].min(initial=0) > 2 - 4


def test_numbers_and_sizes_keep_to_the_rules(clean: tuple[Scan, Labels]) -> None:
    _, labels = clean
    assert set(np.unique(labels.data)) <= {0, *MIMICS.values()}
    spots, count = ndimage.label(labels.data == MIMICS["cortical spot"], np.ones((3, 3, 3)))
    assert 1 <= count <= 10
    # A ball of 3 mm radius; two may touch.
    assert np.bincount(spots.ravel())[1:].max() * labels.grid.voxel_volume <= 2 * 4 / 3 * np.pi * 3.5**3
    assert np.count_nonzero(labels.data) * labels.grid.voxel_volume < 20_000


def test_they_stay_away_from_lesions(head: Scan, known: Labels) -> None:
    _, labels = paint_mimics(head, seed=3, known=known)
    assert labels.data.any()
    away = ndimage.distance_transform_edt(known.data == 0, sampling=head.grid.spacing)
    assert away[labels.data > 0].min() > 3.0


def test_noise_and_ghost_stay_inside_the_brain(head: Scan) -> None:
    painted, labels = paint_mimics(head, seed=1)
    np.testing.assert_array_equal(painted.foreground(), head.foreground())
    white = white_matter(head)
    quiet = head.foreground() & ~ndimage.binary_dilation(labels.data > 0, iterations=4)
    for name in ("flair", "t1"):
        change = (painted.channel(name) - head.channel(name))[quiet] / white[name]
        assert 0.005 < change.std() < 0.1
        assert (painted.channel(name)[head.foreground()] > 0).all()
    again, same = paint_mimics(head, seed=1)
    np.testing.assert_array_equal(again.data, painted.data)
    np.testing.assert_array_equal(same.data, labels.data)


def test_what_is_refused(head: Scan, known: Labels) -> None:
    with pytest.raises(InputError, match="painted on flair and t1; the scan has t1"):
        paint_mimics(head.select(["t1"]))
    with pytest.raises(InputError, match="white and grey matter are found on T1"):
        paint_mimics(head.select(["flair"]))
    other = Labels(np.zeros((2, 2, 2), dtype=int), Grid((2, 2, 2), np.eye(4)))
    with pytest.raises(InputError, match="known lesions lie on the scan's grid"):
        paint_mimics(head, known=other)
    turned = np.array(head.grid.affine)
    turned[:2, :2] = turned[:2, :2] @ [[0.8, -0.6], [0.6, 0.8]]
    with pytest.raises(InputError, match="the scan's grid is turned"):
        paint_mimics(Scan(head.data, Grid(head.grid.shape, turned), head.channels))
