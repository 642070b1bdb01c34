"""Segmentation of paper instance (004): each patient left out of a training of its own and scored; a final network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from voxplain.compute import Compute
from voxplain.datasets import multiple_sclerosis
from voxplain.datasets.case import Case
from voxplain.errors import InputError
from voxplain.explain.explainer import versions
from voxplain.io.atomic import write_json, write_text, writing
from voxplain.io.bundle import load_model
from voxplain.lesions import find_lesions, instances
from voxplain.metrics.lesionwise import f1_of, lesion_f1, lesion_precision, lesion_recall, normalised_dice, touched
from voxplain.metrics.network_free import flair_outliers
from voxplain.metrics.overlap import best_threshold, dice
from voxplain.metrics.statistics import bootstrap_interval
from voxplain.model import Model
from voxplain.prediction import predict, write_prediction
from voxplain.scan import Labels
from voxplain.studies.lesion_presets import LesionPreset, preset
from voxplain.studies.lesion_training import train_network
from voxplain.studies.markdown_table import table_line

COLUMNS = ("table", "row", "metric", "kind", "value", "low", "high", "n")
# A lesion larger than this has grown together from many; it would be all that a Dice speaks of.
CONFLUENT_MM3 = 10_000.0
# 004: 560 patients for training, 101 scans of 37 for these. The last three follow from its counts of lesions.
PAPER = {"Dice": 0.60, "normalised Dice": 0.71, "lesion precision": 0.627, "lesion recall": 0.794, "lesion F1": 0.701}


def train(
    data: Path,
    out: Path,
    *,
    size: str = "small",
    leave_out: str | None = None,
    final: bool = True,
    seed: int = 0,
    compute: Compute,
    console: Console,
) -> pd.DataFrame:
    """Train and score one network per patient left out (or for one of them alone), and the final one on all patients.

    Whatever is finished in `out` is kept: `without-ID/` and `final/` are model folders, `ID/` the prediction of a
    patient by the network that never saw it; `scores.tsv` holds the figures, `cases.tsv` those of each patient.

    Returns:
        The figures, with the columns of `scores.tsv`.

    Raises:
        InputError: no such patient or preset, a patient without expert mask, or fewer than two patients.
    """
    chosen = preset(size)
    cases = [case for case in multiple_sclerosis.cases(data) if case.segmentation is not None]
    shapes = multiple_sclerosis.lesion_shapes(data)
    names = [case.id for case in cases]
    if leave_out is not None and leave_out not in names:
        raise InputError(f"--leave-out names a patient with expert mask, one of {', '.join(names)}; got {leave_out!r}")
    if len(cases) < 2:
        raise InputError(f"leaving a patient out needs two with expert masks; {data} has {', '.join(names) or 'none'}")
    for case in cases:
        if leave_out not in (None, case.id):
            continue
        folder = out / f"without-{case.id}"
        others = [other for other in cases if other.id != case.id]
        train_network(
            others, shapes, folder, preset=chosen, seed=seed, compute=compute, title=f"training without {case.id}"
        )
        _score(case, load_model(folder), out / case.id, chosen, compute)
        console.print(f"{case.id}: {out / case.id}", highlight=False, soft_wrap=True)
    summary = _summary(out, names)
    if leave_out is None and final:
        train_network(cases, shapes, out / "final", preset=chosen, seed=seed, compute=compute, title="final network")
        console.print(f"model: {out / 'final'}", highlight=False, soft_wrap=True)
    _write(summary, out, size=size, seed=seed)
    return summary


def _score(case: Case, model: Model, folder: Path, chosen: LesionPreset, compute: Compute) -> None:
    """Segment a patient with the network that never saw it, and write `cases.tsv` and `lesions.tsv`; once."""
    if case.id in model.card.training_ids:
        raise InputError(f"the network in {folder.parent} has seen {case.id}; give another --out")
    if (folder / "cases.tsv").is_file():
        return
    scan, reference = case.scan(["flair", "t1"]), case.tumour()
    threshold = model.card.threshold
    prediction = predict(model, scan, compute=compute)
    lesions = find_lesions(prediction.mask(threshold), probability=prediction.probability, reference=reference)
    facts = {"threshold": threshold, "seen": False, "preset": dataclasses.asdict(chosen)["settings"]}
    write_prediction(prediction, lesions, folder, facts=facts)
    best = best_threshold(prediction.probability, reference.data > 0)
    masks = {
        ("unet", "deployable"): prediction.mask(threshold),
        ("unet", "oracle"): prediction.mask(min(max(best.threshold, 1e-6), 1 - 1e-6)),
        ("intensity/flair-outliers", "deployable"): Labels(flair_outliers(scan), scan.grid),
        ("whole-brain", "deployable"): Labels(scan.foreground(), scan.grid),
    }
    inside = scan.foreground()
    lines = []
    for (row, kind), mask in masks.items():
        intervals = over_lesions(mask, reference)
        for metric, value in figures(mask, reference, inside).items():
            low, high = intervals.get(metric, (np.nan, np.nan))
            its = {"case": case.id, "row": row, "kind": kind, "metric": metric, "value": value}
            lines.append(its | {"low": low, "high": high})
    with writing(folder / "cases.tsv") as temporary:
        pd.DataFrame(lines).to_csv(temporary, sep="\t", index=False, float_format="%.6g")


def figures(mask: Labels, reference: Labels, inside: np.ndarray) -> dict[str, float]:
    """All figures of one mask beside the expert's, both with lesions of at least 5 mm^3; `inside` is the brain.

    "Dice without confluent" leaves the voxels of lesions above 10 ml out of both masks, but nothing of what is
    predicted around them.
    """
    predicted, expert = instances(mask).data, instances(reference).data
    whole, truth = mask.data > 0, reference.data > 0
    sizes = np.bincount(expert.ravel()) * reference.grid.voxel_volume
    confluent = np.isin(expert, np.flatnonzero(sizes[1:] > CONFLUENT_MM3) + 1)
    return {
        "Dice": dice(whole, truth),
        "Dice without confluent": dice(whole & ~confluent, truth & ~confluent),
        "normalised Dice": normalised_dice(whole[inside], truth[inside]),
        "lesion precision": lesion_precision(predicted, expert),
        "lesion recall": lesion_recall(predicted, expert),
        "lesion F1": lesion_f1(predicted, expert),
        "predicted lesions": float(predicted.max()),
        "expert lesions": float(expert.max()),
        "volume (ml)": mask.volume,
        "expert volume (ml)": reference.volume,
    }


def over_lesions(mask: Labels, reference: Labels, *, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Bootstrap intervals of lesion precision, recall and F1 over the lesions of one patient, not over patients."""
    predicted, expert = instances(mask).data, instances(reference).data
    found = [touched(predicted, expert), touched(expert, predicted)]
    side = np.concatenate([np.full(flags.size, side) for side, flags in enumerate(found)])
    right = np.concatenate(found).astype(float)

    def precision(side: np.ndarray, right: np.ndarray) -> float:
        return float(right[side == 0].mean()) if (side == 0).any() else np.nan

    def recall(side: np.ndarray, right: np.ndarray) -> float:
        return float(right[side == 1].mean()) if (side == 1).any() else np.nan

    def f1(side: np.ndarray, right: np.ndarray) -> float:
        return f1_of(precision(side, right), recall(side, right))

    statistics = {"lesion precision": precision, "lesion recall": recall, "lesion F1": f1}
    return {
        name: bootstrap_interval((side, right), statistic=statistic, resamples=1000, seed=seed)
        for name, statistic in statistics.items()
    }


def _summary(out: Path, names: Sequence[str]) -> pd.DataFrame:
    """The figures of all patients that are scored: each by itself, and their mean."""
    found = [pd.read_csv(out / name / "cases.tsv", sep="\t") for name in names if (out / name / "cases.tsv").is_file()]
    lines = pd.concat(found, ignore_index=True).rename(columns={"case": "table"}).assign(n=1)
    means = []
    for (row, kind, metric), its in lines.groupby(["row", "kind", "metric"], sort=False):
        if len(its) > 1 and not str(metric).endswith(("lesions", "(ml)")):
            value = {"value": its["value"].mean(), "low": np.nan, "high": np.nan, "n": len(its)}
            means.append({"table": "mean", "row": row, "metric": metric, "kind": kind} | value)
    return pd.concat([lines, pd.DataFrame(means)], ignore_index=True)[list(COLUMNS)]


def _write(summary: pd.DataFrame, out: Path, *, size: str, seed: int) -> None:
    with writing(out / "scores.tsv") as temporary:
        summary.to_csv(temporary, sep="\t", index=False, float_format="%.5g")
    write_text(markdown(summary), out / "tables.md")
    write_json({"preset": size, "seed": seed, "versions": versions()}, out / "facts.json")


def markdown(summary: pd.DataFrame) -> str:
    """A table per patient and one of the means, with the paper's figures beside ours."""
    blocks = []
    for table in dict.fromkeys(summary.table):
        its = summary[summary.table == table]
        metrics = list(dict.fromkeys(its.metric))
        head = ["row", "kind", *metrics]
        lines = [f"### {table}", "", table_line(head), table_line(["---"] * len(head))]
        for row, kind in dict.fromkeys(zip(its.row, its.kind, strict=True)):
            found = its[(its.row == row) & (its.kind == kind)].set_index("metric")
            lines.append(table_line([row, kind, *(_cell(found, metric) for metric in metrics)]))
        if table == "mean":
            paper = [f"{PAPER[metric]:.2f}" if metric in PAPER else "" for metric in metrics]
            lines.append(table_line(["004, 101 scans of 37 patients", "validation-masks", *paper]))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _cell(found: pd.DataFrame, metric: str) -> str:
    value, low, high = (float(str(found.loc[metric, name])) for name in ("value", "low", "high"))
    if np.isnan(value):
        return "-"
    if metric.endswith("lesions"):
        return f"{value:.0f}"
    if metric.endswith("(ml)"):
        return f"{value:.1f}"
    return f"{value:.3f}" + ("" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]")
