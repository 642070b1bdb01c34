"""The hemisphere study: a classifier learns which halves of the head hold tumour, and its maps segment it.

Papers relevance (000, 001), on labels that real tumour scans carry for free. No voxel labels are used in training;
the label of a half is derived from the expert mask's volume in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from scipy.special import expit

from voxplain.calibration import platt_scaling
from voxplain.compute import Compute
from voxplain.datasets.case import Case
from voxplain.datasets.hemispheres import halves, split
from voxplain.engine.probe import tracked
from voxplain.errors import InputError
from voxplain.explain.explainer import versions
from voxplain.io.atomic import output_folder, read_json, write_json, write_text
from voxplain.io.bundle import load_model, save_model
from voxplain.metrics.classification import auc_within, balanced_accuracy
from voxplain.metrics.statistics import bootstrap_interval
from voxplain.model import Card, Model
from voxplain.networks.resnet import resnet
from voxplain.studies.evaluation import default_explainers, evaluate_folds
from voxplain.studies.hemisphere_presets import PRESETS, Preset
from voxplain.studies.model_page import model_page
from voxplain.training import Example, Settings, finish, train

_DATA = (
    "BraTS glioma scans with expert masks: Menze 2015 (10.1109/TMI.2014.2377694), Bakas 2017 "
    "(10.1038/sdata.2017.117), Bakas 2018 (arXiv 1811.02629)"
)
_LIMITS = (
    "Research software, not a medical device. Trained on few pre-operative glioma scans, skull-stripped and "
    "co-registered; other diseases, sequences or scanners are outside of what it has seen."
)


@dataclass(frozen=True, eq=False)
class _LabelledHalf:
    """A labelled half in memory, 16-bit, ready for training."""

    case: Case
    side: str
    label: int
    image: np.ndarray

    @property
    def example(self) -> Example:
        return Example(f"{self.case.id}/{self.side}", self.label, lambda: self.image.astype(np.float32))


def cross_validate(
    cases: Sequence[Case], out: Path, *, preset: str = "small", folds: int = 5, seed: int = 0, compute: Compute
) -> dict[str, Any]:
    """Train one network per fold into `out/fold0`, ... and sum up their test figures in `out/metrics.json`.

    Folds that are finished are kept; a fold that was killed goes on from its last epoch.
    """
    chosen = _preset(preset)
    output_folder(out)
    clear, stored = _clear_patients(cases, out, chosen.card, compute)
    parts = split(cases, folds, seed, clear)
    found = []
    for index, (training, validation, testing) in enumerate(parts):
        folder = out / f"fold{index}"
        identity = _identity(chosen, seed, [[case.id for case in part] for part in parts[index]])
        metrics = _finished(folder, identity)
        if metrics is None:
            stored = stored if stored is not None else _stored_halves(cases, chosen.card, compute)
            metrics = _train_fold(
                folder, identity, index, stored, training, validation, testing, chosen, seed=seed, compute=compute
            )
        found.append(metrics)
    summary = {"preset": preset, "folds": folds, "seed": seed, **_summary(found), "versions": versions()}
    write_json(summary, out / "metrics.json")
    return summary


def train_final(
    cases: Sequence[Case], out: Path, *, preset: str = "small", seed: int = 0, compute: Compute
) -> dict[str, Any]:
    """Train one network on all cases into `out/final`, for the median best epoch of the folds in `out`.

    Without folds in `out` it trains for as many epochs as the preset names.
    """
    chosen = _preset(preset)
    folder = output_folder(out / "final")
    summary = read_json(out / "metrics.json")
    if summary is not None and summary["preset"] == preset:
        epochs = int(np.median(summary["best_epochs"]))
    else:
        summary, epochs = None, chosen.settings.epochs
        if compute.progress:
            Console(stderr=True).print(f"no folds of this preset in {out}: training for {epochs} epochs")
    ids = [case.id for case in cases]
    identity = _identity(chosen, seed, [ids, [str(epochs)]])
    metrics = _finished(folder, identity)
    if metrics is not None:
        return metrics
    stored = _stored_halves(cases, chosen.card, compute)
    network = _new_network(chosen.card, seed)
    examples = [half.example for half in stored]
    result = train(
        network,
        examples,
        [],
        folder,
        settings=chosen.settings,
        seed=seed,
        stop_after=epochs,
        compute=compute,
        title="final",
    )
    facts = _training_facts(ids, [], stored, chosen.settings, seed) | {"epochs": epochs, "limits": _LIMITS}
    if summary is not None:
        names = ("folds", "auc", "auc_interval", "balanced_accuracy", "balanced_accuracy_interval", "n_patients")
        facts["cross_validation"] = {name: summary[name] for name in names}
    description = (
        "Tells whether a half of the head holds tumour; learnt from one label per half, no voxel labels. "
        "Data: " + _DATA + ". " + _LIMITS
    )
    card = dataclasses.replace(chosen.card, description=description, training=facts)
    labels = np.array([half.label for half in stored])
    if summary is not None:
        # What the folds said of halves that they had not seen is what this network will say of new ones.
        known = [line for index in range(summary["folds"]) for line in _fold_predictions(out, index)]
        logits, labels = (np.array([line[name] for line in known]) for name in ("logit", "label"))
        card = _calibrated(card, logits, labels, "the test halves of the folds")
    else:
        card = _calibrated(card, _logits(network, stored, compute), labels, "the training halves")
    save_model(network, card, folder, half_precision=True)
    write_text(model_page(card), folder / "README.md")
    metrics = {"identity": identity, "epochs": epochs, "training_losses": result.training_losses, **facts}
    finish(folder, metrics)
    return metrics


def study(
    cases: Sequence[Case],
    out: Path,
    *,
    layers: Sequence[str] | None = None,
    fill: str = "blank",
    segments: int = 100,
    preset: str = "small",
    folds: int = 5,
    seed: int = 0,
    compute: Compute,
    console: Console | None = None,
) -> pd.DataFrame:
    """Cross-validate, then explain and score every patient with the network that has not seen them."""
    cross_validate(cases, out, preset=preset, folds=folds, seed=seed, compute=compute)
    by_id = {case.id: case for case in cases}
    work = []
    for index in range(folds):
        metrics = read_json(out / f"fold{index}" / "metrics.json")
        assert metrics is not None
        work.append((index, load_model(out / f"fold{index}"), [by_id[name] for name in metrics["test_ids"]]))
    explainers = default_explainers(work[0][1], layers, fill=fill, segments=segments)
    return evaluate_folds(work, out, explainers, seed, compute, console or Console())


def _train_fold(
    folder: Path,
    identity: str,
    index: int,
    stored: Sequence[_LabelledHalf],
    training: Sequence[Case],
    validation: Sequence[Case],
    testing: Sequence[Case],
    chosen: Preset,
    *,
    seed: int,
    compute: Compute,
) -> dict[str, Any]:
    ids = [[case.id for case in part] for part in (training, validation, testing)]
    groups = [[half for half in stored if half.case.id in part] for part in map(set, ids)]
    network = _new_network(chosen.card, seed)
    examples = [half.example for half in groups[0]]
    result = train(
        network,
        examples,
        [half.example for half in groups[1]],
        folder,
        settings=chosen.settings,
        seed=seed,
        compute=compute,
        title=f"fold {index}",
    )
    facts = _training_facts(ids[0], ids[1], groups[0], chosen.settings, seed) | {"epochs": result.best_epoch}
    card = dataclasses.replace(chosen.card, description=f"Fold {index} of a cross-validation.", training=facts)
    known = [*groups[0], *groups[1]]
    labels = np.array([half.label for half in known])
    card = _calibrated(card, _logits(network, known, compute), labels, "the training and validation halves")
    save_model(network, card, folder, half_precision=True)
    predictions = _predictions(load_model(folder), groups[2], compute)
    metrics = {
        "identity": identity,
        "fold": index,
        "training_ids": ids[0],
        "validation_ids": ids[1],
        "test_ids": ids[2],
        **dataclasses.asdict(result),
        "test": _figures([line | {"fold": index} for line in predictions]),
        "predictions": predictions,
    }
    finish(folder, metrics)
    return metrics


def _calibrated(card: Card, logits: np.ndarray, labels: np.ndarray, source: str) -> Card:
    """The card with the calibration that halves of known label give; no mask is looked at.

    Smoothed labels and an early epoch leave a network that hardly ever says more than 0.8, and one half where both
    labels are as likely only by chance. The network itself stays as it is: where its score is scaled up, probabilities
    saturate, and maps of their change shrink to a few parts.
    """
    scale, shift = platt_scaling(logits, labels)
    facts = {"method": "Platt 1999", "labels": source, "n_halves": len(labels)}
    return dataclasses.replace(
        card,
        calibration=(round(scale, 4), round(shift, 4)),
        training={**card.training, "calibration": facts},
    )


def _logits(network: torch.nn.Module, halves: Sequence[_LabelledHalf], compute: Compute) -> np.ndarray:
    """The network's raw score of each half, (N,) float64."""
    device = compute.torch_device
    network = network.to(device).eval()
    with compute.running(), torch.inference_mode():
        inputs = (torch.from_numpy(half.image.astype(np.float32))[None].to(device) for half in halves)
        return np.array([float(network(image)[0, 0]) for image in inputs])


def _predictions(model: Model, tested: Sequence[_LabelledHalf], compute: Compute) -> list[dict[str, Any]]:
    scale, shift = model.card.calibration
    found = []
    for half, logit in zip(tested, _logits(model.network, tested, compute).tolist(), strict=True):
        probability = float(expit(scale * logit + shift))
        found.append(
            {"case": half.case.id, "patient": half.case.patient, "side": half.side, "label": half.label}
            | {"logit": round(logit, 6), "probability": round(probability, 6)}
            | {"predicted": int(probability >= model.card.threshold)}
        )
    return found


def _fold_predictions(out: Path, index: int) -> list[dict[str, Any]]:
    metrics = read_json(out / f"fold{index}" / "metrics.json")
    if metrics is None:
        raise InputError(f"{out} holds metrics.json but no fold {index}; train the folds again, or remove metrics.json")
    return list(metrics["predictions"])


def _figures(predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """AUC within folds and balanced accuracy, with intervals over patients, of one fold or of several together."""
    labels, values, predicted, patients, folds = (
        np.array([line[name] for line in predictions])
        for name in ("label", "probability", "predicted", "patient", "fold")
    )
    return {
        "auc": auc_within(labels, values, folds),
        "auc_interval": bootstrap_interval((labels, values, folds), statistic=auc_within, groups=patients),
        "balanced_accuracy": balanced_accuracy(labels, predicted),
        "balanced_accuracy_interval": bootstrap_interval(
            (labels, predicted), statistic=balanced_accuracy, groups=patients
        ),
        "n_halves": len(labels),
        "n_patients": len(set(patients)),
    }


def _summary(folds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The test figures of all folds together, and what each fold came to."""
    lines = [line | {"fold": fold["fold"]} for fold in folds for line in fold["predictions"]]
    return _figures(lines) | {
        "auc_per_fold": [fold["test"]["auc"] for fold in folds],
        "best_epochs": [fold["best_epoch"] for fold in folds],
    }


def _clear_patients(
    cases: Sequence[Case], out: Path, card: Card, compute: Compute
) -> tuple[set[str], list[_LabelledHalf] | None]:
    """Patients with a half without tumour, kept in `out/halves.json`; and the halves, where they had to be read."""
    path = out / "halves.json"
    known = read_json(path)
    stored = None
    if known is None or known["cases"] != [case.id for case in cases]:
        stored = _stored_halves(cases, card, compute)
        known = {
            "cases": [case.id for case in cases],
            "labels": [
                {"case": h.case.id, "patient": h.case.patient, "side": h.side, "label": h.label} for h in stored
            ],
        }
        write_json(known, path)
    return {line["patient"] for line in known["labels"] if line["label"] == 0}, stored


def _stored_halves(cases: Sequence[Case], card: Card, compute: Compute) -> list[_LabelledHalf]:
    """All labelled halves, read once and kept in memory."""
    return [
        _LabelledHalf(case, half.prepared.name, half.label, half.image.astype(np.float16))
        for case in tracked(cases, "reading scans", shown=compute.progress)
        for half in halves(case, card)
        if half.label is not None
    ]


def _new_network(card: Card, seed: int) -> torch.nn.Module:
    """A freshly initialised network; the seed decides its weights, and the global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return resnet(**card.arguments)


def _training_facts(
    ids: Sequence[str],
    validation_ids: Sequence[str],
    stored: Sequence[_LabelledHalf],
    settings: Settings,
    seed: int,
) -> dict[str, Any]:
    return {
        "data": _DATA,
        "ids": list(ids),
        "validation_ids": list(validation_ids),
        "n_patients": len(ids),
        "n_halves": len(stored),
        "n_halves_with_tumour": sum(half.label for half in stored),
        "labels": "one per half, derived from expert masks: tumour above 2 ml, none below 0.16 ml; no voxel labels",
        "settings": dataclasses.asdict(settings),
        "seed": seed,
    }


def _identity(chosen: Preset, seed: int, ids: Sequence[Sequence[str]]) -> str:
    """What a finished training must agree in to be kept."""
    content = [chosen.card.to_dict(), dataclasses.asdict(chosen.settings), seed, ids]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _finished(folder: Path, identity: str) -> dict[str, Any] | None:
    metrics = read_json(folder / "metrics.json")
    if metrics is not None and metrics["identity"] != identity:
        raise InputError(
            f"{folder} holds a training on other patients or with other settings; give another --out, or remove it"
        )
    return metrics


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise InputError(f"preset is one of {', '.join(PRESETS)}; got {name!r}")
    return PRESETS[name]
