"""Scores of segmentations that come from explanations, beside what needs no network: rows, kinds, intervals, tables.

Kinds of figure: `deployable` (no expert mask of any patient was looked at), `oracle` (the scored case's own mask
chose), `seen` (the network was trained on the case), `plain` (nothing to choose). See docs/figures.md.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from voxplain import segment
from voxplain.datasets.brats import patient_of
from voxplain.datasets.case import Case
from voxplain.datasets.hemispheres import half_label, tumour_volume
from voxplain.explanation import Explanation, Region
from voxplain.io.atomic import writing
from voxplain.metrics.classification import auc_within, balanced_accuracy
from voxplain.metrics.network_free import NETWORK_FREE, network_free_masks, network_free_rankings
from voxplain.metrics.overlap import (
    best_grouping,
    best_threshold,
    cumulative_dice,
    dice,
    hausdorff95,
    rank_dice,
    supervoxel_ceiling,
    volume_error,
)
from voxplain.metrics.statistics import bootstrap_interval, holm, paired_wilcoxon
from voxplain.model import Model
from voxplain.scan import Labels, Scan

CASE_COLUMNS = ("case", "patient", "fold", "region", "table", "row", "metric", "kind", "value")
SCORE_COLUMNS = ("table", "row", "metric", "kind", "value", "low", "high", "n")

_RANKS = 5
# Figures so small that two digits would not show them.
_DIGITS = {"mean_abs_change": 4, "gain_over_blank": 4}


def score_case(
    case: Case,
    scan: Scan,
    tumour: Labels,
    model: Model,
    explanations: Mapping[str, Explanation],
    *,
    seed: int,
    fold: int = 0,
) -> pd.DataFrame:
    """Score the explanations of one case of the hemisphere task, every row, on the scan's own grid.

    `explanations` maps the first part of the row's name ("relevance-map/blank") to the map; those of parts also give
    the partition on which the network-free rankings are drawn.

    Returns:
        A table with the columns `CASE_COLUMNS`; tables "halves" (halves labelled as tumour), "unlabelled" (halves
        with too little tumour for a label), "scans" (whole heads, halves predicted negative left empty) and
        "classification" (probability, prediction by the card's threshold, and label of each half).
    """
    foreground = Labels(scan.foreground(), scan.grid)
    with_parts = next((why for why in explanations.values() if why.parts is not None), None)
    draw = zlib.crc32(f"{case.id} {seed}".encode())  # every case draws its own random rankings
    network_free = [] if with_parts is None else network_free_rankings(scan, with_parts, seed=draw)
    masks = {f"{row}/{rule}": mask for row, why in explanations.items() for rule, mask in _masks(why, foreground)}
    seen = is_seen(case, model.card.training_ids)

    rows: list[tuple[str, str, str, str, str, float]] = []

    def add(region: str, table: str, row: str, metric: str, kind: str, value: float) -> None:
        rows.append((region, table, row, metric, "seen" if seen and row not in network_free_rows else kind, value))

    network_free_rows = {"supervoxel-ceiling", *NETWORK_FREE, *(f"{row}/best-grouping" for row in NETWORK_FREE)}
    whole = network_free_masks(scan)
    truth = tumour.data > 0
    regions = next(iter(explanations.values())).regions
    for region in regions:
        volume = tumour_volume(tumour, region.box)
        label = half_label(volume)
        box = region.slices
        add(region.name, "classification", "network", "probability", "plain", region.probability)
        add(region.name, "classification", "network", "predicted", "plain", float(region.positive))
        add(region.name, "classification", "network", "label", "plain", np.nan if label is None else float(label))
        if "intensity/flair" in whole:
            flair_ml = float(np.count_nonzero(whole["intensity/flair"][box])) * scan.grid.voxel_volume / 1000
            add(region.name, "classification", "intensity/flair", "volume_ml", "plain", flair_ml)
        if label == 0:
            continue
        table = "halves" if label == 1 else "unlabelled"
        reference = truth[box]
        for row, mask in masks.items():
            _add_mask(add, region.name, table, row, mask.data[box] > 0, reference, scan)
        for row, prediction in network_free_masks(scan, region).items():
            _add_mask(add, region.name, table, row, prediction, reference, scan)
        for row, why in explanations.items():
            _add_oracles(add, region, table, row, why, foreground, reference)
        for row, kind, value in ranking_figures(network_free, region, reference):
            add(region.name, table, row, "dice", kind, value)
    for row, mask in masks.items():
        _add_mask(add, "scan", "scans", row, mask.data > 0, truth, scan)
    for row, prediction in whole.items():
        _add_mask(add, "scan", "scans", row, prediction, truth, scan)
    for row, why in network_free:
        value = dice(segment.otsu(why, everywhere=True).data > 0, truth)
        add("scan", "scans", row, "dice", "deployable", value)
    found = pd.DataFrame(rows, columns=["region", "table", "row", "metric", "kind", "value"])
    found = found.groupby(["region", "table", "row", "metric", "kind"], sort=False, as_index=False, dropna=False).mean()
    found.insert(0, "case", case.id)
    found.insert(1, "patient", case.patient)
    found.insert(2, "fold", fold)
    return found[list(CASE_COLUMNS)]


def is_seen(case: Case, known: Collection[str]) -> bool:
    """Whether a case, or another scan of the same patient, is among the cases that a network has seen."""
    return case.id in known or case.patient in {patient_of(name) for name in known}


def ranking_figures(
    network_free: Sequence[tuple[str, Explanation]], region: Region, reference: np.ndarray
) -> list[tuple[str, str, float]]:
    """Dice of rankings that need no network in one region, as (row, kind, value): Otsu, best grouping, and the ceiling.

    `reference` is the region's tumour, boolean; a row has as many values as it has draws.
    """
    found = []
    for row, why in network_free:
        parts, values = parts_in(why, region)
        mask = segment.otsu(why, everywhere=True).data[region.slices] > 0
        found.append((row, "deployable", dice(mask, reference)))
        found.append((f"{row}/best-grouping", "oracle", best_grouping(parts, values, reference).dice))
    if network_free:
        parts, _ = parts_in(network_free[0][1], region)
        found.append(("supervoxel-ceiling", "oracle", supervoxel_ceiling(parts, reference)))
    return found


def rank_figures(
    parts: np.ndarray, values: np.ndarray, reference: np.ndarray, *, masked: bool = True
) -> list[tuple[str, float]]:
    """Dice of the first five ranks of a region as they stand, alone ("rank-1") and together ("top-1").

    0 where the region gets no mask (`masked` False), and where two or more parts all have the same score, so that
    nothing is ranked (as `segment.top_ranks` has it). Of fewer parts than ranks, a missing rank alone is NaN, and the
    ranks together are all parts. Nothing where there is no part.

    Args:
        parts: labels 1..N in the region's box.
        values: their scores, (N,).
        reference: the tumour there, boolean.
        masked: whether the region gets a mask at all.
    """
    if not len(values):
        return []
    if len(values) > 1 and np.ptp(values) == 0:
        masked = False
    return [
        (f"{name}-{rank}", float(value) if masked else 0.0)
        for name, measured in (("rank", rank_dice), ("top", cumulative_dice))
        for rank, value in enumerate(measured(parts, values, reference, ranks=_RANKS), start=1)
    ]


def scores(cases: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Sum the cases up: means with bootstrap 95 % intervals over patients, AUC within folds, paired gains.

    Returns:
        A table with the columns `SCORE_COLUMNS`; n counts patients. `dice_gain` is a row's mean paired gain in Dice
        over the best deployable network-free row, and `p_holm` its Wilcoxon signed-rank p-value over patients,
        adjusted by Holm over the rows of its table.
    """
    rows: list[tuple[str, str, str, str, float, float, float, int]] = []
    measured = cases[cases["table"] != "classification"]
    for (table, row, metric, kind), group in measured.groupby(["table", "row", "metric", "kind"], sort=False):
        low, high = bootstrap_interval(group["value"].to_numpy(), groups=group["patient"].to_numpy(), seed=seed)
        valid = group.dropna(subset="value")
        mean = float(valid["value"].mean()) if len(valid) else np.nan
        rows.append((str(table), str(row), str(metric), str(kind), mean, low, high, valid["patient"].nunique()))
    rows += _classification(cases[cases["table"] == "classification"], seed)
    rows += _gains(measured, seed)
    return pd.DataFrame(rows, columns=list(SCORE_COLUMNS))


def write_tables(cases: pd.DataFrame, summary: pd.DataFrame, folder: Path, *, too_few: str | None = None) -> None:
    """Write `cases.tsv` and `scores.tsv`; `too_few` says of every figure why it means nothing (see `marked`)."""
    for table, name in ((marked(cases, too_few), "cases.tsv"), (marked(summary, too_few), "scores.tsv")):
        with writing(folder / name) as temporary:
            # Nine digits: printed tables come out the same when they are made from the file.
            table.to_csv(temporary, sep="\t", index=False, float_format="%.9g")


def marked(table: pd.DataFrame, too_few: str | None) -> pd.DataFrame:
    """A table in which the kind of every figure also says why it means nothing: "oracle, too few to mean anything"."""
    return table if too_few is None else table.assign(kind=table["kind"] + f", {too_few}")


def table_titles() -> dict[str, str]:
    """What each table of the summary shows, in one line."""
    return {
        "classification": "Which halves hold tumour (AUC within folds, balanced accuracy at the card's threshold)",
        "halves": "Dice on the halves labelled as tumour; halves predicted negative count as empty masks",
        "unlabelled": "Halves with 0.16 to 2 ml of tumour, which have no label",
        "scans": "Whole scans; halves predicted negative are left empty",
    }


def as_rows(
    summary: pd.DataFrame, table: str, paper: Mapping[str, str] | None = None, *, too_few: str | None = None
) -> list[tuple[str, ...]]:
    """One table as text: row, kind, then each metric as "mean [low, high]", and n; deployable rows first.

    `paper` are figures by row that stand in a last column beside ours; `too_few` is said of every figure.
    """
    chosen = summary[summary["table"] == table]
    metrics = list(dict.fromkeys(chosen["metric"]))
    order = {"deployable": 0, "plain": 0, "validation-masks": 1, "seen": 2, "oracle": 3}
    beside = None if paper is None or not set(paper) & set(chosen["row"]) else paper
    lines: list[tuple[str, ...]] = [("row", "kind", *metrics, "n", *([] if beside is None else ["paper"]))]
    keys = chosen[["row", "kind"]].drop_duplicates().itertuples(index=False, name=None)
    for row, kind in sorted(keys, key=lambda key: order.get(key[1], 4)):
        group = chosen[(chosen["row"] == row) & (chosen["kind"] == kind)].set_index("metric")
        cells = [_cell(group.loc[metric]) if metric in group.index else "" for metric in metrics]
        word = kind if too_few is None else f"{kind}, {too_few}"
        theirs = [] if beside is None else [beside.get(row, "")]
        lines.append((row, word, *cells, str(int(group["n"].max())), *theirs))
    return lines


def print_tables(
    summary: pd.DataFrame,
    console: Console,
    titles: Mapping[str, str] | None = None,
    paper: Mapping[str, Mapping[str, str]] | None = None,
    *,
    too_few: str | None = None,
) -> None:
    """Print every table of a summary, each line whole: cells cut to a narrow terminal would hide the figures.

    `titles` are the tables and what they show, those of the hemisphere study by default; for the rest see `as_rows`.
    """
    for name, title in (table_titles() if titles is None else titles).items():
        lines = as_rows(summary, name, (paper or {}).get(name), too_few=too_few)
        if len(lines) == 1:
            continue
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        console.print(f"\n{title}\n", highlight=False, soft_wrap=True, markup=False)
        for line in lines:
            cells = [
                cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            ]
            console.print("  ".join(cells).rstrip(), highlight=False, soft_wrap=True, markup=False)


def markdown(
    summary: pd.DataFrame,
    titles: Mapping[str, str] | None = None,
    paper: Mapping[str, Mapping[str, str]] | None = None,
    *,
    too_few: str | None = None,
) -> str:
    """Every table of a summary in Markdown; see `print_tables`."""
    blocks = []
    for name, title in (table_titles() if titles is None else titles).items():
        header, *lines = as_rows(summary, name, (paper or {}).get(name), too_few=too_few)
        if lines:
            rule = ["---"] * 2 + ["---:"] * (len(header) - 2)
            body = "\n".join("| " + " | ".join(line) + " |" for line in (header, tuple(rule), *lines))
            blocks.append(f"**{title}**\n\n{body}\n")
    return "\n".join(blocks)


def _cell(line: pd.Series) -> str:
    if np.isnan(line["value"]):
        return "-"
    if np.isnan(line["low"]):
        return f"{line['value']:.3g}"
    digits = _DIGITS.get(str(line.name), 2)
    return f"{line['value']:.{digits}f} [{line['low']:.{digits}f}, {line['high']:.{digits}f}]"


def _masks(why: Explanation, foreground: Labels) -> list[tuple[str, Labels]]:
    return [
        ("otsu", segment.otsu(why, mask=foreground)),
        ("multi-otsu", segment.multi_otsu(why, mask=foreground)),
    ]


def parts_in(why: Explanation, region: Region) -> tuple[np.ndarray, np.ndarray]:
    """Parts of one region, numbered 1..N there, and their scores."""
    assert why.parts is not None
    assert why.scores is not None
    inside = why.labels_in(region)
    lookup = np.zeros(len(why.scores) + 1, dtype=np.int64)
    lookup[inside] = np.arange(1, len(inside) + 1)
    return lookup[why.parts.data[region.slices]], why.scores[inside - 1]


def _add_mask(
    add: Callable[..., None],
    region: str,
    table: str,
    row: str,
    prediction: np.ndarray,
    reference: np.ndarray,
    scan: Scan,
) -> None:
    add(region, table, row, "dice", "deployable", dice(prediction, reference))
    add(region, table, row, "hd95_mm", "deployable", hausdorff95(prediction, reference, spacing=scan.grid.spacing))
    error = volume_error(prediction, reference, voxel_volume=scan.grid.voxel_volume)
    add(region, table, row, "volume_error_ml", "deployable", error)


def _add_oracles(
    add: Callable[..., None],
    region: Region,
    table: str,
    row: str,
    why: Explanation,
    foreground: Labels,
    reference: np.ndarray,
) -> None:
    """What the map could give if the case's own mask chose; and the ranks as they stand (deployable)."""
    if why.parts is None:
        inside = foreground.data[region.slices] > 0
        values = np.where(inside, why.total[region.slices], 0)
        add(region.name, table, f"{row}/best-threshold", "dice", "oracle", best_threshold(values, reference).dice)
        return
    parts, values = parts_in(why, region)
    add(region.name, table, f"{row}/best-grouping", "dice", "oracle", best_grouping(parts, values, reference).dice)
    # A half that is predicted negative gets no mask, whatever its ranks.
    for name, value in rank_figures(parts, values, reference, masked=region.positive):
        add(region.name, table, f"{row}/{name}", "dice", "deployable", value)


def _classification(cases: pd.DataFrame, seed: int) -> list[tuple[str, str, str, str, float, float, float, int]]:
    if cases.empty:
        return []
    keys = ["case", "patient", "fold", "region"]
    labels = cases[cases["metric"] == "label"].set_index(keys)["value"]
    rows: list[tuple[str, str, str, str, float, float, float, int]] = []
    figures: tuple[tuple[str, str, str, Callable[..., float]], ...] = (
        ("network", "probability", "auc", auc_within),
        ("network", "predicted", "balanced_accuracy", lambda labels, values, _folds: balanced_accuracy(labels, values)),
        ("intensity/flair", "volume_ml", "auc", auc_within),
    )
    for row, source, name, statistic in figures:
        found = cases[(cases["row"] == row) & (cases["metric"] == source)].set_index(keys)
        if found.empty:  # scans without FLAIR
            continue
        kind = "seen" if (found["kind"] == "seen").any() else "plain"
        table = pd.DataFrame({"value": found["value"], "label": labels}).dropna().reset_index()
        arrays = tuple(table[column].to_numpy() for column in ("label", "value", "fold"))
        patients = table["patient"].to_numpy()
        low, high = bootstrap_interval(arrays, statistic=statistic, groups=patients, seed=seed)
        rows.append(("classification", row, name, kind, statistic(*arrays), low, high, len(set(patients))))
    return rows


def _gains(cases: pd.DataFrame, seed: int) -> list[tuple[str, str, str, str, float, float, float, int]]:
    """Paired gain of every deployable map row over the best network-free row, per table, over patients."""
    rows: list[tuple[str, str, str, str, float, float, float, int]] = []
    for table, group in cases[cases["metric"] == "dice"].groupby("table", sort=False):
        by_patient = group.groupby(["patient", "row", "kind"], as_index=False)["value"].mean()
        means = by_patient[by_patient["row"].isin(NETWORK_FREE)].groupby("row")["value"].mean()
        if means.empty:
            continue
        best = by_patient[by_patient["row"] == means.idxmax()].set_index("patient")["value"]
        kinds = ["deployable", "validation-masks", "seen"]
        candidates = by_patient[by_patient["kind"].isin(kinds) & ~by_patient["row"].str.startswith(NETWORK_FREE)]
        # On a case that the network has seen, what the case's own mask chose is called seen as well.
        candidates = candidates[~candidates["row"].str.contains("/best-")]
        tested = []
        for (row, kind), ours in candidates.groupby(["row", "kind"], sort=False):
            paired = pd.DataFrame({"ours": ours.set_index("patient")["value"], "best": best}).dropna()
            p_value = paired_wilcoxon(paired["ours"].to_numpy(), paired["best"].to_numpy())
            tested.append((row, kind, (paired["ours"] - paired["best"]).to_numpy(), p_value))
        for (row, kind, gain, _), adjusted in zip(tested, holm(np.array([t[3] for t in tested])), strict=True):
            low, high = bootstrap_interval(gain, seed=seed)
            rows.append((str(table), row, "dice_gain", kind, float(gain.mean()), low, high, len(gain)))
            rows.append((str(table), row, "p_holm", kind, float(adjusted), np.nan, np.nan, len(gain)))
    return rows
