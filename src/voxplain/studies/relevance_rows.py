"""The rows of the relevance study: which methods there are, and what their maps are worth on one case.

Dice is measured in the regions that hold tumour: halves labelled as tumour (more than 2 ml) for networks that read
halves, the whole scan for others. A half that is predicted negative gets an empty mask, so a miss costs Dice 0 in every
row that a new scan could have; a network of whole scans tells kinds of tumour apart, and its map is scored whatever it
predicts.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from voxplain import segment
from voxplain.datasets.case import Case
from voxplain.datasets.hemispheres import half_label, tumour_volume
from voxplain.explain import LIME, RISE, GradCAM, KernelSHAP, Occlusion, RelevanceMap
from voxplain.explain.explainer import Explainer
from voxplain.explanation import Explanation, Region
from voxplain.grid import Grid
from voxplain.metrics.network_free import NETWORK_FREE, network_free_masks, network_free_rankings
from voxplain.metrics.overlap import best_grouping, best_threshold, dice
from voxplain.model import Card, Model
from voxplain.preparation import prepare
from voxplain.scan import Labels, Scan
from voxplain.studies.evaluation import default_explainers
from voxplain.studies.relevance_presets import Cell, RelevancePreset
from voxplain.studies.scoring import CASE_COLUMNS, is_seen, parts_in, rank_figures, ranking_figures
from voxplain.target import ClassScore, Target

# (region, table, row, metric, kind, value)
Line = tuple[str, str, str, str, str, float]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

BLANK = "relevance-map/blank"
CHOSEN = "relevance-map/chosen"
_OPTIMAL = "optimal:"
# 000 cuts its supervoxels on T2.
_CHANNEL = "t2"
# How many parts the original LIME for images shows unless it is asked for another number.
_LIME_RANKS = ("top-1", "top-5")


@dataclass(frozen=True)
class Method:
    """A method of the study: the first part of its rows' names, and what makes its maps.

    `kind` is that of its Otsu masks. `ranked` methods also stand in the tables of ranks. `everywhere`: all regions of a
    scan are explained, not only those that are scored.
    """

    row: str
    explainer: Explainer
    kind: str = "deployable"
    ranked: bool = False
    everywhere: bool = False


@dataclass(frozen=True)
class _InRegions(ClassScore):
    """A class score in some of the regions that the network reads of a scan: what is not scored is not explained."""

    wanted: tuple[bool, ...] = ()

    def on(self, grids: Sequence[Grid]) -> list[Target | None]:
        """The score where it is wanted."""
        return [self if wanted else None for wanted in self.wanted]

    def record(self) -> dict[str, Any]:
        """Kind, name, and which regions."""
        return {**super().record(), "kind": "ClassScore in some regions", "wanted": list(self.wanted)}


def methods(
    model: Model,
    preset: RelevancePreset,
    *,
    layers: Sequence[str] | None = None,
    fill: str | None = None,
    choice: Cell | None = None,
) -> tuple[Method, ...]:
    """All methods of the study: relevance maps, Grad-CAM on early and late layers, LIME, KernelSHAP, RISE, occlusion.

    `fill` is another fill beside blank, such as "optimal:DIR"; `choice` the cell of the grid that other patients'
    expert masks chose. A network whose layers cannot be watched goes without Grad-CAM.
    """
    card, mask = model.card, preset.mask
    channel = _CHANNEL if _CHANNEL in card.channels else None
    blank = RelevanceMap(segments=preset.segments, channel=channel, mask=mask)
    found = [
        Method(BLANK, blank, ranked=True, everywhere=True),
        Method(f"{BLANK}-signed-logit", dataclasses.replace(blank, effect="signed", scale="logit")),
    ]
    if fill is not None:
        found.append(Method(row_of_fill(fill), dataclasses.replace(blank, fill=fill), ranked=True, everywhere=True))
    if choice is not None:
        chosen = RelevanceMap(fill=choice.fill, segments=choice.segments, channel=choice.channel, mask=mask)
        found.append(Method(CHOSEN, chosen, kind="validation-masks"))
    maps = default_explainers(model, layers)
    found += [Method(row, explainer) for row, explainer in maps.items() if isinstance(explainer, GradCAM)]
    return (
        *found,
        Method("lime", LIME(samples=preset.lime_samples, segments=preset.segments, channel=channel, mask=mask)),
        Method(
            "kernel-shap",
            KernelSHAP(samples=preset.shap_samples, segments=preset.segments, channel=channel, mask=mask),
        ),
        Method("rise", RISE(samples=preset.rise_masks, mask=mask)),
        Method("occlusion", Occlusion(passes=preset.occlusion_passes, mask=mask)),
    )


def row_of_fill(fill: str) -> str:
    """The row of a relevance map with this fill; the folder of a perturbation network is no part of it."""
    return f"relevance-map/{'optimal' if fill.startswith(_OPTIMAL) else fill}"


def target_of(method: Method, scan: Scan, tumour: Labels, card: Card) -> ClassScore | None:
    """What a method explains of a scan: the card's first class in the regions that count; None where none does."""
    if method.everywhere:
        return ClassScore(card.classes[0])
    wanted = tuple(holds_tumour(tumour, prepared.box, card) for prepared in prepare(scan, card))
    return _InRegions(card.classes[0], wanted) if any(wanted) else None


def holds_tumour(tumour: Labels, box: Box, card: Card) -> bool:
    """Whether a region is scored: a half labelled as tumour (more than 2 ml), or a whole scan with any."""
    volume = tumour_volume(tumour, box)
    return half_label(volume) == 1 if card.region == "half" else volume > 0


def gets_mask(region: Region, card: Card) -> bool:
    """Whether a region gets a mask: not a half that is predicted negative; a whole scan always."""
    return region.positive or card.region == "whole"


def score_method(method: Method, why: Explanation, scan: Scan, tumour: Labels, card: Card) -> list[Line]:
    """What one map is worth: tables "comparison", and for ranked methods "single-ranks" and "cumulative-ranks".

    Otsu as a new scan would have it; best grouping (maps of parts) or best threshold as oracles; ranks as
    `voxplain.studies.scoring.rank_figures` has them.
    """
    # The paper describes no brain mask: without one, every voxel counts.
    brain_only = dataclasses.asdict(method.explainer).get("mask", "brain") == "brain"
    foreground = Labels(scan.foreground(), scan.grid)
    mask = segment.otsu(why, mask=foreground if brain_only else None, everywhere=card.region == "whole")
    lines: list[Line] = []
    for region in why.regions:
        if not holds_tumour(tumour, region.box, card):
            continue
        reference = tumour.data[region.slices] > 0
        value = dice(mask.data[region.slices] > 0, reference)
        lines.append((region.name, "comparison", f"{method.row}/otsu", "dice", method.kind, value))
        if why.parts is None:
            inside = foreground.data[region.slices] > 0 if brain_only else np.ones_like(reference)
            best = best_threshold(np.where(inside, why.total[region.slices], 0), reference).dice
            lines.append((region.name, "comparison", f"{method.row}/best-threshold", "dice", "oracle", best))
            continue
        parts, values = parts_in(why, region)
        best = best_grouping(parts, values, reference).dice
        lines.append((region.name, "comparison", f"{method.row}/best-grouping", "dice", "oracle", best))
        for name, figure in rank_figures(parts, values, reference, masked=gets_mask(region, card)):
            if method.ranked:
                lines.append((region.name, _table_of(name), f"{method.row}/{name}", "dice", method.kind, figure))
            if isinstance(method.explainer, LIME) and name in _LIME_RANKS:
                lines.append((region.name, "comparison", f"{method.row}/{name}", "dice", method.kind, figure))
    return lines


def score_network_free(case: Case, why: Explanation, scan: Scan, tumour: Labels, card: Card, seed: int) -> list[Line]:
    """What needs no network, in every table, on the parts of a map; random rankings are drawn for each case anew."""
    rankings = network_free_rankings(scan, why, seed=zlib.crc32(f"{case.id} {seed}".encode()))
    lines: list[Line] = []
    for region in why.regions:
        if not holds_tumour(tumour, region.box, card):
            continue
        reference = tumour.data[region.slices] > 0
        for row, mask in network_free_masks(scan, region).items():
            value = dice(mask, reference)
            lines += [
                (region.name, table, row, "dice", "deployable", value)
                for table in ("comparison", "single-ranks", "cumulative-ranks")
            ]
        for row, kind, value in ranking_figures(rankings, region, reference):
            lines.append((region.name, "comparison", row, "dice", kind, value))
        for row, ranked in rankings:
            for name, value in rank_figures(*parts_in(ranked, region), reference):
                lines.append((region.name, _table_of(name), f"{row}/{name}", "dice", "deployable", value))
    return lines


def case_table(case: Case, fold: int, lines: Sequence[Line], known: Collection[str] = ()) -> pd.DataFrame:
    """Lines of one case as a table with `CASE_COLUMNS`; several draws of one row become their mean.

    `known` are the cases that the networks behind these lines have seen: figures on one of them are of kind `seen`, all
    but those that need no network.
    """
    if not lines:
        return pd.DataFrame(columns=list(CASE_COLUMNS))
    table = pd.DataFrame(lines, columns=["region", "table", "row", "metric", "kind", "value"])
    table = table.groupby(["region", "table", "row", "metric", "kind"], sort=False, as_index=False).mean()
    if is_seen(case, known):
        table.loc[~table["row"].str.startswith((*NETWORK_FREE, "supervoxel-ceiling")), "kind"] = "seen"
    table.insert(0, "case", case.id)
    table.insert(1, "patient", case.patient)
    table.insert(2, "fold", fold)
    return table[list(CASE_COLUMNS)]


def compare_fills(table: pd.DataFrame, scores: dict[str, np.ndarray], row: str) -> list[Line]:
    """One case under another fill beside blank, paired: table "optimal".

    Args:
        table: the case's own rows, with `CASE_COLUMNS`.
        scores: |p - p'| of every supervoxel of the scan, (N,), by row of the relevance map.
        row: the other fill's, such as "relevance-map/optimal".
    """
    plain, moved = scores[BLANK], scores[row]
    lines: list[Line] = []
    if len(plain):
        lines += [
            ("scan", "optimal", row, "mean_abs_change", "plain", float(moved.mean())),
            ("scan", "optimal", row, "gain_over_blank", "plain", float((moved - plain).mean())),
            ("scan", "optimal", row, "share_moved_further", "plain", float((moved > plain).mean())),
            ("scan", "optimal", BLANK, "mean_abs_change", "plain", float(plain.mean())),
        ]
    figures = table[table["metric"] == "dice"].set_index(["region", "table", "row"])
    for index, kind, value in figures[["kind", "value"]].itertuples(name=None):
        region, of, name = index
        if name.startswith(f"{row}/"):
            rule = name.removeprefix(f"{row}/")
            blank = float(figures.loc[(region, of, f"{BLANK}/{rule}"), "value"])
            lines.append((region, "optimal", name, "dice", kind, value))
            lines.append((region, "optimal", name, "dice_gain_over_blank", kind, value - blank))
            lines.append((region, "optimal", f"{BLANK}/{rule}", "dice", kind, blank))
    return lines


def _table_of(rank: str) -> str:
    return "single-ranks" if rank.startswith("rank-") else "cumulative-ranks"
