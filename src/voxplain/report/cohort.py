"""One HTML page for many scans: how the figures spread over patients, and the best and worst cases as pictures."""

from __future__ import annotations

import base64
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from voxplain.errors import InputError
from voxplain.io.atomic import write_text
from voxplain.metrics.network_free import NETWORK_FREE
from voxplain.report import facts

# A strip is 600 units wide for figures of 0 to 1; points that would lie on each other are stacked.
_WIDTH, _HEIGHT, _STEP = 600, 34, 6


@dataclass(frozen=True, eq=False)
class Distribution:
    """A figure between 0 and 1 over the cases of one row: its kind, the value by case, and its mean with interval."""

    row: str
    kind: str
    values: Mapping[str, float]
    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class CasePicture:
    """One case: its name, its figure, what else to say of it, and a picture (WebP)."""

    case: str
    value: float
    words: str
    picture: bytes


def cohort_report(
    path: str | Path,
    *,
    title: str,
    summary: Sequence[str],
    figure: str,
    distributions: Sequence[Distribution],
    pictured: str,
    pictures: Sequence[CasePicture],
    tables: Mapping[str, Sequence[Sequence[str]]],
    provenance: Mapping[str, Any],
    note: str | None = None,
    ends: int = 3,
) -> Path:
    """Write one HTML page on a whole cohort; it opens from disk and asks no network for anything.

    Args:
        path: the page; it appears whole or not at all.
        title: what was studied.
        summary: what came out, in sentences.
        figure: what the distributions show, such as "Dice".
        distributions: one per row, in the order in which they are shown.
        pictured: the row to which the pictures and their figures belong.
        pictures: all cases; the `ends` best and worst of them stand open, the rest folded away.
        tables: by title, lines of cells with the header first; the first two columns are row and kind.
        provenance: what replays the study, folded away.
        note: a banner on top, such as "phantom (software check)".

    Returns:
        The path.

    Raises:
        InputError: the page cannot be written, or a distribution holds a value outside 0 to 1.
    """
    path = Path(path)
    ordered = sorted(pictures, key=lambda picture: (np.isnan(picture.value), -picture.value, picture.case))
    shown = [_shown(picture) for picture in ordered]
    # A case without a figure is neither among the best nor among the worst.
    count = sum(not np.isnan(picture.value) for picture in ordered)
    few = min(ends, count // 2)
    found = [distribution.kind for distribution in distributions] + [
        line[1] for lines in tables.values() for line in lines[1:]
    ]
    context = {
        "title": title,
        "note": note,
        "summary": summary,
        "figure": figure,
        "strips": [_strip(distribution) for distribution in distributions],
        "width": _WIDTH,
        "height": _HEIGHT,
        "pictured": pictured,
        "pictured_kinds": list(dict.fromkeys(d.kind for d in distributions if d.row == pictured)),
        "best": shown[:few],
        "worst": shown[count - few : count][::-1],
        "between": shown[few : count - few] + shown[count:],
        "tables": {name: (lines[0], lines[1:]) for name, lines in tables.items() if len(lines) > 1},
        "kinds": [(kind, meaning) for kind, meaning in facts.KINDS.items() if kind in found],
        "needs_no_network": _needs_no_network,
        "provenance": json.dumps(facts.without_folders(provenance), indent=2, default=str, ensure_ascii=False),
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    folder = importlib.resources.files("voxplain.report")
    template = environment.from_string((folder / "cohort.html.jinja").read_text(encoding="utf-8"))
    style = (folder / "page.css").read_text(encoding="utf-8") + (folder / "cohort.css").read_text(encoding="utf-8")
    write_text(template.render(style=style, **context), path)
    return path


def _needs_no_network(row: str) -> bool:
    """Whether a row, or what it is the best grouping of, comes without a network."""
    return row.removesuffix("/best-grouping") in NETWORK_FREE


def _shown(picture: CasePicture) -> dict[str, str]:
    return {
        "case": picture.case,
        "value": "–" if np.isnan(picture.value) else f"{picture.value:.2f}",
        "words": picture.words,
        "source": "data:image/webp;base64," + base64.b64encode(picture.picture).decode("ascii"),
    }


def _strip(distribution: Distribution) -> dict[str, Any]:
    """The points of one row, stacked where they would lie on each other, its quartiles, mean and interval."""
    named = {case: value for case, value in distribution.values.items() if not np.isnan(value)}
    values = np.array(list(named.values()), dtype=float)
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise InputError(
            f"a distribution shows figures of 0 to 1; {distribution.row} holds {values.min():g} to {values.max():g}"
        )
    stacked: dict[int, int] = {}
    points = []
    for case, value in sorted(named.items(), key=lambda item: item[1]):
        column = round(value * _WIDTH / _STEP)
        level = stacked.get(column, 0)
        stacked[column] = level + 1
        # 0, 1, -1, 2, -2, ... around the middle line.
        away = (level + 1) // 2 * (1 if level % 2 else -1)
        height = _HEIGHT / 2 + float(np.clip(away * _STEP, -_HEIGHT / 2 + 3, _HEIGHT / 2 - 3))
        points.append({"x": round(value * _WIDTH, 1), "y": height, "words": f"{case}: {value:.2f}"})
    quartiles = np.quantile(values, (0.25, 0.5, 0.75)) if values.size else np.zeros(3)
    ends = [end for end in (distribution.low, distribution.mean, distribution.high) if not np.isnan(end)]
    return {
        "row": distribution.row,
        "kind": distribution.kind,
        "free": _needs_no_network(distribution.row),
        "points": points,
        "quartiles": [round(float(value) * _WIDTH, 1) for value in quartiles],
        "interval": [round(end * _WIDTH, 1) for end in ends] if len(ends) == 3 else None,
        "words": "–" if np.isnan(distribution.mean) else f"{distribution.mean:.2f}",
        "interval_words": f"[{distribution.low:.2f}, {distribution.high:.2f}]" if len(ends) == 3 else "",
        "n": distribution.n,
    }
