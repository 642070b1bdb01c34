"""What a perturbed part is filled with."""

import numpy as np
import pytest

import voxplain as vx
from voxplain.explain.fills import fill_named

IMAGE = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
PART = np.zeros((3, 4, 5), dtype=bool)
PART[1, 1:3, 2:4] = True
BACKGROUND = np.array([-7.0, 0.25], dtype=np.float32)


@pytest.mark.parametrize(
    ("name", "scope", "expected"),
    [
        ("blank", "region", [-7, 0.25]),
        ("blank", "sequence", [-7, 0.25]),
        ("min", "region", [27, 87]),
        ("max", "region", [33, 93]),
        ("min", "sequence", [0, 60]),
        ("max", "sequence", [59, 119]),
    ],
)
def test_values_per_channel(name: str, scope: str, expected: list[float]) -> None:
    before = IMAGE.copy()
    values = fill_named(name, scope)(IMAGE, PART, BACKGROUND)
    assert values.shape == (2, 1)
    np.testing.assert_array_equal(values[:, 0], expected)
    np.testing.assert_array_equal(IMAGE, before)


@pytest.mark.parametrize(("name", "scope"), [("mean", "region"), ("blank", "voxel"), ("", "")])
def test_names_that_do_not_exist_are_refused_with_those_that_do(name: str, scope: str) -> None:
    with pytest.raises(vx.InputError, match=r"blank, max, min and scope one of region, sequence; got"):
        fill_named(name, scope)
