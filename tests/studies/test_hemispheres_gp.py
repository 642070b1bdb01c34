"""The hemisphere study of a network that explains itself (paper gp in 3D): preset, rows, choice of methods."""

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import voxplain as vx
from voxplain import segment
from voxplain.cli import app
from voxplain.datasets.brats import cases as brats_cases
from voxplain.datasets.case import Case
from voxplain.datasets.phantom import write_case
from voxplain.io.bundle import build_network
from voxplain.metrics.network_free import NETWORK_FREE
from voxplain.metrics.overlap import dice
from voxplain.networks.gp_unet import GPUNet
from voxplain.studies.evaluation import default_explainers
from voxplain.studies.hemispheres import PRESETS, Preset, study
from voxplain.training import Settings

CPU = vx.Compute(device="cpu", threads=1)
SHAPE = (24, 20, 12)
GRID = vx.Grid(SHAPE, np.diag([-5.0, -5, 5, 1]))


def convolution(before: int, after: int, size: int) -> int:
    """Weights and biases of a 3D convolution."""
    return before * after * size**3 + after


def test_the_preset_is_a_small_3d_network_on_the_same_halves() -> None:
    card, small = PRESETS["gp"].card, PRESETS["small"].card
    for field in ("channels", "classes", "spacing", "orientation", "normalisation", "region", "shape"):
        assert getattr(card, field) == getattr(small, field)
    network = build_network(card)
    assert isinstance(network, GPUNet)
    # 2 x 2 x 2 voxels of 4 sequences are one place; widths 16, 32, 64 and back.
    pairs = [(32, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 32), (32, 32), (32, 16), (16, 16)]
    expected = sum(convolution(*pair, 3) + 2 * pair[1] for pair in pairs)
    expected += convolution(64, 32, 1) + convolution(32, 16, 1) + convolution(16, 1, 1)
    assert sum(weight.numel() for weight in network.parameters()) == expected
    inputs = torch.randn(1, 4, *card.shape)
    with torch.inference_mode():
        network.eval()
        assert network.features(inputs).shape == (1, 16, 20, 48, 38)
        assert network(inputs).shape == (1, 1)
        assert network.heat_map(inputs).shape == (1, 1, *card.shape)


def made_patient(folder: Path, number: int) -> None:
    """A brain of 5 mm voxels with a bright cube on the left, with odd numbers on the right."""
    rng = np.random.default_rng(number)
    brain = np.zeros(SHAPE, dtype=bool)
    brain[2:22, 2:18, 1:11] = True
    labels = np.zeros(SHAPE, dtype=int)
    x, (y, z) = 5 if number % 2 else 15, rng.integers((4, 2), (10, 5))
    labels[x : x + 4, y : y + 4, z : z + 4] = 2
    data = [np.where(brain, rng.normal(100, 5, SHAPE) + 150 * (labels > 0), 0) for _ in range(4)]
    scan = vx.Scan(np.stack(data), GRID, ("flair", "t1", "t1ce", "t2"))
    write_case(scan, vx.Labels(labels, GRID), folder / f"Brats18_2013_{number}_1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patients")
    for number in range(1, 7):
        made_patient(folder, number)
    return folder


@pytest.fixture(scope="module")
def patients(data: Path) -> list[Case]:
    return brats_cases(data)


@pytest.fixture(scope="module", autouse=True)
def _tiny_preset() -> Iterator[None]:
    gp = PRESETS["gp"]
    card = dataclasses.replace(
        gp.card, spacing=(5, 5, 5), shape=(12, 16, 12), skull_stripped=False,
        arguments={**gp.card.arguments, "width": 4, "stride": 1},
    )  # fmt: skip
    settings = Settings(epochs=3, patience=3, batch_size=4, learning_rate=0.02, schedule="one-cycle", averaging=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny-gp", Preset(card, settings))
        yield


@pytest.fixture(scope="module")
def studied(patients: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole study of three folds, all methods."""
    out = tmp_path_factory.mktemp("studied")
    console = Console(file=io.StringIO(), width=200)
    study(patients, out, preset="tiny-gp", folds=3, segments=10, compute=CPU, console=console)
    return out


def test_the_heat_map_has_the_rows_of_a_map_of_voxels(studied: Path) -> None:
    scores = pd.read_csv(studied / "scores.tsv", sep="\t")
    dices = scores[(scores["table"] == "halves") & (scores["metric"] == "dice")].set_index("row")
    assert dices.loc["heat-map/otsu", "kind"] == "deployable"
    assert dices.loc["heat-map/multi-otsu", "kind"] == "deployable"
    assert dices.loc["heat-map/best-threshold", "kind"] == "oracle"
    assert {"relevance-map/blank/otsu", "random-rank", *NETWORK_FREE} <= set(dices.index)
    # It has none of the layers that a residual network has.
    assert not dices.index.str.startswith("grad-cam/").any()
    gains = scores[(scores["table"] == "scans") & (scores["metric"] == "dice_gain")]
    assert "heat-map/otsu" in set(gains["row"])
    assert "Masks of heat-map/otsu reach" in (studied / "tables.md").read_text(encoding="utf-8")


def test_its_figures_are_those_of_the_map_of_the_fold_that_has_not_seen_the_patient(
    studied: Path, patients: list[Case]
) -> None:
    rows = pd.read_csv(studied / "cases.tsv", sep="\t")
    rows = rows[(rows["table"] == "scans") & (rows["row"] == "heat-map/otsu") & (rows["metric"] == "dice")]
    assert len(rows) == len(patients)
    assert rows["value"].max() > 0
    for case in patients:
        line = rows[rows["case"] == case.id].iloc[0]
        scan = case.scan()
        why = vx.HeatMap()(vx.load_model(studied / f"fold{line['fold']}"), scan, compute=CPU)
        mask = segment.otsu(why, mask=vx.Labels(scan.foreground(), scan.grid))
        assert line["value"] == pytest.approx(dice(mask.data > 0, case.tumour().data > 0))


def test_methods_can_be_chosen(studied: Path) -> None:
    model = vx.load_model(studied / "fold0")
    assert list(default_explainers(model)) == ["heat-map", "relevance-map/blank", "relevance-map/blank-signed-logit"]
    assert list(default_explainers(model, methods=["heat-map"])) == ["heat-map"]
    assert list(default_explainers(model, ["up.0"], methods=["grad-cam", "heat-map"])) == ["heat-map", "grad-cam/up.0"]
    with pytest.raises(vx.InputError, match=r"rows of heat-map, relevance-map; got 'grad-cam'"):
        default_explainers(model, methods=["heat-map", "grad-cam"])
    with pytest.raises(vx.InputError, match="got 'heat-map'"):
        default_explainers(vx.load_model("tumour-hemisphere"), methods=["heat-map"])


def test_the_command_line_scores_the_heat_map_alone(studied: Path, data: Path, tmp_path: Path) -> None:
    given = ["--model", str(studied / "fold0"), "--data", str(data), "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(
        app, ["evaluate", "hemispheres", *given, "--method", "heat-map", "--quick", "--device", "cpu", "--threads", "1"]
    )
    assert found.exit_code == 0, found.output
    rows = set(pd.read_csv(tmp_path / "out" / "scores.tsv", sep="\t")["row"])
    maps = {row for row in rows if row.startswith(("heat-map", "relevance-map", "grad-cam"))}
    assert maps == {"heat-map/otsu", "heat-map/multi-otsu", "heat-map/best-threshold"}
    # Rankings of supervoxels need the partition of a map of parts.
    assert rows - maps == {"network", "intensity/flair", "whole-brain"}
