"""Past the papers: what finishes on the scan's intensities give a map, and what they give a map drawn by chance.

Three ideas on the hemisphere task, each beside what needs no network and beside the same finish of random maps:

1. `fused`: where the relevance map and Grad-CAM on the stem agree (`voxplain.refine.fused`).
2. `mixture`: Gaussians on FLAIR and T2, fitted over the whole head from the map's evidence on.
3. `random-walker`: a random walk on FLAIR from the map's strong evidence.

No expert mask is looked at in any of these rows (`deployable`). `selected` is the row that did best on a fold's
validation patients, by their expert masks, scored on its test patients (`validation-masks`).
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from scipy.ndimage import label
from skimage.segmentation import random_walker

from voxplain import refine, segment
from voxplain.compute import Compute
from voxplain.datasets.case import Case
from voxplain.datasets.hemispheres import half_label, tumour_volume
from voxplain.engine.progress import tracked
from voxplain.explain import GradCAM, RelevanceMap
from voxplain.explain.explainer import versions
from voxplain.explanation import Explanation
from voxplain.io.atomic import output_folder, read_json, write_json, write_text
from voxplain.io.bundle import load_model
from voxplain.metrics.controls import random_map
from voxplain.metrics.network_free import network_free_masks
from voxplain.metrics.overlap import dice
from voxplain.model import Model
from voxplain.scan import Labels, Scan
from voxplain.studies import hemispheres
from voxplain.studies.scoring import CASE_COLUMNS, is_seen, markdown, print_tables, scores, write_tables

TITLES = {
    "halves": "Dice on the halves labelled as tumour; the finishes follow the whole head, Otsu goes half by half",
    "scans": "Dice on whole scans",
    "validation": "Halves of the folds' validation patients, who chose the network's epoch and the row `selected`",
}
RELEVANCE, CAM, FUSED = "relevance-map/blank-signed-logit", "grad-cam/act", "fused"
SELECTED = "selected"
# The same maps in places drawn by chance.
_CONTROLS = ("random-relevance-map", "random-grad-cam", "random-fused")
# Of the random walker: evidence from the first on is lesion, below the second it is none.
_SEEDS = (0.7, 0.1)
_FINISHES = ("otsu", "mixture", "random-walker")
# A random map is a matter of luck: this many are drawn for each case, and their mean counts.
DRAWS = 5


def study(
    cases: Sequence[Case],
    out: Path,
    *,
    preset: str = "small",
    folds: int = 5,
    segments: int = 100,
    draws: int = DRAWS,
    seed: int = 0,
    compute: Compute,
    console: Console | None = None,
) -> pd.DataFrame:
    """Finish the maps of every test patient of a cross-validation, into `out/refinement`.

    Finished folds in `out` are kept, and so is every finished case.

    Returns:
        The summary, with the columns `voxplain.studies.scoring.SCORE_COLUMNS`.
    """
    hemispheres.cross_validate(cases, out, preset=preset, folds=folds, seed=seed, compute=compute)
    by_id = {case.id: case for case in cases}
    tables: list[pd.DataFrame] = []
    validation: list[pd.DataFrame] = []
    results = output_folder(out / "refinement")
    kept = output_folder(results / "cases")
    work = []
    for index in range(folds):
        metrics = read_json(out / f"fold{index}" / "metrics.json")
        assert metrics is not None
        model = load_model(out / f"fold{index}")
        work += [
            (index, model, by_id[name], part) for part in ("validation", "test") for name in metrics[f"{part}_ids"]
        ]
    for index, model, case, part in tracked(work, "explaining and finishing", shown=compute.progress):
        path = kept / f"fold{index}-{case.id}.json"
        identity = json.dumps([model.fingerprint, model.card.to_dict(), segments, seed, draws])
        found = read_json(path)
        if found is None or found["identity"] != identity:
            drawn = draws if part == "test" else 0
            rows = score_case(case, model, index, segments=segments, draws=drawn, seed=seed, compute=compute)
            found = {"identity": identity, "rows": rows.to_dict(orient="list")}
            write_json(found, path)
        (tables if part == "test" else validation).append(pd.DataFrame(found["rows"]))
    tested, known = pd.concat(tables, ignore_index=True), pd.concat(validation, ignore_index=True)
    tested, chosen = _with_selected(tested, known)
    known = known[known["table"] == "halves"].assign(table="validation")
    everything = pd.concat([tested, known], ignore_index=True)
    summary = scores(everything, seed=seed)
    write_tables(everything, summary, results)
    facts = {
        "folds": [model.fingerprint for model in {index: model for index, model, _, _ in work}.values()],
        "selected": chosen,
        "segments": segments,
        "seed": seed,
        "random_maps_per_case": draws,
        "versions": versions(),
    }
    write_json(facts, results / "provenance.json")
    said = "\n".join(f"- fold {fold}: {row}" for fold, row in chosen.items())
    heading = f"{tested['patient'].nunique()} patients, seed {seed}.\n\nSelected on validation patients:\n\n{said}\n\n"
    write_text(heading + markdown(summary, TITLES), results / "tables.md")
    print_tables(summary, console or Console(), TITLES)
    return summary


def score_case(
    case: Case, model: Model, fold: int, *, segments: int, draws: int, seed: int, compute: Compute
) -> pd.DataFrame:
    """Every map with every finish on one case, with the columns `CASE_COLUMNS`; draws of random maps as their mean."""
    scan, tumour = case.scan(), case.tumour()
    quiet = dataclasses.replace(compute, progress=False)
    maps = _maps(model, scan, segments=segments, seed=seed, compute=quiet)
    regions = next(iter(maps.values())).regions
    truth = tumour.data > 0
    rows: list[tuple[str, str, str, float]] = []
    scored = [region for region in regions if half_label(tumour_volume(tumour, region.box)) == 1]

    def add(row: str, mask: np.ndarray) -> None:
        rows.append(("scan", "scans", row, dice(mask, truth)))
        rows.extend((r.name, "halves", row, dice(mask[r.slices], truth[r.slices])) for r in scored)

    for name, why in maps.items():
        for finish in _FINISHES:
            add(f"{name}/{finish}", _finished(why, scan, finish))
    for draw in range(draws):
        drawn = zlib.crc32(f"{case.id} {seed} {draw}".encode())
        first, second = (random_map(scan, maps[name], seed=drawn) for name in (RELEVANCE, CAM))
        controls = dict(zip(_CONTROLS, (first, second, refine.fused(first, second, scan)), strict=True))
        for name, control in controls.items():
            for finish in _FINISHES:
                add(f"{name}/{finish}", _finished(control, scan, finish))
    whole = network_free_masks(scan)
    for row, mask in whole.items():
        rows.append(("scan", "scans", row, dice(mask, truth)))
        # The finishes follow the whole head, so what needs no network may do so, too.
        rows.extend((r.name, "halves", f"{row}-of-whole-head", dice(mask[r.slices], truth[r.slices])) for r in scored)
    for region in scored:
        for row, mask in network_free_masks(scan, region).items():
            rows.append((region.name, "halves", row, dice(mask, truth[region.slices])))
    table = pd.DataFrame(rows, columns=["region", "table", "row", "value"])
    table = table.groupby(["region", "table", "row"], sort=False, as_index=False).mean()
    seen = is_seen(case, model.card.training_ids)
    needs_network = table["row"].str.startswith((*maps, *_CONTROLS))
    kinds = np.where(needs_network & seen, "seen", "deployable")
    table = table.assign(case=case.id, patient=case.patient, fold=fold, metric="dice", kind=kinds)
    return table[list(CASE_COLUMNS)]


def _maps(model: Model, scan: Scan, *, segments: int, seed: int, compute: Compute) -> Mapping[str, Explanation]:
    relevance = RelevanceMap(segments=segments, channel="flair", effect="signed", scale="logit")
    found = {
        RELEVANCE: relevance(model, scan, seed=seed, compute=compute),
        CAM: GradCAM(layer="act")(model, scan, seed=seed, compute=compute),
    }
    return found | {FUSED: refine.fused(found[RELEVANCE], found[CAM], scan)}


def _finished(why: Explanation, scan: Scan, finish: str) -> np.ndarray:
    """The mask, boolean (X, Y, Z)."""
    if finish == "mixture":
        mask = refine.mixture(why, scan)
    elif finish == "random-walker":
        return _random_walker(why, scan)
    else:
        mask = segment.otsu(why, mask=Labels(scan.foreground(), scan.grid))
    return mask.data > 0


def _random_walker(why: Explanation, scan: Scan) -> np.ndarray:
    """The voxels from which a walk that shuns edges of FLAIR reaches strong evidence before voxels without any.

    Grady 2006, as scikit-image solves it.
    """
    inside = scan.foreground()
    evidence = refine.evidence_of(why, inside)
    found = np.zeros(scan.grid.shape, dtype=bool)
    intensity = refine.standardised(scan.channel("flair"), scan.grid.spacing)
    seeds = np.where(evidence >= _SEEDS[0], 1, np.where(evidence < _SEEDS[1], 2, 0))
    seeds[~inside] = -1
    if (seeds == 1).any() and (seeds == 2).any() and any(region.positive for region in why.regions):
        # Voxels that no seed can reach are left out by scikit-image, with a warning; here they are no lesion.
        pieces, _ = label(seeds >= 0)
        seeds[(seeds == 0) & ~np.isin(pieces, np.unique(pieces[seeds > 0]))] = 2
        box = tuple(slice(axis.min(), axis.max() + 1) for axis in np.nonzero(inside))
        found[box] = (
            random_walker(intensity[box], seeds[box], mode="cg_j", prob_tol=0.05, spacing=scan.grid.spacing) == 1
        )
    return refine.one_component(found, why, evidence)


def _with_selected(tested: pd.DataFrame, known: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """The row of each fold that is best on its validation patients' halves, added to its test patients' rows."""
    names = [f"{name}/{finish}" for name in (RELEVANCE, CAM, FUSED) for finish in _FINISHES]
    chosen: dict[str, str] = {}
    added = []
    for fold, table in known[(known["table"] == "halves") & known["row"].isin(names)].groupby("fold"):
        best = str(table.groupby("row")["value"].mean().idxmax())
        chosen[str(fold)] = best
        own = tested[(tested["fold"] == fold) & (tested["row"] == best)]
        added.append(own.assign(row=SELECTED, kind="validation-masks"))
    return pd.concat([tested, *added], ignore_index=True), chosen


def summary_lines(summary: pd.DataFrame) -> list[str]:
    """What came out, in words: the best row that a new scan could have, and its gain over what needs no network."""
    halves: Any = summary[summary["table"] == "halves"].set_index(["row", "metric"])
    lines = []
    for row in (f"{RELEVANCE}/mixture", SELECTED):
        if (row, "dice_gain") not in halves.index:
            continue
        figure, gain = halves.loc[(row, "dice")], halves.loc[(row, "dice_gain")]
        lines.append(
            f"{row}: Dice {figure['value']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}] ({figure['kind']}, "
            f"{figure['n']:.0f} patients), gain over the best row without a network {gain['value']:+.3f} "
            f"[{gain['low']:+.3f}, {gain['high']:+.3f}]"
        )
    return lines
