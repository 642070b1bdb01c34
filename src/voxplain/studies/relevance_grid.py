"""Evaluation 1 of the relevance study: best grouping over sequence x supervoxels x fill, on validation patients.

The supervoxels of a sequence are cut once for all fills, and all cells of a region share one clean pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from voxplain import segment
from voxplain.compute import Compute
from voxplain.engine.probe import Probe
from voxplain.explain import RelevanceMap
from voxplain.explain.explainer import in_evaluation, parts_on
from voxplain.explain.fills import check_fill_fits, fill_named
from voxplain.explain.perturbation import scores_without_each_part
from voxplain.explanation import Region
from voxplain.metrics.network_free import network_free_masks
from voxplain.metrics.overlap import best_grouping, dice
from voxplain.model import Card, Model
from voxplain.partition import supervoxels
from voxplain.preparation import prepare
from voxplain.scan import Labels, Scan
from voxplain.studies.relevance_presets import Cell, RelevancePreset
from voxplain.studies.relevance_rows import Line, gets_mask, holds_tumour
from voxplain.target import ClassScore

TABLE = "best-grouping-grid"
_BEST = "/best-grouping"


def fills_of(preset: RelevancePreset, region: str) -> tuple[str, ...]:
    """The fills of the grid for a network that reads this region, "half" or "whole".

    Raises:
        InputError: a fill has no values on such a region, or is no fill.
    """
    fills = preset.grid_fills + (preset.grid_fills_of_whole_scans if region == "whole" else ())
    for fill in fills:
        fill_named(fill, "region")
        check_fill_fits(fill, region)
    return fills


def cells_of(card: Card, preset: RelevancePreset) -> list[Cell]:
    """All cells, in the order in which ties are decided."""
    fills = fills_of(preset, card.region)
    return [Cell(channel, count, fill) for channel in card.channels for count in preset.grid_segments for fill in fills]


def score_cells(
    scan: Scan, tumour: Labels, model: Model, cells: Sequence[Cell], *, mask: str, seed: int, compute: Compute
) -> list[Line]:
    """Score cells on one case, in the regions that hold tumour: table "best-grouping-grid".

    For each cell the Dice of its best grouping (oracle) and of Otsu (deployable; 0 in a half that is predicted
    negative), and how many supervoxels came out, which is not how many SLIC starts with; beside them the network-free
    masks. The maps are those of `RelevanceMap` with these options, the papers' |p - p'|; `mask` is "brain" or "none".
    """
    lines: list[Line] = []
    target = ClassScore(model.card.classes[0])
    foreground = scan.foreground()
    with compute.running(), in_evaluation(model.network, compute.torch_device):
        for prepared in prepare(scan, model.card):
            if not holds_tumour(tumour, prepared.box, model.card):
                continue
            probe = Probe(model, prepared, target, seed, compute)
            positive = probe.calibrated >= model.card.threshold
            region = Region(prepared.name, prepared.box, probe.calibrated, probe.logit, positive)
            masked = gets_mask(region, model.card)
            inside = foreground[region.slices] if mask == "brain" else np.ones_like(foreground[region.slices])
            reference = tumour.data[region.slices] > 0
            for row, prediction in network_free_masks(scan, region).items():
                lines.append((region.name, TABLE, row, "dice", "deployable", dice(prediction, reference)))
            for channel, count in dict.fromkeys((cell.channel, cell.segments) for cell in cells):
                fills = [cell.fill for cell in cells if (cell.channel, cell.segments) == (channel, count)]
                parts, scores = _maps(probe, scan, channel, count, fills, mask)
                for fill, values in zip(fills, scores, strict=True):
                    row = Cell(channel, count, fill).row
                    best = best_grouping(parts, values, reference).dice
                    otsu = dice(_otsu(parts, values, inside) & masked, reference)
                    lines.append((region.name, TABLE, row + _BEST, "dice", "oracle", best))
                    lines.append((region.name, TABLE, row + _BEST, "supervoxels", "oracle", float(len(values))))
                    lines.append((region.name, TABLE, f"{row}/otsu", "dice", "deployable", otsu))
    return lines


def best_cell(table: pd.DataFrame, cells: Sequence[Cell]) -> Cell | None:
    """The cell with the highest mean best-grouping Dice over patients; of equal ones the first. None without figures.

    `table` has `CASE_COLUMNS`; expert masks of its cases choose, so that the choice on other cases is of kind
    `validation-masks`.
    """
    found = table[(table["table"] == TABLE) & (table["metric"] == "dice")]
    by_patient = found.groupby(["row", "patient"])["value"].mean()
    means = by_patient.groupby("row").mean()
    known = [cell for cell in cells if cell.row + _BEST in means.index]
    return max(known, key=lambda cell: float(means[cell.row + _BEST]), default=None)


def _maps(
    probe: Probe, scan: Scan, channel: str, count: int, fills: Sequence[str], mask: str
) -> tuple[np.ndarray, np.ndarray]:
    """Supervoxels in the region's box of the scan, and their |p - p'| under each fill, (fills, N)."""
    prepared = probe.prepared
    image = prepared.input.channel(channel)[None]
    inside = prepared.foreground if mask == "brain" else None
    grid = prepared.input.grid
    parts = supervoxels(image, grid, segments=count, compactness=RelevanceMap().compactness, mask=inside)
    clean = probe.clean_score("probability")
    falls = [
        np.abs(clean - scores_without_each_part(probe, parts, fill_named(fill, "region"), "probability"))
        for fill in fills
    ]
    window = scan.grid.window([start for start, _ in prepared.box], [stop - start for start, stop in prepared.box])
    return parts_on(parts, np.stack(falls), window)


def _otsu(parts: np.ndarray, values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """What `segment.otsu` marks in a region whose parts have these values, boolean."""
    labels = np.unique(parts[inside])
    labels = labels[labels > 0]
    threshold = segment.otsu_threshold(values[labels - 1])
    kept = labels[:0] if threshold is None else labels[values[labels - 1] > threshold]
    return inside & np.isin(parts, kept)
