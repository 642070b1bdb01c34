"""Figures as rows, written to `performance.tsv` and `tables.md`, and drawn over sizes in `growth.svg`."""

from __future__ import annotations

import dataclasses
import platform
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pandas as pd
import torch
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Row:
    """One figure: where it stands, what it is, and its smallest and largest value over n runs where there are any."""

    table: str
    row: str
    metric: str
    value: float
    low: float = float("nan")
    high: float = float("nan")
    n: int = 1

    def text(self) -> str:
        """The figure as tables print it."""
        spread = "" if self.low != self.low else f" [{self.low:.3g}, {self.high:.3g}]"
        return f"{self.value:.3g}{spread}"


def write(rows: list[Row], out: Path, section: str) -> None:
    """Replace a section's rows in `performance.tsv`, and write all tables anew as `tables.md`."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "performance.tsv"
    new = pd.DataFrame([{"section": section, "kind": "plain", **dataclasses.asdict(row)} for row in rows])
    if file.exists():
        before = pd.read_csv(file, sep="\t")
        new = pd.concat([before[before["section"] != section], new])
    columns = ["section", "table", "row", "metric", "kind", "value", "low", "high", "n"]
    new[columns].to_csv(file, sep="\t", index=False, float_format="%.6g")
    (out / "tables.md").write_text(f"{_machine()}\n\n{markdown(new)}")


def markdown(figures: pd.DataFrame) -> str:
    """Every table under its title."""
    lines = []
    for table, its in figures.groupby("table", sort=False):
        lines += [f"### {table}", "", "| | figure | value | n |", "|---|---|---|---|"]
        for figure in its.itertuples():
            shown = Row("", "", "", figure.value, figure.low, figure.high).text()
            lines.append(f"| {figure.row} | {figure.metric} | {shown} | {figure.n} |")
        lines.append("")
    return "\n".join(lines)


def _machine() -> str:
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"oneDNN {'on' if torch.backends.mkldnn.is_available() else 'off'}."
    )


def draw_growth(rows: list[Row], out: Path) -> None:
    """Seconds of a full and of an incremental pass, and their ratio beside its ceiling, over sizes."""
    # Text stays text, and the same figures give the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "voxplain"})
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, 4)
    for column, (start, label) in enumerate((("scan", "voxels along an axis"), ("parts", "supervoxels"))):
        its = [row for row in rows if row.row.startswith(start)]
        for panel, metrics in (
            (panels[2 * column], ("s per full pass", "s per incremental pass")),
            (panels[2 * column + 1], ("times faster, preparation included", "what exactness allows (times)")),
        ):
            for metric, style in zip(metrics, ("o-", "s--"), strict=True):
                points = [(int(row.row.split()[1].rstrip(",")), row.value) for row in its if row.metric == metric]
                panel.plot(*zip(*points, strict=True), style, label=metric)
            panel.set_xlabel(label)
            panel.set_xscale("log", base=2)
            panel.set_ylim(bottom=0)
            panel.legend(fontsize=6, frameon=False)
            panel.grid(alpha=0.3)
    figure.savefig(out / "growth.svg", metadata={"Date": None})
