"""The grade task on phantoms (software check): do maps show the tumour, and a shortcut where one was planted?

Papers relevance (000, 001) have no such check. Two cohorts of the same made patients: in one the grade shows in the
tumour alone, in the other all patients of high grade, and no others, also bear a bright ball in the cerebellum, where
no tumour grows. A network that learns the second one may read the grade off the ball, and its maps must say so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from voxplain.compute import Compute
from voxplain.datasets.case import Case
from voxplain.datasets.phantom import SHORTCUT_CENTRE_MM, SHORTCUT_RADIUS_MM, SHORTCUT_SEQUENCE
from voxplain.datasets.phantom_cohort import SOFTWARE_CHECK, write_gliomas
from voxplain.engine.progress import tracked
from voxplain.errors import InputError
from voxplain.explain import RelevanceMap
from voxplain.explain.explainer import versions
from voxplain.explanation import Explanation
from voxplain.grid import Grid
from voxplain.io.atomic import output_folder, read_json, write_json, write_text
from voxplain.io.bundle import load_model
from voxplain.metrics.classification import auc_within
from voxplain.metrics.statistics import bootstrap_interval
from voxplain.model import Model
from voxplain.scan import Labels
from voxplain.studies import cross_validation, grades
from voxplain.studies.scoring import CASE_COLUMNS, SCORE_COLUMNS, write_tables

REQUIRED = 0.95
VARIANTS = ("plain", "shortcut")
# The papers' map, and ours, which knows for from against and reads the raw score; supervoxels are cut on FLAIR, as in
# the hemisphere study.
_PAPERS, _OURS = "relevance-map", "relevance-map-signed-logit"
EXPLAINERS = {
    _PAPERS: RelevanceMap(channel="flair"),
    _OURS: RelevanceMap(channel="flair", effect="signed", scale="logit"),
}
# Sixteen times white matter, as bright as a label that was burnt in: the easiest thing in the scan to learn. Networks
# take no notice of a marker that the tumour outdoes (4 or 8 times), and their maps then show the tumour.
_BRIGHTNESS = 16.0
_MARKED = "HGG"
_CRITERIA = {
    "auc": "AUC within folds (test patients)",
    "top_inside_tumour": "top supervoxel inside the tumour (more than half of its voxels)",
    "top_touches_tumour": "top supervoxel holds voxels of the tumour",
    "top_on_shortcut": "top supervoxel is the one that holds most of the marker",
}
_TASK = dataclasses.replace(
    grades.TASK, data=f"glioma phantoms made by voxplain: {SOFTWARE_CHECK}, no patient's scan is among them"
)


def study(
    out: Path,
    *,
    n: int = 60,
    preset: str = "phantoms",
    folds: int = 5,
    seed: int = 0,
    compute: Compute,
    console: Console | None = None,
) -> pd.DataFrame:
    """Make both cohorts, cross-validate the grade task on each, and see what every patient's top supervoxel lies on.

    Each patient is explained by the network of the fold that has not seen them: a supervoxel is blanked, and the map is
    the papers' |change of probability|, or ours, the signed fall of the raw score. Writes `scores.tsv`, `cases.tsv`,
    `tables.md`; the cohorts, folds and maps that are there are kept in `out/plain` and `out/shortcut`.

    Returns:
        A table with the columns `voxplain.studies.scoring.SCORE_COLUMNS`, one table per variant: AUC within folds, and
        shares of patients, all of kind "plain", with bootstrap 95 % intervals over the n patients. Rows
        "relevance-map/HGG" and "/LGG" are of that grade alone. What is explained is the score of "high-grade".

    Raises:
        InputError: no such preset, or too few patients for the folds.
    """
    if n < 6:
        raise InputError(f"the check needs at least 6 patients, three of each grade; got {n}")
    chosen = _TASK.preset(preset)
    output_folder(out)
    tables = []
    for variant in VARIANTS:
        folder = output_folder(out / variant)
        marked = _MARKED if variant == "shortcut" else None
        making = write_gliomas(
            folder / "cohort", n=n, seed=seed, spacing=2.0, shortcut=marked, brightness=_BRIGHTNESS
        )  # fmt: skip
        cases = list(tracked(making, f"{variant}: making patients", shown=compute.progress, total=n))
        cross_validation.cross_validate(
            _TASK, cases, folder / "folds", preset=preset, folds=folds, seed=seed, compute=compute
        )
        tables.append(_cases(variant, cases, folder, folds, seed, compute))
    found = pd.concat(tables, ignore_index=True)
    summary = scores(found, seed=seed)
    write_tables(found, summary, out)
    facts: dict[str, Any] = {
        "what": SOFTWARE_CHECK,
        "n": n,
        "seed": seed,
        "folds": folds,
        "preset": preset,
        "card": chosen.card.to_dict(),
        "settings": chosen.settings.record(),
        "attempts": chosen.attempts,
        "explainers": {name: dataclasses.asdict(explainer) for name, explainer in EXPLAINERS.items()},
        "marker": {"sequence": SHORTCUT_SEQUENCE, "brightness": _BRIGHTNESS, "radius_mm": SHORTCUT_RADIUS_MM},
        "versions": versions(),
    }
    write_json(facts, out / "provenance.json")
    caution = grades.too_few(cases)
    text = markdown(summary, caution)
    write_text(text, out / "tables.md")
    (console or Console()).print(text, highlight=False, soft_wrap=True, markup=False)
    return summary


def judged(why: Explanation, tumour: Labels, marker: np.ndarray | None) -> dict[str, float]:
    """What the top supervoxel of a map lies on: 1 or 0 for each criterion, and its share inside the tumour, 0 to 1.

    Inside the tumour: more than half of its voxels are tumour. On the shortcut: it is the supervoxel that holds the
    most voxels of the marker (boolean, on the map's grid); not judged without a marker.

    Raises:
        InputError: the map has no parts.
    """
    if why.parts is None or why.scores is None:
        raise InputError("the top supervoxel is that of a map of parts (such as a relevance map); got none")
    parts = why.parts.data
    top = int(why.ranks()["label"].iloc[0])
    share = float(np.mean(tumour.data[parts == top] > 0))
    found = {"top_inside_tumour": float(share > 0.5), "top_touches_tumour": float(share > 0), "share_in_tumour": share}
    if marker is not None:
        held = np.bincount(parts[marker], minlength=len(why.scores) + 1)[1:]
        found["top_on_shortcut"] = float(int(np.argmax(held)) + 1 == top)
    return found


def marker_mask(grid: Grid) -> np.ndarray:
    """The voxels of the planted marker, boolean (X, Y, Z)."""
    index = np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3)
    away = np.linalg.norm(grid.world(index) - np.array(SHORTCUT_CENTRE_MM), axis=1)
    return (away <= SHORTCUT_RADIUS_MM).reshape(grid.shape)


def _cases(
    variant: str,
    cases: Sequence[Case],
    folder: Path,
    folds: int,
    seed: int,
    compute: Compute,
) -> pd.DataFrame:
    """Every patient judged by the network that has not seen them; each is kept in `folder/maps`."""
    kept = output_folder(folder / "maps")
    quiet = dataclasses.replace(compute, progress=False)
    by_id = {case.id: case for case in cases}
    work: list[tuple[int, Model, dict[str, Any]]] = []
    for index in range(folds):
        metrics = read_json(folder / "folds" / f"fold{index}" / "metrics.json")
        assert metrics is not None
        model = load_model(folder / "folds" / f"fold{index}")
        work += [(index, model, line) for line in metrics["predictions"]]
    rows: list[tuple[str, str, int, str, str, str, str, str, float]] = []
    for index, model, line in tracked(work, f"{variant}: explaining", shown=compute.progress):
        case = by_id[line["case"]]
        path = kept / f"{case.id}.json"
        options = {name: dataclasses.asdict(explainer) for name, explainer in EXPLAINERS.items()}
        identity = [model.fingerprint, options, seed]
        known = read_json(path)
        if known is None or known["identity"] != identity:
            scan, tumour = case.scan(), case.tumour()
            marked = variant == "shortcut" and case.grade == _MARKED
            marker = marker_mask(scan.grid) if marked else None
            found = {
                name: judged(explainer(model, scan, seed=seed, compute=quiet), tumour, marker)
                for name, explainer in EXPLAINERS.items()
            }
            known = {"identity": identity, "found": found}
            write_json(known, path)
        values = {("network", name): line[name] for name in ("label", "probability")}
        for name, its in known["found"].items():
            values |= {(f"{name}/{case.grade}", metric): value for metric, value in its.items()}
        for (row, metric), value in values.items():
            rows.append((case.id, case.patient, index, "whole", variant, row, metric, "plain", float(value)))
    return pd.DataFrame(rows, columns=list(CASE_COLUMNS))


def scores(found: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Sum up the patients of both variants: AUC within folds, and shares, over all and by grade."""
    rows: list[tuple[str, str, str, str, float, float, float, int]] = []
    for variant, its in found.groupby("table", sort=False):
        network = its[its["row"] == "network"].pivot(index=["patient", "fold"], columns="metric", values="value")
        network = network.reset_index()
        arrays = tuple(network[name].to_numpy() for name in ("label", "probability", "fold"))
        low, high = bootstrap_interval(arrays, statistic=auc_within, groups=network["patient"].to_numpy(), seed=seed)
        rows.append((str(variant), "network", "auc", "plain", auc_within(*arrays), low, high, len(network)))
        maps = its[its["row"] != "network"]
        method = maps["row"].str.partition("/")[0]
        for (name, metric), of in maps.groupby([method, "metric"], sort=False):
            by_grade = [(str(row), group) for row, group in of.groupby("row")]
            for row, group in by_grade if len(by_grade) == 1 else [(str(name), of), *by_grade]:
                low, high = bootstrap_interval(group["value"].to_numpy(), groups=group["patient"].to_numpy(), seed=seed)
                n = group["patient"].nunique()
                rows.append((str(variant), row, str(metric), "plain", float(group["value"].mean()), low, high, n))
    return pd.DataFrame(rows, columns=list(SCORE_COLUMNS))


def markdown(summary: pd.DataFrame, caution: str | None = None) -> str:
    """The figures beside what is required of them, in Markdown."""
    required = {(variant, "network", "auc") for variant in VARIANTS}
    for name in EXPLAINERS:
        required |= {("plain", row, "top_inside_tumour") for row in (name, f"{name}/{_MARKED}")}
        required |= {("shortcut", f"{name}/{_MARKED}", "top_on_shortcut")}
    lines = [f"**{SOFTWARE_CHECK}**: grade of made gliomas" + (f"; {caution}" if caution else ""), ""]
    lines += ["| variant | row | figure | kind | measured | required | n |", "|---|---|---|---|---|---|---:|"]
    for line in summary.to_dict(orient="records"):
        if line["metric"] not in _CRITERIA:
            continue
        asked = (line["table"], line["row"], line["metric"]) in required
        met = "" if not asked else f">= {REQUIRED}: {'met' if line['value'] >= REQUIRED else 'missed'}"
        measured = f"{line['value']:.2f} [{line['low']:.2f}, {line['high']:.2f}]"
        cells = (line["table"], line["row"], _CRITERIA[line["metric"]], line["kind"], measured, met, str(line["n"]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
