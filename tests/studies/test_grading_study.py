"""The grading study from the command to its page, on phantoms, a planted shortcut among them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import voxplain as vx
from voxplain.cli import app
from voxplain.datasets.phantom import SHORTCUT_RADIUS_MM, TYPES, marker_share
from voxplain.datasets.phantom_cohort import write_gliomas
from voxplain.datasets.tumour_classes import cohort
from voxplain.io.bundle import load_model
from voxplain.studies import grading_study
from voxplain.studies.grading_maps import METHODS, figures


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    root = tmp_path_factory.mktemp("study")
    # One cohort for both questions: a smoke run learns neither.
    assert len(list(write_gliomas(root / "types", n=9, seed=5, grades=TYPES, shortcut="G"))) == 9
    words = ["study", "grading", "--data", str(root / "types"), "--shortcut", str(root / "types"), "--quick"]
    words += ["--folds", "3", "--threads", "1", "--out", str(root / "out")]
    found = CliRunner().invoke(app, words, catch_exceptions=False)
    assert found.exit_code == 0
    return root, root / "out", found.output


def test_every_map_of_every_case_is_scored_by_a_network_that_has_not_seen_it(done: tuple[Path, Path, str]) -> None:
    root, out, said = done
    lines = pd.read_csv(out / "maps.tsv", sep="\t", keep_default_na=False)
    cases = {case.id: case for case in cohort("phantom", root / "types").cases}
    assert set(lines["case"]) == set(cases)
    assert set(lines["map"]) == {"grad-cam", "hires-cam", "score-cam", "random-map", "edge-detector"}
    assert {method.name for method in METHODS} == {"grad-cam", "grad-cam++", "hires-cam", "layer-cam"}
    assert "Grad-CAM at the first block, by class" in said
    # One line again, by hand, with the network of its fold.
    classes = pd.read_csv(out / "classes.tsv", sep="\t")
    own = classes[classes["row"] == "network"].set_index("case")
    line = lines[(lines["map"] == "grad-cam") & (lines["layer"] == "features.denseblock1")].iloc[1]
    model = load_model(out / "networks" / f"fold{own.loc[line['case'], 'fold']}")
    assert line["case"] not in model.card.training_ids
    scan = cases[line["case"]].scan()
    why = vx.GradCAM(layer=line["layer"])(model, scan, target=vx.ClassScore(line["predicted"]))
    tumour = cases[line["case"]].labels().data > 0
    values = why.total * scan.foreground()
    assert float(line["mass_inside"]) == pytest.approx(values[tumour].sum() / values.sum(), rel=1e-4)
    assert own.loc[line["case"], "predicted"] == line["predicted"]


def test_figures_are_means_over_patients(done: tuple[Path, Path, str]) -> None:
    _, out, _ = done
    lines = pd.read_csv(out / "maps.tsv", sep="\t")
    rows = pd.read_csv(out / "scores.tsv", sep="\t")
    its = lines[(lines["map"] == "hires-cam") & (lines["layer"] == "features.denseblock2")]
    row = rows[(rows["row"] == "hires-cam, denseblock2") & (rows["metric"] == "mass inside")].iloc[0]
    assert row["value"] == pytest.approx(its["mass_inside"].mean())
    places = rows[(rows["row"] == "hires-cam, denseblock2") & rows["metric"].str.startswith("evidence")]
    assert places["value"].sum() == pytest.approx(its["place"].notna().mean())
    assert set(rows.loc[rows["table"] == "shortcut", "metric"]) >= {"mass in the marker", "peak to marker (mm)"}
    for name in ("report.html", "reliability.png", "confusion.png", "tables.md"):
        assert (out / name).stat().st_size > 0
    assert "too few to mean anything" in (out / "tables.md").read_text()


def test_a_map_on_the_marker_is_told_from_one_on_the_tumour() -> None:
    line = {"case": "a", "patient": "a", "map": "grad-cam", "layer": "x.block1", "label": "g", "predicted": "g"}
    line |= {"mass_inside": 0.1, "pointing": 0, "dice": 0, "peak_mm": 40, "place": "away", "share": 0.05}
    line |= {"empty_mass": 0.9, "empty_volume": 0.5, "empty_peak": 1}
    marks = [{"case": "a", "patient": "a", "map": "grad-cam", "layer": "x.block1", "mass_in_marker": 0.8}]
    marks[0] |= {"mass_in_tumour": 0.0, "peak_to_marker": 0, "peak_to_tumour": 40}
    marks[0] |= {"marker_share": 0.001, "tumour_share": 0.05}
    rows = pd.DataFrame(figures([line], marks), columns=["table", "row", "metric", "kind", "value", "low", "high", "n"])
    found = rows[rows["table"] == "shortcut"].set_index("metric")
    assert found.loc["mass in the marker", "value"] == 0.8
    assert found.loc["peak to tumour (mm)", "value"] == 40
    away = rows[(rows["table"] == "maps") & (rows["metric"] == "evidence away")]
    assert away["value"].tolist() == [1.0]


def test_the_marker_is_a_ball() -> None:
    grid = vx.Grid((60, 60, 60), np.array([[2.0, 0, 0, -86], [0, 2, 0, -122], [0, 0, 2, -102], [0, 0, 0, 1]]))
    volume = marker_share(grid).sum() * 8
    assert volume == pytest.approx(4 / 3 * np.pi * SHORTCUT_RADIUS_MM**3, rel=0.1)


def test_what_is_refused_and_what_is_kept(done: tuple[Path, Path, str], run, tmp_path: Path) -> None:
    root, out, _ = done
    before = {path: path.stat().st_mtime_ns for path in (*out.glob("maps/*"), *out.glob("networks/fold*/*"))}
    words = ("study", "grading", "--data", str(root / "types"), "--quick", "--folds", "3", "--threads", "1")
    assert run(*words, "--out", str(out))[0] == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    cases = cohort("phantom", root / "types")
    unmarked = [case for case in cases.cases if case.grade != "G"]
    with pytest.raises(vx.InputError, match="classes with a marker here: none"):
        grading_study._shortcut(replace(cases, cases=unmarked), tmp_path, "quick", 3, 0, vx.Compute())
