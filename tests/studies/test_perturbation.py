"""Training a perturbation network from patients to tables: who is drawn, who is held out, what is written."""

import dataclasses
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import voxplain as vx
from voxplain import cli
from voxplain.datasets import brats
from voxplain.datasets.case import Case
from voxplain.studies import perturbation
from voxplain.studies.perturbation import train_optimal
from voxplain.studies.scoring import CASE_COLUMNS, SCORE_COLUMNS

CPU = vx.Compute(device="cpu", threads=1)


@pytest.fixture
def cases(make_head: Any, write_patient: Callable[..., Path], tmp_path: Path) -> list[Case]:
    """Five patients without expert masks."""
    for seed in range(5):
        write_patient(make_head(seed=seed).scan(), tmp_path / "data" / f"P{seed}")
    return brats.cases(tmp_path / "data")


@pytest.fixture
def model(tiny_model: vx.Model, cases: list[Case]) -> vx.Model:
    """A classifier whose threshold lies in the middle of what it says of these halves."""
    said = [
        region.probability
        for case in cases
        for region in vx.RelevanceMap(segments=1, mask="none")(tiny_model, case.scan(), compute=CPU).regions
    ]
    return vx.Model(tiny_model.network, dataclasses.replace(tiny_model.card, threshold=float(np.median(said))))


def test_from_patients_to_a_fill_and_its_figures(model: vx.Model, cases: list[Case], tmp_path: Path) -> None:
    out = tmp_path / "optimal"
    table = train_optimal(model, cases, out, preset="quick", compute=CPU)
    names = ["cases.tsv", "metrics.json", "model.json", "scores.tsv", "weights.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == names
    card = vx.load_model(out).card
    assert card.channels == card.classes == model.card.channels
    assert card.training["classifier"] == {"name": model.card.name, "fingerprint": model.fingerprint}
    assert card.training["target"] == {"kind": "ClassScore", "name": "tumour"}
    drawn = {name.partition("/")[0] for name in card.training["inputs"]}
    assert len(card.training["inputs"]) == len(drawn) == 2
    assert set(card.training["ids"]) == drawn

    scored = pd.read_csv(out / "scores.tsv", sep="\t")
    assert tuple(scored.columns) == SCORE_COLUMNS
    assert set(scored["kind"]) == {"plain"}
    assert set(scored["n"]) == {2}
    pd.testing.assert_frame_equal(scored, table, rtol=1e-8)
    single = pd.read_csv(out / "cases.tsv", sep="\t")
    assert tuple(single.columns) == CASE_COLUMNS
    held_out = set(single["case"])
    assert len(held_out) == 2
    assert not held_out & drawn

    # The figures are the means over parts and then over patients of what the two fills do.
    values = table.set_index(["row", "metric"])["value"]
    for fill, row in (("blank", "blank"), (f"optimal:{out}", "optimal")):
        explain = vx.RelevanceMap(fill=fill, segments=10, channel="t2")
        means = [
            explain(model, case.scan(), compute=CPU).scores.mean()  # type: ignore[union-attr]
            for case in cases
            if case.id in held_out
        ]
        assert values[row, "mean_abs_change"] == pytest.approx(np.mean(means), rel=1e-3)
    gain = values["optimal", "mean_abs_change"] - values["blank", "mean_abs_change"]
    assert values["optimal", "gain_over_blank"] == pytest.approx(gain)
    assert 0 <= values["optimal", "share_moved_further"] <= 1


def test_the_seed_decides_and_what_is_finished_is_kept(
    model: vx.Model, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, other = (
        vx.load_model(_trained(model, cases, tmp_path / name, seed=seed)).fingerprint
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == second != other
    monkeypatch.setattr(perturbation, "train_perturbation", lambda *given, **named: pytest.fail("trained again"))
    train_optimal(model, cases, tmp_path / "a", preset="quick", held_out=1, compute=CPU)
    with pytest.raises(vx.InputError, match="other patients or with other settings"):
        train_optimal(model, cases, tmp_path / "a", preset="quick", seed=1, compute=CPU)
    with pytest.raises(vx.InputError, match="other patients or with other settings"):
        train_optimal(model, cases, tmp_path / "a", preset="quick", loss="logarithm", compute=CPU)


def _trained(model: vx.Model, cases: list[Case], out: Path, seed: int) -> Path:
    train_optimal(model, cases, out, preset="quick", held_out=0, seed=seed, compute=CPU)
    return out


def test_who_is_excluded_is_held_out(model: vx.Model, cases: list[Case], tmp_path: Path) -> None:
    train_optimal(model, cases, tmp_path / "out", preset="quick", exclude=["P1", "P3"], compute=CPU)
    card = vx.load_model(tmp_path / "out").card
    assert not {"P1", "P3"} & set(card.training["ids"])
    assert set(pd.read_csv(tmp_path / "out" / "cases.tsv", sep="\t")["case"]) == {"P1", "P3"}
    with pytest.raises(vx.InputError, match="--exclude names P9; there is no such patient"):
        train_optimal(model, cases, tmp_path / "other", preset="quick", exclude=["P9"], compute=CPU)


def test_patients_whom_the_classifier_has_not_seen_are_held_out(
    model: vx.Model, cases: list[Case], tmp_path: Path
) -> None:
    known = vx.Model(model.network, dataclasses.replace(model.card, training={"ids": ["P0", "P1", "P2", "P4"]}))
    train_optimal(known, cases, tmp_path / "out", preset="quick", compute=CPU)
    assert "P3" not in vx.load_model(tmp_path / "out").card.training["ids"]
    assert set(pd.read_csv(tmp_path / "out" / "cases.tsv", sep="\t")["case"]) == {"P3"}


def test_too_few_inputs_of_a_class(model: vx.Model, cases: list[Case], tmp_path: Path) -> None:
    never = vx.Model(model.network, dataclasses.replace(model.card, threshold=0.999999))
    with pytest.raises(vx.InputError, match=r"among 5 scans too few are positive: give more patients"):
        train_optimal(never, cases, tmp_path / "out", preset="quick", compute=CPU)


def test_presets_that_do_not_exist(model: vx.Model, cases: list[Case], tmp_path: Path) -> None:
    with pytest.raises(vx.InputError, match="preset is one of small, paper, quick; got 'large'"):
        train_optimal(model, cases, tmp_path / "out", preset="large", compute=CPU)


def test_nobody_held_out_leaves_empty_tables(model: vx.Model, cases: list[Case], tmp_path: Path) -> None:
    table = train_optimal(model, cases, tmp_path / "out", preset="quick", held_out=0, compute=CPU)
    assert len(table) == 0
    assert tuple(table.columns) == SCORE_COLUMNS


def test_the_command_trains_and_explain_uses_it(
    model: vx.Model, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, errors = io.StringIO(), io.StringIO()
    for module in ("perturbation", "explain"):
        monkeypatch.setattr(f"voxplain.commands.{module}.out_console", Console(file=said, width=200))
    monkeypatch.setattr("voxplain.cli.error_console", Console(file=errors, width=400))
    monkeypatch.setattr("voxplain.cli.warnings.showwarning", lambda *given, **named: None)

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["voxplain", *map(str, arguments), "--threads", "1", "--device", "cpu"])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0)

    vx.save_model(model.network, model.card, tmp_path / "model")
    data, out = tmp_path / "data", tmp_path / "optimal"
    assert run("train", "perturbation", "--model", tmp_path / "model", "--data", data, "--out", out, "--quick") == 0
    assert "optimal mean_abs_change" in said.getvalue()
    assert "over 2 held-out patients" in said.getvalue()
    explain = ("explain", "relevance-map", "--model", tmp_path / "model", "--scan", data / "P0", "--segments", 5)
    assert run(*explain, "--fill", f"optimal:{out}", "--out", tmp_path / "out") == 0
    provenance = json.loads((tmp_path / "out" / "relevance-map.json").read_text())
    network = vx.load_model(out).fingerprint
    assert {facts["perturbation_network"] for facts in provenance["facts"].values()} == {network}

    with_other_weights = model.network.state_dict() | {"fc.bias": model.network.state_dict()["fc.bias"] + 1}
    model.network.load_state_dict(with_other_weights)
    vx.save_model(model.network, model.card, tmp_path / "other")
    explain = (*explain[:3], tmp_path / "other", *explain[4:])
    assert run(*explain, "--fill", f"optimal:{out}", "--out", tmp_path / "refused") == 2
    (line,) = errors.getvalue().strip().splitlines()
    assert "was trained for another classifier" in line
