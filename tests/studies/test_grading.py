"""The classifier of paper grading from command to tables, on phantoms; figures against scikit-learn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk
from typer.testing import CliRunner

import voxplain as vx
from voxplain.cli import app
from voxplain.datasets.phantom import TYPES
from voxplain.datasets.phantom_cohort import write_gliomas
from voxplain.datasets.tumour_classes import Cohort, cohort
from voxplain.io.bundle import load_model
from voxplain.studies import grading
from voxplain.studies.scoring import SCORE_COLUMNS

CLASSES = ("glioblastoma", "astrocytoma", "oligodendroglioma")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("types") / "phantoms"
    assert len(list(write_gliomas(out, n=9, seed=3, grades=TYPES))) == 9
    return out


@pytest.fixture(scope="module")
def trained(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("grading") / "run"
    words = ["train", "grading", "--data", str(made), "--dataset", "phantom", "--folds", "3", "--quick"]
    done = CliRunner().invoke(app, [*words, "--threads", "1", "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    return out, done.output


def test_every_patient_is_judged_by_a_network_that_has_not_seen_them(trained: tuple[Path, str], made: Path) -> None:
    out, said = trained
    assert "balanced accuracy" in said
    assert "too few to mean anything (glioblastoma: 3 patients" in said
    cases = pd.read_csv(out / "cases.tsv", sep="\t")
    found = cohort("phantom", made)
    for row in (grading.NETWORK, grading.MEANS):
        own = cases[cases["row"] == row]
        assert sorted(own["case"]) == sorted(case.id for case in found.cases)
        truth = [CLASSES[found.labels[name]] for name in own["case"]]
        assert own["label"].tolist() == truth
    for fold in range(3):
        model = load_model(out / f"fold{fold}")
        tested = set(cases.loc[(cases["fold"] == fold) & (cases["row"] == grading.NETWORK), "case"])
        assert not tested & model.card.training_ids
        assert len({found.labels[name] for name in tested}) == 3
        # What the model folder says is what the table says.
        name = sorted(tested)[0]
        (case,) = [case for case in found.cases if case.id == name]
        metrics = json.loads((out / f"fold{fold}" / "metrics.json").read_text())
        (line,) = [line for line in metrics["predictions"] if line["case"] == name]
        if fold:
            continue
        why = vx.GradCAM(layer="features.denseblock1")(model, case.scan(), target=vx.ClassScore(CLASSES[0]))
        assert why.provenance["regions"][0]["probability"] == pytest.approx(line["probabilities"][0], abs=1e-3)


def test_figures_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], (9, 6, 5))
    predicted = np.where(rng.random(20) < 0.7, labels, rng.integers(3, size=20))
    sure = rng.uniform(0.4, 1, 20)
    lines = [
        {"row": "network", "patient": f"p{k}", "label": int(a), "predicted": int(b), "probability": float(c)}
        for k, (a, b, c) in enumerate(zip(labels, predicted, sure, strict=True))
    ]
    found = {(table, metric): value for table, _, metric, _, value, *_ in grading.figures(lines, CLASSES)}
    assert found["all classes", "balanced accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
    assert found["all classes", "accuracy"] == pytest.approx(sk.f1_score(labels, predicted, average="micro"))
    assert found["all classes", "kappa"] == pytest.approx(sk.cohen_kappa_score(labels, predicted))
    for place, name in enumerate(CLASSES):
        one, said = labels == place, predicted == place
        assert found[name, "F1"] == pytest.approx(sk.f1_score(one, said))
        assert found[name, "balanced accuracy"] == pytest.approx(sk.balanced_accuracy_score(one, said))
        assert found[name, "kappa"] == pytest.approx(sk.cohen_kappa_score(one, said))
    # The paper's: 18 of 21 cases right come to 0.857 and, each case once for each class, to 0.893.
    labels = np.repeat([0, 1, 2], 7)
    predicted = np.concatenate([labels[:18], (labels[18:] + 1) % 3])
    lines = [
        {"row": "network", "patient": f"p{k}", "label": int(a), "predicted": int(b), "probability": 0.9}
        for k, (a, b) in enumerate(zip(labels, predicted, strict=True))
    ]
    found = {(table, metric): value for table, _, metric, _, value, *_ in grading.figures(lines, CLASSES)}
    assert found["all classes", "accuracy"] == pytest.approx(0.857, abs=5e-4)
    assert found["all classes", "micro balanced accuracy"] == pytest.approx(0.893, abs=5e-4)


def test_tables_stand_beside_the_papers_and_a_second_run_trains_nothing(
    trained: tuple[Path, str], made: Path, run
) -> None:
    out, _ = trained
    page = (out / "tables.md").read_text()
    assert "| 003, CPM-RadPath 2020 |  | 0.893 | 0.857 | 0.733 |  | 21 cases in all |" in page
    assert "### Confusion matrix of the network" in page
    grades = Cohort(cases=(), classes=("high-grade", "low-grade"), labels={}, data="made")
    lines = [
        {"row": "network", "patient": f"p{k}", "label": k % 2, "predicted": k % 2, "probability": 0.9} for k in range(8)
    ]
    rows = pd.DataFrame(grading.figures(lines, grades.classes), columns=list(SCORE_COLUMNS))
    assert "003" not in grading.markdown(rows, lines, grades)
    assert "**These figures are too few to mean anything" in page
    before = {path: path.stat().st_mtime_ns for path in out.glob("fold*/*")}
    arguments = ("train", "grading", "--data", str(made), "--dataset", "phantom", "--quick", "--threads", "1")
    assert run(*arguments, "--folds", "3", "--out", str(out))[0] == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("fold*/*")} == before
    code, _, error = run(*arguments, "--folds", "3", "--seed", "1", "--out", str(out))
    assert code == 2
    assert "another training" not in error
    assert "other cases or with other settings" in error
