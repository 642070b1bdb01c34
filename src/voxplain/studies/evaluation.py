"""Scoring of trained models: every case explained and scored once, kept, and summed up in tables."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console

from voxplain.compute import Compute
from voxplain.datasets.case import Case
from voxplain.engine.blocks import grids_of
from voxplain.engine.progress import tracked
from voxplain.errors import InputError
from voxplain.explain import GradCAM, HeatMap, RelevanceMap
from voxplain.explain.explainer import Explainer, in_evaluation, versions
from voxplain.io.atomic import output_folder, read_json, write_json, write_text
from voxplain.io.bundle import load_model
from voxplain.model import Model
from voxplain.networks.self_explaining import SelfExplaining
from voxplain.studies.cohort_page import sentences, write_cohort_page, write_picture
from voxplain.studies.scoring import markdown, print_tables, score_case, scores, write_tables

_OPTIMAL = "optimal:"


def evaluate(
    model: Model,
    cases: Sequence[Case],
    out: Path,
    *,
    explainers: Mapping[str, Explainer],
    seed: int = 0,
    compute: Compute,
    console: Console | None = None,
) -> pd.DataFrame:
    """Score a model's maps on cases with expert masks, without training; writes `cases.tsv`, `scores.tsv`
    and the page `report.html`.

    Each finished case is kept in `out/cases`, so that an evaluation that was stopped goes on.

    Returns:
        The summary, as `voxplain.studies.scoring.scores` describes it.
    """
    return evaluate_folds([(0, model, list(cases))], out, explainers, seed, compute, console or Console())


def _localising(model: Model, layers: Sequence[str]) -> list[str]:
    """The layers whose grid has more than one cell, for inputs of the card's shape; a CAM refuses the others."""
    if not layers or model.card.shape is None or not model.differentiable_inside:
        return list(layers)
    dims = model.card.spatial_dims
    image = torch.zeros(1, len(model.card.channels), *model.card.shape[:dims])
    with in_evaluation(model.network, torch.device("cpu")), torch.no_grad():
        grids = grids_of(model.network, lambda: model.network(image), dims=dims)
    return [name for name in layers if name not in grids or math.prod(grids[name]) > 1]


def default_explainers(
    model: Model,
    layers: Sequence[str] | None = None,
    *,
    fill: str = "blank",
    segments: int = 100,
    methods: Sequence[str] | None = None,
) -> dict[str, Explainer]:
    """The methods of the study by the name of their row: relevance maps (the papers', and ours, which knows for from
    against and reads the raw score, which does not saturate), and Grad-CAM on early and late layers.

    A network that explains itself shows its heat map first. A network whose layers cannot be watched gets no Grad-CAM,
    nor does one that has none of the layers, unless `layers` names some of its own. `methods` leaves only the methods
    of these names: a relevance map runs the network hundreds of times, a heat map twice.

    Raises:
        InputError: none of the rows is of a method in `methods`.
    """
    # Supervoxels follow FLAIR, on which readers outline the whole tumour; networks without it take all sequences.
    channel = "flair" if "flair" in model.card.channels else None
    relevance = RelevanceMap(fill=fill, segments=segments, channel=channel)
    # The folder of a perturbation network is no part of a row's name.
    kind = "optimal" if fill.startswith(_OPTIMAL) else fill
    found: dict[str, Explainer] = {"heat-map": HeatMap()} if isinstance(model.network, SelfExplaining) else {}
    found |= {
        f"relevance-map/{kind}": relevance,
        f"relevance-map/{kind}-signed-logit": dataclasses.replace(relevance, effect="signed", scale="logit"),
    }
    if layers is None:
        layers = _localising(model, [name for name in ("act", "layer1", "layer2", "layer4") if name in model.layers])
    if model.differentiable_inside:
        found |= {f"grad-cam/{layer}": GradCAM(layer=layer) for layer in layers}
    if methods is None:
        return found
    known = sorted({method.name for method in found.values()})
    for name in methods:
        if name not in known:
            raise InputError(f"of this network there are rows of {', '.join(known)}; got {name!r}: name some of these")
    return {row: method for row, method in found.items() if method.name in methods}


def evaluate_folds(
    work: Sequence[tuple[int, Model, Sequence[Case]]],
    out: Path,
    explainers: Mapping[str, Explainer],
    seed: int,
    compute: Compute,
    console: Console,
) -> pd.DataFrame:
    """Score each fold's cases, (fold, model, cases), with the fold's own model; see `evaluate`."""
    kept = output_folder(output_folder(out) / "cases")
    total = sum(len(cases) for _, _, cases in work)
    if not total:
        raise InputError("no case with an expert mask to score; expected patient folders with a _seg or -seg file")
    options: dict[str, list[Any]] = {
        name: [type(method).__name__, dataclasses.asdict(method)] for name, method in explainers.items()
    }
    for given in options.values():
        fill = str(given[1].get("fill"))
        if fill.startswith(_OPTIMAL):  # another network in the same folder is another fill
            given.append(load_model(fill.removeprefix(_OPTIMAL)).fingerprint)
    tables = []
    first = next(iter(explainers))
    quiet = dataclasses.replace(compute, progress=False)
    flat = [(fold, model, case) for fold, model, cases in work for case in cases]
    for fold, model, case in tracked(flat, "explaining and scoring", shown=compute.progress):
        # The card says how to cut, what is positive and which cases the network has seen.
        card = model.card.to_dict()
        identity = json.dumps([model.fingerprint, card, fold, options, seed, sorted(map(str, case.files.values()))])
        path, picture = kept / f"{case.id}.json", kept / f"{case.id}.webp"
        found = read_json(path)
        if found is None or found["identity"] != identity or not picture.is_file():
            scan, tumour = case.scan(), case.tumour()
            explanations = {
                name: explain(model, scan, seed=seed, compute=quiet) for name, explain in explainers.items()
            }
            table = score_case(case, scan, tumour, model, explanations, seed=seed, fold=fold)
            write_picture(scan, explanations[first], tumour, picture)
            found = {"identity": identity, "rows": table.to_dict(orient="list")}
            write_json(found, path)
        tables.append(pd.DataFrame(found["rows"]))
    cases = pd.concat(tables, ignore_index=True)
    summary = scores(cases, seed=seed)
    write_tables(cases, summary, out)
    facts = {
        "models": sorted({model.fingerprint for _, model, _ in work}),
        "cases": total,
        "seed": seed,
        "explainers": options,
        "versions": versions(),
    }
    write_json(facts, out / "provenance.json")
    came_out = "\n".join(f"- {sentence}" for sentence in sentences(summary, f"{first}/otsu"))
    write_text(f"{total} cases, seed {seed}.\n\n{came_out}\n\n{markdown(summary)}", out / "tables.md")
    pictures = {case.id: kept / f"{case.id}.webp" for _, _, case in flat}
    title = f"Hemispheres: {cases['patient'].nunique()} patients"
    write_cohort_page(cases, summary, first, pictures, out / "report.html", provenance=facts, title=title)
    print_tables(summary, console)
    return summary
