"""One HTML page for the lesions of one scan: a list of them, and for each what its score hangs on."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from voxplain.errors import InputError
from voxplain.explanation import Explanation
from voxplain.io.atomic import write_text
from voxplain.lesions import Lesions
from voxplain.report import facts
from voxplain.report.colours import MASK_COLOUR, OPACITY, TRUTH_COLOUR
from voxplain.report.lesion_maps import LesionMap
from voxplain.report.page import check_grid, subtitle
from voxplain.report.pictures import planes
from voxplain.report.places import places_of_parts
from voxplain.report.rendering import render
from voxplain.report.trust import Trust, TrustLine, questions
from voxplain.report.viewer import channel_data, viewer_data, volume
from voxplain.report.volumes import View, pack_labels, view_of
from voxplain.scan import Labels, Scan

# Steps between zero and a map's peak: what a reader sees of a local map, at a fraction of the page's size.
_STEPS = 127
_KINDS = {
    "TP": "true positive: overlaps with the reference",
    "FP": "false positive: no voxel of it lies in the reference",
    "FN": "false negative: in the reference, and no predicted lesion touches it",
}


def lesion_report(
    scan: Scan,
    lesions: Lesions,
    maps: Sequence[LesionMap],
    *,
    path: str | Path,
    truth: Labels | None = None,
    peaks: Mapping[str, Mapping[int, Mapping[str, float]]] | None = None,
    elsewhere: str = "",
    title: str | None = None,
    note: str | None = None,
) -> Path:
    """Write one HTML page with a list of lesions; a click on one leads to it and shows its maps.

    Args:
        scan: the scan that was explained.
        lesions: all lesions, whether there is a map of them or not.
        maps: maps of some of the lesions, by one method or several.
        path: the page; it appears whole or not at all.
        truth: the expert mask; everything above 0 is inside.
        peaks: by method, lesion and channel, of maps that lie elsewhere.
        elsewhere: where the maps of other lesions lie, in a sentence.
        title: by default the network's name.
        note: a banner on top.

    Returns:
        The path.

    Raises:
        InputError: no map, an image on another grid than the scan's, or a page that cannot be written.
    """
    path = Path(path)
    if not maps:
        raise InputError("a page of lesions shows at least one map; got none")
    check_grid(scan.grid, "the label map of lesions", lesions.labels.grid)
    if truth is not None:
        check_grid(scan.grid, "the expert mask", truth.grid)
        truth = Labels(truth.data > 0, truth.grid)
    view = view_of(scan, lesions.labels, truth)
    first = maps[0].provenance
    wanted = [channel for channel in (*maps[0].channels, "flair") if channel in scan.channels]
    sequence = wanted[0] if wanted else scan.channels[0]
    groups: dict[str, list[LesionMap]] = {}
    for one in maps:
        groups.setdefault(one.method, []).append(one)
    places = places_of_parts(lesions.labels)
    known = {
        name: dict((peaks or {}).get(name, {})) | {one.number: one.peaks for one in group}
        for name, group in groups.items()
    }
    methods = [_method(name, group, known[name], lesions, places, view) for name, group in groups.items()]
    seen = [name for name, group in groups.items() if group[0].provenance.get("seen")]
    tested = [_tested(name, group) for name, group in groups.items()]
    network = str(dict(first.get("model", {})).get("name") or "the network")
    context: dict[str, Any] = {
        "title": title or f"What {network} looked at, lesion by lesion",
        "note": note,
        "seen": "The network was trained on this scan." if seen else None,
        "subtitle": subtitle(scan),
        "verdicts": [],
        "diagnosis": None,
        "lesions": {
            "said": _said(lesions),
            "shown": _shown(lesions, groups, elsewhere),
            "kinds": [(kind, said) for kind, said in _KINDS.items() if (lesions.table["kind"] == kind).any()],
        },
        "methods": methods,
        "pictures": [
            base64.b64encode(_picture(scan, lesions, group[0], truth, sequence, places)).decode("ascii")
            for group in groups.values()
        ],
        "sequences": scan.channels,
        "sequence": sequence,
        "truth": truth,
        "figures": None,
        "beliefs": _beliefs(first, lesions, truth, scan),
        "sensitivities": [],
        "evidence": [],
        "trust": tested,
        "questions": questions(tested),
        "shown_ranks": 0,
        "opacity": round(OPACITY * 100),
        "mask_colour": MASK_COLOUR,
        "truth_colour": TRUTH_COLOUR,
        "flat": 1 in view.grid.shape,
        "large": max(view.grid.shape) > 2048,
    }
    data = viewer_data(scan, view, [_data(method, groups, scan, view) for method in methods], truth, sequence)
    data["lesions"] = volume(pack_labels(lesions.labels, view))
    data["lesion"] = methods[0]["first"]
    write_text(render(context, data), path)
    return path


def _said(lesions: Lesions) -> str:
    """How many lesions there are, and which of them are right, in words."""
    table = lesions.table
    predicted, kinds = table[table["kind"] != "FN"], table["kind"].value_counts()
    count = len(predicted)
    said = (
        f"The network marks {count} lesion{'' if count == 1 else 's'}, {predicted['volume_mm3'].sum() / 1000:.1f} ml "
        "in all."
    )
    if not (table["kind"] != "").any():
        return said
    right, wrong, missed = (int(kinds.get(kind, 0)) for kind in ("TP", "FP", "FN"))
    return f"{said} Of these, {right} overlap with the reference and {wrong} do not; the reference has {missed} more."


def _shown(lesions: Lesions, groups: Mapping[str, Sequence[LesionMap]], elsewhere: str) -> str:
    """Of how many lesions there are maps on the page, and where the others lie."""
    count = len({one.number for group in groups.values() for one in group})
    every = len(lesions.numbers)
    if count == every:
        return ""
    return f"This page holds maps of {count} of the {every} lesions. {elsewhere}".strip()


def _beliefs(provenance: Mapping[str, Any], lesions: Lesions, truth: Labels | None, scan: Scan) -> list[str]:
    # Which lesions are right was found out with a reference, whether it is drawn here or not.
    known = lesions.labels if (lesions.table["kind"] != "").any() else truth
    said = facts.beliefs([], [], [], truth=known, figures=None, foreground=scan.foreground())
    said.append(
        "A map is of one lesion: what the score in its own voxels hangs on. It says nothing of other lesions, nor of "
        "why the network marks nothing elsewhere."
    )
    if provenance.get("seen"):
        said.append("The network was trained on this scan: answers and maps say nothing about new patients.")
    elif provenance.get("seen") is None:
        said.append(
            "Whether the network was trained on this scan is not recorded; if it was, nothing here speaks of new "
            "patients."
        )
    said += [f"warning when maps were made: {text}" for text in provenance.get("warnings", [])]
    return said


def _tested(name: str, group: Sequence[LesionMap]) -> Trust:
    """What came of the checks of a method's maps, over the lesions on the page."""
    checked = [dict(one.provenance["checks"]["lines"]) for one in group if "checks" in one.provenance]
    if not checked:
        how = "voxplain check FOLDER --model MODEL puts the maps of lesions to the test, one by one"
        return Trust(name, (TrustLine("all tests", "not tested", how),), "")
    lines = []
    for check in dict.fromkeys(key for found in checked for key in found):
        verdicts = [str(found[check]["verdict"]) for found in checked if check in found]
        passed, failed = verdicts.count("passed"), verdicts.count("failed")
        verdict = "failed" if failed else "passed" if passed else "not tested"
        lines.append(TrustLine(check, verdict, f"{passed} maps passed, {failed} failed, of {len(group)}"))
    return Trust(name, tuple(lines), "")


def _method(
    name: str,
    group: Sequence[LesionMap],
    known: Mapping[int, Mapping[str, float]],
    lesions: Lesions,
    places: Mapping[int, tuple[int, int, int]],
    view: View,
) -> dict[str, Any]:
    """All that the page says of one method."""
    held = {one.number for one in group}
    channels = group[0].channels
    rows = []
    largest = {channel: max(abs(of.get(channel, 0.0)) for of in known.values()) or 1.0 for channel in channels}
    for line in lesions.table.to_dict(orient="records"):
        number = int(line["lesion"])
        peaks = [known.get(number, {}).get(channel) for channel in channels]
        rows.append(
            {
                "number": number,
                "kind": str(line["kind"]),
                "volume": f"{line['volume_mm3']:.0f}",
                "probability": "–" if pd.isna(line["mean_probability"]) else f"{line['mean_probability']:.2f}",
                "highest": "–" if pd.isna(line["max_probability"]) else f"{line['max_probability']:.2f}",
                "peaks": [
                    {
                        "words": "–" if peak is None else facts.number(peak),
                        "share": 0 if peak is None else round(100 * abs(peak) / largest[channel], 1),
                        "negative": peak is not None and peak < 0,
                    }
                    for channel, peak in zip(channels, peaks, strict=True)
                ],
                "mm": [f"{line[axis]:.0f}".replace("-", "−") for axis in ("x_mm", "y_mm", "z_mm")],
                "voxel": [int(i) for i in view.voxel(places[number])],
                "has_map": number in held,
            }
        )
    one = group[0]
    place = places[one.number]
    return {
        "name": name,
        "unit": one.unit,
        "ranks": [],
        "rows": rows,
        "channels": channels,
        "first": one.number,
        "mask_volume": None,
        "has_mask": True,
        "zero": not one.values.any(),
        "start": [int(i) for i in np.clip(view.voxel(place), 0, np.array(view.grid.shape) - 1)],
        "start_mm": [f"{value:.1f}".replace("-", "−") for value in view.whole.world(place)],
        "provenance": facts.provenance_lines(_explanation(one, lesions), None),
    }


def _data(
    method: Mapping[str, Any], groups: Mapping[str, Sequence[LesionMap]], scan: Scan, view: View
) -> dict[str, Any]:
    """What the page's script needs of one method: the maps of each lesion, and none for those that have none."""
    group = groups[method["name"]]

    def channels(one: LesionMap | None) -> list[dict[str, Any]]:
        values = np.zeros((len(method["channels"]), *scan.grid.shape), np.float32) if one is None else one.on(scan.grid)
        return [
            channel_data(name, each, view, signed=group[0].signed, steps=_STEPS)
            for name, each in zip(method["channels"], values, strict=True)
        ]

    return {
        "name": method["name"],
        "unit": method["unit"],
        "start": method["start"],
        "mask": None,
        "parts": None,
        "ranks": {},
        "lesions": {one.number: {"channels": channels(one)} for one in group},
        "empty": {"channels": channels(None)},
    }


def _explanation(one: LesionMap, lesions: Lesions) -> Explanation:
    grid = lesions.labels.grid
    return Explanation(one.on(grid), one.channels, grid, one.signed, one.unit, (), provenance=one.provenance)


def _picture(
    scan: Scan,
    lesions: Lesions,
    one: LesionMap,
    truth: Labels | None,
    sequence: str,
    places: Mapping[int, tuple[int, int, int]],
) -> bytes:
    """Slices through a method's first lesion."""
    mask = Labels(lesions.labels.data == one.number, lesions.labels.grid)
    return planes(scan, _explanation(one, lesions), mask, truth, sequence, at=places[one.number])
