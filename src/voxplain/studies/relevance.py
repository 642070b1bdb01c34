"""The relevance study: the five evaluations of papers 000 and 001, their figures beside ours.

Folds are trained, or reused where they are finished; on validation patients the grid chooses supervoxels and fill; a
perturbation network is trained against each of the first folds; and every method is scored on test patients, beside
what needs no network.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from voxplain.compute import Compute
from voxplain.datasets.case import Case
from voxplain.engine.progress import tracked
from voxplain.errors import InputError
from voxplain.explain.explainer import versions
from voxplain.explain.fills import check_fill_fits, fill_named
from voxplain.explain.optimal import PerturbationSettings, load_perturbation_network
from voxplain.io.atomic import output_folder, read_json, write_json
from voxplain.io.bundle import load_model
from voxplain.model import Model
from voxplain.studies import grades, hemispheres
from voxplain.studies.along_training import along_training
from voxplain.studies.perturbation import train_optimal
from voxplain.studies.relevance_grid import best_cell, cells_of, fills_of, score_cells
from voxplain.studies.relevance_presets import PRESETS, Cell, RelevancePreset
from voxplain.studies.relevance_results import summed_up, write_results
from voxplain.studies.relevance_rows import (
    BLANK,
    Method,
    case_table,
    compare_fills,
    methods,
    row_of_fill,
    score_method,
    score_network_free,
    target_of,
)
from voxplain.studies.scoring import CASE_COLUMNS, SCORE_COLUMNS

# The network that the classifier reads, by the name of its label.
_REGIONS = {"hemisphere": "half", "grade": "whole"}
_OPTIMAL = "optimal"


@dataclass(frozen=True, eq=False)
class Fold:
    """A classifier, whom the grid runs on, and whom every method is scored on.

    `fill` is another fill beside blank, such as "optimal:DIR". Where `chooses` is set, the best cell of the grid is
    scored on the test cases, whom its choice has not seen.
    """

    index: int
    model: Model
    grid_cases: Sequence[Case]
    test_cases: Sequence[Case]
    fill: str | None = None
    chooses: bool = False


def study(
    cases: Sequence[Case],
    out: Path,
    *,
    label: str = "hemisphere",
    size: RelevancePreset = PRESETS["small"],
    fill: str = _OPTIMAL,
    loss: str = "reciprocal",
    layers: Sequence[str] | None = None,
    seed: int = 0,
    compute: Compute,
    console: Console | None = None,
) -> pd.DataFrame:
    """Run the five evaluations on the patients of a cross-validation, into `out/relevance`.

    Finished folds in `out` are kept, and so is every finished case and method: a study that was stopped goes on. `fill`
    stands beside blank on the same patients: "optimal" trains a perturbation network for each fold (with this `loss`,
    never on the fold's test patients), "blank" leaves it out.

    Returns:
        The summary, with the columns `voxplain.studies.scoring.SCORE_COLUMNS`.

    Raises:
        InputError: no such label or fill, a fill that does not suit the network, or patients without what is needed.
    """
    if label not in _REGIONS:
        raise InputError(f"label is one of {', '.join(_REGIONS)}; got {label!r}")
    if fill.startswith(f"{_OPTIMAL}:"):
        raise InputError(
            "a perturbation network belongs to one classifier, and a study has one for each fold: give --fill optimal, "
            "which trains them"
        )
    if fill != _OPTIMAL:
        _check_fill(fill, _REGIONS[label])
    fills_of(size, _REGIONS[label])
    PerturbationSettings(loss=loss)  # refuses a loss that it does not know now, not after hours of training
    summary = _cross_validate(label, cases, out, preset=size.training, folds=size.folds, seed=seed, compute=compute)
    by_id = {case.id: case for case in cases if case.segmentation is not None}
    work = []
    for index in range(max(size.grid_folds, size.methods_folds)):
        folder = out / f"fold{index}"
        metrics = read_json(folder / "metrics.json")
        assert metrics is not None
        model = load_model(folder)
        beside: str | None = fill
        if fill == _OPTIMAL and index < min(size.optimal_folds, size.methods_folds):
            # Its own figures would be those of a few held-out patients; here all test patients are scored.
            train_optimal(
                model, cases, folder / _OPTIMAL, preset=size.perturbation, loss=loss, exclude=metrics["test_ids"],
                held_out=0, seed=seed, compute=compute,
            )  # fmt: skip
            beside = f"{_OPTIMAL}:{folder / _OPTIMAL}"
        elif fill in (_OPTIMAL, "blank"):
            beside = None
        grid, tested = (
            [by_id[name] for name in metrics[part] if name in by_id][: size.patients if index < count else 0]
            for part, count in (("validation_ids", size.grid_folds), ("test_ids", size.methods_folds))
        )
        work.append(Fold(index, model, grid, tested, beside, chooses=True))
    classifier = ("classifier", "network", "auc", "plain", summary["auc"], *summary["auc_interval"])
    # The figures of evaluation 4 are those of halves: their labels are many enough for a loss that means something.
    along = _along_training(cases, out, size, seed, compute) if label == "hemisphere" and size.along_seeds else []
    facts = {"label": label, "seed": seed, "size": dataclasses.asdict(size), "fill": fill, "loss": loss}
    return _run(
        work, output_folder(out / "relevance"), size, layers, facts, seed=seed, compute=compute,
        console=console or Console(), too_few=grades.too_few(cases) if label == "grade" else None,
        first=[(*classifier, summary["n_patients"]), *along],
    )  # fmt: skip


def evaluate(
    model: Model,
    cases: Sequence[Case],
    out: Path,
    *,
    size: RelevancePreset = PRESETS["small"],
    fill: str = "blank",
    grid: bool = True,
    layers: Sequence[str] | None = None,
    seed: int = 0,
    compute: Compute,
    console: Console | None = None,
) -> pd.DataFrame:
    """Every row of the study on the patients of a folder, for a model as it is; nothing is trained, nothing chosen.

    `fill` stands beside blank, such as "optimal:DIR"; `grid` runs the grid on the same patients, where it is an oracle.
    Patients whom the model (or, in its own rows, the perturbation network) was trained on are marked `seen`.

    Returns:
        The summary, with the columns `voxplain.studies.scoring.SCORE_COLUMNS`.

    Raises:
        InputError: a perturbation network of another classifier, a fill that does not suit the network, or no case with
            an expert mask; all before any work.
    """
    scored = [case for case in cases if case.segmentation is not None][: size.patients]
    if not scored:
        raise InputError("no case with an expert mask to score; expected patient folders with a _seg or -seg file")
    _check_fill(fill, model.card.region)
    if fill.startswith(f"{_OPTIMAL}:"):
        load_perturbation_network(fill.partition(":")[2], model)
    beside = None if fill == "blank" else fill
    work = [Fold(0, model, scored if grid else [], scored, beside)]
    facts = {"seed": seed, "size": dataclasses.asdict(size), "fill": fill}
    return _run(
        work, output_folder(out), size, layers, facts, seed=seed, compute=compute, console=console or Console(),
    )  # fmt: skip


def _cross_validate(
    label: str, cases: Sequence[Case], out: Path, *, preset: str, folds: int, seed: int, compute: Compute
) -> dict[str, Any]:
    """The folds of a label in `out/fold0`, ..., trained or found finished; returns what `out/metrics.json` holds."""
    train = grades.cross_validate if label == "grade" else hemispheres.cross_validate
    return train(cases, out, preset=preset, folds=folds, seed=seed, compute=compute)


def _along_training(
    cases: Sequence[Case], out: Path, size: RelevancePreset, seed: int, compute: Compute
) -> list[tuple[Any, ...]]:
    """Evaluation 4, as lines of the summary: what is measured at each epoch, and its correlation with the loss."""
    lines = along_training(
        cases,
        out / "along-training",
        preset=size.training,
        seeds=range(size.along_seeds),
        epochs=size.along_epochs,
        patients=size.along_patients,
        folds=size.folds,
        segments=size.segments,
        seed=seed,
        compute=compute,
    )
    of_epochs = lines["row"].str.contains("/epoch ")
    lines = lines.assign(table=np.where(of_epochs, "along-training", "along-training-correlation"))
    return list(lines[list(SCORE_COLUMNS)].itertuples(index=False, name=None))


def _check_fill(fill: str, region: str) -> None:
    fill_named(fill, "region")
    check_fill_fits(fill, region)


def _run(
    work: Sequence[Fold],
    out: Path,
    size: RelevancePreset,
    layers: Sequence[str] | None,
    facts: Mapping[str, Any],
    *,
    seed: int,
    compute: Compute,
    console: Console,
    too_few: str | None = None,
    first: Sequence[tuple[Any, ...]] = (),
) -> pd.DataFrame:
    """Run the grid, choose, score every method; write and print the tables. `first` are lines of the summary."""
    grids = _run_grids(work, out, size, seed, compute)
    choices = {
        fold.index: best_cell(grids[fold.index], cells_of(fold.model.card, size))
        for fold in work
        if fold.chooses and fold.index in grids
    }
    tables = [*grids.values(), *_run_methods(work, choices, out, size, layers, seed, compute)]
    tables = [table for table in tables if len(table)]
    if not tables:
        raise InputError("no region of these patients holds tumour enough to be scored (a half: more than 2 ml)")
    cases = pd.concat(tables, ignore_index=True)[list(CASE_COLUMNS)]
    summary = summed_up(cases, first, seed=seed)
    named = {f"fold{index}": None if cell is None else cell.row for index, cell in choices.items()}
    provenance = {
        **facts,
        "models": sorted({fold.model.fingerprint for fold in work}),
        "chosen_on_validation_patients": named,
        "versions": versions(),
    }
    write_results(cases, summary, out, provenance, console, too_few=too_few)
    return summary


def _run_grids(
    work: Sequence[Fold], out: Path, size: RelevancePreset, seed: int, compute: Compute
) -> dict[int, pd.DataFrame]:
    """Evaluation 1 on each fold's validation cases, one kept file for each case and sequence."""
    units = [(fold, case, channel) for fold in work for case in fold.grid_cases for channel in fold.model.card.channels]
    found: dict[int, list[pd.DataFrame]] = {}
    quiet = dataclasses.replace(compute, progress=False)
    for fold, case, channel in tracked(units, "grid on validation patients", shown=compute.progress):
        cells = [cell for cell in cells_of(fold.model.card, size) if cell.channel == channel]
        identity = _identity(fold, case, [cells, size.mask, seed])
        path = out / "cases" / f"fold{fold.index}" / case.id / f"grid-{channel}.json"
        kept = _kept(path, identity, partial(_scored_cells, fold, case, cells, size.mask, seed, quiet))
        table = case_table(case, fold.index, kept["lines"], fold.model.card.training_ids)
        found.setdefault(fold.index, []).append(table)
    # Each sequence of a case brings the same network-free rows.
    keys = ["case", "region", "table", "row", "metric", "kind"]
    return {index: pd.concat(tables).drop_duplicates(keys) for index, tables in found.items()}


def _run_methods(
    work: Sequence[Fold],
    choices: Mapping[int, Cell | None],
    out: Path,
    size: RelevancePreset,
    layers: Sequence[str] | None,
    seed: int,
    compute: Compute,
) -> list[pd.DataFrame]:
    """Evaluations 2, 3 and 5 on each fold's test cases, one kept file for each case and method."""
    flat = [(fold, case) for fold in work for case in fold.test_cases]
    chosen = {
        fold.index: methods(fold.model, size, layers=layers, fill=fold.fill, choice=choices.get(fold.index))
        for fold in work
    }
    fills = {fold.index: _perturbation_network(fold) for fold in work}
    quiet = dataclasses.replace(compute, progress=False)
    tables = []
    for fold, case in tracked(flat, "explaining and scoring test patients", shown=compute.progress):
        folder = out / "cases" / f"fold{fold.index}" / case.id
        fingerprint, trained_on = fills[fold.index]
        seen = fold.model.card.training_ids
        own: list[pd.DataFrame] = []
        changes: dict[str, np.ndarray] = {}
        for method in chosen[fold.index]:
            of_fill = fold.fill is not None and method.row == row_of_fill(fold.fill)
            options = [type(method.explainer).__name__, _options(method)]
            identity = _identity(fold, case, [options, method.kind, seed, fingerprint if of_fill else ""])
            path = folder / f"{method.row.replace('/', '-')}.json"
            kept = _kept(path, identity, partial(_explained, fold, case, method, seed, quiet))
            own.append(case_table(case, fold.index, kept["lines"], seen | trained_on if of_fill else seen))
            if method.everywhere:
                changes[method.row] = np.array(kept["scores"])
        tables += own
        if fold.fill is not None:
            row = row_of_fill(fold.fill)
            together = pd.concat([table for table in own if len(table)] or own)
            tables.append(case_table(case, fold.index, compare_fills(together, changes, row), seen | trained_on))
    return tables


def _explained(fold: Fold, case: Case, method: Method, seed: int, compute: Compute) -> dict[str, Any]:
    """One map of one case, and what it is worth, in plain data."""
    scan, tumour, card = case.scan(), case.tumour(), fold.model.card
    target = target_of(method, scan, tumour, card)
    if target is None:
        return {"lines": [], "scores": []}
    why = method.explainer(fold.model, scan, target=target, seed=seed, compute=compute)
    lines = score_method(method, why, scan, tumour, card)
    if lines:
        # Of what is explained: halves that are not scored cost nothing, except for maps that need them.
        count = len(why.regions)
        passes = why.provenance["passes"]
        for metric, value in (
            ("seconds_a_region", why.provenance["seconds"] / count),
            ("passes_a_region", (passes["forward"] + passes["backward"]) / count),
        ):
            lines.append(("scan", "cost", method.row, metric, "plain", float(value)))
    if method.row == BLANK:
        lines += score_network_free(case, why, scan, tumour, card, seed)
    return {"lines": lines, "scores": [] if why.scores is None else why.scores.tolist()}


def _scored_cells(
    fold: Fold, case: Case, cells: Sequence[Cell], mask: str, seed: int, compute: Compute
) -> dict[str, Any]:
    """Cells of the grid on one case, in plain data."""
    lines = score_cells(case.scan(), case.tumour(), fold.model, cells, mask=mask, seed=seed, compute=compute)
    return {"lines": lines}


def _options(method: Method) -> dict[str, Any]:
    """The explainer's fields; the folder of a perturbation network does not matter, its fingerprint does."""
    options = dataclasses.asdict(method.explainer)
    if str(options.get("fill")).startswith(f"{_OPTIMAL}:"):
        options["fill"] = _OPTIMAL
    return options


def _perturbation_network(fold: Fold) -> tuple[str, frozenset[str]]:
    """Fingerprint of the fold's perturbation network, and the cases that it was trained on; nothing for other fills."""
    if fold.fill is None or not fold.fill.startswith(f"{_OPTIMAL}:"):
        return "", frozenset()
    found = load_perturbation_network(fold.fill.partition(":")[2], fold.model)
    return found.fingerprint, found.card.training_ids


def _identity(fold: Fold, case: Case, content: Collection[Any]) -> str:
    """What a kept result must agree in: the model and its card, the case's files, and how it was made."""
    files = sorted(map(str, case.files.values()))
    stated = [fold.model.fingerprint, fold.model.card.to_dict(), fold.index, files, *content]
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()[:16]


def _kept(path: Path, identity: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds of this identity, or else what is made now, which is written there."""
    found = read_json(path)
    if found is None or found["identity"] != identity:
        output_folder(path.parent)
        found = {"identity": identity, **make()}
        write_json(found, path)
    return found
