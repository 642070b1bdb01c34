"""The demo of a network that explains itself: slices called tumour, honest figures, and a page."""

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import voxplain as vx
from voxplain import cli
from voxplain.io.bundle import save_model
from voxplain.metrics.overlap import dice
from voxplain.networks.gp_unet import GPUNet
from voxplain.results import read_results
from voxplain.studies.demo import run_demo


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network that needs no training: what is bright on FLAIR over a few pixels is tumour."""
    arguments = {"in_channels": 4, "classes": 2, "width": 1, "levels": 1, "pooling": "top:0.01"}
    network = GPUNet(**arguments)
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
        for convolution in (network.down[0][0], network.down[0][3]):
            convolution.weight[:, 0] = 1 / 9
        network.head.weight[1] = 4
        network.head.bias[1] = -7
    card = vx.Card(
        name="stand-in", channels=("flair", "t1", "t1ce", "t2"), classes=("tumour-free", "tumour"),
        absent=("tumour-free",), activation="softmax", spatial_dims=2, slices="axial", orientation="LPS",
        normalisation="z-score", skull_stripped=True, factory="voxplain.networks.gp_unet:GPUNet", arguments=arguments,
    )  # fmt: skip
    return str(save_model(network, card, tmp_path_factory.mktemp("stand-in") / "model"))


def ran(out: Path, model: str | None) -> str:
    said = io.StringIO()
    run_demo(
        out, kind="slices", model=model, seed=0, compute=vx.Compute(device="cpu"), console=Console(file=said, width=120)
    )
    return said.getvalue()


def check(out: Path, said: str) -> float:
    """What holds of every network; gives the Dice of its mask."""
    truth = vx.read_labels(out / "made-scan" / "made-scan_seg.nii.gz").data > 0
    (result,) = read_results(out)
    found = re.search(r"(\d+) of (\d+) axial slices are called tumour; (\d+) of them hold some, as do (\d+) in", said)
    assert found is not None
    called, every, right, there = map(int, found.groups())
    regions = result.explanation.regions
    assert (called, every) == (sum(region.positive for region in regions), len(regions))
    assert there == np.count_nonzero(truth.any(axis=(0, 1)))
    assert right <= min(called, there)
    assert {region.target for region in regions} == {"tumour"}
    assert "phantom (software check), Dice against the known tumour" in said
    printed = re.search(r"heat-map +deployable ([\d.]+)", said)
    assert printed is not None
    assert float(printed[1]) == pytest.approx(dice(result.mask.data > 0, truth), abs=0.005)
    assert re.search(r"intensity/flair +deployable +[\d.]+", said)
    assert re.search(r"heat-map/best-threshold +oracle +[\d.]+", said)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "phantom (software check)" in page
    assert "which slices hold tumour, and where?" in page
    assert "half" not in said
    return float(printed[1])


def test_slices_with_a_stand_in(stand_in: str, tmp_path: Path) -> None:
    assert check(tmp_path, ran(tmp_path, stand_in)) > 0.3


def test_slices_with_the_shipped_model(tmp_path: Path) -> None:
    assert check(tmp_path, ran(tmp_path, None)) > 0.3


def test_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path) -> None:
    monkeypatch.setattr(sys, "argv", ["voxplain", "demo", "--kind", "volumes", "--out", str(tmp_path / "no")])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert "kind is one of scan, slices, lesions, grading; got 'volumes'" in capfd.readouterr().err
    assert not (tmp_path / "no").exists()
