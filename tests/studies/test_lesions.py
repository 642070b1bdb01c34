"""Leaving a patient out: what training may read, what is scored, and which figures come out."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

import voxplain as vx
from voxplain.datasets.case import Case
from voxplain.datasets.multiple_sclerosis import cases
from voxplain.grid import Grid
from voxplain.io.bundle import build_network, load_model
from voxplain.io.nifti import read_map
from voxplain.metrics.network_free import flair_outliers
from voxplain.metrics.overlap import dice
from voxplain.scan import Labels, Scan
from voxplain.segmentation_losses import lesion_loss
from voxplain.studies import lesion_training, lesions
from voxplain.studies.lesion_presets import PRESETS

CPU = vx.Compute(device="cpu", threads=1)


@pytest.fixture(scope="module")
def ran(made_ms: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], pd.DataFrame]:
    """A quick run, and what it read in which order."""
    out = tmp_path_factory.mktemp("out")
    read: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        scan, tumour, training = Case.scan, Case.tumour, lesions.train_network
        patch.setattr(Case, "scan", lambda self, *a: (read.append(f"scan {self.id}"), scan(self, *a))[1])
        patch.setattr(Case, "tumour", lambda self: (read.append(f"mask {self.id}"), tumour(self))[1])

        def marked(*arguments: object, **named: object) -> object:
            read.append(f"begin {named['title']}")
            found = training(*arguments, **named)  # type: ignore[arg-type]
            read.append("end")
            return found

        patch.setattr(lesions, "train_network", marked)
        summary = lesions.train(made_ms, out, size="quick", compute=CPU, console=Console(file=io.StringIO()))
    return out, read, summary


def test_the_patient_left_out_enters_nothing_before_it_is_scored(ran: tuple[Path, list[str], pd.DataFrame]) -> None:
    _, read, _ = ran
    for left_out, other in (("patient01", "patient02"), ("patient02", "patient01")):
        begin = read.index(f"begin training without {left_out}")
        end = read.index("end", begin)
        during = read[begin + 1 : end]
        assert {f"scan {other}", f"mask {other}"} <= set(during)
        assert not [line for line in during if left_out in line]
        assert f"mask {left_out}" in read[end:]


def test_models_say_whom_they_have_seen(ran: tuple[Path, list[str], pd.DataFrame]) -> None:
    out, _, _ = ran
    assert load_model(out / "without-patient01").card.training_ids == {"patient02"}
    final = load_model(out / "final").card
    assert final.training_ids == {"patient01", "patient02"}
    assert final.threshold == 0.3
    assert "CC BY" in (out / "final" / "README.md").read_text()


def test_figures_are_those_of_the_files(ran: tuple[Path, list[str], pd.DataFrame], made_ms: Path) -> None:
    out, _, summary = ran
    assert set(summary.row) == {"unet", "intensity/flair-outliers", "whole-brain"}
    for patient in ("patient01", "patient02"):
        probability = read_map(out / patient / "probability.nii.gz")[0][0]
        (case,) = [case for case in cases(made_ms) if case.id == patient]
        its = summary[(summary.table == patient) & (summary.row == "unet")].set_index(["kind", "metric"])["value"]
        truth = case.tumour().data > 0
        assert its["deployable", "Dice"] == pytest.approx(dice(probability >= 0.3, truth), abs=1e-4)
        assert its["oracle", "Dice"] >= its["deployable", "Dice"]
    mean = summary[summary.table == "mean"]
    for (row, kind, metric), line in mean.groupby(["row", "kind", "metric"]):
        single = summary[(summary.table != "mean") & (summary.row == row) & (summary.kind == kind)]
        expected = single[single.metric == metric]["value"].mean()
        assert line["value"].item() == pytest.approx(expected, abs=1e-5)
        assert line["n"].item() == 2
    assert "0.60" in (out / "tables.md").read_text()


def test_a_second_run_trains_nothing(
    ran: tuple[Path, list[str], pd.DataFrame], made_ms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _, summary = ran
    monkeypatch.setattr(lesion_training, "train_segmentation", None)
    monkeypatch.setattr(lesions, "predict", None)
    again = lesions.train(made_ms, out, size="quick", compute=CPU, console=Console(file=io.StringIO()))
    pd.testing.assert_frame_equal(again, summary)
    with pytest.raises(vx.InputError, match="other scans or with other settings"):
        lesions.train(made_ms, out, size="quick", seed=1, compute=CPU, console=Console(file=io.StringIO()))


def test_figures_by_arithmetic() -> None:
    grid = Grid((20, 20, 20), np.diag([1.0, 1, 1, 1]))
    truth, found = np.zeros((2, *grid.shape), dtype=int)
    truth[2:4, 2:4, 2:4] = 1  # 8 voxels, found
    truth[10:12, 10:12, 10:12] = 1  # 8 voxels, missed
    found[3:5, 2:4, 2:4] = 1  # 8 voxels, 4 right
    found[16:18, 2:4, 2:4] = 1  # 8 voxels, wrong
    inside = np.ones(grid.shape, dtype=bool)
    figures = lesions.figures(Labels(found, grid), Labels(truth, grid), inside)
    assert figures["Dice"] == pytest.approx(2 * 4 / 32)
    assert figures["Dice without confluent"] == figures["Dice"]
    assert figures["lesion precision"] == figures["lesion recall"] == figures["lesion F1"] == 0.5
    assert figures["expert volume (ml)"] == pytest.approx(0.016)
    intervals = lesions.over_lesions(Labels(found, grid), Labels(truth, grid))
    assert intervals["lesion precision"] == (0.0, 1.0)


def test_the_confluent_lesion_is_left_out_of_both_masks() -> None:
    grid = Grid((40, 40, 40), np.diag([1.0, 1, 1, 1]))
    truth, found = np.zeros((2, *grid.shape), dtype=int)
    truth[:25, :25, :25] = 1
    truth[30:32, 30:32, 30:32] = 1
    found[:20, :25, :25] = 1  # misses a part of the large one, which counts nowhere
    found[25, :2, :2] = 1  # beside it
    found[30:32, 30:32, 30:31] = 1
    figures = lesions.figures(Labels(found, grid), Labels(truth, grid), np.ones(grid.shape, dtype=bool))
    assert figures["Dice without confluent"] == pytest.approx(2 * 4 / (8 + 8))


def test_patients_that_are_not_there_are_refused(made_ms: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    with pytest.raises(vx.InputError, match="one of patient01, patient02; got 'x'"):
        lesions.train(made_ms, tmp_path, size="quick", leave_out="x", compute=CPU, console=console)
    with pytest.raises(vx.InputError, match="needs two with expert masks"):
        lesions.train(made_ms / "patient01", tmp_path, size="quick", compute=CPU, console=console)
    with pytest.raises(vx.InputError, match="--preset is one of"):
        lesions.train(made_ms, tmp_path, size="huge", compute=CPU, console=console)


def test_the_paper_preset_has_the_papers_size_and_takes_a_step() -> None:
    preset = PRESETS["paper"]
    network = build_network(preset.card)
    assert sum(weight.numel() for weight in network.parameters()) == 7_916_170
    assert preset.card.window == (96, 96, 96)
    assert (preset.settings.cross_entropy, preset.card.threshold) == (0, 0.3)
    image, blobs = torch.randn(2, 2, 32, 32, 32), torch.zeros(2, 32, 32, 32, dtype=torch.int64)
    blobs[0, 3:6, 3:6, 3:6] = 1
    output = network(image)
    assert output.shape == (2, 2, 32, 32, 32)
    lesion_loss(output, blobs, 1, preset.settings).backward()
    assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in network.parameters())


def test_the_small_network_may_be_shipped() -> None:
    count = sum(weight.numel() for weight in build_network(PRESETS["small"].card).parameters())
    assert 2 * count < 8e6


def test_flair_outliers_by_arithmetic() -> None:
    values = np.zeros((1, 4, 4, 4))
    values[0, :2] = np.arange(1, 33).reshape(2, 4, 4)
    values[0, 0, 0, 0] = 1000
    scan = Scan(values, Grid((4, 4, 4), np.eye(4)), ("flair",))
    inside = values[values != 0]
    middle = np.median(inside)
    limit = middle + 3 * 1.4826 * np.median(np.abs(inside - middle))
    np.testing.assert_array_equal(flair_outliers(scan), values[0] > limit)
    assert flair_outliers(scan).sum() == 1
    with pytest.raises(vx.InputError, match="zero in every voxel"):
        flair_outliers(Scan(np.zeros((1, 4, 4, 4)), scan.grid, ("flair",)))
