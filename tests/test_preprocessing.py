"""Registration and bias correction undo what was done to a phantom; ITK's images lie where ours do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

import voxplain as vx
from voxplain.datasets import phantom
from voxplain.preprocessing import array_of, correct_bias, image_of, register
from voxplain.scan import Scan


@pytest.fixture(scope="module")
def head() -> Scan:
    made = phantom.multiple_sclerosis(5).scan
    return made.select(["flair", "t1"])


def _moved(scan: Scan) -> Scan:
    """The same head after it turned by 5 degrees about the z axis and moved, on the same grid: new voxels."""
    angle = np.deg2rad(5.0)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = (4.0, -3.0, 2.0)
    step = np.linalg.inv(scan.grid.affine) @ turn @ scan.grid.affine
    moved = [ndimage.affine_transform(channel, step, order=1) for channel in scan.data]
    return Scan(np.stack(moved), scan.grid, scan.channels)


def test_an_image_lies_in_the_same_place_for_itk() -> None:
    affine = np.array([[0, -2.0, 0, 10], [1.5, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    image = image_of(values, vx.Grid((2, 3, 4), affine))
    x, y, z = image.TransformContinuousIndexToPhysicalPoint([1.0, 2.0, 3.0])
    np.testing.assert_allclose((-x, -y, z), (affine @ [1, 2, 3, 1])[:3])
    assert image.GetPixel(1, 2, 3) == values[1, 2, 3]
    np.testing.assert_array_equal(array_of(image), values)


def test_registration_brings_a_moved_flair_back(head: Scan) -> None:
    t1, flair = head.select(["t1"]), head.select(["flair"])
    moved = _moved(flair)
    brain = t1.data[0] != 0
    before = float(np.corrcoef(moved.data[0][brain], flair.data[0][brain])[0, 1])
    found, record = register(moved, t1)
    after = float(np.corrcoef(found.data[0][brain], flair.data[0][brain])[0, 1])
    assert after > 0.9
    assert after > before + 0.2
    assert abs(abs(record["rotation_degrees"][2]) - 5) < 0.5
    assert record["mutual_information"][1] > record["mutual_information"][0]
    assert not found.data[0][~brain].any()
    assert found.channels == ("flair",)
    assert t1.grid.difference(found.grid) is None
    again, _ = register(moved, t1)
    np.testing.assert_array_equal(again.data, found.data)


def test_registration_works_across_grids(head: Scan) -> None:
    t1, flair = head.select(["t1"]), head.select(["flair"])
    coarse = _moved(flair).on(flair.grid.reoriented("LPS").with_spacing((3, 2, 4)))
    found, _ = register(coarse, t1)
    brain = t1.data[0] != 0
    smooth = ndimage.gaussian_filter(flair.data[0], 1)
    assert float(np.corrcoef(found.data[0][brain], smooth[brain])[0, 1]) > 0.85


def test_n4_takes_a_bias_out(head: Scan) -> None:
    t1 = head.select(["t1"])
    x = np.linspace(-1, 1, t1.grid.shape[0], dtype=np.float32)[:, None, None]
    biased = Scan(t1.data * np.exp(0.4 * x), t1.grid, t1.channels)
    found, record = correct_bias(biased, iterations=(30, 30))
    inside = t1.data[0] > 0

    def slope(scan: Scan) -> float:
        ratio = np.log(scan.data[0][inside] / t1.data[0][inside])
        where = np.broadcast_to(x, t1.grid.shape)[inside]
        return float(np.polyfit(where, ratio, 1)[0])

    assert slope(biased) == pytest.approx(0.4, abs=1e-4)
    assert abs(slope(found)) < 0.15
    assert record["t1"][0] < 0.9 < 1.1 < record["t1"][1]
    assert not found.data[0][~inside].any()


def test_bad_input_is_refused(head: Scan) -> None:
    with pytest.raises(vx.InputError, match="one sequence with content"):
        register(head, head.select(["t1"]))
    empty = Scan(np.zeros((1, *head.grid.shape)), head.grid, ("t1",))
    with pytest.raises(vx.InputError, match="one sequence with content"):
        register(head.select(["flair"]), empty)
    with pytest.raises(vx.InputError, match="no voxel above 0"):
        correct_bias(empty)
    sheared = np.eye(4)
    sheared[0, 1] = 0.5
    with pytest.raises(vx.InputError, match="right angles"):
        image_of(np.zeros((2, 2, 2)), vx.Grid((2, 2, 2), sheared))


def test_the_command(head: Scan, tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    vx.save(head.select(["t1"]), tmp_path / "T1.nii.gz")
    vx.save(_moved(head.select(["flair"])), tmp_path / "FLAIR.nii.gz")
    files = ("--flair", str(tmp_path / "FLAIR.nii.gz"), "--t1", str(tmp_path / "T1.nii.gz"))
    code, said, _ = run("preprocess", *files, "--register", "t1", "--n4", "--out", tmp_path / "out")
    assert code == 0
    assert "flair: registering to t1" in said
    record = json.loads((tmp_path / "out" / "preprocessing.json").read_text())
    assert "rotation_degrees" in record["flair"]
    assert "rotation_degrees" not in record["t1"]
    assert record["t1"]["bias_correction"] == "N4"
    scan = vx.read(flair=tmp_path / "out" / "flair.nii.gz", t1=tmp_path / "out" / "t1.nii.gz")
    assert scan.channels == ("flair", "t1")
    for wrong, words in (((), "nothing to do"), (("--register", "t2"), "one of flair, t1; got 't2'")):
        code, _, said = run("preprocess", *files, *wrong, "--out", tmp_path / "out")
        assert code == 2
        assert words in said
