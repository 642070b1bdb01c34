"""Optimal perturbations of a classifier: choose scans, train the network, and see what it does to other patients.

Papers 000, 3.4.1, and 001, B. No expert mask and no label is looked at: which inputs are of which class is what the
classifier says of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from voxplain.compute import Compute
from voxplain.datasets.case import Case
from voxplain.engine.probe import Probe
from voxplain.engine.progress import console, tracked
from voxplain.errors import InputError
from voxplain.explain import RelevanceMap
from voxplain.explain.explainer import in_evaluation, versions
from voxplain.explain.optimal import PartedInput, PerturbationSettings, drop_checkpoint, train_perturbation
from voxplain.io.atomic import output_folder, read_json, write_json
from voxplain.io.bundle import save_model
from voxplain.metrics.statistics import bootstrap_interval
from voxplain.model import Card, Model
from voxplain.networks.perturbation import PerturbationUNet
from voxplain.partition import supervoxels
from voxplain.preparation import prepare
from voxplain.studies.scoring import CASE_COLUMNS, SCORE_COLUMNS, write_tables
from voxplain.target import ClassScore

# The papers cut supervoxels on T2.
_CHANNEL = "t2"


@dataclass(frozen=True)
class PerturbationPreset:
    """A perturbation network (arguments of `PerturbationUNet`), how it is trained, and on what.

    `per_class` inputs that the classifier calls positive and as many that it calls negative, each of another patient,
    cut into `segments` supervoxels; at most `held_out` other patients are scored, all of them where it is None.
    """

    network: Mapping[str, Any] = field(hash=False)
    settings: PerturbationSettings
    per_class: int = 3
    segments: int = 100
    held_out: int | None = None


PRESETS = {
    # Minutes on two CPU cores.
    "small": PerturbationPreset(
        {"widths": [8, 16, 32], "residual_units": 0},
        PerturbationSettings(epochs=6, supervoxels=30, batch_size=1, clip=1.0),
        held_out=8,
    ),
    # Six scans, all of their supervoxels, 25 epochs, Adam 0.01 (000, 3.4.1). The network's widths are not given there:
    # these are MONAI's usual ones, 4.8 million weights.
    "paper": PerturbationPreset({"widths": [16, 32, 64, 128, 256], "residual_units": 2}, PerturbationSettings()),
    # A smoke run: every step, in seconds, with figures that mean nothing.
    "quick": PerturbationPreset(
        {"widths": [4, 8], "residual_units": 0},
        PerturbationSettings(epochs=1, supervoxels=4),
        per_class=1,
        segments=10,
        held_out=2,
    ),
}


def train_optimal(
    model: Model,
    cases: Sequence[Case],
    out: Path,
    *,
    preset: str = "small",
    loss: str = "reciprocal",
    exclude: Collection[str] = (),
    held_out: int | None = None,
    seed: int = 0,
    compute: Compute,
) -> pd.DataFrame:
    """Train a perturbation network for a classifier into the model folder `out`, and score it on held-out patients.

    Scans to train on are drawn from the patients that the classifier was trained on, where its card lists any of them
    here; the other patients, and all whom `exclude` names by case, are held out. When that leaves nobody, those are
    held out who were not drawn: the classifier has seen them, the perturbation network has not. A finished network is
    kept, and a training that was stopped goes on from its last epoch.

    Returns:
        What `scores.tsv` holds, with the columns `voxplain.studies.scoring.SCORE_COLUMNS`: over held-out patients the
        mean |p - p'| (probability, 0 to 1, mean over all supervoxels of a scan) of the optimal and of the blank fill,
        the paired gain, and the share of supervoxels that the optimal fill moves further.

    Raises:
        InputError: no such preset, names in `exclude` that are not there, too few inputs of a class, or a folder that
            holds another training.
    """
    chosen = _preset(preset, loss)
    if unknown := sorted(set(exclude) - {case.id for case in cases}):
        raise InputError(f"--exclude names {', '.join(unknown)}; there is no such patient in the data")
    output_folder(out)
    classes = model.card.classes
    facts: dict[str, Any] = {
        "classifier": {"name": model.card.name, "fingerprint": model.fingerprint},
        "target": ClassScore(classes[0]).record(),
        "settings": dataclasses.asdict(chosen.settings),
        "inputs_per_class": chosen.per_class,
        "segments": chosen.segments,
        "channel": _channel(model.card),
        "preset": preset,
        "seed": seed,
    }
    stated = {**facts, "cases": [case.id for case in cases], "exclude": sorted(exclude)}
    metrics = read_json(out / "metrics.json")
    if metrics is not None and metrics["asked_for"] != stated:
        raise InputError(f"{out} holds a training on other patients or with other settings; remove it, or give another "
                         "--out")  # fmt: skip
    if metrics is None:
        inputs = _chosen_inputs(model, _candidates(model.card, cases, exclude), chosen, seed, compute)
        arguments = {"channels": len(model.card.channels), "spatial_dims": model.card.spatial_dims, **chosen.network}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = PerturbationUNet(**arguments)
        target = ClassScore(classes[0])
        losses = train_perturbation(
            network, model, target, inputs, out, settings=chosen.settings, seed=seed, compute=compute
        )
        ids = sorted({one.name.partition("/")[0] for one in inputs})
        training = {
            **facts,
            "ids": ids,
            "inputs": [one.name for one in inputs],
            "supervoxels": [int(one.parts.max()) for one in inputs],
            "losses": list(losses),
        }
        save_model(network, _card(model.card, arguments, training), out)
        metrics = {"asked_for": stated, "training": training, "versions": versions()}
        write_json(metrics, out / "metrics.json")
        drop_checkpoint(out)
    scored = _held_out(model.card, cases, metrics["training"]["ids"], exclude)
    scored = scored[: chosen.held_out if held_out is None else held_out]
    return _score(model, scored, out, chosen, seed, compute)


def _preset(name: str, loss: str) -> PerturbationPreset:
    if name not in PRESETS:
        raise InputError(f"preset is one of {', '.join(PRESETS)}; got {name!r}")
    return dataclasses.replace(PRESETS[name], settings=dataclasses.replace(PRESETS[name].settings, loss=loss))


def _channel(card: Card) -> str | None:
    return _CHANNEL if _CHANNEL in card.channels else None


def _candidates(card: Card, cases: Sequence[Case], exclude: Collection[str]) -> list[Case]:
    """Cases that may be trained on: those that the classifier was trained on, or all where it knows none of them."""
    excluded = {case.patient for case in cases if case.id in exclude}
    allowed = [case for case in cases if case.patient not in excluded]
    known = [case for case in allowed if case.id in card.training_ids]
    return known or allowed


def _held_out(card: Card, cases: Sequence[Case], trained_on: Collection[str], exclude: Collection[str]) -> list[Case]:
    """Cases of patients that neither network was trained on; where there are none, not the perturbation network."""
    patients = {case.patient for case in cases if case.id in trained_on}
    others = [case for case in cases if case.patient not in patients]
    if exclude:
        return [case for case in others if case.id in exclude]
    return [case for case in others if case.id not in card.training_ids] or others


def _chosen_inputs(
    model: Model, candidates: Sequence[Case], chosen: PerturbationPreset, seed: int, compute: Compute
) -> list[PartedInput]:
    """As many inputs as the preset wants that the classifier calls positive, and as many negative ones."""
    rng = np.random.default_rng(seed)
    found: dict[bool, list[PartedInput]] = {True: [], False: []}
    patients: set[str] = set()
    target = ClassScore(model.card.classes[0])
    order = [candidates[index] for index in rng.permutation(len(candidates))]
    with compute.running(), in_evaluation(model.network, compute.torch_device):
        for case in tracked(order, "choosing scans", shown=compute.progress):
            if all(len(group) == chosen.per_class for group in found.values()):
                break
            if case.patient in patients:
                continue
            probes = [Probe(model, prepared, target, seed, compute) for prepared in prepare(case.scan(), model.card)]
            # The rarer class first, so that a scan with both kinds of half goes where it is needed.
            for probe in sorted(probes, key=lambda probe: len(found[probe.calibrated >= model.card.threshold])):
                group = found[probe.calibrated >= model.card.threshold]
                if len(group) < chosen.per_class and probe.prepared.foreground.any():
                    group.append(_parted(case, probe, chosen.segments))
                    patients.add(case.patient)
                    break
    if missing := [name for name, group in zip(("positive", "negative"), found.values(), strict=True)
                   if len(group) < chosen.per_class]:  # fmt: skip
        raise InputError(
            f"training needs {chosen.per_class} inputs that the classifier calls positive and as many that it calls "
            f"negative, each of another patient; among {len(candidates)} scans too few are {' and '.join(missing)}: "
            "give more patients"
        )
    return [*found[True], *found[False]]


def _parted(case: Case, probe: Probe, segments: int) -> PartedInput:
    """A prepared input with its supervoxels."""
    prepared, channel = probe.prepared, _channel(probe.model.card)
    image = probe.input if channel is None else prepared.input.channel(channel)[None]
    parts = supervoxels(image, prepared.input.grid, segments=segments, mask=prepared.foreground)
    return PartedInput(f"{case.id}/{prepared.name}", probe.input, prepared.background, parts.data)


def _card(card: Card, arguments: Mapping[str, Any], training: Mapping[str, Any]) -> Card:
    """The perturbation network's card: it reads what its classifier reads, and says a mask for each sequence."""
    return dataclasses.replace(
        card,
        name=f"{card.name}-perturbation",
        classes=card.channels,
        threshold=0.5,
        calibration=(1.0, 0.0),
        description=f"Dims a supervoxel so that {card.name} answers differently; one multiplicative mask per sequence.",
        factory="voxplain.networks.perturbation:PerturbationUNet",
        arguments=arguments,
        weights=None,
        weights_fingerprint=None,
        training=training,
    )


def _score(
    model: Model, cases: Sequence[Case], out: Path, chosen: PerturbationPreset, seed: int, compute: Compute
) -> pd.DataFrame:
    """Mean |p - p'| of the optimal and of the blank fill on each case; writes `cases.tsv` and `scores.tsv`."""
    blank = RelevanceMap(fill="blank", segments=chosen.segments, channel=_channel(model.card))
    optimal = dataclasses.replace(blank, fill=f"optimal:{out}")
    # The incremental engine agrees with full passes to rounding, and is many times faster on a CPU.
    quiet = dataclasses.replace(compute, progress=False, engine="incremental")
    rows: list[tuple[str, str, int, str, str, str, str, str, float]] = []
    for case in tracked(cases, "scoring held-out patients", shown=compute.progress):
        scan = case.scan()
        plain, moved = (explain(model, scan, seed=seed, compute=quiet).scores for explain in (blank, optimal))
        assert plain is not None
        assert moved is not None
        for row, metric, value in (
            ("optimal", "mean_abs_change", moved.mean()),
            ("blank", "mean_abs_change", plain.mean()),
            ("optimal", "gain_over_blank", moved.mean() - plain.mean()),
            ("optimal", "share_moved_further", (moved > plain).mean()),
        ):
            rows.append((case.id, case.patient, 0, "scan", "perturbation", row, metric, "plain", float(value)))
    found = pd.DataFrame(rows, columns=list(CASE_COLUMNS))
    summary = []
    for row, metric in found[["row", "metric"]].drop_duplicates().itertuples(index=False, name=None):
        group = found[(found["row"] == row) & (found["metric"] == metric)]
        low, high = bootstrap_interval(group["value"].to_numpy(), groups=group["patient"].to_numpy(), seed=seed)
        mean, n = float(group["value"].mean()), group["patient"].nunique()
        summary.append(("perturbation", row, metric, "plain", mean, low, high, n))
    table = pd.DataFrame(summary, columns=list(SCORE_COLUMNS))
    write_tables(found, table, out)
    if compute.progress and any(case.id in model.card.training_ids for case in cases):
        console.print("the classifier was trained on these patients; the perturbation network was not", highlight=False)
    return table
