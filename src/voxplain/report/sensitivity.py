"""How much the fill matters: maps that differ in nothing but their fill, compared part by part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from voxplain.explanation import Explanation
from voxplain.metrics.agreement import Agreement, agreement
from voxplain.report import facts
from voxplain.report.heat import HeatTable, heat_cell

# Minimum and maximum are other fills in the other scope; for the rest the scope says nothing.
_SCOPED = ("min", "max")


@dataclass(frozen=True)
class RegionSensitivity:
    """What the fill changes in one region: the answer in words, what follows from the tables, and the tables."""

    region: str
    positive: bool
    said: str
    tables: tuple[HeatTable, ...]


@dataclass(frozen=True)
class Sensitivity:
    """Maps that differ in their fill: what they are maps of, and what the fill changes in each region."""

    of: str
    regions: tuple[RegionSensitivity, ...]


def sensitivities(explanations: Sequence[Explanation], *, k: int = 3) -> list[Sensitivity]:
    """How much the fill matters, for each set of maps of one method, network, target and parts with different fills.

    Of several maps with one fill the first counts. Positive regions come first.
    """
    groups: dict[str, dict[tuple[str, str], Explanation]] = {}
    for explanation in explanations:
        options = explanation.provenance.get("options", {})
        if "fill" in options and explanation.parts is not None and explanation.regions:
            fill = str(options["fill"])
            scope = str(options.get("scope", "region")) if fill in _SCOPED else ""
            groups.setdefault(_same_but_the_fill(explanation), {}).setdefault((fill, scope), explanation)
    found = []
    for maps in groups.values():
        if len(maps) > 1:
            names = facts.unique([_name(fill, scope) for fill, scope in maps])
            first = next(iter(maps.values()))
            regions = [
                _region(names, alike, region.positive)
                for region, alike in zip(first.regions, agreement(list(maps.values()), k=k), strict=True)
            ]
            regions.sort(key=lambda region: not region.positive)
            words = f"{facts.method_name(first)} for {facts.target_name(first)}, {first.unit}"
            found.append(Sensitivity(words, tuple(regions)))
    return found


def _same_but_the_fill(explanation: Explanation) -> str:
    """What maps have in common that differ in their fill alone, as one text."""
    known: dict[str, Any] = explanation.provenance
    assert explanation.parts is not None
    same = {
        "what": [known.get("explainer"), known.get("target"), known.get("seed"), explanation.unit],
        "options": {name: value for name, value in known["options"].items() if name not in ("fill", "scope")},
        "model": known.get("model", {}).get("fingerprint"),
        "regions": [(region.name, region.box) for region in explanation.regions],
        "parts": hashlib.sha256(np.ascontiguousarray(explanation.parts.data).tobytes()).hexdigest(),
        "grid": [explanation.grid.shape, np.round(explanation.grid.affine, 4).tolist()],
    }
    return json.dumps(same, sort_keys=True, default=str)


def _name(fill: str, scope: str) -> str:
    name = str(facts.without_folders(fill))
    return f"{name} of the sequence" if scope == "sequence" else name


def _region(names: Sequence[str], alike: Agreement, positive: bool) -> RegionSensitivity:
    correlations = HeatTable(
        f"Rank correlation over all {alike.parts} parts",
        "fill",
        tuple(names),
        tuple(
            (name, tuple(heat_cell(value, f"{value:.2f}") for value in line))
            for name, line in zip(names, alike.correlation, strict=True)
        ),
    )
    tables = [correlations]
    if alike.parts > alike.top:
        tables.append(
            HeatTable(
                f"Of the {alike.top} highest parts, those in common",
                "fill",
                tuple(names),
                tuple(
                    (name, tuple(heat_cell(value, f"{value * alike.top:.0f}/{alike.top}") for value in line))
                    for name, line in zip(names, alike.overlap, strict=True)
                ),
            )
        )
    ranked = [index for index in range(len(names)) if alike.first[index]]
    return RegionSensitivity(
        facts.region_name(alike.region),
        positive,
        _said(names, alike, ranked),
        tuple(tables) if len(ranked) > 1 else (),
    )


def _said(names: Sequence[str], alike: Agreement, ranked: Sequence[int]) -> str:
    """What the tables of a region come to, in a few sentences."""
    if alike.parts < 2:
        return f"{'One part' if alike.parts else 'No part'} is no ranking: there is nothing to compare."
    silent = [name for index, name in enumerate(names) if index not in ranked]
    flat = (
        f"With {facts.joined(silent)} all parts are equally relevant: there are no ranks to compare." if silent else ""
    )
    if len(ranked) < 2:
        return flat
    a, b = min(combinations(ranked, 2), key=lambda pair: alike.correlation[pair])
    value = f"{alike.correlation[a, b]:.2f}".replace("-", "−")
    words = f"The fills {names[a]} and {names[b]} " + (
        f"rank the parts with a correlation of {value}" if len(ranked) == 2 else f"are least alike: correlation {value}"
    )
    if not np.isnan(alike.overlap[a, b]):
        words += f", with {alike.overlap[a, b] * alike.top:.0f} of the {alike.top} highest parts in common"
    tops: dict[int, list[str]] = {}
    for index in ranked:
        tops.setdefault(alike.first[index], []).append(names[index])
    if len(tops) == 1:
        every = "Both" if len(ranked) == 2 else f"All {len(ranked)}"
        first = f"{every} put the same part first: {next(iter(tops))}."
    else:
        first = "The first place depends on the fill: " + "; ".join(
            f"part {label} with {facts.joined(whose)}" for label, whose in tops.items()
        )
        first += "."
    return " ".join(sentence for sentence in (f"{words}.", first, flat) if sentence)
