"""One HTML page for one scan: it opens from disk, asks no network for anything, and says how far to believe it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from voxplain.errors import InputError
from voxplain.explanation import Explanation
from voxplain.grid import Grid
from voxplain.io.atomic import write_text
from voxplain.report import facts
from voxplain.report.colours import MASK_COLOUR, OPACITY, TRUTH_COLOUR
from voxplain.report.figures import scan_figures
from voxplain.report.pictures import planes
from voxplain.report.places import most_relevant, places_of_parts
from voxplain.report.rendering import render
from voxplain.report.sensitivity import sensitivities
from voxplain.report.sequences import sequence_evidence
from voxplain.report.trust import questions, trust
from voxplain.report.viewer import channel_data, viewer_data, volume
from voxplain.report.volumes import View, pack_labels, view_of
from voxplain.scan import Labels, Scan

_SHOWN_RANKS = 20


def report(
    scan: Scan,
    explanations: Sequence[Explanation],
    *,
    path: str | Path,
    masks: Sequence[Labels | None] | None = None,
    truth: Labels | None = None,
    figures: pd.DataFrame | None = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
    note: str | None = None,
) -> Path:
    """Write one HTML page that shows a scan, what the network looked at, and whether to believe it.

    Args:
        scan: the scan that was explained.
        explanations: the maps, each on the scan's grid.
        path: the page; it appears whole or not at all.
        masks: one per map, or None for those without.
        truth: the expert mask; everything above 0 is inside.
        figures: a table with the columns row, kind and metrics; by default what `scan_figures` finds.
        names: what to call the maps; by default their methods, told apart by their options.
        title: by default the network's name and what it looked for.
        note: a banner on top, such as "phantom (software check)".

    Returns:
        The path.

    Raises:
        InputError: no map, a map that is not finite, an image on another grid than the scan's, lists of different
            lengths, a name that the rows without a network bear, figures that are no such table, or a page that cannot
            be written.
    """
    path = Path(path)
    if not explanations:
        raise InputError("a report shows at least one map; got none")
    masks = [None] * len(explanations) if masks is None else list(masks)
    names = facts.method_names(explanations) if names is None else facts.unique(list(names))
    for what, given in (("mask (or None)", masks), ("name", names)):
        if len(given) != len(explanations):
            raise InputError(f"a report needs one {what} per map: expected {len(explanations)}, got {len(given)}")
    if taken := [name for name in names if facts.is_taken(name)]:
        raise InputError(
            f"{taken[0]} is what the report calls a row that needs no network, or a ceiling; rename the map"
        )
    for name, explanation, mask in zip(names, explanations, masks, strict=True):
        if not np.isfinite(explanation.total).all() or not np.isfinite(explanation.map).all():
            raise InputError(f"the map {name}, or its sum over sequences, is NaN or infinite somewhere; mend it first")
        if explanation.scores is not None and not np.isfinite(explanation.scores).all():
            raise InputError(f"scores of the parts of {name} are NaN or infinite; mend them first")
        check_grid(scan.grid, f"the map {name}", explanation.grid)
        if mask is not None:
            check_grid(scan.grid, f"the mask of {name}", mask.grid)
    if truth is not None:
        check_grid(scan.grid, "the expert mask", truth.grid)
        truth = Labels(truth.data > 0, truth.grid)

    view = view_of(scan, truth, *masks)
    sequence = _first_sequence(scan, explanations)
    methods = [method_context(*found, view) for found in zip(names, explanations, masks, strict=True)]
    pictures = [
        base64.b64encode(planes(scan, explanation, mask, truth, sequence, at=method["place"])).decode("ascii")
        for explanation, mask, method in zip(explanations, masks, methods, strict=True)
    ]
    seen = [name for name, explanation in zip(names, explanations, strict=True) if facts.seen(explanation)]
    # Where there is nothing to find, an empty mask would have a Dice of 1 and every other one of 0.
    findable = truth if truth is not None and truth.data.any() else None
    drawn = {name: mask for name, mask in zip(names, masks, strict=True) if mask is not None}
    if figures is None and drawn and all(explanation.regions for explanation in explanations):
        figures = scan_figures(scan, dict(zip(names, explanations, strict=True)), drawn, findable, seen=seen)
    if figures is not None and not {"row", "kind"} <= set(figures.columns):
        raise InputError(f"figures have the columns row, kind and metrics; got {', '.join(map(str, figures.columns))}")
    if figures is not None:
        for column in figures.columns.difference(["row", "kind"]):
            if not pd.api.types.is_numeric_dtype(figures[column]):
                raise InputError(f"the metrics of figures are numbers; those of {column} are {figures[column].dtype}")
    table = None if figures is None else facts.figure_table(figures)
    first = explanations[0]
    tested = trust(names, explanations)
    context = {
        "title": title or f"What {facts.network_name(first)} looked at",
        "note": note,
        "lesions": None,
        "diagnosis": None,
        "seen": facts.seen_words(names, explanations) if seen else None,
        "subtitle": subtitle(scan),
        "verdicts": _verdicts(explanations),
        "methods": methods,
        "pictures": pictures,
        "sequences": scan.channels,
        "sequence": sequence,
        "truth": truth,
        "figures": table,
        "beliefs": facts.beliefs(names, explanations, masks, truth=truth, figures=table, foreground=scan.foreground()),
        "sensitivities": sensitivities(explanations),
        "evidence": sequence_evidence(names, explanations),
        "trust": tested,
        "questions": questions(tested),
        "shown_ranks": _SHOWN_RANKS,
        "opacity": round(OPACITY * 100),
        "mask_colour": MASK_COLOUR,
        "truth_colour": TRUTH_COLOUR,
        "flat": 1 in view.grid.shape,
        # What most machines' WebGL2 holds along an axis; the page asks for the true limit.
        "large": max(view.grid.shape) > 2048,
    }
    shown = viewer_data(scan, view, [method_data(method) for method in methods], truth, sequence)
    write_text(render(context, shown), path)
    return path


def check_grid(grid: Grid, what: str, other: Grid) -> None:
    """Raise InputError where an image lies on another grid than the scan."""
    if difference := grid.difference(other):
        raise InputError(
            f"{what} does not lie on the scan's grid: {difference}; the scan has {_named(grid)}, {what} {_named(other)}"
        )


def _named(grid: Grid) -> str:
    return f"{_times(grid.shape)} voxels of {_times(grid.spacing)} mm in {grid.orientation}"


def _times(values: Sequence[float]) -> str:
    return " × ".join(f"{value:.4g}" for value in values)


def _first_sequence(scan: Scan, explanations: Sequence[Explanation]) -> str:
    """The sequence that is shown first: the one that the method looked at, else FLAIR, else the first."""
    wanted = [str(explanation.provenance.get("options", {}).get("channel")) for explanation in explanations]
    return next((name for name in (*wanted, "flair") if name in scan.channels), scan.channels[0])


def subtitle(scan: Scan) -> str:
    """Sequences, size and orientation in a line."""
    return f"{', '.join(scan.channels)} · {_named(scan.grid)}"


def _verdicts(explanations: Sequence[Explanation]) -> list[dict[str, Any]]:
    """What was said of each region, once per network and class."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for explanation in explanations:
        model = str(explanation.provenance.get("model", {}).get("fingerprint"))
        key = (model, facts.network_name(explanation), facts.target_name(explanation))
        limit = facts.threshold(explanation)
        found.setdefault(
            key,
            {
                "sentence": facts.verdict(explanation),
                "network": key[1],
                "target": key[2],
                "threshold": limit,
                "folded": len(explanation.regions) > facts.SHOWN_REGIONS,
                "regions": [
                    {
                        "name": facts.region_name(region.name)
                        + (f": {region.target}" if facts.predicted(explanation) else ""),
                        "probability": facts.probability(region.probability),
                        "share": round(100 * min(max(region.probability, 0), 1), 2),
                        "positive": region.positive,
                    }
                    for region in explanation.regions
                ],
            },
        )
    return list(found.values())


def method_context(name: str, explanation: Explanation, mask: Labels | None, view: View) -> dict[str, Any]:
    """All that the page says and shows of one map."""
    place = most_relevant(explanation, mask)
    ranks: list[dict[str, Any]] = []
    if explanation.parts is not None and explanation.scores is not None:
        places = places_of_parts(explanation.parts)
        peak = float(np.abs(explanation.scores).max(initial=0)) or 1.0
        for line in explanation.ranks().to_dict(orient="records"):
            voxel = places.get(int(line["label"]))
            if voxel is None:
                continue
            ranks.append(
                {
                    "rank": int(line["rank"]),
                    "label": int(line["label"]),
                    "score": facts.number(float(line["score"])),
                    "value": float(line["score"]),
                    "share": round(100 * abs(float(line["score"])) / peak, 1),
                    "negative": float(line["score"]) < 0,
                    "volume": f"{line['volume_ml']:.1f}",
                    "region": str(line["region"]),
                    "mm": [f"{value:.1f}".replace("-", "−") for value in view.whole.world(voxel)],
                    "voxel": [int(i) for i in view.voxel(voxel)],
                }
            )
    total = explanation.total
    exact = explanation.parts is not None
    layers = [("all sequences", total)]
    if len(explanation.channels) > 1:
        layers += list(zip(explanation.channels, explanation.map, strict=True))
    channels = [
        channel_data(channel, values, view, signed=explanation.signed, exact=exact) for channel, values in layers
    ]
    return {
        "name": name,
        "unit": explanation.unit,
        "signed": channels[0]["diverging"],
        "channels": channels,
        "has_mask": mask is not None,
        "mask": None if mask is None else pack_labels(Labels(mask.data > 0, mask.grid), view),
        "mask_volume": None if mask is None else f"{mask.volume:.1f}",
        "parts": None if explanation.parts is None else pack_labels(explanation.parts, view),
        "ranks": ranks,
        "place": place,
        "zero": not explanation.total.any(),
        "start": [int(i) for i in np.clip(view.voxel(place), 0, np.array(view.grid.shape) - 1)],
        "start_mm": [f"{value:.1f}".replace("-", "−") for value in view.whole.world(place)],
        "provenance": facts.provenance_lines(explanation, mask),
    }


def method_data(method: dict[str, Any]) -> dict[str, Any]:
    """What the page's script needs of one map."""
    return {
        "name": method["name"],
        "unit": method["unit"],
        "start": method["start"],
        "mask": None if method["mask"] is None else volume(method["mask"]),
        "parts": None if method["parts"] is None else volume(method["parts"]),
        "ranks": {line["label"]: [line["rank"], line["value"]] for line in method["ranks"]},
        "channels": method["channels"],
    }
