"""The table `lesions.tsv`: of each lesion of a patient what its map says (paper instance, 004)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from voxplain.compute import Compute
from voxplain.engine.jacobian import Jacobian
from voxplain.engine.probe import Probe
from voxplain.engine.running import timed
from voxplain.explain.explainer import Explainer, in_evaluation
from voxplain.explain.grad_cam_plus_plus import InstanceGradCAMPlusPlus
from voxplain.explain.instance import InstanceSmoothGrad
from voxplain.explain.occlusion import Occlusion
from voxplain.explain.parts import cube_edge
from voxplain.explain.relevance import RelevanceMap
from voxplain.explanation import Explanation
from voxplain.io.nifti import save
from voxplain.metrics.instance_maps import channel_shares, distance_profile, extremes, fades_at, signed_medians
from voxplain.studies.instance_cache import Cache, key_of, model_key, region_key
from voxplain.studies.instance_patients import Patient, prepared_of
from voxplain.studies.region_scores import probability_within
from voxplain.target import RegionScore

ABOUT = ("case", "row", "kind", "lesion", "volume_mm3", "mean_probability", "max_probability")
STATISTICS = ("maximum", "minimum", "positive", "negative")
SIDES = (
    *("case", "kind", "lesion", "sequence", "side"),
    *("positive", "negative", "positive_count", "negative_count"),
)
REST = ("flair_share", "fades_mm", "voxels_used", "passes", "forward_passes", "backward_passes")
# One map for all sequences together bears this name.
ALL = "all"
Say = Callable[[str], None]
# So many rows of a lesion are timed to say how long all will take.
_TIMED = 8


@dataclass(frozen=True)
class Pace:
    """Seconds that one pass forward and one gradient of one voxel take, or NaN where that was not measured."""

    forward: float = np.nan
    gradient: float = np.nan


def columns(channels: Sequence[str]) -> tuple[str, ...]:
    """The columns of `lesions.tsv` for maps of these sequences."""
    return (*ABOUT, *(f"{channel}_{name}" for channel in channels for name in STATISTICS), *REST)


def map_statistics(why: Explanation, region: np.ndarray) -> dict[str, Any]:
    """What is kept of a map: for each sequence extremes and medians (all, inside, outside), shares, profile, reach."""
    found: dict[str, Any] = {"channels": list(why.channels)}
    for channel, values in zip(why.channels, why.map, strict=True):
        highest, lowest = extremes(values)
        signs = {
            where: signed_medians(some)._asdict()
            for where, some in (("all", values), ("inside", values[region]), ("outside", values[~region]))
        }
        found[channel] = {"maximum": highest, "minimum": lowest, **signs}
    profile = distance_profile(why.map, region, spacing=why.grid.spacing)
    found["shares"] = channel_shares(why.map)
    found["profile"] = profile
    found["fades_mm"] = fades_at(profile)
    facts = [its for its in why.provenance["facts"].values() if "voxels" in its]
    found["voxels_used"] = int(facts[0]["voxels"]["used"]) if facts else int(region.sum())
    found["forward"] = int(why.provenance["passes"]["forward"])
    found["backward"] = int(why.provenance["passes"]["backward"])
    return found


def key_of_map(patient: Patient, explainer: Explainer, region: np.ndarray, *, seed: int) -> str:
    """What a lesion's map follows from, as one hash."""
    name = patient.prediction.name
    return key_of("map", explainer, model_key(patient.model), region_key(patient.scan, region), name, seed)


def explained(
    patient: Patient,
    explainer: Explainer,
    numbers: Sequence[int],
    cache: Cache,
    *,
    seed: int,
    compute: Compute,
    keep_maps: bool,
    say: Say,
) -> dict[int, dict[str, Any]]:
    """Statistics of the maps of some lesions, by number; those that the cache knows cost nothing.

    Lesions that lie near each other share passes and come together, 16 of them at most; what was explained is in the
    cache at once, so that a run that is stopped loses little.
    """
    labels = patient.lesions.labels
    keys = {number: key_of_map(patient, explainer, labels.data == number, seed=seed) for number in numbers}
    found: dict[int, dict[str, Any]] = {}
    for number, key in keys.items():
        known = cache.get(key)
        if known is not None and (not keep_maps or cache.path(key, ".nii.gz").is_file()):
            found[number] = known
    waiting = [number for number in numbers if number not in found]
    started = time.monotonic()
    each = explainer.each(
        patient.model, patient.scan, labels, name=patient.prediction.name, labels=waiting, seed=seed, compute=compute
    )
    for done, (number, why) in enumerate(each, start=1):
        found[number] = map_statistics(why, labels.data == number)
        if keep_maps:
            save(why, cache.path(keys[number], ".nii.gz"))
        cache.put(keys[number], found[number])
        left = (time.monotonic() - started) / done * (len(waiting) - done)
        say(f"{patient.id}, {explainer.name}: {done} of {len(waiting)} lesions, about {left:.0f} s to go")
    return found


def lesion_lines(
    patient: Patient, explainer: Explainer, found: Mapping[int, Mapping[str, Any]], channels: Sequence[str]
) -> pd.DataFrame:
    """The lines of `lesions.tsv` of some lesions, from statistics of their maps; NaN where a method has no such map."""
    by_number = {int(line["lesion"]): line for line in patient.lesions.table.to_dict("records")}
    lines = []
    for number in sorted(found):
        its, about = found[number], by_number[number]
        line: dict[str, Any] = {"case": patient.id, "row": explainer.name, "kind": about["kind"], "lesion": number}
        line |= {name: float(about[name]) for name in ("volume_mm3", "mean_probability", "max_probability")}
        for channel in its["channels"]:
            signs = its[channel]["all"]
            line |= {f"{channel}_{name}": its[channel][name] for name in ("maximum", "minimum")}
            line |= {f"{channel}_{name}": signs[name] for name in ("positive", "negative")}
        if "flair" in its["channels"]:
            line["flair_share"] = its["shares"][its["channels"].index("flair")]
        line |= {"fades_mm": its["fades_mm"], "voxels_used": its["voxels_used"]}
        line |= {"forward_passes": its["forward"], "backward_passes": its["backward"]}
        line["passes"] = its["forward"] + its["backward"]
        lines.append(line)
    more = [ALL] if any(ALL in its["channels"] for its in found.values()) else []
    names = columns([*channels, *more])
    # Numbers are numbers, even where no line has one.
    kinds = {name: object if name in ("case", "row", "kind") else float for name in names}
    return pd.DataFrame(lines, columns=list(names)).astype(kinds).astype({"lesion": int})


def side_lines(patient: Patient, found: Mapping[int, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Inside and outside of each lesion the medians and counts of positive and negative values, for each sequence."""
    kinds = patient.lesions.table.set_index("lesion")["kind"]
    for number in sorted(found):
        for channel in found[number]["channels"]:
            for side in ("inside", "outside"):
                about = {"case": patient.id, "kind": kinds[number], "lesion": number, "sequence": channel}
                yield about | {"side": side} | found[number][channel][side]


def waiting_lesions(
    patient: Patient, explainer: Explainer, numbers: Sequence[int], cache: Cache, *, seed: int
) -> list[int]:
    """The lesions whose maps the cache does not know yet."""
    labels = patient.lesions.labels.data
    keys = {number: key_of_map(patient, explainer, labels == number, seed=seed) for number in numbers}
    return [number for number, key in keys.items() if not cache.path(key).is_file()]


def expected_passes(explainer: Explainer, voxels: int, brain_mm3: float) -> tuple[int, int]:
    """About how many passes forward and gradients of voxels a lesion takes; 0 where a method does not say."""
    if isinstance(explainer, InstanceSmoothGrad):
        average = explainer.aggregation == "average"
        return explainer.copies, explainer.copies * (1 if average else min(voxels, explainer.most_voxels))
    if isinstance(explainer, InstanceGradCAMPlusPlus):
        return 3, 1
    if isinstance(explainer, Occlusion) and explainer.passes is not None:
        return 1 + explainer.passes, 1
    if isinstance(explainer, RelevanceMap):
        edge = cube_edge(explainer.partition)
        return 1 + (explainer.segments if edge is None else round(brain_mm3 / edge**3)), 0
    return 0, 0


def pace_of(patient: Patient, number: int, *, compute: Compute) -> Pace:
    """How long a pass forward through the windows of a lesion takes, and the gradient of one of its voxels."""
    prepared = prepared_of(patient.scan, patient.model.card)
    name = patient.prediction.name
    (target,) = RegionScore(name, patient.lesions.labels, number).on([prepared.input.grid])
    if target is None:
        return Pace()
    assert isinstance(target, RegionScore)
    region = target.mask.data > 0
    forward = timed(lambda: probability_within(patient.model, prepared, region, name=name, compute=compute))
    with compute.running(), in_evaluation(patient.model.network, compute.torch_device):
        probe = Probe(patient.model, prepared, target, 0, compute)
        voxels = np.argwhere(region)[:_TIMED]
        jacobian = Jacobian(probe, voxels, patient.model.card.classes.index(name), single=True)
        seconds = jacobian.seconds(probe.input)
    return Pace(forward=forward, gradient=seconds / len(voxels))
