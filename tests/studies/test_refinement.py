"""The study of finishes: what one case's rows hold, what is selected, and going on after a stop."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

import voxplain as vx
from voxplain import refine
from voxplain.datasets.brats import cases as brats_cases
from voxplain.datasets.case import Case
from voxplain.datasets.phantom import glioma, write_case
from voxplain.metrics.overlap import dice
from voxplain.studies import refinement
from voxplain.studies.scoring import CASE_COLUMNS

CPU = vx.Compute(device="cpu", threads=1)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    folder = tmp_path_factory.mktemp("patients")
    for seed in range(4):
        made = glioma(seed, side="left" if seed % 2 else "right")
        write_case(made.scan, made.labels, folder / f"Made_{seed:03d}_1")
    return brats_cases(folder)


def test_one_case(cases: list[Case]) -> None:
    model = vx.load_model("tumour-hemisphere")
    table = refinement.score_case(cases[0], model, 3, segments=30, draws=1, seed=0, compute=CPU)
    assert list(table.columns) == list(CASE_COLUMNS)
    assert set(table["fold"]) == {3}
    assert set(table["kind"]) == {"deployable"}
    rows = table.pivot_table(index="row", columns="table", values="value")
    for name in ("relevance-map/blank-signed-logit", "grad-cam/act", "fused", *refinement._CONTROLS):
        for finish in ("otsu", "mixture", "random-walker"):
            assert 0 <= rows.loc[f"{name}/{finish}", "scans"] <= 1
    assert {"intensity/flair", "intensity/flair-of-whole-head", "whole-brain"} <= set(rows.index)
    # One of the rows by hand.
    scan, tumour = cases[0].scan(), cases[0].tumour()
    maps = [
        vx.RelevanceMap(segments=30, channel="flair", effect="signed", scale="logit")(model, scan, compute=CPU),
        vx.GradCAM(layer="act")(model, scan, compute=CPU),
    ]
    mask = refine.mixture(refine.fused(*maps, scan), scan)
    assert rows.loc["fused/mixture", "scans"] == pytest.approx(dice(mask.data > 0, tumour.data > 0))
    # A patient whom the network was trained on.
    card = dataclasses.replace(model.card, training={"ids": [cases[0].id]})
    seen = refinement.score_case(cases[0], vx.Model(model.network, card), 0, segments=10, draws=0, seed=0, compute=CPU)
    assert set(seen[seen["row"].str.startswith("fused")]["kind"]) == {"seen"}
    assert set(seen[seen["row"].str.startswith("intensity")]["kind"]) == {"deployable"}


def line(case: str, fold: int, row: str, value: float) -> tuple[object, ...]:
    return (case, case, fold, "left", "halves", row, "dice", "deployable", value)


def test_what_is_selected_was_best_on_validation_patients() -> None:
    name = "fused/mixture", "grad-cam/act/otsu"
    known = pd.DataFrame(
        [
            line("v", 0, name[0], 0.4), line("v", 0, name[1], 0.6), line("v", 0, "random-fused/mixture", 0.9),
            line("v", 1, name[0], 0.8), line("v", 1, name[1], 0.2),
        ],
        columns=list(CASE_COLUMNS),
    )  # fmt: skip
    tested = pd.DataFrame(
        [line(f"t{fold}", fold, row, fold + place / 10) for fold in (0, 1) for place, row in enumerate(name)],
        columns=list(CASE_COLUMNS),
    )
    table, chosen = refinement._with_selected(tested, known)
    assert chosen == {"0": name[1], "1": name[0]}
    selected = table[table["row"] == "selected"]
    assert selected["value"].tolist() == [0.1, 1.0]
    assert set(selected["kind"]) == {"validation-masks"}


def test_a_study_that_was_stopped_goes_on(cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, str, int]] = []

    def stopping(case: Case, model: vx.Model, fold: int, *, draws: int, **_: object) -> pd.DataFrame:
        asked.append((fold, case.id, draws))
        if len(asked) == 3:
            raise KeyboardInterrupt
        rows = [line(case.id, fold, row, 0.1 * fold) for row in ("fused/mixture", "intensity/flair")]
        return pd.DataFrame(rows, columns=list(CASE_COLUMNS))

    def run() -> pd.DataFrame:
        console = Console(file=io.StringIO(), width=200)
        return refinement.study(cases, tmp_path, preset="quick", folds=2, segments=5, compute=CPU, console=console)

    monkeypatch.setattr(refinement, "score_case", stopping)
    with pytest.raises(KeyboardInterrupt):
        run()
    summary = run()
    assert asked[3:] == [asked[2], *asked[3:][1:]]
    assert len({entry[:2] for entry in asked}) == len(asked) - 1
    # Random maps are drawn for test patients alone, each of whom is tested once.
    assert {case for _, case, draws in asked if draws} == {case.id for case in cases}
    assert {"halves", "scans", "validation"} >= set(summary["table"])
    written = {path.name for path in (tmp_path / "refinement").iterdir()}
    assert written == {"cases", "cases.tsv", "scores.tsv", "tables.md", "provenance.json"}
    done = len(asked)
    pd.testing.assert_frame_equal(run(), summary)
    assert len(asked) == done
