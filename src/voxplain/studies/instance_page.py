"""The page and the pictures of the instance study, from its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from voxplain.io.atomic import writing
from voxplain.report.instance_figures import context_curves, violins
from voxplain.report.study_page import study_page
from voxplain.studies import context
from voxplain.studies.instance_patients import CLASSES
from voxplain.studies.instance_statistics import Group
from voxplain.studies.instance_tables import INDEPENDENT, TITLES, table_lines

_UNIT = "logit per intensity unit"


def write_page(
    out: Path,
    lines: pd.DataFrame,
    shown: pd.DataFrame,
    summary: pd.DataFrame,
    groups: Sequence[Group],
    *,
    notes: Sequence[str],
    facts: Mapping[str, Any],
    threshold: float,
    answer: Sequence[str] = (),
    calibration: bytes | None = None,
) -> Path:
    """Write `violins.png`, `context.png` where surroundings were hidden, and `report.html`.

    Args:
        out: the study's folder.
        lines: `lesions.tsv`, of the paper's method alone.
        shown: `context.tsv`.
        summary: `scores.tsv`.
        groups: patients, and patients together, in the order of the panels.
        notes: what to know before the tables are read.
        facts: what replays the study.
        threshold: the probability from which a lesion is detected.
        answer: what came out of the question whether a lesion is real, in sentences, and
        calibration: how its score is to be read, a picture (PNG), where it was asked.
    """
    channel = next(name.removesuffix("_maximum") for name in lines.columns if name.endswith("_maximum"))
    channel = "flair" if "flair_maximum" in lines.columns else channel
    pictures = {
        f"Maxima and minima of the {channel} map by class (004, Fig. 11); bars are medians": violins(
            [(group.name, _extremes(group.of(lines), channel)) for group in groups], _UNIT
        )
    }
    _write(next(iter(pictures.values())), out / "violins.png")
    if len(shown):
        near = shown[~np.isinf(shown["mm"])]
        sets = [(name, context.curve(near[near["set"] == name])) for name in (context.REAL, context.MADE)]
        curves = context_curves(sets, threshold)
        _write(curves, out / "context.png")
        pictures["Lesions detected and their score by how much is shown around them (004, Fig. 13)"] = curves
    if calibration is not None:
        pictures["Is this lesion real? What was said beside what was so"] = calibration
    tables = {title: table_lines(summary, table) for table, title in TITLES.items()}
    return study_page(
        out / "report.html",
        title="What the maps of single lesions tell (paper instance, 004)",
        notes=[*notes, INDEPENDENT, *answer],
        pictures=pictures,
        tables=tables,
        provenance=facts,
    )


def _extremes(lines: pd.DataFrame, channel: str) -> dict[str, dict[str, np.ndarray]]:
    return {
        extreme: {
            kind: lines.loc[lines["kind"] == kind, f"{channel}_{extreme}"].dropna().to_numpy() for kind in CLASSES
        }
        for extreme in ("maximum", "minimum")
    }


def _write(picture: bytes, path: Path) -> None:
    with writing(path) as temporary:
        temporary.write_bytes(picture)
