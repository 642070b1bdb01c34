import numpy as np
import pytest
from skimage.filters import threshold_multiotsu, threshold_otsu

from voxplain.errors import InputError
from voxplain.metrics.overlap import dice
from voxplain.segment import multi_otsu_threshold
from voxplain.studies.slice_rows import (
    SLICE_ROWS,
    centre_disc,
    multi_otsu,
    network_free_slice_masks,
    otsu,
    random_map,
)


def picture() -> np.ndarray:
    """Air, brain and something bright in it, in whole grey levels, as a JPEG holds them."""
    random = np.random.default_rng(0)
    down, right = np.indices((60, 50))
    values = np.where((down - 30) ** 2 + (right - 25) ** 2 < 400, random.normal(90, 10, (60, 50)), 2)
    values[20:30, 20:28] += 100
    return np.round(values).astype(np.float32)


def test_thresholds_against_scikit_image():
    image = picture()
    np.testing.assert_array_equal(otsu(image), image > threshold_otsu(hist=np.unique(image, return_counts=True)[::-1]))
    expected = image > threshold_multiotsu(image, classes=3)[-1]
    assert dice(multi_otsu(image), expected) > 0.99
    assert multi_otsu(image)[20:30, 20:28].all()


@pytest.mark.parametrize(("shape", "radius"), [((256, 256), 30), ((512, 512), 60), ((128, 256), 15)])
def test_the_disc_lies_in_the_middle(shape, radius):
    disc = centre_disc(np.zeros(shape))
    assert disc.sum() == pytest.approx(np.pi * radius**2, rel=0.02)
    np.testing.assert_array_equal(disc, disc[::-1, ::-1])
    assert np.ptp(np.nonzero(disc)[0]) + 1 == 2 * radius


def test_random_maps_go_through_the_threshold_that_is_given():
    image = picture()
    assert random_map(image).mean() == pytest.approx(0.5, abs=0.05)
    assert random_map(image, threshold=multi_otsu_threshold).mean() == pytest.approx(1 / 3, abs=0.05)
    assert not random_map(image, threshold=lambda values: None).any()
    np.testing.assert_array_equal(random_map(image, seed=3), random_map(image * 2, seed=3))
    assert (random_map(image, seed=3) != random_map(image, seed=4)).any()


def test_all_rows_of_a_slice():
    masks = network_free_slice_masks(picture(), seed=5)
    assert tuple(masks) == SLICE_ROWS
    assert all(mask.dtype == bool and mask.shape == (60, 50) for mask in masks.values())
    np.testing.assert_array_equal(masks["random-map"], random_map(picture(), seed=5))
    empty = network_free_slice_masks(np.zeros((60, 50)))
    assert not empty["intensity/otsu"].any()
    assert not empty["intensity/multi-otsu"].any()


def test_a_picture_with_channels_is_refused():
    for row in (otsu, multi_otsu, centre_disc, random_map):
        with pytest.raises(InputError, match=r"one channel of a slice, \(H, W\); got shape \(1, 60, 50\)"):
            row(picture()[None])
