"""What the relevance study writes and prints: summary, tables beside the papers', and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from voxplain.io.atomic import write_json, write_text
from voxplain.metrics.network_free import NETWORK_FREE
from voxplain.metrics.statistics import holm, paired_wilcoxon
from voxplain.report.cohort import Distribution, cohort_report
from voxplain.studies.paper_tables import PAPER
from voxplain.studies.scoring import SCORE_COLUMNS, as_rows, markdown, print_tables, scores, write_tables

TITLES = {
    "classifier": "The classifier: AUC within folds; the paper's tells high-grade from low-grade gliomas",
    "best-grouping-grid": "Evaluation 1: best grouping (the case's own mask chooses) and Otsu on validation patients, "
    "who chose the network's epoch (seen), by fill, sequence and number of supervoxels",
    "optimal": "The optimal fill (or the one that --fill names) beside blank on the same test patients: mean |p - p'| "
    "over all supervoxels, and Dice",
    "single-ranks": "Evaluation 2: Dice of single ranks on test patients",
    "cumulative-ranks": "Evaluation 3: Dice of the first ranks together on test patients",
    "along-training": "Evaluation 4: maps of validation patients at every epoch of a training; the paper shows "
    "eight epochs, and measures nothing",
    "along-training-correlation": "Evaluation 4: Spearman correlation of each measure's mean with the validation loss "
    "over the epochs; epochs are not independent, hence no p-value, and n counts epochs",
    "comparison": "Evaluation 5: Dice of every method on the same test patients, beside what needs no network",
    "cost": "What a region costs, on this machine",
}
_PAPER_SAYS = (
    "The column *paper* holds the figures of 000 (tables 1 to 5): Dice on BraTS 2020 at 1 mm of maps of a ResNet-50 "
    "that tells high-grade from low-grade gliomas, without intervals. Best grouping and best threshold are oracles; "
    "the grid ran on validation scans."
)


def summed_up(cases: pd.DataFrame, first: Sequence[tuple[Any, ...]], *, seed: int) -> pd.DataFrame:
    """Means, intervals, gains over what needs no network (see `scores`), and paired tests of the fills.

    In table "optimal", `p_wilcoxon` is the signed-rank p-value over patients of the gain in |p - p'|, and `p_holm` that
    of a Dice row's gain over blank, adjusted by Holm over the rows of the table. `first` are lines that go before.
    """
    lines = pd.DataFrame([*first, *_paired(cases)], columns=list(SCORE_COLUMNS))
    found = [table for table in (lines, scores(cases, seed=seed)) if len(table)]
    return pd.concat(found, ignore_index=True)


def came_out(summary: pd.DataFrame) -> list[str]:
    """What came out, each figure with its kind, interval and n."""
    found = []
    line: Any
    best: Any
    comparison = summary[summary["table"] == "comparison"]
    figures = comparison[(comparison["metric"] == "dice") & comparison["kind"].isin(["deployable", "validation-masks"])]
    free = figures[figures["row"].isin(NETWORK_FREE)]
    if len(free):
        best = next(free.loc[[free["value"].idxmax()]].itertuples())
        found.append(f"Of what needs no network, {best.row} is best: Dice {_words(best)}.")
    gains = comparison[comparison["metric"] == "dice_gain"]
    if len(gains):
        line = next(gains.loc[[gains["value"].idxmax()]].itertuples())
        verdict = "beats it" if line.low > 0 else "does not beat it" if line.high < 0 else "is not told apart from it"
        found.append(f"The best map row, {line.row}, {verdict}: mean paired gain in Dice {_words(line)}.")
    optimal = summary[summary["table"] == "optimal"]
    for line in optimal[optimal["metric"] == "gain_over_blank"].itertuples():
        verdict = "further than blank"
        if not line.low > 0:
            verdict = "less far than blank" if line.high < 0 else "about as far as blank, as far as these patients tell"
        found.append(f"{line.row} moves the output {verdict}: gain in mean |p - p'| {_words(line, digits=4)}.")
    return found


def write_results(
    cases: pd.DataFrame,
    summary: pd.DataFrame,
    out: Path,
    provenance: Mapping[str, Any],
    console: Console,
    *,
    too_few: str | None,
) -> None:
    """Write `cases.tsv`, `scores.tsv`, `tables.md`, `provenance.json` and `report.html`, and print the tables."""
    write_tables(cases, summary, out, too_few=too_few)
    write_json({**provenance, "too_few": too_few}, out / "provenance.json")
    sentences = came_out(summary)
    if too_few is not None:
        sentences = [f"{sentence} ({too_few})" for sentence in sentences]
    said = "\n".join(f"- {sentence}" for sentence in sentences)
    chosen = "\n".join(
        f"- {fold}: {row or 'nothing to choose from'}"
        for fold, row in provenance["chosen_on_validation_patients"].items()
    )
    blocks = [f"{cases['patient'].nunique()} patients, seed {provenance['seed']}.", said]
    if chosen:
        blocks.append(f"Chosen on validation patients (relevance-map/chosen):\n\n{chosen}")
    blocks += [_PAPER_SAYS, markdown(summary, TITLES, PAPER, too_few=too_few)]
    write_text("\n\n".join(block for block in blocks if block), out / "tables.md")
    print_tables(summary, console, TITLES, PAPER, too_few=too_few)
    cohort_report(
        out / "report.html",
        title="Relevance maps and their rivals",
        summary=sentences,
        figure="Dice in regions with tumour",
        distributions=_distributions(cases, summary),
        pictured="",
        pictures=[],
        tables={title: as_rows(summary, name, PAPER.get(name), too_few=too_few) for name, title in TITLES.items()},
        provenance=provenance,
        note=too_few,
    )


def _paired(cases: pd.DataFrame) -> list[tuple[str, str, str, str, float, float, float, int]]:
    """p-values of the gains over blank, over patients."""
    rows: list[tuple[str, str, str, str, float, float, float, int]] = []
    for metric, name in (("gain_over_blank", "p_wilcoxon"), ("dice_gain_over_blank", "p_holm")):
        found = cases[cases["metric"] == metric]
        tested = []
        for (row, kind), group in found.groupby(["row", "kind"], sort=False):
            gains = group.groupby("patient")["value"].mean().to_numpy()
            tested.append((str(row), str(kind), paired_wilcoxon(gains, np.zeros_like(gains)), len(gains)))
        adjusted = holm(np.array([p_value for _, _, p_value, _ in tested]))
        rows += [
            ("optimal", row, name, kind, float(p_value), np.nan, np.nan, n)
            for (row, kind, _, n), p_value in zip(tested, adjusted, strict=True)
        ]
    return rows


def _distributions(cases: pd.DataFrame, summary: pd.DataFrame) -> list[Distribution]:
    """One strip per row of the comparison, deployable ones first."""
    order = {"deployable": 0, "validation-masks": 1, "seen": 2, "oracle": 3}
    chosen = summary[(summary["table"] == "comparison") & (summary["metric"] == "dice")]
    found = []
    lines: list[Any] = list(chosen.itertuples())
    for line in sorted(lines, key=lambda line: (order[line.kind], line.row in NETWORK_FREE)):
        own = cases[(cases["table"] == "comparison") & (cases["metric"] == "dice") & (cases["row"] == line.row)]
        by_case = own[own["kind"] == line.kind].groupby("case")["value"].mean()
        values = {str(case): float(value) for case, value in by_case.items()}
        found.append(Distribution(line.row, line.kind, values, line.value, line.low, line.high, line.n))
    return found


def _words(line: Any, digits: int = 2) -> str:
    interval = "no interval" if np.isnan(line.low) else f"[{line.low:.{digits}f}, {line.high:.{digits}f}]"
    return f"{line.value:.{digits}f} {interval} ({line.kind}, patients: {line.n})"
