"""A lesion moved, and lesions with their surroundings hidden: two experiments of the instance study on one patient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from voxplain.compute import Compute
from voxplain.explain.explainer import Explainer
from voxplain.explanation import Explanation
from voxplain.io.nifti import save
from voxplain.preparation import Prepared
from voxplain.scan import Labels, Scan
from voxplain.studies import context
from voxplain.studies.instance_cache import Cache, key_of, model_key, region_key
from voxplain.studies.instance_lesions import map_statistics
from voxplain.studies.instance_patients import Patient, prepared_of
from voxplain.studies.placements import Placement, clearly_visible, placements
from voxplain.studies.region_scores import probability_within
from voxplain.target import RegionScore

Say = Callable[[str], None]


def placed(
    patient: Patient,
    explainer: Explainer,
    cache: Cache,
    *,
    seed: int,
    compute: Compute,
    keep_maps: bool,
    say: Say,
) -> list[dict[str, Any]]:
    """Lines of `placements.tsv`: a clearly visible lesion of the patient at each place; none where nothing is right."""
    number = clearly_visible(patient.lesions.table)
    if number is None:
        say(f"{patient.id}: no lesion is right, so that none is moved")
        return []
    lesion = patient.lesions.labels.data == number
    key = key_of_placements(patient, explainer, number, seed=seed)
    known = cache.get(key)
    if known is not None and (not keep_maps or all(cache.path(name, ".nii.gz").is_file() for name in known["maps"])):
        return [dict(line) for line in known["lines"]]
    lines, maps = [], []
    for count, placement in enumerate(placements(patient.scan, lesion, patient.ill, seed=seed), start=1):
        say(f"{patient.id}, lesion {number}: {placement.place}")
        line, why = _at(patient, placement, explainer, seed=seed, compute=compute)
        about = {"case": patient.id, "lesion": number, "volume_mm3": _volume(patient, number)}
        lines.append(about | {"place": placement.place} | line)
        if keep_maps:
            maps.append(f"{key}-{count}")
            save(why, cache.path(maps[-1], ".nii.gz"))
    cache.put(key, {"lines": lines, "maps": maps})
    return lines


def key_of_placements(patient: Patient, explainer: Explainer, number: int, *, seed: int) -> str:
    """What the lines of a moved lesion follow from, as one hash."""
    region = patient.lesions.labels.data == number
    return key_of(
        *("placements", explainer, model_key(patient.model), region_key(patient.scan, region)),
        *(patient.prediction.name, patient.reference.fingerprint, seed),
    )


def key_of_context(
    patient: Patient, shapes: Sequence[Path], *, most: int, distances: Sequence[float], seed: int
) -> str:
    """What the lines of a patient's `context.tsv` follow from, as one hash."""
    return key_of(
        *("context", model_key(patient.model), patient.scan.fingerprint, patient.reference.fingerprint),
        *(patient.prediction.name, [path.name for path in shapes], most, list(distances), seed),
    )


def _at(
    patient: Patient, placement: Placement, explainer: Explainer, *, seed: int, compute: Compute
) -> tuple[dict[str, Any], Explanation]:
    """What is predicted in a lesion at its place, and the extremes of its map."""
    model, name = patient.model, patient.prediction.name
    prepared = prepared_of(placement.scan, model.card)
    region = placement.region.on(prepared.input.grid).data > 0
    (found,) = probability_within(model, prepared, region, name=name, compute=compute)
    target = RegionScore(name, placement.region)
    why = explainer(model, placement.scan, target=target, seed=seed, compute=compute)
    its = map_statistics(why, placement.region.data > 0)
    line = {"mean_probability": float(found.mean()), "max_probability": float(found.max())}
    line["detected"] = float(found.max() >= model.card.threshold)
    for channel in its["channels"]:
        line |= {f"{channel}_{extreme}": its[channel][extreme] for extreme in ("maximum", "minimum")}
    return line, why


def _volume(patient: Patient, number: int) -> float:
    table = patient.lesions.table
    return float(table.loc[table["lesion"] == number, "volume_mm3"].iloc[0])


def in_context(
    patient: Patient,
    shapes: Sequence[Path],
    cache: Cache,
    *,
    most: int,
    distances: Sequence[float],
    seed: int,
    compute: Compute,
    say: Say,
) -> pd.DataFrame:
    """Lines of `context.tsv`: real and made lesions of a patient, with so much shown of what lies around them."""
    table = patient.lesions.table
    key = key_of_context(patient, shapes, most=most, distances=distances, seed=seed)
    known = cache.get(key)
    if known is None:
        lines: list[dict[str, Any]] = []
        prepared = prepared_of(patient.scan, patient.model.card)
        for number in context.real_lesions(table, most=most, seed=seed):
            say(f"{patient.id}, surroundings of lesion {number}")
            region = patient.lesions.labels.data == number
            about: dict[str, Any] = {"set": context.REAL, "lesion": number, "volume_mm3": _volume(patient, number)}
            its = _shown(patient, patient.scan, prepared, region, cache, distances, compute)
            lines += [{**about, **line} for line in its]
        known_lesions = Labels(patient.ill, patient.scan.grid)
        made = context.made_lesions(patient.scan, known_lesions, shapes, most=most, seed=seed)
        for number, lesion in enumerate(made, start=1):
            say(f"{patient.id}, surroundings of made lesion {number}")
            about = {"set": context.MADE, "lesion": number, "volume_mm3": lesion.volume}
            its = _shown(patient, lesion.scan, None, lesion.region.data > 0, cache, distances, compute)
            lines += [{**about, **line} for line in its]
        cache.put(key, {"lines": lines})
        known = cache.get(key) or {"lines": []}
    return context.table_of([{"case": patient.id, **line} for line in known["lines"]])


def _shown(
    patient: Patient,
    scan: Scan,
    prepared: Prepared | None,
    region: np.ndarray,
    cache: Cache,
    distances: Sequence[float],
    compute: Compute,
) -> list[Mapping[str, float]]:
    """One lesion's lines, from the cache where it knows them."""
    model, name = patient.model, patient.prediction.name
    key = key_of("shown", model_key(model), region_key(scan, region), name, list(distances))
    known = cache.get(key)
    if known is None:
        prepared = prepared or prepared_of(scan, model.card)
        there = Labels(region, scan.grid).on(prepared.input.grid).data > 0
        lines = context.context_lines(model, prepared, there, name=name, distances=distances, compute=compute)
        cache.put(key, {"lines": lines})
        known = cache.get(key) or {"lines": []}
    return list(known["lines"])
