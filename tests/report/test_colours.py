"""Colours: even steps, symmetric about zero, and zero is clear."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.color import rgb2lab

from voxplain.report.colours import MASK_COLOUR, TRUTH_COLOUR, Scale, colour_tables, overlay, scale_of


def lightness(table: np.ndarray) -> np.ndarray:
    return rgb2lab(table[None] / 255)[0, :, 0]


@pytest.mark.parametrize("signed", [False, True])
def test_lightness_rises_evenly_along_every_table(signed: bool) -> None:
    for table in colour_tables(scale_of(np.array([-1.0, 1.0]), signed=signed)):
        if table is None:
            continue
        steps = np.diff(lightness(table)[::16])
        assert steps.min() > 0.6 * steps.mean()
        assert steps.max() < 1.5 * steps.mean()


def test_both_arms_are_equally_light_at_equal_distance() -> None:
    positive, negative = colour_tables(Scale(1, 0.2, True))
    assert negative is not None
    np.testing.assert_allclose(lightness(positive), lightness(negative), atol=1.5)


def test_the_arms_differ_for_eyes_without_red_and_green_cones() -> None:
    # Blue against yellow is what both common kinds of colour blindness keep: b* of CIELAB.
    positive, negative = colour_tables(Scale(1, 0.2, True))
    assert negative is not None
    difference = rgb2lab(positive[None] / 255)[0, :, 2] - rgb2lab(negative[None] / 255)[0, :, 2]
    assert (difference[64:] > 35).all()


def test_zero_is_clear_and_values_fade_below_the_threshold() -> None:
    scale = Scale(peak=2.0, threshold=0.4, diverging=True)
    alpha = overlay(np.array([0.0, 0.2, 0.4, 2.0, 9.0, -0.2, -2.0]), scale, opacity=0.8)[:, 3]
    np.testing.assert_allclose(alpha, [0, 0.2, 0.8, 0.8, 0.8, 0.2, 0.8])


def test_a_map_of_zeros_and_an_unsigned_map_with_negative_values() -> None:
    assert overlay(np.zeros(4), scale_of(np.zeros(4), signed=False))[:, 3].max() == 0
    assert overlay(np.zeros(4), scale_of(np.zeros(4), signed=True))[:, 3].max() == 0
    assert scale_of(np.array([-3.0, 1.0]), signed=False) == Scale(3.0, pytest.approx(0.6), True)


def test_outlines_differ_in_lightness() -> None:
    shades = [np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)]]) for c in (MASK_COLOUR, TRUTH_COLOUR)]
    assert abs(float(lightness(shades[0])[0] - lightness(shades[1])[0])) > 10
