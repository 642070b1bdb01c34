"""Cross-validation of a classifier by patient, whatever the label: folds, then the final network on all patients.

What is learnt is a `Task`; `voxplain.studies.hemispheres` and `voxplain.studies.grades` each make one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from scipy.special import expit

from voxplain.calibration import platt_scaling
from voxplain.compute import Compute
from voxplain.datasets.case import Case
from voxplain.datasets.hemispheres import split
from voxplain.errors import InputError
from voxplain.explain.explainer import versions
from voxplain.io.atomic import output_folder, read_json, write_json, write_text
from voxplain.io.bundle import build_network, load_model, save_model
from voxplain.metrics.classification import auc_within, balanced_accuracy
from voxplain.metrics.statistics import bootstrap_interval
from voxplain.model import Card, Model
from voxplain.optimisation import finish
from voxplain.studies.model_page import model_page
from voxplain.studies.task import Labelled, Preset, Task
from voxplain.training import Settings, Trained, train

Parts = tuple[list[Case], list[Case], list[Case]]


def cross_validate(
    task: Task,
    cases: Sequence[Case],
    out: Path,
    *,
    preset: str = "small",
    folds: int = 5,
    seed: int = 0,
    compute: Compute,
) -> dict[str, Any]:
    """Train one network per fold into `out/fold0`, ... and sum up their test figures in `out/metrics.json`.

    Folds that are finished are kept; a fold that was killed goes on from its last epoch.

    Raises:
        InputError: no such preset, too few patients for the folds, inputs of one label only, or a folder that holds
            another training.
    """
    chosen = task.preset(preset)
    output_folder(out)
    parts, stored = fold_parts(task, cases, out, chosen.card, folds, seed, compute)
    found = []
    for index in range(folds):
        folder = out / f"fold{index}"
        identity = _identity(chosen, seed, [[case.id for case in part] for part in parts[index]])
        metrics = _finished(folder, identity)
        if metrics is None:
            stored = stored if stored is not None else task.read(cases, chosen.card, compute)
            metrics = _train_fold(
                task, folder, identity, index, stored, parts[index], chosen, task.note(cases), seed, compute
            )
        found.append(metrics)
    summary = {"preset": preset, "folds": folds, "seed": seed, **_summary(task, found), "versions": versions()}
    summary |= task.note(cases)
    write_json(summary, out / "metrics.json")
    return summary


def train_final(
    task: Task, cases: Sequence[Case], out: Path, *, preset: str = "small", seed: int = 0, compute: Compute
) -> dict[str, Any]:
    """Train one network on all cases into `out/final`, for the median best epoch of the folds in `out`.

    Without folds in `out` it trains for as many epochs as the preset names.
    """
    chosen = task.preset(preset)
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
    stored = task.read(cases, chosen.card, compute)
    network = new_network(chosen.card, seed)
    result = train(
        network,
        [one.example for one in stored],
        [],
        folder,
        settings=chosen.settings,
        seed=seed,
        stop_after=epochs,
        compute=compute,
        title="final",
    )
    facts = _training_facts(task, ids, [], stored, chosen.settings, seed) | {"epochs": epochs, "limits": task.limits}
    if summary is not None:
        names = ("folds", "auc", "auc_interval", "balanced_accuracy", "balanced_accuracy_interval", "n_patients")
        facts["cross_validation"] = {name: summary[name] for name in names} | task.note(cases)
    description = f"{task.description} Data: {task.data}. {task.limits}"
    card = dataclasses.replace(chosen.card, description=description, training=facts)
    if summary is not None:
        # What the folds said of inputs that they had not seen is what this network will say of new ones.
        known = [line for index in range(summary["folds"]) for line in _fold_predictions(out, index)]
        logits, labels = (np.array([line[name] for line in known]) for name in ("logit", "label"))
        card = _calibrated(task, card, logits, labels, f"the test {task.words[0]} of the folds")
    else:
        labels = np.array([one.label for one in stored])
        card = _calibrated(task, card, _logits(network, stored, compute), labels, f"the training {task.words[0]}")
    save_model(network, card, folder, half_precision=True)
    write_text(model_page(card, task.words), folder / "README.md")
    metrics = {"identity": identity, "epochs": epochs, "training_losses": result.training_losses, **facts}
    finish(folder, metrics)
    return metrics


def fold_parts(
    task: Task, cases: Sequence[Case], out: Path, card: Card, folds: int, seed: int, compute: Compute
) -> tuple[list[Parts], list[Labelled] | None]:
    """Training, validation and test cases of each fold; and the inputs, where they had to be read for their labels.

    The labels are kept in `out`, in a file named after the inputs ("halves.json").

    Raises:
        InputError: too few patients for the folds, or a training part with inputs of one label only.
    """
    path = out / f"{task.words[0]}.json"
    known = read_json(path)
    stored = None
    if known is None or known["cases"] != [case.id for case in cases]:
        stored = task.read(cases, card, compute)
        known = {
            "cases": [case.id for case in cases],
            "labels": [
                {"case": one.case.id, "patient": one.case.patient, task.region: one.region, "label": one.label}
                for one in stored
            ],
        }
        write_json(known, path)
    spread = {line["patient"]: 0 for line in known["labels"] if line["label"] == task.rarer}
    parts = split(cases, folds, seed, spread)
    for index, (training, _, _) in enumerate(parts):
        _check_both_labels(index, known["labels"], {case.id for case in training})
    return parts, stored


def new_network(card: Card, seed: int) -> torch.nn.Module:
    """A freshly initialised network; the seed decides its weights, and the global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_network(card)


def _check_both_labels(index: int, lines: Sequence[Mapping[str, Any]], training: Collection[str]) -> None:
    labels = sorted({line["label"] for line in lines if line["case"] in training})
    if labels != [0, 1]:
        raise InputError(
            f"training needs examples with label 0 and with label 1; the training part of fold {index} has labels "
            f"{labels}: give more patients, or choose another number of folds"
        )


def _train_fold(
    task: Task,
    folder: Path,
    identity: str,
    index: int,
    stored: Sequence[Labelled],
    parts: Parts,
    chosen: Preset,
    note: dict[str, str],
    seed: int,
    compute: Compute,
) -> dict[str, Any]:
    ids = [[case.id for case in part] for part in parts]
    groups = [[one for one in stored if one.case.id in part] for part in map(set, ids)]
    network, result, losses = _best_attempt(folder, index, groups[0], groups[1], chosen, seed, compute)
    facts = _training_facts(task, ids[0], ids[1], groups[0], chosen.settings, seed) | {"epochs": result.best_epoch}
    card = dataclasses.replace(chosen.card, description=f"Fold {index} of a cross-validation.", training=facts)
    known = [*groups[0], *groups[1]]
    labels = np.array([one.label for one in known])
    source = f"the training and validation {task.words[0]}"
    card = _calibrated(task, card, _logits(network, known, compute), labels, source)
    save_model(network, card, folder, half_precision=True)
    predictions = _predictions(task, load_model(folder), groups[2], compute)
    metrics = {
        "identity": identity,
        "fold": index,
        "training_ids": ids[0],
        "validation_ids": ids[1],
        "test_ids": ids[2],
        **dataclasses.asdict(result),
        "attempts": losses,
        "test": _figures(task, [line | {"fold": index} for line in predictions]) | note,
        "predictions": predictions,
    }
    finish(folder, metrics)
    for attempt in folder.glob("attempt*"):
        shutil.rmtree(attempt)
    return metrics


def _best_attempt(
    folder: Path,
    index: int,
    training: Sequence[Labelled],
    validation: Sequence[Labelled],
    chosen: Preset,
    seed: int,
    compute: Compute,
) -> tuple[torch.nn.Module, Trained, list[float]]:
    """The training with the lowest validation loss, its network, and that loss of every attempt."""
    found = []
    for attempt in range(chosen.attempts):
        network = new_network(chosen.card, seed + attempt)
        result = train(
            network,
            [one.example for one in training],
            [one.example for one in validation],
            # Each attempt keeps its checkpoint until the fold is done, so that a stopped fold goes on where it was.
            folder if chosen.attempts == 1 else folder / f"attempt{attempt}",
            settings=chosen.settings,
            seed=seed + attempt,
            compute=compute,
            title=f"fold {index}" + (f", attempt {attempt + 1}" if chosen.attempts > 1 else ""),
        )
        found.append((network, result, result.validation_losses[result.best_epoch - 1]))
    network, result, _ = min(found, key=lambda attempt: attempt[2])
    return network, result, [loss for _, _, loss in found]


def _calibrated(task: Task, card: Card, logits: np.ndarray, labels: np.ndarray, source: str) -> Card:
    """The card with the calibration that inputs of known label give; no mask is looked at.

    Smoothed labels and an early epoch leave a network that hardly ever says more than 0.8, and one half where both
    labels are as likely only by chance. The network itself stays as it is: where its score is scaled up, probabilities
    saturate, and maps of their change shrink to a few parts.
    """
    scale, shift = platt_scaling(logits, labels)
    facts = {"method": "Platt 1999", "labels": source, f"n_{task.words[0]}": len(labels)}
    return dataclasses.replace(
        card,
        calibration=(round(scale, 4), round(shift, 4)),
        training={**card.training, "calibration": facts},
    )


def _logits(network: torch.nn.Module, inputs: Sequence[Labelled], compute: Compute) -> np.ndarray:
    """The network's raw score of each input, (N,) float64."""
    device = compute.torch_device
    network = network.to(device).eval()
    with compute.running(), torch.inference_mode():
        images = (torch.from_numpy(one.image.astype(np.float32))[None].to(device) for one in inputs)
        return np.array([float(network(image)[0, 0]) for image in images])


def _predictions(task: Task, model: Model, tested: Sequence[Labelled], compute: Compute) -> list[dict[str, Any]]:
    scale, shift = model.card.calibration
    found = []
    for one, logit in zip(tested, _logits(model.network, tested, compute).tolist(), strict=True):
        probability = float(expit(scale * logit + shift))
        found.append(
            {"case": one.case.id, "patient": one.case.patient, task.region: one.region, "label": one.label}
            | {"logit": round(logit, 6), "probability": round(probability, 6)}
            | {"predicted": int(probability >= model.card.threshold)}
        )
    return found


def _fold_predictions(out: Path, index: int) -> list[dict[str, Any]]:
    metrics = read_json(out / f"fold{index}" / "metrics.json")
    if metrics is None:
        raise InputError(f"{out} holds metrics.json but no fold {index}; train the folds again, or remove metrics.json")
    return list(metrics["predictions"])


def _figures(task: Task, predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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
        f"n_{task.words[0]}": len(labels),
        "n_patients": len(set(patients)),
    }


def _summary(task: Task, folds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The test figures of all folds together, and what each fold came to."""
    lines = [line | {"fold": fold["fold"]} for fold in folds for line in fold["predictions"]]
    return _figures(task, lines) | {
        "auc_per_fold": [fold["test"]["auc"] for fold in folds],
        "best_epochs": [fold["best_epoch"] for fold in folds],
    }


def _training_facts(
    task: Task,
    ids: Sequence[str],
    validation_ids: Sequence[str],
    stored: Sequence[Labelled],
    settings: Settings,
    seed: int,
) -> dict[str, Any]:
    inputs, positive = task.words
    return {
        "data": task.data,
        "ids": list(ids),
        "validation_ids": list(validation_ids),
        "n_patients": len(ids),
        f"n_{inputs}": len(stored),
        f"n_{inputs}_{positive.replace(' ', '_').replace('-', '_')}": sum(one.label for one in stored),
        "labels": task.labels,
        "settings": dataclasses.asdict(settings),
        "seed": seed,
    }


def _identity(chosen: Preset, seed: int, ids: Sequence[Sequence[str]]) -> str:
    """What a finished training must agree in to be kept."""
    content: list[Any] = [chosen.card.to_dict(), chosen.settings.record(), seed, ids]
    if chosen.attempts > 1:  # left out otherwise, so that folds that were trained before there was a choice are known
        content.append(chosen.attempts)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _finished(folder: Path, identity: str) -> dict[str, Any] | None:
    metrics = read_json(folder / "metrics.json")
    if metrics is not None and metrics["identity"] != identity:
        raise InputError(
            f"{folder} holds a training on other patients or with other settings; give another --out, or remove it"
        )
    return metrics
