"""What is said of an error score: sentences, tables beside what was aimed at, and a calibration curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from voxplain.datasets.phantom_cohort import SOFTWARE_CHECK
from voxplain.io.atomic import write_json, write_text, writing
from voxplain.metrics.reliability import reliability_curve
from voxplain.studies.lesion_reality import LesionReality
from voxplain.studies.lesion_reality_rows import GAINS, PATIENTS, PHANTOMS, Scored
from voxplain.studies.markdown_table import table_line

# What issue and papers name: AUROC of maps on phantoms (004's figures come to about 0.77); gain in lesion F1
# (RadiomXAI 2024: 0.044).
_AIMS = {"AUROC": "0.90 (004: about 0.77)", "lesion F1 gain": "+0.06 (RadiomXAI 2024: +0.044)"}
_METRICS = (
    *("AUROC", "AUROC per patient", "calibration error", "AUROC gain over plain", "AUROC gain over best plain rival"),
    *("lesion precision", "lesion recall", "lesion F1", "lesion F1 gain"),
    *("true positives dropped", "false positives dropped", "threshold"),
)
_COUNTS = ("true positives", "false positives", "predicted lesions", "lesions without score")
_CURVES = ("plain", "maps", "plain+maps")


def sentences(found: LesionReality) -> list[str]:
    """What came out, each figure with its kind, interval and n; it says so where maps add nothing."""
    said = []
    for table in (PHANTOMS, PATIENTS):
        for name, rival, metric in GAINS:
            against = f"the plain rivals together ({rival})" if rival else f"the best plain rival ({found.best_rival})"
            line = _line_of(found.summary, table, f"{found.method}/{name}", metric)
            if line is not None:
                said.append(_gain_in_words(table, name, against, line))
        line = _line_of(found.summary, table, f"{found.method}/plain+maps", "lesion F1 gain")
        if line is not None:
            said.append(
                f"Dropping lesions by plain+maps changes lesion F1 on {_whom(table)} by {_figure(line, sign=True)}."
            )
    return said + [f"{note[0].upper()}{note[1:]}." for note in found.notes]


def markdown(found: LesionReality) -> str:
    """Sentences, and a table per cohort and per patient: a row for each set of features, with what was aimed at."""
    blocks = [f"### Is this lesion real? {found.method}", "\n".join(f"- {line}" for line in sentences(found))]
    for table in dict.fromkeys(found.summary["table"]):
        its = found.summary[found.summary["table"] == table]
        metrics = [metric for metric in _METRICS if (its["metric"] == metric).any()]
        counts = its[its["metric"].isin(_COUNTS)]
        held = ", ".join(f"{line.metric} {_number(line.value)}" for line in counts.itertuples())
        made = f", {SOFTWARE_CHECK}" if table == PHANTOMS else ""
        lines = [f"#### {table}{made}: {', '.join(dict.fromkeys(its['kind']))}", "", f"{held}.", ""]
        lines += [table_line(["row", *metrics, "patients"]), table_line(["---"] * (len(metrics) + 2))]
        for row in dict.fromkeys(its["row"]):
            own = its[its["row"] == row].set_index("metric")
            if not own.index.isin(_METRICS).any():
                continue
            shown = own[own.index.isin(_METRICS)]
            lines.append(table_line([row, *(_cell(shown, metric) for metric in metrics), str(shown["n"].max())]))
        if table == PHANTOMS:
            lines.append(table_line(["aim", *(_AIMS.get(metric, "") for metric in metrics), ""]))
        blocks.append("\n".join(lines))
    return "\n\n".join(block for block in blocks if block) + "\n"


def write_lesion_reality(found: LesionReality, folder: Path) -> dict[str, Path]:
    """Write tables, curve, scores of each lesion and each error score; their paths, by what they hold.

    `is-it-real.tsv` (rows of `scores.tsv`), `is-it-real.md`, `is-it-real.png`, `is-it-real-lesions.tsv`,
    `is-it-real.json` (thresholds, best rival, notes) and `error-score-SET.json`, all beginning with the method's name.
    """
    stem = f"{found.method}-is-it-real"
    paths = {"table": folder / f"{stem}.tsv", "page": folder / f"{stem}.md", "curve": folder / f"{stem}.png"}
    paths |= {"lesions": folder / f"{stem}-lesions.tsv", "facts": folder / f"{stem}.json"}
    with writing(paths["table"]) as temporary:
        found.summary.to_csv(temporary, sep="\t", index=False, float_format="%.5g")
    lines = [
        cohort.lines.assign(cohort=cohort.name, **{f"score: {name}": its for name, its in cohort.scores.items()})
        for cohort in (found.phantoms, found.patients)
        if len(cohort.lines)
    ]
    with writing(paths["lesions"]) as temporary:
        whole = pd.concat(lines, ignore_index=True) if lines else pd.DataFrame({"case": [], "lesion": []})
        whole.to_csv(temporary, sep="\t", index=False, float_format="%.6g")
    write_text(markdown(found), paths["page"])
    draw_calibration(found, paths["curve"])
    facts = {"method": found.method, "thresholds": dict(found.thresholds), "best_rival": found.best_rival}
    write_json({**facts, "notes": list(found.notes)}, paths["facts"])
    for name, score in found.scores.items():
        paths[f"score {name}"] = folder / f"{found.method}-error-score-{name.replace(' ', '-')}.json"
        score.write(paths[f"score {name}"])
    return paths


def draw_calibration(found: LesionReality, path: Path) -> None:
    """Draw what was said beside what came, phantoms and patients side by side, as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    cohorts = ((f"made patients: {SOFTWARE_CHECK}", found.phantoms), ("real patients, score unchanged", found.patients))
    for axes, (title, cohort) in zip(figure.subplots(1, 2), cohorts, strict=True):
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--")
        _curves(axes, cohort)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="said: probability of a false positive", aspect="equal")
        axes.set_ylabel("came: share of false positives")
        axes.set_title(f"{title}, {int(cohort.scored.sum())} lesions", fontsize=8)
        axes.grid(alpha=0.3)
    with writing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, facecolor="white", metadata={"Software": None})


def _curves(axes: Any, cohort: Scored) -> None:
    drawn = False
    for name in _CURVES:
        if name not in cohort.scores or not cohort.scored.any():
            continue
        curve = reliability_curve(*cohort.of_set(name))
        held = curve.cases > 0
        # The area of a mark is how many lesions it stands for.
        sizes = 6 + 60 * curve.cases[held] / curve.cases.max()
        (line,) = axes.plot(curve.probability[held], curve.observed[held], linewidth=1, label=name)
        axes.scatter(curve.probability[held], curve.observed[held], s=sizes, color=line.get_color())
        drawn = True
    if drawn:
        axes.legend(fontsize=7, frameon=False)
    else:
        axes.text(0.5, 0.5, "no lesion has a score", ha="center", va="center", fontsize=9)


def _gain_in_words(table: str, name: str, against: str, line: Any) -> str:
    whom = _whom(table)
    if line["n"] == 0:
        return f"On {whom} the score of {name} cannot be compared with {against}: no lesions to compare (n = 0)."
    figure = f"gain in AUROC {_figure(line, sign=True)}"
    if line["n"] < 3 or np.isnan(line["low"]):
        return f"On {whom}, the score of {name} beside {against}: {figure}; so few patients prove nothing either way."
    if line["low"] > 0:
        return f"On {whom}, the score of {name} tells more than {against}: {figure}."
    verdict = "tells less than" if line["high"] < 0 else "adds nothing that shows to"
    return (
        f"On {whom}, the score of {name} {verdict} {against}: {figure}. The maps are not worth their passes for this."
    )


def _line_of(summary: pd.DataFrame, table: str, row: str, metric: str) -> Any:
    found = summary[(summary["table"] == table) & (summary["row"] == row) & (summary["metric"] == metric)]
    return None if found.empty else found.iloc[0]


def _whom(table: str) -> str:
    return "made patients" if table == PHANTOMS else "real patients"


def _figure(line: Any, *, sign: bool = False) -> str:
    if np.isnan(line["value"]):
        return "- (n = 0)"
    value = f"{line['value']:+.3f}" if sign else f"{line['value']:.3f}"
    interval = "no interval" if np.isnan(line["low"]) else f"[{line['low']:.3f}, {line['high']:.3f}]"
    return f"{value} {interval} ({line['kind']}, patients: {line['n']})"


def _cell(own: pd.DataFrame, metric: str) -> str:
    if metric not in own.index:
        return ""
    value, low, high = (float(str(own.loc[metric, name])) for name in ("value", "low", "high"))
    if np.isnan(value):
        return "-"
    if metric.endswith("dropped"):
        return _number(value)
    if metric == "threshold":
        return "none" if value >= 1 else f"{value:.2f}"
    text = f"{value:+.3f}" if "gain" in metric else f"{value:.3f}"
    return text if np.isnan(low) else f"{text} [{low:.3f}, {high:.3f}]"


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.0f}"
