"""Segmentation of paper grading (003): a network learns the parts of gliomas, cross-validated by patient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from voxplain.compute import Compute
from voxplain.datasets.case import Case
from voxplain.datasets.hemispheres import split
from voxplain.datasets.tumour_masks import PARTS, Masked
from voxplain.engine.progress import tracked
from voxplain.errors import InputError
from voxplain.explain.explainer import versions
from voxplain.io.atomic import output_folder, write_json, write_text, writing
from voxplain.io.bundle import load_model
from voxplain.lesions import instances
from voxplain.metrics.lesionwise import lesion_f1
from voxplain.metrics.network_free import network_free_masks
from voxplain.metrics.overlap import dice, hausdorff95, volume_error
from voxplain.metrics.statistics import bootstrap_interval
from voxplain.model import Model
from voxplain.prediction import predict_classes
from voxplain.scan import Labels, Scan
from voxplain.studies.markdown_table import table_line
from voxplain.studies.scoring import SCORE_COLUMNS
from voxplain.studies.tumour_presets import preset as preset_of
from voxplain.studies.tumour_training import Store, train_network
from voxplain.tumour_regions import NAMES, regions_in, regions_of

NETWORK, FLAIR = "network", "intensity/flair"
# Pieces of a region that count as lesions, as in BraTS 2023.
_SMALLEST_MM3 = 50.0
# 003, IV.C: Dice of 84 validation scans, which are also what the network was chosen on.
_PAPER = {"WT": 0.8849, "TC": 0.8041, "ET": 0.7787}
_PAPERS_CASES = 84


def cross_validate(
    masked: Masked,
    out: Path,
    *,
    preset: str = "small",
    outputs: str = "parts",
    folds: int = 5,
    final: bool = True,
    seed: int = 0,
    compute: Compute,
) -> pd.DataFrame:
    """Train one network per fold into `out/fold0`, ..., score each on its test patients, and one on all patients.

    Beside the network stands bright FLAIR, which needs none. Finished folds and cases are kept; a fold that was stopped
    goes on from its last epoch. Writes `cases.tsv`, `scores.tsv`, `tables.md` and, unless told not to, `final`.

    Returns:
        The figures, with the columns `voxplain.studies.scoring.SCORE_COLUMNS`.

    Raises:
        InputError: no such preset or outputs, too few patients for the folds, or a folder that holds another training.
    """
    chosen = preset_of(preset, outputs)
    output_folder(out)
    store = Store(chosen.card, compute)
    lines: list[dict[str, Any]] = []
    for index, (training, validation, tested) in enumerate(split(masked.cases, folds, seed)):
        folder = out / f"fold{index}"
        train_network(
            [*training, *validation],
            masked.data,
            folder,
            chosen=chosen,
            store=store,
            seed=seed,
            compute=compute,
            title=f"fold {index}",
        )
        model = load_model(folder)
        for case in tracked(tested, f"fold {index}: scoring", shown=compute.progress):
            lines += [line | {"fold": index} for line in _scored(case, model, folder, compute)]
    cases = pd.DataFrame(lines)
    summary = figures(cases, seed=seed)
    for table, name in ((cases, "cases.tsv"), (summary, "scores.tsv")):
        with writing(out / name) as temporary:
            table.to_csv(temporary, sep="\t", index=False, float_format="%.9g")
    facts = {"preset": preset, "outputs": outputs, "folds": folds, "seed": seed, "data": masked.data}
    write_json(facts | {"card": chosen.card.to_dict(), "versions": versions()}, out / "facts.json")
    write_text(markdown(summary, cases, masked.data), out / "tables.md")
    if final:
        train_network(
            masked.cases,
            masked.data,
            out / "final",
            chosen=chosen,
            store=store,
            seed=seed,
            compute=compute,
            title="final network",
        )
    return summary


def _scored(case: Case, model: Model, folder: Path, compute: Compute) -> list[dict[str, Any]]:
    """The figures of one case, worked out once and kept beside the network."""
    if case.id in model.card.training_ids:
        raise InputError(f"the network in {folder} has seen {case.id}; give another --out")
    path = folder / "cases" / f"{case.id}.tsv"
    if path.is_file():
        known = pd.read_csv(path, sep="\t", dtype={"case": str, "patient": str})
        return [{str(name): value for name, value in line.items()} for line in known.to_dict("records")]
    output_folder(path.parent)
    scan, reference = case.scan(model.card.channels), case.parts(PARTS)
    predicted = {name: found.probability for name, found in predict_classes(model, scan, compute=compute).items()}
    lines = [
        {"case": case.id, "patient": case.patient, "row": row, "region": region, "kind": "deployable"} | found
        for row, masks in (
            (NETWORK, regions_of(predicted, model.card.threshold)),
            (FLAIR, {"WT": network_free_masks(scan)[FLAIR]}),
        )
        for region, found in region_figures(masks, regions_in(reference.data), scan).items()
    ]
    with writing(path) as temporary:
        pd.DataFrame(lines).to_csv(temporary, sep="\t", index=False, float_format="%.9g")
    return lines


def region_figures(
    masks: Mapping[str, np.ndarray], references: Mapping[str, np.ndarray], scan: Scan
) -> dict[str, dict[str, float]]:
    """Dice, 95 % Hausdorff distance (mm), lesion-wise F1 and volume error (ml) of each region that has a mask.

    Lesion-wise, every 18-connected piece of at least 50 mm^3 counts as one, found if one voxel of it overlaps.
    """
    found = {}
    for region, mask in masks.items():
        reference = references[region]
        pieces = [
            instances(Labels(side.astype(np.int32), scan.grid), smallest=_SMALLEST_MM3).data
            for side in (mask, reference)
        ]
        found[region] = {
            "Dice": dice(mask, reference),
            "HD95 (mm)": hausdorff95(mask, reference, spacing=scan.grid.spacing),
            "lesion F1": lesion_f1(*pieces),
            "volume error (ml)": volume_error(mask, reference, voxel_volume=scan.grid.voxel_volume),
        }
    return found


def figures(cases: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Mean and bootstrap interval over patients of every figure; a distance that does not exist is left out, n says so.

    Dice has its median, too.
    """
    rows = []
    for (region, row), its in cases.groupby(["region", "row"], sort=False):
        for metric in ("Dice", "HD95 (mm)", "lesion F1", "volume error (ml)"):
            known = its[its[metric].notna()]
            statistics: dict[str, Callable[..., float]] = {metric: _mean}
            if metric == "Dice":
                statistics["median Dice"] = _median
            for name, statistic in statistics.items():
                values = known[metric].to_numpy(dtype=float)
                value = low = high = np.nan
                if len(values):
                    value = statistic(values)
                    low, high = bootstrap_interval(
                        (values,), statistic=statistic, groups=known["patient"].to_numpy(), seed=seed
                    )
                n = int(known["patient"].nunique())
                rows.append((str(region), str(row), name, "deployable", value, low, high, n))
    return pd.DataFrame(rows, columns=list(SCORE_COLUMNS))


def _mean(values: np.ndarray) -> float:
    return float(values.mean())


def _median(values: np.ndarray) -> float:
    return float(np.median(values))


def markdown(summary: pd.DataFrame, cases: pd.DataFrame, data: str) -> str:
    """A table per region, with the paper's Dice beside ours."""
    blocks = [
        f"{cases['patient'].nunique()} patients, each by the network of the fold that never saw it; threshold 0.5, "
        f"fixed beforehand; means with bootstrap 95 % intervals over patients. Data: {data}."
    ]
    for region in (name for name in NAMES if name in set(summary["table"])):
        its = summary[summary["table"] == region]
        metrics = list(dict.fromkeys(its["metric"]))
        lines = [f"### {region}, {NAMES[region]}", "", table_line(["row", "kind", *metrics, "n"])]
        lines.append(table_line(["---"] * (len(metrics) + 3)))
        for row in dict.fromkeys(its["row"]):
            own = its[its["row"] == row].set_index("metric")
            cells = [_cell(own.loc[metric], int(own["n"].max())) for metric in metrics]
            lines.append(table_line([row, str(own["kind"].iloc[0]), *cells, str(own["n"].max())]))
        theirs = [f"{_PAPER[region]:.3f}" if metric == "Dice" else "" for metric in metrics]
        lines.append(table_line(["003, Decathlon", "validation-masks", *theirs, f"{_PAPERS_CASES} scans"]))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _cell(line: pd.Series, patients: int) -> str:
    if np.isnan(line["value"]):
        return "-"
    digits = 3 if "(" not in str(line.name) else 1
    said = f"{line['value']:.{digits}f} [{line['low']:.{digits}f}, {line['high']:.{digits}f}]"
    return said + ("" if line["n"] == patients else f" (n = {line['n']})")
