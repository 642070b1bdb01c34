"""A map per block, and the command that puts them on one sheet."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

import voxplain as vx
from voxplain.explain.every_layer import block_grids, every_layer
from voxplain.io.bundle import build_network, save_model
from voxplain.io.nifti import read_map
from voxplain.studies.grading_presets import preset

CPU = vx.Compute(device="cpu", threads=1)
GRID = vx.Grid((40, 46, 38), np.diag([3.0, 3, 3, 1]))


def head() -> vx.Scan:
    data = np.random.default_rng(0).uniform(1, 2, (4, *GRID.shape)).astype(np.float32)
    data[:, :3] = 0
    return vx.Scan(data, GRID, ("flair", "t1", "t1ce", "t2"))


def classifier(**fields: object) -> vx.Model:
    card = dataclasses.replace(preset("quick", ("a", "b", "c")).card, **fields)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return vx.Model(build_network(card).eval(), card)


def test_each_block_has_the_map_that_its_name_alone_gives() -> None:
    model, scan = classifier(), head()
    found = dict(every_layer(vx.HiResCAM(), model, scan, target=vx.ClassScore("b"), compute=CPU))
    assert list(found) == ["features.denseblock1", "features.transition1", "features.denseblock2"]
    for layer, why in found.items():
        alone = vx.HiResCAM(layer=layer)(model, scan, target=vx.ClassScore("b"), compute=CPU)
        np.testing.assert_array_equal(why.map, alone.map)
    assert block_grids(model, scan, compute=CPU)["features.denseblock1"] == (8, 10, 8)


def test_a_block_of_one_cell_is_left_out() -> None:
    arguments = {"in_channels": 4, "classes": 3, "blocks": [1] * 4, "growth": 2, "width": 4}
    model = classifier(shape=(32, 32, 32), arguments=arguments)
    assert block_grids(model, head(), compute=CPU)["features.denseblock4"] == (1, 1, 1)
    assert "features.denseblock4" not in dict(every_layer(vx.GradCAM(), model, head(), compute=CPU))


def test_layer_all_on_the_command_line(tmp_path: Path, write_patient, run) -> None:
    scan = write_patient(head(), tmp_path / "head")
    save_model(classifier().network, classifier().card, tmp_path / "model")
    words = ("explain", "layer-cam", "--model", str(tmp_path / "model"), "--scan", str(scan), "--threads", "1")
    code, said, error = run(*words, "--layer", "all", "--out", str(tmp_path / "out"))
    assert code == 0, error
    assert "features.denseblock1: 8 x 10 x 8 cells of" in " ".join((said + error).split())
    assert (tmp_path / "out" / "layers.png").read_bytes().startswith(b"\x89PNG")
    why = vx.LayerCAM(layer="features.transition1")(classifier(), vx.read(scan), compute=CPU)
    values, _ = read_map(tmp_path / "out" / "layer-cam-features.transition1.nii.gz")
    np.testing.assert_allclose(values, why.map, rtol=1e-5, atol=1e-6 * why.map.max())
    # The results are those that the other commands read.
    code, said, error = run("report", str(tmp_path / "out"))
    assert code == 0, error
