"""`voxplain study grading` (paper grading, 003): how well types are told apart, and whether maps show the tumour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from voxplain.compute import Compute
from voxplain.datasets.case import Case
from voxplain.datasets.hemispheres import split
from voxplain.datasets.phantom_cohort import RECORD, SOFTWARE_CHECK
from voxplain.datasets.tumour_classes import Cohort
from voxplain.diagnosis import diagnose
from voxplain.engine.progress import tracked
from voxplain.errors import InputError
from voxplain.explain.cam import ClassActivationMap
from voxplain.explain.explainer import versions
from voxplain.io.atomic import output_folder, read_json, write_json, write_text, writing
from voxplain.io.bundle import load_model
from voxplain.metrics.classification import confusion_matrix
from voxplain.metrics.reliability import reliability_curve
from voxplain.report.grading_figures import confusion_picture, reliability_picture
from voxplain.report.study_page import study_page
from voxplain.studies import grading, grading_maps
from voxplain.studies.diagnosis_files import write_diagnosis
from voxplain.studies.grading_presets import preset as preset_of
from voxplain.studies.grading_training import Store, train_network
from voxplain.studies.markdown_table import table_line
from voxplain.studies.scoring import SCORE_COLUMNS, marked

_MARKERS = "shortcut"
TITLES = {
    grading_maps.MAPS: "Maps of the predicted class beside the expert's tumour, over the voxels of the head",
    grading_maps.BY_CLASS: "Grad-CAM at the first block, by class",
    grading_maps.EMPTY: "Grad-CAM at the first block, on axial slices without tumour",
    grading_maps.MARKER: "A network that learnt a planted marker: do its maps point at the marker?",
}


def run(
    cohort: Cohort,
    out: Path,
    *,
    preset: str = "small",
    folds: int = 5,
    networks: Path | None = None,
    shortcut: Cohort | None = None,
    segmenter: str | None = None,
    seed: int = 0,
    compute: Compute,
    console: Console,
) -> pd.DataFrame:
    """Cross-validate the classifier, explain every test case, and put a planted shortcut to the test.

    Resumable: folds, cases and the shortcut's network are kept as they come. Writes `classes.tsv`, `maps.tsv`,
    `scores.tsv`, `tables.md`, pictures and `report.html`.

    Args:
        cohort: cases with classes and expert masks.
        out: the study's folder; networks go to `out/networks` where `networks` is None.
        preset: as of `voxplain train grading`.
        folds: by patient.
        networks: the folder of a `voxplain train grading` run of this very cohort.
        shortcut: phantoms of which one class bears the marker.
        segmenter: a segmenter's name or folder: one test case is diagnosed with it, as an example.
        seed: the seed of everything random.
        compute: how to run.
        console: where progress is printed.

    Returns:
        All figures, with the columns of `scores.tsv`.

    Raises:
        InputError: cases without expert mask, a shortcut cohort without marker, or what `cross_validate` refuses.
    """
    if lacking := [case.id for case in cohort.cases if case.segmentation is None]:
        raise InputError(
            f"maps are compared with expert masks; {len(lacking)} cases have none: {', '.join(lacking[:5])}"
        )
    output_folder(out)
    folder = networks or out / "networks"
    summary = grading.cross_validate(cohort, folder, preset=preset, folds=folds, seed=seed, compute=compute)
    console.print(f"networks: {folder}", highlight=False, soft_wrap=True)
    parts = split(cohort.cases, folds, seed, {case.patient: cohort.labels[case.id] for case in cohort.cases})
    jobs = [(index, case) for index, (_, _, tested) in enumerate(parts) for case in tested]
    models = [load_model(folder / f"fold{index}") for index in range(folds)]
    quiet = Compute(device=compute.device, memory=compute.memory, threads=compute.threads)
    lines: list[dict[str, Any]] = []
    for index, case in tracked(jobs, "explaining", shown=compute.progress):
        name = cohort.classes[cohort.labels[case.id]]
        lines += grading_maps.lines_of(
            case,
            name,
            models[index],
            out / "maps",
            methods=_methods(preset),
            # One pass per feature map: the first fold is enough, and of a smoke run the first case.
            slow=index == 0 and (preset != "quick" or case is jobs[0][1]),
            seed=seed,
            compute=quiet,
        )
    marked_lines: list[dict[str, Any]] = []
    if shortcut is not None:
        marked_lines = _shortcut(shortcut, out / _MARKERS, preset, folds, seed, compute)
    rows = pd.DataFrame(grading_maps.figures(lines, marked_lines), columns=list(SCORE_COLUMNS))
    whole = pd.concat([summary, rows], ignore_index=True)
    for table, name in ((pd.DataFrame(lines), "maps.tsv"), (marked(whole, cohort.caution), "scores.tsv")):
        with writing(out / name) as temporary:
            table.to_csv(temporary, sep="\t", index=False, float_format="%.9g")
    classes = pd.read_csv(folder / "cases.tsv", sep="\t")
    with writing(out / "classes.tsv") as temporary:
        classes.to_csv(temporary, sep="\t", index=False, float_format="%.9g")
    own = classes[classes["row"] == grading.NETWORK]
    pictures = _pictures(own, cohort.classes)
    for name, picture in pictures.items():
        with writing(out / f"{name}.png") as temporary:
            temporary.write_bytes(picture)
    if segmenter is not None:
        _example(cohort, jobs, own, models, segmenter, out / "example", quiet)
    facts = {
        "preset": preset,
        "folds": folds,
        "seed": seed,
        "data": cohort.data,
        "classes": list(cohort.classes),
        "headline": f"{grading_maps.HEADLINE} at the first block, fixed beforehand as the paper has it",
        "card": preset_of(preset, cohort.classes).card.to_dict(),
        "versions": versions(),
    } | ({} if cohort.caution is None else {"caution": cohort.caution})
    write_json(facts, out / "facts.json")
    text = (folder / "tables.md").read_text(encoding="utf-8") + "\n" + markdown(rows, cohort.caution)
    write_text(text, out / "tables.md")
    _page(out, whole, pictures, cohort, facts)
    return whole


def _shortcut(
    shortcut: Cohort, folder: Path, preset: str, folds: int, seed: int, compute: Compute
) -> list[dict[str, Any]]:
    """Train the first fold on marked phantoms, and see where its maps of the marked class lie in its test cases."""
    marks = {case.id: _is_marked(case) for case in shortcut.cases}
    classes = {shortcut.classes[shortcut.labels[name]] for name, is_so in marks.items() if is_so}
    if len(classes) != 1:
        raise InputError(
            "--shortcut is a cohort of phantoms of which one class bears the marker, as `voxplain phantom glioma "
            "--types --shortcut G --brightness 16` makes them; classes with a marker here: "
            f"{', '.join(sorted(classes)) or 'none'}"
        )
    (name,) = classes
    chosen = preset_of(preset, shortcut.classes)
    parts = split(shortcut.cases, folds, seed, {case.patient: shortcut.labels[case.id] for case in shortcut.cases})
    store = Store(chosen.card, compute)
    train_network(
        shortcut, parts[0], folder / "fold0", chosen=chosen, store=store, seed=seed, compute=compute, title="shortcut"
    )
    model = load_model(folder / "fold0")
    quiet = Compute(device=compute.device, memory=compute.memory, threads=compute.threads)
    tested = [case for case in parts[0][2] if marks[case.id]]
    lines: list[dict[str, Any]] = []
    for case in tracked(tested, "explaining the shortcut", shown=compute.progress):
        lines += grading_maps.marker_lines(
            case, model, folder / "maps", marked=name, methods=_methods(preset), compute=quiet
        )
    return lines


def _methods(preset: str) -> Sequence[ClassActivationMap]:
    """All of them; of a smoke run the first two."""
    return grading_maps.METHODS[:2] if preset == "quick" else grading_maps.METHODS


def _is_marked(case: Case) -> bool:
    return _record(case).get("shortcut") is not None


def _record(case: Case) -> dict[str, Any]:
    """What a phantom's folder says of it; nothing for a case that is none."""
    record = read_json(next(iter(case.files.values())).parent / RECORD) or {}
    return record if record.get("what") == SOFTWARE_CHECK else {}


def _pictures(own: pd.DataFrame, classes: Sequence[str]) -> dict[str, bytes]:
    places = {name: place for place, name in enumerate(classes)}
    labels, predicted = (own[name].map(places).to_numpy(dtype=int) for name in ("label", "predicted"))
    curve = reliability_curve((labels == predicted).astype(int), own["probability"].to_numpy(dtype=float))
    return {
        "reliability": reliability_picture({"network": curve}),
        "confusion": confusion_picture(confusion_matrix(labels, predicted, classes=len(classes)), classes),
    }


def _example(
    cohort: Cohort,
    jobs: Sequence[tuple[int, Case]],
    own: pd.DataFrame,
    models: Sequence[Any],
    segmenter: str,
    folder: Path,
    compute: Compute,
) -> None:
    """Diagnose the first test case that was classed rightly, or the first of all; once."""
    if (folder / "diagnosis.json").is_file():
        return
    right = set(own.loc[own["label"] == own["predicted"], "case"])
    index, case = next((job for job in jobs if job[1].id in right), jobs[0])
    scan = case.scan()
    found = diagnose(models[index], load_model(segmenter), scan, compute=compute)
    note = SOFTWARE_CHECK if _record(case) else None
    write_diagnosis(found, scan, folder, sources=case.files, seen={"classifier": False}, truth=case.tumour(), note=note)


def markdown(rows: pd.DataFrame, caution: str | None = None) -> str:
    """The tables of maps: row, kind, every metric with its interval, n."""
    blocks = []
    for table, title in TITLES.items():
        lines = table_lines(rows, table, caution)
        if len(lines) > 1:
            head, *rest = (table_line(list(line)) for line in lines)
            blocks.append("\n".join([f"### {title}", "", head, table_line(["---"] * len(lines[0])), *rest]))
    return "\n\n".join(blocks) + "\n"


def table_lines(rows: pd.DataFrame, table: str, caution: str | None = None) -> list[tuple[str, ...]]:
    """One table as text, header first."""
    its = rows[rows["table"] == table]
    metrics = list(dict.fromkeys(its["metric"]))
    lines: list[tuple[str, ...]] = [("row", "kind", *metrics, "n")]
    for row in dict.fromkeys(its["row"]):
        own = its[its["row"] == row].set_index("metric")
        cells = [_cell(own, metric) for metric in metrics]
        kind = str(own["kind"].iloc[0]) + ("" if caution is None else f", {caution}")
        lines.append((row, kind, *cells, str(int(own["n"].max()))))
    return lines


def _cell(own: pd.DataFrame, metric: str) -> str:
    if metric not in own.index:
        return ""
    value, low, high = (float(str(own.loc[metric, name])) for name in ("value", "low", "high"))
    if np.isnan(value):
        return "-"
    digits = 1 if "mm" in metric else 3
    return f"{value:.{digits}f}" + ("" if np.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]")


def _page(
    out: Path, whole: pd.DataFrame, pictures: Mapping[str, bytes], cohort: Cohort, facts: Mapping[str, Any]
) -> None:
    tables: dict[str, list[tuple[str, ...]]] = {
        title: table_lines(whole, table, cohort.caution) for table, title in TITLES.items()
    }
    for name in (grading.ALL, *cohort.classes):
        tables[f"Classification: {name}"] = table_lines(whole, name, cohort.caution)
    notes = [
        "Research software: not for diagnosis.",
        f"Data: {cohort.data}.",
        "Every case is classed and explained by the network of the fold that has not seen its patient.",
        "Maps: Grad-CAM at the first block was fixed beforehand, as the paper has it; all else is beside it. "
        "random-map and edge-detector know nothing of the network.",
    ] + ([f"These figures are {cohort.caution}."] if cohort.caution else [])
    study_page(
        out / "report.html",
        title="Grading with its reasons shown (paper grading, 003)",
        notes=notes,
        pictures={
            "Can the probabilities be believed? Size: share of the cases": pictures["reliability"],
            "What is taken for what": pictures["confusion"],
        },
        tables=tables,
        provenance=facts,
    )
