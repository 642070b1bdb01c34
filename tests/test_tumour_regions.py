"""Whole tumour, core and enhancing tumour, whichever way a network tells the parts apart."""

from __future__ import annotations

import numpy as np
import pytest

from voxplain.errors import InputError
from voxplain.tumour_regions import PARTS, REGIONS, channels_of, regions_in, regions_of

EXPERT = np.random.default_rng(0).integers(0, 4, (4, 5, 6))


@pytest.mark.parametrize("classes", [PARTS, REGIONS])
def test_a_perfect_network_gives_the_expert_s_regions(classes: tuple[str, ...]) -> None:
    said = {name: np.isin(EXPERT, values) * 0.9 for name, values in zip(classes, channels_of(classes), strict=True)}
    found, expected = regions_of(said, 0.5), regions_in(EXPERT)
    assert list(found) == list(expected) == ["WT", "TC", "ET"]
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])
    np.testing.assert_array_equal(expected["WT"], EXPERT > 0)
    np.testing.assert_array_equal(expected["TC"], EXPERT > 1)
    np.testing.assert_array_equal(expected["ET"], EXPERT == 3)


def test_smaller_regions_lie_in_larger_ones() -> None:
    random = np.random.default_rng(1)
    for classes in (PARTS, REGIONS):
        found = regions_of({name: random.random((4, 4, 4)) for name in classes}, 0.5)
        assert not (found["ET"] & ~found["TC"]).any()
        assert not (found["TC"] & ~found["WT"]).any()


def test_other_classes_are_refused() -> None:
    with pytest.raises(InputError, match="classes oedema, non-enhancing, enhancing or ET, TC, WT; this one has lesion"):
        channels_of(["lesion"])
