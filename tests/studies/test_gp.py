"""The slice study from the command line, on made data: train, evaluate, study, go on, and refuse in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from voxplain.commands.gp import study_gp
from voxplain.studies import gp

COMMON = ("--device", "cpu", "--threads", 1)


def study(run, data: Path, out: Path, *more: object, dataset: str = "cheng") -> str:
    code, printed, error = run(
        "study", "gp", "--dataset", dataset, "--data", data, "--out", out, "--quick", *COMMON, *more
    )
    assert code == 0, error
    return printed


@pytest.mark.timeout(600)
def test_the_study_of_images_and_going_on(run, made_cheng: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    networks = ("--network", "gp-unet", "--network", "resnext50")
    printed = study(run, made_cheng, out, *networks)
    assert str(out / "scores.tsv") in printed.replace("\n", "")
    scores = pd.read_csv(out / "scores.tsv", sep="\t", keep_default_na=False)
    assert set(scores["table"]) >= {"classification", "confusion", "localisation", "gain", "post-hoc"}
    assert {"gp-unet/heat-map/otsu", "intensity/otsu", "centre-disc", "random-map"} <= set(scores["row"])
    assert set(scores["kind"]) <= {"deployable", "validation-masks", "oracle", "plain"}
    slices = pd.read_csv(out / "slices.tsv", sep="\t", dtype={"stack": str})
    readings = {f"{name}{how}": 3 for name in ("gp-unet", "resnext50") for how in ("", ", mirrored")}
    assert slices.groupby("network").size().to_dict() == readings
    assert set(slices["stack"]) == {"0001", "0002", "0003"}  # the first fold tests
    for network in ("gp-unet", "resnext50"):
        card = json.loads((out / network / "fold0" / "model.json").read_text())
        assert not set(card["training"]["ids"]) & set(slices["stack"])
        assert not set(card["training"]["validation_ids"]) & set(slices["stack"])
    assert "| row | kind |" in (out / "tables.md").read_text()
    written = {path: path.read_bytes() for path in out.rglob("*") if path.suffix in (".tsv", ".md", ".safetensors")}
    # Going on trains, explains and scores nothing, and comes to the same tables.
    for name in ("localisation", "plain_localisation", "predictions", "compare"):
        monkeypatch.setattr(gp, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called again"))
    monkeypatch.setattr("voxplain.studies.gp_training.train", lambda *_, **__: pytest.fail("trained again"))
    study(run, made_cheng, out, *networks)
    for path, content in written.items():
        assert path.read_bytes() == content, path.name
    # Another seed is another study.
    code, _, error = run(
        "study",
        "gp",
        "--dataset",
        "cheng",
        "--data",
        made_cheng,
        "--out",
        out,
        "--quick",
        "--seed",
        1,
        *networks,
        *COMMON,
    )
    assert code == 2
    assert "holds a training on other slices or with other settings; give another --out" in error


@pytest.mark.timeout(600)
def test_train_and_evaluate_on_volumes(run, made_patients: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    common = ("--dataset", "brats-slices", "--data", made_patients, "--quick", *COMMON)
    code, printed, error = run("train", "gp", "--network", "gp-unet", *common, "--out", model)
    assert code == 0, error
    assert "epoch 1 kept; learnt from" in printed
    code, printed, error = run("evaluate", "gp", "--model", model, *common, "--out", out)
    assert code == 0, error
    assert "scans were seen in training and are left out" in printed
    slices = pd.read_csv(out / "slices.tsv", sep="\t")
    card = json.loads((model / "model.json").read_text())
    seen = {*card["training"]["ids"], *card["training"]["validation_ids"]}
    assert not set(slices["stack"]) & seen
    assert set(slices["kind"]) == {"deployable"}
    assert set(slices["reading"]) == {"alone", "mirrored", "neighbours"}
    # All patients learnt from: every figure is of kind seen.
    code, _, error = run("train", "gp", "--network", "gp-unet", *common, "--final", "--out", tmp_path / "final")
    assert code == 0, error
    code, printed, error = run("evaluate", "gp", "--model", tmp_path / "final", *common, "--out", tmp_path / "all")
    assert code == 0, error
    assert "every figure is of kind seen" in printed
    scores = pd.read_csv(tmp_path / "all" / "scores.tsv", sep="\t")
    assert set(scores["kind"]) == {"seen", "plain"}


def refused(run, words: str, *arguments: object) -> None:
    code, _, error = run(*arguments, *COMMON)
    assert code == 2, error
    lines = [line for line in error.strip().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    assert words in lines[0]


@pytest.mark.parametrize("command", ["train", "study", "evaluate"])
def test_folders_and_names_that_are_none(run, command: str, made_cheng: Path, tmp_path: Path) -> None:
    more = {"train": ("--network", "gp-unet"), "study": (), "evaluate": ("--model", "tumour-hemisphere")}[command]
    (tmp_path / "empty").mkdir()

    def given(dataset: str, data: Path) -> tuple[object, ...]:
        return (command, "gp", "--dataset", dataset, "--data", data, "--out", tmp_path / "out", "--quick", *more)

    refused(run, "found no slices in", *given("cheng", tmp_path / "empty"))
    refused(run, "found no BraTS patient in", *given("brats-slices", tmp_path / "empty"))
    refused(run, "there is no folder", *given("cheng", tmp_path / "absent"))
    refused(run, "dataset is one of cheng", *given("mnist", made_cheng))
    if command == "evaluate":
        refused(run, "reads volumes; give a 2D network", *given("cheng", made_cheng))


def test_options_that_are_none(run, made_cheng: Path, tmp_path: Path) -> None:
    given = ("--dataset", "cheng", "--data", made_cheng, "--out", tmp_path / "out")
    refused(run, "network is one of gp-unet", "train", "gp", "--network", "unet", *given)
    refused(run, "preset is one of small", "train", "gp", "--network", "gp-unet", "--preset", "large", *given)
    refused(run, "fold is one of 0 to 3; got 7", "train", "gp", "--network", "gp-unet", "--fold", 7, *given)
    refused(run, "cannot learn every fold", "study", "gp", "--network", "resnext50", "--rotate", "gp-unet", *given)
    assert study_gp.__doc__


def broken(made_cheng: Path, folder: Path) -> Path:
    shutil.copytree(made_cheng, folder)
    return folder


@pytest.mark.parametrize(
    ("mode", "size", "words"),
    [("RGB", (512, 512), "is colour"), ("I;16", (512, 512), "16-bit"), ("L", (256, 512), "256 x 512 pixels")],
)
def test_pictures_of_another_kind(run, made_cheng: Path, tmp_path: Path, mode: str, size, words: str) -> None:
    data = broken(made_cheng, tmp_path / "data")
    Image.new(mode, size).save(data / "images" / "0005.jpg", format="PNG")
    given = ("--dataset", "cheng", "--data", data, "--out", tmp_path / "out", "--quick")
    refused(run, words, "train", "gp", "--network", "gp-unet", *given)


def test_broken_tables_and_files(run, made_cheng: Path, tmp_path: Path) -> None:
    data = broken(made_cheng, tmp_path / "data")
    given = (
        "train",
        "gp",
        "--network",
        "gp-unet",
        "--dataset",
        "cheng",
        "--data",
        data,
        "--out",
        tmp_path / "out",
        "--quick",
    )
    table = (data / "metadata.csv").read_text()
    (data / "metadata.csv").write_text("\n".join(line.rsplit(",", 1)[0] for line in table.splitlines()))
    refused(run, "has no column fold", *given)
    # Only gliomas are left in fold 3, which the first split learns from, and in fold 2, which validates it.
    lines = [line for line in table.splitlines() if line.startswith("id") or line[-1] in "14" or "glioma" in line]
    (data / "metadata.csv").write_text("\n".join(lines))
    refused(run, "the validation part has no slice of class meningioma or pituitary", *given)
    (data / "metadata.csv").write_text(table)
    content = (data / "images" / "0008.jpg").read_bytes()
    (data / "images" / "0008.jpg").write_bytes(content[: len(content) // 2])
    refused(run, "0008.jpg: truncated or not a picture", *given)
    (tmp_path / "mat").mkdir()
    (tmp_path / "mat" / "1.mat").write_bytes(np.random.default_rng(0).bytes(3000))
    refused(run, "1.mat: truncated, or not a MATLAB file of version 7.3", *given[:7], tmp_path / "mat", *given[8:])


@pytest.mark.timeout(600)
def test_the_study_of_volumes(run, made_patients: Path, tmp_path: Path) -> None:
    study(run, made_patients, tmp_path, "--network", "gp-unet", dataset="brats-slices")
    scores = pd.read_csv(tmp_path / "scores.tsv", sep="\t")
    rows = set(scores["row"])
    assert {"gp-unet", "gp-unet, neighbours", "gp-unet/heat-map/otsu", "intensity/flair"} <= rows
    assert "accuracy, tumour slices" in set(scores["metric"])
    assert (tmp_path / "dice.png").is_file()
