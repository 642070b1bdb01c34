"""One HTML page for one diagnosis: the class, the tumour, the maps, and whether they agree."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from voxplain.diagnosis import CONTROLS, Diagnosis
from voxplain.io.atomic import write_text
from voxplain.report import facts
from voxplain.report.colours import MASK_COLOUR, OPACITY, TRUTH_COLOUR
from voxplain.report.page import check_grid, method_context, method_data, subtitle
from voxplain.report.rendering import render
from voxplain.report.trust import questions, trust
from voxplain.report.viewer import viewer_data
from voxplain.report.volumes import view_of
from voxplain.scan import Labels, Scan
from voxplain.tumour_regions import NAMES

NOT_FOR_DIAGNOSIS = "Research software: not for diagnosis, and no medical device."
_RULES = (
    "In: the share of the map's positive values that lies in the tumour goes half of the way or more from the tumour's "
    "share of the head to all of it; or the highest voxel lies in it, and it holds twice its share or more. Beside: "
    "the highest voxel lies within 10 mm. Away: all else."
)


def diagnosis_report(
    scan: Scan,
    diagnosis: Diagnosis,
    *,
    path: str | Path,
    depths: bytes,
    layers: bytes,
    truth: Labels | None = None,
    title: str | None = None,
    note: str | None = None,
    seen: str | None = None,
) -> Path:
    """Write one HTML page: class with probabilities, tumour, maps of every layer, agreement; "not for diagnosis".

    Args:
        scan: the scan.
        diagnosis: what `voxplain.diagnosis.diagnose` found of it.
        path: the page; it appears whole or not at all.
        depths: the picture of `voxplain.report.depths.depths_picture`, and
        layers: that of `contact_sheet`, PNG files.
        truth: the expert mask, drawn dashed.
        title: by default the predicted class.
        note: a banner beside "not for diagnosis", such as "phantom (software check)".
        seen: which of the networks was trained on this scan, in a sentence.

    Returns:
        The path.

    Raises:
        InputError: an image on another grid than the scan's, or a page that cannot be written.
    """
    path = Path(path)
    if truth is not None:
        check_grid(scan.grid, "the expert mask", truth.grid)
        truth = Labels(truth.data > 0, truth.grid)
    tumour = diagnosis.regions["WT"]
    maps = diagnosis.maps
    view = view_of(scan, truth, tumour)
    sequence = "flair" if "flair" in scan.channels else scan.channels[0]
    methods = [method_context(name, why, tumour, view) for name, why in maps.items()]
    tested = trust(list(maps), list(maps.values()))
    context: dict[str, Any] = {
        "title": title or f"{diagnosis.predicted}, says {diagnosis.provenance['classifier']['name']}",
        "note": NOT_FOR_DIAGNOSIS + (f" {note}" if note else ""),
        "seen": seen,
        "subtitle": subtitle(scan),
        "verdicts": [],
        "lesions": None,
        "diagnosis": {
            "classes": [
                {"name": name, "probability": facts.probability(value), "share": round(100 * value, 2)}
                for name, value in sorted(diagnosis.probabilities.items(), key=lambda item: -item[1])
            ],
            "predicted": diagnosis.predicted,
            "classifier": diagnosis.provenance["classifier"]["name"],
            "volumes": [
                {"name": NAMES[name], "short": name, "ml": f"{mask.volume:.1f}"}
                for name, mask in diagnosis.regions.items()
            ],
            "segmenter": diagnosis.provenance["segmenter"]["name"],
            "sentence": diagnosis.sentence,
            "rules": _RULES,
            "compared": diagnosis.provenance["compared_with"],
            "depths": base64.b64encode(depths).decode("ascii"),
            "sheet": base64.b64encode(layers).decode("ascii"),
            "agreement": agreement_rows(diagnosis.agreement),
            "empty": empty_slices_words(diagnosis),
        },
        "methods": methods,
        "pictures": [],
        "sequences": scan.channels,
        "sequence": sequence,
        "truth": truth,
        "figures": None,
        "beliefs": facts.beliefs(
            list(maps),
            list(maps.values()),
            [tumour] * len(maps),
            truth=truth,
            figures=None,
            foreground=scan.foreground(),
        ),
        "sensitivities": [],
        "evidence": [],
        "trust": tested,
        "questions": questions(tested),
        "shown_ranks": 0,
        "opacity": round(OPACITY * 100),
        "mask_colour": MASK_COLOUR,
        "truth_colour": TRUTH_COLOUR,
        "flat": False,
        "large": max(view.grid.shape) > 2048,
    }
    shown = viewer_data(scan, view, [method_data(method) for method in methods], truth, sequence)
    write_text(render(context, shown), path)
    return path


def agreement_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The lines of `Diagnosis.agreement` as words."""
    return [
        {
            "name": line["map"],
            "short": str(line["map"]).rpartition(".")[2],
            "control": line["map"] in CONTROLS,
            "cells": line["cells"],
            "cell_mm": " x ".join(f"{float(step):.3g}" for step in line["cell_mm"].split(" x ") if step),
            "mass": _share(line["mass_inside"]),
            "pointing": "-" if np.isnan(line["pointing"]) else "yes" if line["pointing"] >= 0.5 else "no",
            "dice": f"{line['dice']:.2f}",
            "peak": "-" if np.isnan(line["peak_mm"]) else f"{line['peak_mm']:.0f}",
            "place": line["place"] or "-",
        }
        for line in table.to_dict("records")
    ]


def empty_slices_words(diagnosis: Diagnosis) -> str:
    """What the first map does on axial slices without tumour, in a sentence."""
    found = diagnosis.empty_slices
    count, of = int(found["slices"]), int(found["of"])
    if not count or np.isnan(found["mass"]):
        return "Every axial slice of the head holds tumour, or the map is zero: there is nothing to say of others."
    return (
        f"On the {count} of {of} axial slices of the head that hold no tumour lies {found['mass']:.0%} of the map "
        f"(they are {found['volume']:.0%} of the head); its highest value there is {found['peak']:.0%} of its peak."
    )


def _share(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.0%}"
