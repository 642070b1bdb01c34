"""The figures of paper gp (002) from lines of slices: classification, localisation, and the paper's own beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from voxplain.io.atomic import write_json, write_text, writing
from voxplain.metrics.classification import accuracy, confusion_matrix, precision_recall_f1
from voxplain.metrics.statistics import bootstrap_interval
from voxplain.model import Card
from voxplain.studies.gp_paper import published
from voxplain.studies.markdown_table import table_line

Row = tuple[str, str, str, str, float, float, float, int]
COLUMNS = ("table", "row", "metric", "kind", "value", "low", "high", "n")
# Of patients or folds; with fewer groups slices are drawn, and the interval is narrower than it should be.
_ENOUGH_GROUPS = 8


def classification_rows(slices: pd.DataFrame, classes: Sequence[str], absent: Sequence[str], *, seed: int) -> list[Row]:
    """Weighted precision, recall, F1 and accuracy of each network, F1 of each class, and accuracy on tumours alone.

    `slices` has columns network, kind, group, slice, label, predicted (names of classes), one line per slice.
    """
    rows: list[Row] = []
    for (network, kind), lines in slices.groupby(["network", "kind"], sort=False):
        labels, predicted = (numbers(lines[name], classes) for name in ("label", "predicted"))
        groups = _groups(lines)

        def weighted(which: int) -> Callable[[np.ndarray, np.ndarray], float]:
            return lambda a, b: float(precision_recall_f1(a.astype(int), b.astype(int), classes=len(classes))[which])

        figures: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
            "precision": weighted(0),
            "recall": weighted(1),
            "F1": weighted(2),
            "accuracy": lambda a, b: accuracy(a.astype(int), b.astype(int), classes=len(classes)),
        }
        for metric, figure in figures.items():
            low, high = bootstrap_interval(
                (labels, predicted), statistic=figure, groups=groups, resamples=500, seed=seed
            )
            value = figure(labels, predicted)
            rows.append(("classification", str(network), metric, str(kind), value, low, high, len(lines)))
        each = precision_recall_f1(labels, predicted, classes=len(classes), average="none")
        for number, name in enumerate(classes):
            count = int((labels == number).sum())
            rows.append(
                ("classification", str(network), f"F1 {name}", str(kind), float(each[2][number]), np.nan, np.nan, count)
            )
        if absent:
            tumour = ~lines.label.isin(absent).to_numpy()
            right = (labels == predicted)[tumour]
            low, high = bootstrap_interval(right.astype(float), groups=groups[tumour], seed=seed)
            value = float(right.mean()) if right.size else np.nan
            rows.append(
                ("classification", str(network), "accuracy, tumour slices", str(kind), value, low, high, right.size)
            )
    return rows


def confusion_rows(slices: pd.DataFrame, classes: Sequence[str]) -> list[Row]:
    """How many slices of each class were predicted as each class, by network."""
    rows: list[Row] = []
    for (network, kind), lines in slices.groupby(["network", "kind"], sort=False):
        matrix = confusion_matrix(
            numbers(lines.label, classes), numbers(lines.predicted, classes), classes=len(classes)
        )
        for label, counts in zip(classes, matrix, strict=True):
            for predicted, count in zip(classes, counts, strict=True):
                rows.append(
                    (
                        "confusion",
                        str(network),
                        f"{label} as {predicted}",
                        str(kind),
                        float(count),
                        np.nan,
                        np.nan,
                        int(counts.sum()),
                    )
                )
    return rows


def localisation_rows(lines: pd.DataFrame, classes: Sequence[str], absent: Sequence[str], *, seed: int) -> list[Row]:
    """Median Dice over the slices with tumour, by network and row: of all, its quartiles, of each class; and areas.

    `lines` has columns network, stack, group, slice, label, predicted, row, kind, dice, area. The mean area marked on
    slices without tumour is the false-positive area.
    """
    rows: list[Row] = []
    for (network, row, kind), found in lines.groupby(["network", "row", "kind"], sort=False):
        name = str(row) if network == "" else f"{network}/{row}"
        tumour = found[found.dice.notna()]
        low, high = _interval(tumour, np.median, seed)
        rows.append(("localisation", name, "median Dice", str(kind), _median(tumour.dice), low, high, len(tumour)))
        low, high = _interval(tumour, np.mean, seed)
        mean = float(tumour.dice.mean()) if len(tumour) else np.nan
        rows.append(("localisation", name, "mean Dice", str(kind), mean, low, high, len(tumour)))
        for share in (25, 75):
            value = float(np.percentile(tumour.dice, share)) if len(tumour) else np.nan
            rows.append(
                ("localisation", name, f"Dice, {share}th percentile", str(kind), value, np.nan, np.nan, len(tumour))
            )
        for title in classes:
            its = tumour[tumour.label == title]
            if title not in absent and len(its) and len(classes) - len(absent) > 1:
                low, high = _interval(its, np.median, seed)
                rows.append(
                    ("localisation", name, f"median Dice, {title}", str(kind), _median(its.dice), low, high, len(its))
                )
        free = found[found.label.isin(absent)]
        if len(free):
            low, high = bootstrap_interval(free.area.to_numpy(), groups=_groups(free), seed=seed)
            rows.append(
                (
                    "localisation",
                    name,
                    "false-positive area, mm2",
                    str(kind),
                    float(free.area.mean()),
                    low,
                    high,
                    len(free),
                )
            )
    return rows


def gain_rows(lines: pd.DataFrame, *, seed: int) -> list[Row]:
    """The paired gain in Dice of each network's rows over the best row that needs no network, over slices with tumour.

    The best plain row is the one with the highest mean Dice; the gain is the mean difference.
    """
    tumour = lines[lines.dice.notna()]
    plain = tumour[(tumour.kind == "plain") & (tumour.row != "random-map")]
    if plain.empty:
        return []
    best = str(plain.groupby("row").dice.mean().idxmax())
    rival = plain[plain.row == best].drop_duplicates(["stack", "slice"]).set_index(["stack", "slice"]).dice
    rows: list[Row] = []
    for (network, row, kind), found in tumour[tumour.kind != "plain"].groupby(["network", "row", "kind"], sort=False):
        gain = found.dice.to_numpy() - rival.loc[list(zip(found["stack"], found["slice"], strict=True))].to_numpy()
        low, high = bootstrap_interval(gain, groups=_groups(found), seed=seed)
        name = f"{network}/{row} - {best}"
        rows.append(("gain", name, "mean Dice", str(kind), float(gain.mean()), low, high, len(gain)))
    return rows


def numbers(names: pd.Series, classes: Sequence[str]) -> np.ndarray:
    """Numbers of classes, (N,), from their names."""
    return names.map({name: number for number, name in enumerate(classes)}).to_numpy()


def _interval(lines: pd.DataFrame, statistic: Callable[..., float], seed: int) -> tuple[float, float]:
    if lines.empty:
        return np.nan, np.nan
    return bootstrap_interval(
        lines.dice.to_numpy(), statistic=statistic, groups=_groups(lines), resamples=1000, seed=seed
    )


def _groups(lines: pd.DataFrame) -> np.ndarray:
    """Patients where they are known; else every slice by itself."""
    groups = lines.group.to_numpy()
    if len(set(groups)) >= _ENOUGH_GROUPS:
        return groups
    return (lines["stack"].astype(str) + "/" + lines["slice"].astype(str)).to_numpy()


def _median(values: pd.Series) -> float:
    return float(values.median()) if len(values) else np.nan


def summed_up(
    slices: pd.DataFrame, lines: pd.DataFrame, card: Card, *, seed: int, more: Sequence[Row] = ()
) -> pd.DataFrame:
    """All figures of a study or an evaluation, with the columns of `scores.tsv`."""
    rows = classification_rows(slices, card.classes, card.absent, seed=seed)
    rows += confusion_rows(slices, card.classes)
    rows += localisation_rows(lines, card.classes, card.absent, seed=seed)
    rows += [*gain_rows(lines, seed=seed), *more]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def write_tables(summary: pd.DataFrame, out: Path, *, dataset: str, facts: Mapping[str, Any]) -> None:
    """Write `scores.tsv`, `tables.md`, where the paper's figures stand beside ours, and `facts.json`."""
    with writing(out / "scores.tsv") as temporary:
        summary.to_csv(temporary, sep="\t", index=False, float_format="%.5g")
    write_text(markdown(summary, dataset), out / "tables.md")
    write_json(dict(facts), out / "facts.json")


_TITLES = {
    "classification": "Classification of slices: means weighted by class size, [95 %]",
    "confusion": "Confusion matrices: slices of a class (first word) predicted as another",
    "localisation": "Localisation: Dice of slices with tumour; a missed slice counts 0",
    "gain": "Paired gain in Dice over the best row that needs no network",
    "post-hoc": "Post-hoc maps: agreement with the network's own heat map, and Dice of their Otsu masks",
}


def markdown(summary: pd.DataFrame, dataset: str) -> str:
    """The tables in Markdown, a line per row and kind: figures with intervals and n; then the paper's beside ours."""
    blocks = []
    for table, title in _TITLES.items():
        found = summary[summary.table == table]
        if found.empty:
            continue
        metrics = list(dict.fromkeys(found.metric))
        lines = [
            f"### {title}",
            "",
            table_line(["row", "kind", *metrics, "n"]),
            table_line(["---"] * (3 + len(metrics))),
        ]
        for row, kind in dict.fromkeys(zip(found.row, found.kind, strict=True)):
            its = found[(found.row == row) & (found.kind == kind)].set_index("metric")
            cells = [_cell(its.loc[metric], table) if metric in its.index else "" for metric in metrics]
            lines.append(table_line([row, kind, *cells, str(int(its.n.iloc[0]))]))
        blocks.append("\n".join(lines))
    beside = _beside(summary, published(dataset))
    return "\n\n".join([*blocks, *([beside] if beside else [])]) + "\n"


def _beside(summary: pd.DataFrame, theirs: Mapping[tuple[str, str, str], float]) -> str:
    """Every figure that the paper states of what is in the tables, beside ours."""
    lines = []
    for (table, row, metric), paper in theirs.items():
        found = summary[(summary.table == table) & (summary.row == row) & (summary.metric == metric)]
        lines += [
            table_line([row, metric, str(ours["kind"]), _cell(ours.rename(metric), table), f"{paper:.2f}"])
            for _, ours in found.iterrows()
        ]
    head = [table_line(["row", "metric", "kind", "ours", "paper"]), table_line(["---"] * 5)]
    return "\n".join(["### Beside the paper's figures", "", *head, *lines]) if lines else ""


def _cell(figure: pd.Series, table: str) -> str:
    value, low, high = (float(figure[name]) for name in ("value", "low", "high"))
    if np.isnan(value):
        return "-"
    if table == "confusion" or str(figure.name).endswith("mm2"):
        return f"{value:.0f}"
    sign = "+" if table == "gain" else ""
    interval = "" if np.isnan(low) else f" [{low:{sign}.2f}, {high:{sign}.2f}]"
    return f"{value:{sign}.3f}{interval}"
