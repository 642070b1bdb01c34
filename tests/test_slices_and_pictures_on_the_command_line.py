"""Volumes slice by slice, and pictures, from the command line to the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import voxplain as vx
from voxplain.commands.options import seen_by
from voxplain.io.bundle import save_model
from voxplain.networks.gp_unet import GPUNet

CLASSES = ("tumour-free", "low", "high")


def a_model(folder: Path, *, constant: bool = False, **fields: Any) -> Path:
    channels = fields.pop("channels", ("flair", "t2"))
    arguments = {"in_channels": len(channels), "classes": 3, "width": 4}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = GPUNet(**arguments).eval()
    nn.init.normal_(network.head.weight, std=3, generator=torch.Generator().manual_seed(0))
    if constant:
        nn.init.zeros_(network.head.weight)
        network.head.bias.data = torch.tensor([0.0, 1.0, 2.0])
    card = vx.Card(
        name="grader",
        channels=channels,
        classes=CLASSES,
        absent=CLASSES[:1],
        activation="softmax",
        spatial_dims=2,
        factory="voxplain.networks.gp_unet:GPUNet",
        arguments=arguments,
        **fields,
    )
    return save_model(network, card, folder)


def a_volume(channels: tuple[str, ...] = ("flair", "t2")) -> vx.Scan:
    data = np.zeros((len(channels), 24, 20, 7))
    data[:, 4:20, 3:17, 1:6] = np.random.default_rng(0).uniform(1, 3, (len(channels), 16, 14, 5))
    data[:, 8:12, 8:12, 2:4] += 4
    return vx.Scan(data, vx.Grid((24, 20, 7), np.diag([-1.0, 1, 3, 1])), channels)


@pytest.fixture
def patient(write_patient: Any, tmp_path: Path) -> Path:
    return write_patient(a_volume(), tmp_path / "P")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(40, 90, (20, 28), dtype=np.uint8)
    pixels[5:10, 16:22] = 230
    Image.fromarray(pixels).save(tmp_path / "case-7.png")
    return tmp_path / "case-7.png"


def test_a_volume_from_command_to_page(run: Any, patient: Path, tmp_path: Path) -> None:
    model = a_model(tmp_path / "model", slices="axial", normalisation="z-score", orientation="LPS")
    out = tmp_path / "out"
    common = ("--model", model, "--scan", patient, "--out", out, "--threads", 1, "--device", "cpu")
    code, printed, error = run("explain", "heat-map", *common)
    assert code == 0, error
    assert "axial 001: probability of " in printed
    assert not (out / "heat-map.png").exists()
    code, _, error = run("explain", "relevance-map", *common, "--segments", 6, "--target", "high")
    assert code == 0, error
    provenance = json.loads((out / "heat-map.json").read_text())
    assert provenance["target"] == {"kind": "PredictedClass"}
    assert [region["name"] for region in provenance["regions"]] == [f"axial {k:03d}" for k in range(1, 6)]
    assert {region["target"] for region in provenance["regions"]} <= set(CLASSES)
    assert provenance["preparation"]["slices"] == {"plane": "axial", "explained": 5, "of": 7}
    back = vx.read(map=out / "heat-map.nii.gz")
    assert back.grid.matches(a_volume().grid)
    assert back.data[..., 1:6].any(axis=(0, 1, 2)).all()
    assert not back.data[..., [0, 6]].any()
    code, _, error = run("report", out)
    assert code == 0, error
    page = (out / "report.html").read_text()
    assert "of 5 slices" in page
    assert "Each of the 5 slices" in page
    code, _, error = run("check", out, "--model", model, "--quick", "--threads", 1, "--device", "cpu")
    assert code == 0, error


@pytest.mark.parametrize("show", ["heat-map", "contributions"])
def test_a_picture_from_command_to_page(run: Any, picture: Path, tmp_path: Path, show: str) -> None:
    model = a_model(tmp_path / "model", channels=("mr",), normalisation="min-max", training={"ids": ["case-7"]})
    out = tmp_path / "out"
    common = ("--model", model, "--scan", picture, "--out", out, "--threads", 1, "--device", "cpu")
    code, printed, error = run("explain", "heat-map", *common, "--show", show, "--target", "predicted")
    assert code == 0, error
    names = ["heat-map-mask.nii.gz", "heat-map.json", "heat-map.nii.gz", "heat-map.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert str(out / "heat-map.png") in printed
    drawn = Image.open(out / "heat-map.png")
    assert drawn.width > 4 * drawn.height / 2
    assert vx.read(map=out / "heat-map.nii.gz").grid.shape == (28, 20, 1)
    provenance = json.loads((out / "heat-map.json").read_text())
    assert provenance["seen"] is True
    assert provenance["sources"] == {"mr": str(picture)}
    assert run("explain", "grad-cam", "--layer", "down.1", *common)[0] == 0
    code, _, error = run("report", out)
    assert code == 0, error
    page = (out / "report.html").read_text()
    assert "The network calls the whole scan " in page
    moved = picture.rename(tmp_path / "elsewhere.png")
    assert "there is no file" in run("report", out)[2]
    assert run("report", out, "--scan", moved)[0] == 0


def test_a_constant_network_leaves_an_empty_mask(run: Any, picture: Path, tmp_path: Path) -> None:
    model = a_model(tmp_path / "model", channels=("mr",), constant=True)
    out = tmp_path / "out"
    code, printed, error = run("explain", "heat-map", "--model", model, "--scan", picture, "--out", out)
    assert code == 0, error
    assert "mask: 0.0 ml" in printed
    np.testing.assert_array_equal(vx.read(map=out / "heat-map.nii.gz").data, 2.0)
    code, _, error = run("report", out)
    assert code == 0, error


def test_one_volume_for_a_network_of_one_sequence(run: Any, tmp_path: Path) -> None:
    volume = tmp_path / "case.nii.gz"
    vx.save(a_volume(("flair",)), volume)
    one = a_model(tmp_path / "one", channels=("flair",), slices="coronal")
    code, printed, error = run("explain", "heat-map", "--model", one, "--scan", volume, "--out", tmp_path / "out")
    assert code == 0, error
    assert "coronal 003: " in printed
    assert run("report", tmp_path / "out")[0] == 0
    two = a_model(tmp_path / "two", slices="axial")
    code, _, error = run("explain", "heat-map", "--model", two, "--scan", volume, "--out", tmp_path / "no")
    assert code == 2
    assert "the network reads flair, t2, and case.nii.gz is one file: give --scan a patient folder" in error
    assert "(--flair FILE --t2 FILE)" in error


def test_what_cannot_be_is_refused_in_one_line(run: Any, picture: Path, patient: Path, tmp_path: Path) -> None:
    flat = a_model(tmp_path / "flat")
    single = a_model(tmp_path / "single", channels=("mr",), shape=(64, 64, 1))
    colour = tmp_path / "colour.png"
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(colour)
    for model, given, said in (
        (flat, ("--scan", patient), "set the card's slices to axial"),
        (single, ("--scan", picture), "images of 64 x 64 pixels; this one has 28 x 20: resize it"),
        (single, ("--scan", colour), "in colour (RGB)"),
        (flat, ("--flair", picture, "--t2", patient / "P_t2.nii.gz"), "a picture is a scan of its own"),
    ):
        code, _, error = run("explain", "heat-map", "--model", model, *given, "--out", tmp_path / "no")
        assert code == 2
        (line,) = error.strip().splitlines()
        assert said in line


def test_a_picture_is_known_by_its_name_alone(tmp_path: Path) -> None:
    card = vx.Card(name="n", channels=("mr",), classes=("c",), training={"ids": ["case-7", "folder"]})
    assert seen_by(card, {"mr": tmp_path / "folder" / "case-8.png"}) is False
    assert seen_by(card, {"mr": tmp_path / "case-7.png"}) is True
    assert seen_by(card, {"mr": tmp_path / "case-7.nii.gz"}) is True
