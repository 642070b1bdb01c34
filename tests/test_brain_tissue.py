"""White and grey matter as yardsticks: by arithmetic, on phantoms, and in a card's normalisation."""

from __future__ import annotations

import numpy as np
import pytest

import voxplain as vx
from voxplain.brain_tissue import grey_matter, white_matter
from voxplain.datasets import phantom
from voxplain.model import Card
from voxplain.preparation import prepare
from voxplain.scan import Scan

CARD = Card(name="n", channels=("flair", "t1"), classes=("lesion",), normalisation="grey-matter")


def _scan() -> Scan:
    data = np.zeros((2, 10, 10, 2), dtype=np.float32)
    t1 = np.arange(1, 101, dtype=np.float32).reshape(10, 10)
    data[1, :, :, 0] = t1
    data[0, :, :, 0] = np.where((t1 >= 70) & (t1 <= 96), 40, 80)
    return Scan(data, vx.Grid((10, 10, 2), np.eye(4)), ("flair", "t1"))


def test_white_matter_by_arithmetic() -> None:
    found = white_matter(_scan())
    # 70th to 95th percentile of 1 to 100: 70.3 to 95.05, so 71 to 95.
    assert found == {"flair": 40.0, "t1": 83.0}


def test_grey_matter_by_arithmetic() -> None:
    scan = _scan()
    # White matter's T1 is 83; 0.6 to 0.85 times that is 49.8 to 70.55, so 50 to 70.
    assert grey_matter(scan) == {"flair": float(np.median([80] * 20 + [40])), "t1": 60.0}


def test_it_is_white_matter_in_a_phantom() -> None:
    made = phantom.glioma(4, grade=None).scan
    found = white_matter(made)
    brain = made.foreground()
    t1 = made.channel("t1")[brain]
    # White matter is the brightest tissue on T1, grey matter is about 0.66 as bright.
    assert 0.8 * np.percentile(t1, 99) < found["t1"] < np.percentile(t1, 97)


def test_it_is_grey_matter_in_a_phantom() -> None:
    made = phantom.glioma(4, grade=None).scan
    white, grey = white_matter(made), grey_matter(made)
    assert grey["flair"] > white["flair"]
    assert grey["t1"] == pytest.approx(0.7 * white["t1"], rel=0.05)


def test_the_cards_normalisation_by_arithmetic() -> None:
    scan = _scan()
    (prepared,) = prepare(scan, CARD)
    expected = np.zeros_like(scan.data)
    inside = scan.data != 0
    for index, grey in enumerate((80.0, 60.0)):
        expected[index] = np.where(inside[index], 5 * (scan.data[index] / grey - 1), 0)
    np.testing.assert_allclose(prepared.input.data, expected, atol=1e-5)
    assert prepared.background == (0.0, 0.0)


def test_scaling_a_sequence_changes_nothing() -> None:
    scan = _scan()
    scaled = Scan(scan.data * np.array([3.0, 0.25])[:, None, None, None], scan.grid, scan.channels)
    first, second = (prepare(each, CARD)[0].input.data for each in (scan, scaled))
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_scans_that_have_no_white_matter_are_refused() -> None:
    scan = _scan()
    with pytest.raises(vx.InputError, match="white and grey matter are found on T1"):
        white_matter(scan.select(["flair"]))
    with pytest.raises(vx.InputError, match="zero in every voxel"):
        white_matter(Scan(np.zeros_like(scan.data), scan.grid, scan.channels))
    uniform = Scan((scan.data != 0).astype(np.float32), scan.grid, scan.channels)
    with pytest.raises(vx.InputError, match="as grey matter's is"):
        grey_matter(uniform)
    scores = Scan(np.where(scan.data != 0, scan.data - 200, 0), scan.grid, scan.channels)
    with pytest.raises(vx.InputError, match="before it was normalised"):
        prepare(scores, CARD)
