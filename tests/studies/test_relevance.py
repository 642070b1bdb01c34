"""The relevance study from made patients to tables: what is refused before work, files, and going on after a stop."""

import dataclasses
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import voxplain as vx
from voxplain import cli
from voxplain.datasets.brats import cases as brats_cases
from voxplain.datasets.case import Case
from voxplain.datasets.phantom import write_case
from voxplain.studies import cross_validation, grades, hemispheres, relevance
from voxplain.studies.cross_validation import new_network
from voxplain.studies.paper_tables import PAPER
from voxplain.studies.relevance import evaluate, study
from voxplain.studies.relevance_presets import PRESETS, RelevancePreset, preset_of
from voxplain.studies.scoring import CASE_COLUMNS, NETWORK_FREE, SCORE_COLUMNS
from voxplain.training import Settings

CPU = vx.Compute(device="cpu", threads=1)
SHAPE = (24, 20, 12)
GRID = vx.Grid(SHAPE, np.diag([-5.0, -5, 5, 1]))
SIZE = dataclasses.replace(
    PRESETS["quick"], training="tiny", folds=3, grid_folds=1, methods_folds=2, optimal_folds=1, patients=1,
    lime_samples=20, shap_samples=100, rise_masks=5, occlusion_passes=5,
)  # fmt: skip


def made_patient(folder: Path, number: int) -> None:
    """A brain of 5 mm voxels with a bright cube on the left, with odd numbers on the right."""
    rng = np.random.default_rng(number)
    brain = np.zeros(SHAPE, dtype=bool)
    brain[2:22, 2:18, 1:11] = True
    labels = np.zeros(SHAPE, dtype=int)
    x, y, z = 5 if number % 2 else 15, rng.integers(4, 10), rng.integers(2, 5)
    labels[x : x + 4, y : y + 4, z : z + 4] = 2
    data = [np.where(brain, rng.normal(100, 5, SHAPE) + 150 * (labels > 0), 0) for _ in range(4)]
    scan = vx.Scan(np.stack(data), GRID, ("flair", "t1", "t1ce", "t2"))
    write_case(scan, vx.Labels(labels, GRID), folder / f"Brats18_2013_{number}_1")


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    folder = tmp_path_factory.mktemp("patients")
    for number in range(1, 7):
        made_patient(folder, number)
    return brats_cases(folder)


@pytest.fixture(scope="module", autouse=True)
def _tiny_preset() -> Iterator[None]:
    small = hemispheres.PRESETS["small"].card
    card = dataclasses.replace(
        small, name="tiny", spacing=(5, 5, 5), shape=(12, 16, 12), skull_stripped=False,
        arguments={**small.arguments, "width": 4},
    )  # fmt: skip
    settings = Settings(epochs=2, patience=2, batch_size=4, learning_rate=2e-3)
    graded = dataclasses.replace(card, name="grader", classes=("high-grade",), region="whole", shape=SHAPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(hemispheres.PRESETS, "tiny", hemispheres.Preset(card, settings))
        patch.setitem(grades.PRESETS, "tiny", grades.Preset(graded, settings))
        yield


@pytest.fixture(scope="module")
def studied(patients: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole study, stopped in the middle of a case and taken up again."""
    out = tmp_path_factory.mktemp("studied")
    asked: list[str] = []
    score_method = relevance.score_method

    def stopping(method, *arguments):
        asked.append(method.row)
        if len(asked) == 5:
            raise KeyboardInterrupt
        return score_method(method, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relevance, "score_method", stopping)
        with pytest.raises(KeyboardInterrupt):
            study(patients, out, size=SIZE, compute=CPU, console=quiet())
        assert not (out / "relevance" / "scores.tsv").exists()
        study(patients, out, size=SIZE, compute=CPU, console=quiet())
    # Four were kept; the fifth, during which it was stopped, was made again.
    assert asked[5] == asked[4]
    assert asked.count("relevance-map/blank") == 2
    return out


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_the_study_writes_every_table_of_the_paper_and_what_needs_no_network(studied: Path) -> None:
    out = studied / "relevance"
    names = ["cases", "cases.tsv", "provenance.json", "report.html", "scores.tsv", "tables.md"]
    assert sorted(path.name for path in out.iterdir()) == names
    summary = pd.read_csv(out / "scores.tsv", sep="\t")
    cases = pd.read_csv(out / "cases.tsv", sep="\t")
    assert tuple(summary.columns) == SCORE_COLUMNS
    assert tuple(cases.columns) == CASE_COLUMNS
    assert not cases.duplicated(["case", "fold", "region", "table", "row", "metric", "kind"]).any()
    assert set(summary["table"]) == {
        "classifier", "best-grouping-grid", "single-ranks", "cumulative-ranks", "along-training",
        "along-training-correlation", "comparison", "optimal", "cost",
    }  # fmt: skip
    rows = summary.groupby("table")["row"].agg(set)
    for table in ("best-grouping-grid", "single-ranks", "cumulative-ranks", "comparison"):
        assert {"intensity/flair", "whole-brain"} <= rows[table]
    assert set(NETWORK_FREE) <= rows["comparison"]
    for name in ("rank", "top"):
        expected = {f"{row}/{name}-{rank}" for rank in range(1, 6)
                    for row in ("relevance-map/blank", "relevance-map/optimal", "random-rank")}  # fmt: skip
        assert expected <= rows["single-ranks" if name == "rank" else "cumulative-ranks"]
    methods = ("relevance-map/blank", "relevance-map/optimal", "relevance-map/chosen", "lime", "kernel-shap", "rise",
               "occlusion", "grad-cam/layer2")  # fmt: skip
    assert {f"{row}/otsu" for row in methods} <= rows["comparison"]
    # Every row of the paper's tables has its place here, but for numbers of supervoxels that a smoke run does not have.
    for table, theirs in PAPER.items():
        if table != "best-grouping-grid":
            # A smoke run's last layer is a single cell, of which there is no map.
            assert {row for row in theirs if "layer4" not in row} <= rows[table]
    text = (out / "tables.md").read_text(encoding="utf-8")
    assert "| relevance-map/optimal/best-grouping | oracle |" in text
    assert "| 1 | 0.45 |" in text
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "relevance-map/chosen/otsu" in page


def test_kinds_say_what_a_figure_has_seen(studied: Path) -> None:
    cases = pd.read_csv(studied / "relevance" / "cases.tsv", sep="\t")
    for fold, group in cases.groupby("fold"):
        metrics = json.loads((studied / f"fold{fold}" / "metrics.json").read_text())
        grid = group["table"] == "best-grouping-grid"
        assert set(group.loc[grid, "case"]) <= set(metrics["validation_ids"])
        assert set(group.loc[~grid, "case"]) <= set(metrics["test_ids"])
        # Validation patients chose the network's epoch.
        of_network = grid & group["row"].str.startswith("relevance-map")
        assert set(group.loc[of_network, "kind"]) <= {"seen"}
        assert "seen" not in set(group.loc[~of_network, "kind"])
    chosen = cases[cases["row"] == "relevance-map/chosen/otsu"]
    assert set(chosen["kind"]) == {"validation-masks"}
    assert set(chosen["fold"]) == {0}
    # Every method is compared on the same cases.
    comparison = cases[cases["table"] == "comparison"].groupby("row")["case"].agg(set)
    assert len(comparison["lime/otsu"]) == 2
    for row in ("relevance-map/blank/otsu", "rise/otsu", "occlusion/otsu", "kernel-shap/otsu", "intensity/flair"):
        assert comparison[row] == comparison["lime/otsu"]


def test_the_optimal_fill_is_trained_without_the_folds_test_patients(studied: Path) -> None:
    drawn = set(vx.load_model(studied / "fold0" / "optimal").card.training["ids"])
    assert drawn
    assert not drawn & set(json.loads((studied / "fold0" / "metrics.json").read_text())["test_ids"])
    assert not (studied / "fold1" / "optimal").exists()
    summary = pd.read_csv(studied / "relevance" / "scores.tsv", sep="\t")
    found = summary[(summary["table"] == "optimal") & (summary["row"] == "relevance-map/optimal")].set_index("metric")
    blank = summary[(summary["table"] == "optimal") & (summary["row"] == "relevance-map/blank")].set_index("metric")
    gain = found.loc["mean_abs_change", "value"] - blank.loc["mean_abs_change", "value"]
    assert found.loc["gain_over_blank", "value"] == pytest.approx(gain, abs=1e-7)
    assert 0 <= found.loc["p_wilcoxon", "value"] <= 1


def test_a_finished_study_is_read_and_a_change_scores_again_what_changed(
    studied: Path, patients: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    score_method = relevance.score_method

    def counting(method, *arguments):
        asked.append(method.row)
        return score_method(method, *arguments)

    def nothing(*_: object, **__: object) -> None:
        raise AssertionError("nothing was left to do")

    monkeypatch.setattr(relevance, "score_method", counting)
    monkeypatch.setattr(relevance, "score_cells", nothing)
    monkeypatch.setattr(cross_validation, "train", nothing)
    before = (studied / "relevance" / "scores.tsv").read_bytes()
    study(patients, studied, size=SIZE, compute=CPU, console=quiet())
    assert asked == []
    assert (studied / "relevance" / "scores.tsv").read_bytes() == before
    study(patients, studied, size=dataclasses.replace(SIZE, rise_masks=6), compute=CPU, console=quiet())
    assert asked == ["rise", "rise"]


def test_evaluate_from_the_command_line_and_a_network_of_another_classifier(
    studied: Path, patients: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, errors = io.StringIO(), io.StringIO()
    monkeypatch.setattr("voxplain.commands.relevance.out_console", Console(file=said, width=200))
    monkeypatch.setattr("voxplain.cli.error_console", Console(file=errors, width=400))
    monkeypatch.setattr("voxplain.cli.warnings.showwarning", lambda *given, **named: None)
    monkeypatch.setitem(PRESETS, "quick", dataclasses.replace(SIZE, patients=2))

    def run(*arguments: object) -> int:
        words = ["voxplain", "evaluate", "relevance", *map(str, arguments), "--quick", "--threads", "1"]
        monkeypatch.setattr(sys, "argv", [*words, "--device", "cpu"])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0)

    data = ("--data", next(iter(patients[0].files.values())).parents[1])
    optimal = ("--fill", f"optimal:{studied / 'fold0' / 'optimal'}")
    options = (*data, *optimal, "--layer", "layer1", "--no-grid")
    assert run("--model", studied / "fold0", *options, "--out", tmp_path / "out") == 0
    cases = pd.read_csv(tmp_path / "out" / "cases.tsv", sep="\t")
    assert set(cases["case"]) == {case.id for case in patients[:2]}
    model = vx.load_model(studied / "fold0")
    for case, group in cases[cases["row"].isin(["lime/otsu", "intensity/flair"])].groupby("case"):
        assert set(group["kind"]) == ({"seen", "deployable"} if case in model.card.training_ids else {"deployable"})
    assert "best-grouping-grid" not in set(cases["table"])
    assert "report.html" in said.getvalue()

    assert run("--model", studied / "fold1", *options, "--out", tmp_path / "refused") == 2
    (line,) = errors.getvalue().strip().splitlines()
    assert "was trained for another classifier" in line
    assert not (tmp_path / "refused").exists()


def test_a_network_of_whole_scans_is_scored_whatever_it_predicts(patients: list[Case], tmp_path: Path) -> None:
    card = dataclasses.replace(
        hemispheres.PRESETS["tiny"].card, name="grader", classes=("high-grade",), region="whole", shape=SHAPE,
        threshold=0.999,
    )  # fmt: skip
    model = vx.Model(new_network(card, 0), card)
    size = dataclasses.replace(SIZE, grid_segments=(5,))
    summary = evaluate(model, patients, tmp_path, size=size, layers=["layer1"], compute=CPU, console=quiet())
    cases = pd.read_csv(tmp_path / "cases.tsv", sep="\t")
    assert set(cases["region"]) == {"whole", "scan"}
    # Of one patient: the mirror joins the grid, and no figure has an interval.
    assert "relevance-map/mirror/t2/5/best-grouping" in set(summary["row"])
    assert set(summary.loc[summary["table"] == "best-grouping-grid", "kind"]) == {"oracle", "deployable"}
    assert summary["low"].isna().all()
    found = cases[(cases["table"] == "comparison") & (cases["kind"] == "deployable")].set_index("row")["value"]
    assert found["rise/otsu"] > 0
    assert "relevance-map/chosen/otsu" not in found.index


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "age"}, "label is one of hemisphere, grade; got 'age'"),
        ({"fill": "mirror"}, "a network that reads halves"),
        ({"size": dataclasses.replace(SIZE, grid_fills=("mirror",))}, "a network that reads halves"),
        ({"fill": "optimal:somewhere"}, "give --fill optimal"),
        ({"fill": "pink"}, "fill is one of"),
        ({"loss": "pink"}, "loss"),
    ],
)
def test_what_a_study_refuses_before_any_work(
    patients: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict, message: str
) -> None:
    def nothing(*_: object, **__: object) -> None:
        raise AssertionError("this is work")

    monkeypatch.setattr(hemispheres, "cross_validate", nothing)
    with pytest.raises(vx.InputError, match=message):
        study(patients, tmp_path / "out", **{"size": SIZE, **options}, compute=CPU)
    assert not (tmp_path / "out").exists()


def test_what_an_evaluation_refuses_before_any_work(studied: Path, patients: list[Case], tmp_path: Path) -> None:
    model = vx.load_model(studied / "fold0")
    with pytest.raises(vx.InputError, match="a network that reads halves"):
        evaluate(model, patients, tmp_path / "out", size=SIZE, fill="mirror", compute=CPU)
    without = [dataclasses.replace(case, segmentation=None) for case in patients]
    with pytest.raises(vx.InputError, match="no case with an expert mask"):
        evaluate(model, without, tmp_path / "out", size=SIZE, compute=CPU)
    assert not (tmp_path / "out").exists()


def test_grades_of_few_patients_are_marked(patients: list[Case], tmp_path: Path) -> None:
    graded = [dataclasses.replace(case, grade="LGG" if number % 2 else "HGG") for number, case in enumerate(patients)]
    said = io.StringIO()
    size = dataclasses.replace(SIZE, methods_folds=1, grid_segments=(5,))
    console = Console(file=said, width=300)
    study(graded, tmp_path, label="grade", fill="blank", size=size, compute=CPU, console=console)
    too_few = grades.too_few(graded)
    assert too_few is not None
    out = tmp_path / "relevance"
    for name in ("scores.tsv", "cases.tsv"):
        assert pd.read_csv(out / name, sep="\t")["kind"].str.endswith(f", {too_few}").all()
    figures = [line for line in said.getvalue().splitlines() if line.startswith(("lime/", "intensity/", "network"))]
    assert figures
    assert all(too_few in line for line in figures)
    lines = [line for line in (out / "tables.md").read_text().splitlines() if line.startswith("| lime/")]
    assert all(too_few in line for line in lines)
    assert too_few in (out / "report.html").read_text(encoding="utf-8")


def test_the_papers_preset_is_the_papers() -> None:
    paper = PRESETS["paper"]
    assert hemispheres.PRESETS[paper.training].card.normalisation == "min-max"
    assert hemispheres.PRESETS[paper.training].card.shape == (128, 128, 128)
    assert hemispheres.PRESETS[paper.training].card.arguments["depth"] == 50
    assert (paper.mask, paper.segments, paper.lime_samples) == ("none", 100, 1000)
    assert paper.grid_segments == (50, 100, 250)
    assert paper.grid_fills[:3] == ("blank", "min", "max")
    small = PRESETS["small"]
    assert (small.grid_folds, small.methods_folds, small.optimal_folds) == (2, 2, 2)
    assert (small.lime_samples, small.shap_samples, small.rise_masks) == (1000, 512, 1000)


def test_presets_refuse_what_cannot_work() -> None:
    assert preset_of("small", folds=2, optimal_folds=1) == dataclasses.replace(
        PRESETS["small"], folds=2, grid_folds=2, methods_folds=2, optimal_folds=1
    )
    assert preset_of("paper", folds=3).methods_folds == 3
    with pytest.raises(vx.InputError, match=r"preset is one of small, paper, quick; got 'large'"):
        preset_of("large")
    with pytest.raises(vx.InputError, match="grid_folds is 0 to 5"):
        preset_of("small", grid_folds=6)
    with pytest.raises(vx.InputError, match="methods_folds is at least 1"):
        preset_of("small", methods_folds=0)
    with pytest.raises(vx.InputError, match="100 supervoxels need at least as many samples of LIME; got 99"):
        RelevancePreset("small", "small", lime_samples=99)
    with pytest.raises(vx.InputError, match="need at least 200 coalitions; got 199"):
        RelevancePreset("small", "small", shap_samples=199)
