"""The tables of the instance study in Markdown, with the figures of paper instance (004) beside ours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from voxplain.studies.markdown_table import table_line

TITLES = {
    "counts": "Lesions of each class, explained or not, and how well they are found (pooled: mean over patients)",
    "sequences": "Positive and negative saliency by sequence: medians over lesions [95 % over lesions]",
    "sides": "Inside of the lesion and outside: medians of positive and negative values, and how many voxels",
    "classes": "Maxima and minima of the FLAIR map by class: medians over lesions [95 % over lesions]",
    "order": "Do the medians of the classes fall in the paper's order? 1 yes, 0 no; n classes that occur",
    "tests": "Mann-Whitney, two-sided, of all pairs of classes",
    "plain rivals": "What tells TP from FP: the map's maximum beside plain features of the same lesions",
    "methods": "Which method's maximum tells TP from FP, and at what cost",
    "placements": "A clearly visible lesion moved: prediction and extremes of the FLAIR map",
    "context": "How much of what lies around a lesion is needed",
}
INDEPENDENT = (
    "Lesions of one patient are not independent of each other: p-values and intervals over lesions say nothing of a "
    "population, and two patients are none."
)
# 004, 3.2, 3.3 and 3.5: 3,050 TP, 1,818 FP, 789 FN and 1,010 TN of 37 patients.
N = {"TP": 3050, "FP": 1818, "FN": 789, "TN": 1010}
PAPER = {
    ("sequences", "TP", "flair positive"): 0.501,
    ("sequences", "TP", "t1 negative"): -0.196,
    ("sequences", "TP", "fades at, mm"): 44.0,
    ("classes", "TP", "maximum"): 1.997,
    ("classes", "FP", "maximum"): 1.630,
    ("classes", "FN", "maximum"): 1.202,
    ("classes", "TN", "maximum"): 0.465,
    ("classes", "TP", "minimum"): -0.639,
    ("classes", "FP", "minimum"): -0.522,
    ("classes", "FN", "minimum"): -0.359,
    ("classes", "TN", "minimum"): -0.245,
}
_IN_WORDS = {
    "counts": "the paper: 3,050 TP, 1,818 FP, 789 FN and 1,010 TN of 37 patients, whose lesion F1 comes to 0.70.",
    "sequences": "the paper pools all voxels of all TP; ours are medians over lesions of each lesion's median.",
    "classes": "in logit per intensity unit of the network's input; another normalisation has another unit.",
    "order": "the paper's order of all four medians, for maxima and (from the most negative on) minima: yes.",
    "tests": "the paper: p < 6e-65 for all pairs.",
    "placements": (
        "the paper: detected in white matter, neither outside of the brain nor there with 3 mm of tissue (10 patients)."
    ),
    "context": (
        "the paper: 178 lesions of 90-120 mm3, all detected from 7 mm on, scores level off at 12-15 mm. `all appear` "
        "and `90 % appear` are of those that are found with the whole scan."
    ),
    "methods": "forward and backward passes are means per lesion; of sampled lesions each looked-at voxel is a pass.",
    "sides": "the paper: FLAIR positive inside and negative around a lesion, MPRAGE the other way round (Fig. 8, 9).",
}


def markdown(summary: pd.DataFrame, notes: Sequence[str] = ()) -> str:
    """All tables, a line per row and kind, then the paper's figures; `notes` come first."""
    blocks = ["\n".join(f"- {note}" for note in (*notes, INDEPENDENT))]
    for table, title in TITLES.items():
        lines = table_lines(summary, table)
        if len(lines) < 2:
            continue
        head, *body = [table_line(cells) for cells in lines]
        words = f"\n\n{_IN_WORDS[table][0].upper()}{_IN_WORDS[table][1:]}" if table in _IN_WORDS else ""
        blocks.append("\n".join([f"### {title}", "", head, table_line(["---"] * len(lines[0])), *body]) + words)
    return "\n\n".join(blocks) + "\n"


def table_lines(summary: pd.DataFrame, table: str) -> list[list[str]]:
    """One table as cells, the header first: row, kind, a column per metric, n; the paper's rows last."""
    its = summary[summary["table"] == table]
    metrics = list(dict.fromkeys(its["metric"]))
    lines = [["row", "kind", *metrics, "n"]]
    for row, kind in dict.fromkeys(zip(its["row"], its["kind"], strict=True)):
        found = its[(its["row"] == row) & (its["kind"] == kind)].set_index("metric")
        cells = [_cell(found.loc[metric]) if metric in found.index else "" for metric in metrics]
        lines.append([row, kind, *cells, str(int(found["n"].max()))])
    for name, count in N.items():
        theirs = [PAPER.get((table, name, metric)) for metric in metrics]
        if len(lines) > 1 and any(value is not None for value in theirs):
            cells = ["" if value is None else f"{value:.4g}" for value in theirs]
            lines.append([f"004/{name}", "deployable", *cells, f"{count} of 37 patients"])
    return lines


def _cell(figure: pd.Series) -> str:
    value, low, high = (float(figure[name]) for name in ("value", "low", "high"))
    if np.isnan(value):
        return "-"
    return f"{value:.3g}" + ("" if np.isnan(low) else f" [{low:.3g}, {high:.3g}]")
