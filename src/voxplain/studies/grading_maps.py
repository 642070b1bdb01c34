"""Where the maps of a classifier lie: every method at every block beside the expert's tumour, or beside a marker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from voxplain.compute import Compute
from voxplain.datasets.case import Case
from voxplain.datasets.phantom import marker_share
from voxplain.diagnosis import CONTROLS, agreement_of, class_probabilities
from voxplain.explain.cam import ClassActivationMap, GradCAM
from voxplain.explain.every_layer import block_grids, every_layer
from voxplain.explain.grad_cam_plus_plus import GradCAMPlusPlus
from voxplain.explain.hires_cam import HiResCAM
from voxplain.explain.layer_cam import LayerCAM
from voxplain.explain.score_cam import ScoreCAM
from voxplain.explanation import Explanation
from voxplain.io.atomic import output_folder, writing
from voxplain.metrics.controls import edge_detector, random_map
from voxplain.metrics.localisation import mass_inside, mass_on_empty_slices, peak_distance
from voxplain.metrics.statistics import bootstrap_interval
from voxplain.model import Model
from voxplain.scan import Scan
from voxplain.target import ClassScore

# The paper's method at the paper's layer, fixed before anything was measured.
HEADLINE = "grad-cam"
METHODS: tuple[ClassActivationMap, ...] = (GradCAM(), HiResCAM(), LayerCAM(), GradCAMPlusPlus())
_PLACES = ("in", "beside", "away")
MAPS, BY_CLASS, EMPTY, MARKER = "maps", "maps by class", "slices without tumour", "shortcut"
_MAP_METRICS = {"mass_inside": "mass inside", "pointing": "pointing", "dice": "Dice", "peak_mm": "peak away (mm)"}


def lines_of(
    case: Case,
    label: str,
    model: Model,
    folder: Path,
    *,
    methods: Sequence[ClassActivationMap],
    slow: bool,
    seed: int,
    compute: Compute,
) -> list[dict[str, Any]]:
    """The figures of every map of one case, explained for the class that is predicted; worked out once.

    `slow` adds Score-CAM at the first block, which costs a pass per feature map.
    """
    path = folder / f"{case.id}.tsv"
    if path.is_file():
        return _read(path)
    output_folder(folder)
    scan, tumour = case.scan(model.card.channels), case.tumour()
    known = class_probabilities(model, scan, compute=compute)
    predicted = max(known, key=lambda name: known[name])
    target = ClassScore(predicted)
    start: dict[str, Any] = {"case": case.id, "patient": case.patient, "label": label, "predicted": predicted}
    foreground = scan.foreground()
    start["share"] = float((tumour.data > 0)[foreground].mean())
    lines: list[dict[str, Any]] = []
    first: Explanation | None = None
    grids = block_grids(model, scan, target=target, compute=compute)
    for explainer in methods:
        for layer, why in every_layer(explainer, model, scan, grids=grids, target=target, seed=seed, compute=compute):
            lines.append(start | {"map": explainer.name, "layer": layer} | agreement_of(why, scan, tumour))
            first = first or why
    assert first is not None
    if slow:
        layer = next(iter(grids))
        why = ScoreCAM(layer=layer)(model, scan, target=target, seed=seed, compute=compute)
        lines.append(start | {"map": ScoreCAM.name, "layer": layer} | agreement_of(why, scan, tumour))
    controls = (random_map(scan, first, seed=seed), edge_detector(scan, first))
    for name, why in zip(CONTROLS, controls, strict=True):
        lines.append(start | {"map": name, "layer": ""} | agreement_of(why, scan, tumour))
    empty = mass_on_empty_slices(first.total, tumour.data > 0, inside=foreground, axis=scan.grid.axis("SI"))
    lines[0] |= {f"empty_{name}": value for name, value in empty.items()}
    _write(lines, path)
    return lines


def marker_lines(
    case: Case, model: Model, folder: Path, *, marked: str, methods: Sequence[ClassActivationMap], compute: Compute
) -> list[dict[str, Any]]:
    """Where the map of the marked class lies in a case that bears the marker: in the ball, or in the tumour?"""
    path = folder / f"{case.id}.tsv"
    if path.is_file():
        return _read(path)
    output_folder(folder)
    scan, tumour = case.scan(model.card.channels), case.tumour().data > 0
    known = class_probabilities(model, scan, compute=compute)
    ball = (marker_share(scan.grid) > 0) & scan.foreground()
    start = {"case": case.id, "patient": case.patient, "said": known[marked]}
    lines, target = [], ClassScore(marked)
    grids = block_grids(model, scan, target=target, compute=compute)
    for explainer in methods:
        for layer, why in every_layer(explainer, model, scan, grids=grids, target=target, compute=compute):
            lines.append(start | {"map": explainer.name, "layer": layer} | _marker_figures(why, scan, ball, tumour))
    _write(lines, path)
    return lines


def _marker_figures(why: Explanation, scan: Scan, ball: np.ndarray, tumour: np.ndarray) -> dict[str, float]:
    values, spacing = np.where(scan.foreground(), why.total, 0), scan.grid.spacing
    return {
        "mass_in_marker": mass_inside(values, ball),
        "mass_in_tumour": mass_inside(values, tumour),
        "peak_to_marker": peak_distance(values, ball, spacing=spacing),
        "peak_to_tumour": peak_distance(values, tumour, spacing=spacing),
        "marker_share": float(ball.sum() / scan.foreground().sum()),
        "tumour_share": float((tumour & scan.foreground()).sum() / scan.foreground().sum()),
    }


def figures(lines: Sequence[Mapping[str, Any]], marked: Sequence[Mapping[str, Any]] = ()) -> list[tuple[Any, ...]]:
    """Rows with the columns of `scores.tsv`: means with intervals over patients.

    Of every map, of Grad-CAM at the first block by class, of its behaviour on slices without tumour, and of `marked`,
    lines of `marker_lines`.
    """
    table = pd.DataFrame(list(lines))
    table["row"] = [_row(line) for line in table.to_dict("records")]
    rows: list[tuple[Any, ...]] = []
    for row, its in table.groupby("row", sort=False):
        rows += [_mean(MAPS, str(row), said, its, name) for name, said in _MAP_METRICS.items()]
        for place in _PLACES:
            rows.append(_mean(MAPS, str(row), f"evidence {place}", its.assign(at=its["place"] == place), "at"))
    first = table[table["row"] == table["row"].iloc[0]]
    rows.append(_mean(MAPS, "share of the head", "mass inside", first, "share"))
    for label, its in first.groupby("label", sort=False):
        rows += [_mean(BY_CLASS, str(label), said, its, name) for name, said in _MAP_METRICS.items()]
    right = first[first["label"] == first["predicted"]]
    for words, its in (("rightly classed", right), ("wrongly classed", first.drop(right.index))):
        rows += [_mean(BY_CLASS, words, said, its, name) for name, said in _MAP_METRICS.items() if len(its)]
    for name, said in (("mass", "mass there"), ("volume", "share of the head"), ("peak", "highest / peak")):
        rows.append(_mean(EMPTY, str(table["row"].iloc[0]), said, first, f"empty_{name}"))
    if marked:
        found = pd.DataFrame(list(marked))
        found["row"] = [_row(line) for line in found.to_dict("records")]
        names = {
            "mass_in_marker": "mass in the marker",
            "marker_share": "the marker's share of the head",
            "mass_in_tumour": "mass in the tumour",
            "tumour_share": "the tumour's share of the head",
            "peak_to_marker": "peak to marker (mm)",
            "peak_to_tumour": "peak to tumour (mm)",
        }
        for row, its in found.groupby("row", sort=False):
            rows += [_mean(MARKER, str(row), said, its, name) for name, said in names.items()]
    return rows


def _row(line: Mapping[Any, Any]) -> str:
    layer = str(line["layer"]).rpartition(".")[2]
    return f"{line['map']}, {layer}" if layer else str(line["map"])


def _mean(table: str, row: str, metric: str, its: pd.DataFrame, column: str) -> tuple[Any, ...]:
    known = its[its[column].notna()]
    values = known[column].to_numpy(dtype=float)
    if not len(values):
        return (table, row, metric, "deployable", np.nan, np.nan, np.nan, 0)
    low, high = bootstrap_interval((values,), statistic=_average, groups=known["patient"].to_numpy())
    return (table, row, metric, "deployable", _average(values), low, high, int(known["patient"].nunique()))


def _average(values: np.ndarray) -> float:
    return float(values.mean())


def _read(path: Path) -> list[dict[str, Any]]:
    known = pd.read_csv(path, sep="\t", dtype={"case": str, "patient": str, "layer": str, "place": str})
    known = known.assign(**{name: known[name].fillna("") for name in ("layer", "place") if name in known})
    return [{str(name): value for name, value in line.items()} for line in known.to_dict("records")]


def _write(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    with writing(path) as temporary:
        pd.DataFrame(list(lines)).to_csv(temporary, sep="\t", index=False, float_format="%.9g")
