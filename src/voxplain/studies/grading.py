"""Paper grading (003): which kind of tumour is it? A DenseNet on whole heads, cross-validated by patient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from voxplain.compute import Compute
from voxplain.datasets.case import Case
from voxplain.datasets.hemispheres import split
from voxplain.datasets.tumour_classes import Cohort
from voxplain.engine.progress import tracked
from voxplain.explain.explainer import versions
from voxplain.io.atomic import output_folder, write_json, write_text
from voxplain.metrics.classification import (
    accuracy_of,
    balanced_accuracy_of,
    confusion_matrix,
    f1_of,
    kappa_of,
    micro_balanced_accuracy_of,
)
from voxplain.metrics.reliability import expected_calibration_error
from voxplain.metrics.statistics import bootstrap_interval
from voxplain.studies.grading_presets import preset as preset_of
from voxplain.studies.grading_training import Store, train_network
from voxplain.studies.markdown_table import table_line
from voxplain.studies.scoring import SCORE_COLUMNS, write_tables

NETWORK, MEANS = "network", "whole-brain means"
# The table of all classes together; each class against the others has its own.
ALL = "all classes"
_CASE_COLUMNS = ("case", "patient", "fold", "row", "kind", "label", "predicted", "probability")
# 003, table II, 21 test cases, of which the epoch seems to have been chosen. "Micro" counts every case once for each
# class, which makes its F1 the accuracy.
_PAPERS_CASES = 21
_PAPER = {
    (ALL, "micro balanced accuracy"): 0.893,
    (ALL, "accuracy"): 0.857,
    (ALL, "kappa"): 0.733,
    ("glioblastoma", "balanced accuracy"): 0.899,
    ("glioblastoma", "F1"): 0.923,
    ("astrocytoma", "balanced accuracy"): 0.838,
    ("astrocytoma", "F1"): 0.727,
    ("oligodendroglioma", "balanced accuracy"): 0.833,
    ("oligodendroglioma", "F1"): 0.8,
}


_PAPERS_CLASSES = {table for table, _ in _PAPER} - {ALL}
# What is worked out of a confusion matrix: of all classes, and of one against the others.
_OF_ALL = {
    "balanced accuracy": balanced_accuracy_of,
    "micro balanced accuracy": micro_balanced_accuracy_of,
    "accuracy": accuracy_of,
    "kappa": kappa_of,
}
_OF_ONE = {"balanced accuracy": balanced_accuracy_of, "F1": lambda matrix: float(f1_of(matrix)[1]), "kappa": kappa_of}


def cross_validate(
    cohort: Cohort,
    out: Path,
    *,
    preset: str = "small",
    folds: int = 5,
    final: bool = False,
    seed: int = 0,
    compute: Compute,
) -> pd.DataFrame:
    """Train one network per fold into `out/fold0`, ..., and score what each says of its test patients.

    `final` also trains one for use into `out/final`, on all patients but those that validate in the first fold.

    Every class is spread evenly over the folds; a sixth of the training patients validates. Beside the network stands
    a logistic model on the logarithm of each sequence's mean over the brain, learnt from the same patients. Finished
    folds are kept; one that was stopped goes on from its last epoch. Writes `scores.tsv`, `cases.tsv`, `tables.md`.

    Returns:
        The figures, with the columns `voxplain.studies.scoring.SCORE_COLUMNS`, all of kind "plain".

    Raises:
        InputError: no such preset, too few patients for the folds, or a folder that holds another training.
    """
    chosen = preset_of(preset, cohort.classes)
    output_folder(out)
    store = Store(chosen.card, compute)
    parts = split(cohort.cases, folds, seed, {case.patient: cohort.labels[case.id] for case in cohort.cases})
    means: dict[str, np.ndarray] = {}
    lines: list[dict[str, Any]] = []
    for index, part in enumerate(parts):
        found = train_network(
            cohort,
            part,
            out / f"fold{index}",
            chosen=chosen,
            store=store,
            seed=seed,
            compute=compute,
            title=f"fold {index}",
        )
        for line in found["predictions"]:
            lines.append(line | {"fold": index, "row": NETWORK, "probability": max(line["probabilities"])})
    for case in tracked(cohort.cases, "whole-brain means", shown=compute.progress):
        scan = case.scan(chosen.card.channels)
        means[case.id] = np.log(np.abs(scan.data[:, scan.foreground()]).mean(axis=1))
    for index, part in enumerate(parts):
        lines += [line | {"fold": index, "row": MEANS} for line in _by_means(cohort, part, means)]
    summary = pd.DataFrame(figures(lines, cohort.classes), columns=list(SCORE_COLUMNS))
    cases = pd.DataFrame([line | {"kind": "plain"} for line in lines])[list(_CASE_COLUMNS)]
    for name in ("label", "predicted"):
        cases[name] = [cohort.classes[place] for place in cases[name]]
    write_tables(cases, summary, out, too_few=cohort.caution)
    facts = {
        "preset": preset,
        "classes": list(cohort.classes),
        "folds": folds,
        "seed": seed,
        "data": cohort.data,
        "card": chosen.card.to_dict(),
        "settings": chosen.settings.record(),
        "versions": versions(),
    } | ({} if cohort.caution is None else {"caution": cohort.caution})
    write_json(facts, out / "facts.json")
    write_text(markdown(summary, lines, cohort), out / "tables.md")
    if final:
        training, validation, tested = parts[0]
        train_network(
            cohort,
            ([*training, *tested], validation, []),
            out / "final",
            chosen=chosen,
            store=store,
            seed=seed,
            compute=compute,
            title="final network",
        )
    return summary


def figures(lines: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[tuple[Any, ...]]:
    """Rows of `scores.tsv`: all classes together, then each class against the others; intervals over patients.

    `lines` hold row, patient, label, predicted (places among the classes) and probability (of the predicted class).
    """
    found: list[tuple[Any, ...]] = []
    for row in dict.fromkeys(line["row"] for line in lines):
        own = [line for line in lines if line["row"] == row]
        labels, predicted, patients, sure = (
            np.array([line[name] for line in own]) for name in ("label", "predicted", "patient", "probability")
        )
        n = len(set(patients.tolist()))

        def add(
            table: str,
            metric: str,
            n: int,
            statistic: Callable[..., float],
            *values: np.ndarray,
            row: str = row,
            patients: np.ndarray = patients,
        ) -> None:
            low, high = bootstrap_interval(values, statistic=statistic, groups=patients)
            found.append((table, row, metric, "plain", statistic(*values), low, high, n))

        pairs = labels * len(classes) + predicted
        for metric, figure in _OF_ALL.items():
            add(ALL, metric, n, partial(_of_pairs, figure=figure, classes=len(classes)), pairs)
        add(ALL, "calibration error", n, expected_calibration_error, (labels == predicted).astype(int), sure)
        for place, name in enumerate(classes):
            pairs = 2 * (labels == place) + (predicted == place)
            count = len(set(patients[labels == place].tolist()))
            for metric, figure in _OF_ONE.items():
                add(name, metric, count, partial(_of_pairs, figure=figure, classes=2), pairs)
    return found


def markdown(summary: pd.DataFrame, lines: Sequence[Mapping[str, Any]], cohort: Cohort) -> str:
    """A table of all classes, one per class, each beside the paper's figure, and the network's confusion matrix."""
    patients = len({line["patient"] for line in lines})
    blocks = [f"{patients} patients, test figures of all folds together. Data: {cohort.data}."]
    if cohort.caution is not None:
        blocks.append(f"**These figures are {cohort.caution}.**")
    for table in dict.fromkeys(summary["table"]):
        its = summary[summary["table"] == table]
        metrics = list(dict.fromkeys(its["metric"]))
        rows = [f"### {table}", "", table_line(["row", *metrics, "n"]), table_line(["---"] * (len(metrics) + 2))]
        for row in dict.fromkeys(its["row"]):
            own = its[its["row"] == row].set_index("metric")
            cells = [f"{own.value[m]:.3f} [{own.low[m]:.3f}, {own.high[m]:.3f}]" for m in metrics]
            rows.append(table_line([row, *cells, str(own.n.iloc[0])]))
        # The paper has three types; beside grades its figures would say nothing.
        if set(cohort.classes) == _PAPERS_CLASSES and any((table, metric) in _PAPER for metric in metrics):
            theirs = [f"{_PAPER[table, m]:.3f}" if (table, m) in _PAPER else "" for m in metrics]
            rows.append(table_line(["003, CPM-RadPath 2020", *theirs, f"{_PAPERS_CASES} cases in all"]))
        blocks.append("\n".join(rows))
    own = [line for line in lines if line["row"] == NETWORK]
    labels, predicted = (np.array([line[name] for line in own]) for name in ("label", "predicted"))
    matrix = confusion_matrix(labels, predicted, classes=len(cohort.classes))
    table = [table_line(["is, said to be", *cohort.classes]), table_line(["---"] * (len(cohort.classes) + 1))]
    table += [table_line([name, *map(str, row)]) for name, row in zip(cohort.classes, matrix.tolist(), strict=True)]
    return "\n\n".join([*blocks, "### Confusion matrix of the network", "\n".join(table)]) + "\n"


def _by_means(
    cohort: Cohort, part: tuple[Sequence[Case], Sequence[Case], Sequence[Case]], means: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """What a logistic model on whole-brain means says of the test cases; all others are what it learns from."""
    known, tested = [*part[0], *part[1]], part[2]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced"))
    model.fit(np.array([means[case.id] for case in known]), [cohort.labels[case.id] for case in known])
    found = []
    for case in tested:
        said = model.predict_proba(means[case.id][None])[0]
        line = {"case": case.id, "patient": case.patient, "label": cohort.labels[case.id]}
        found.append(line | {"predicted": int(model.classes_[said.argmax()]), "probability": float(said.max())})
    return found


def _of_pairs(pairs: np.ndarray, *, figure: Callable[[np.ndarray], float], classes: int) -> float:
    """A figure of cases that are coded as label * classes + predicted, from their confusion matrix."""
    return figure(np.bincount(pairs, minlength=classes**2).reshape(classes, classes))
