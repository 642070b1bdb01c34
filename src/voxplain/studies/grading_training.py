"""One classifier of paper grading (003): a network learns the class of a tumour from one label per scan."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from voxplain.calibration import temperature_scaling
from voxplain.compute import Compute
from voxplain.datasets.case import Case
from voxplain.datasets.tumour_classes import Cohort
from voxplain.engine.progress import tracked
from voxplain.errors import InputError
from voxplain.io.atomic import output_folder, write_text
from voxplain.io.bundle import load_model, save_model
from voxplain.model import Card, Model
from voxplain.optimisation import finish, finished
from voxplain.preparation import prepare
from voxplain.studies.cross_validation import new_network
from voxplain.studies.model_page import grading_page
from voxplain.studies.task import Preset
from voxplain.training import Example, train

_LIMITS = (
    "Research software, not a medical device: not for diagnosis. Other tumours, sequences or scanners are outside of "
    "what it has seen."
)


class Store:
    """Scans as a card reads them, each prepared once and kept in 16 bits."""

    def __init__(self, card: Card, compute: Compute) -> None:
        self._card, self._compute = card, compute
        self._known: dict[str, np.ndarray] = {}

    def read(self, cases: Sequence[Case]) -> None:
        """Prepare those that are not known yet, with progress.

        Raises:
            InputError: a scan that does not fit the card, with its case named.
        """
        missing = [case for case in cases if case.id not in self._known]
        for case in tracked(missing, "reading scans", shown=self._compute.progress):
            try:
                (prepared,) = prepare(case.scan(self._card.channels), self._card)
            except InputError as error:
                raise InputError(f"case {case.id}: {str(error).removeprefix(f'case {case.id}: ')}") from error
            self._known[case.id] = prepared.input.data.astype(np.float16)

    def image(self, case: Case) -> np.ndarray:
        """The input (C, X, Y, Z) float32 of a case that was read."""
        return self._known[case.id].astype(np.float32)


def train_network(
    cohort: Cohort,
    parts: tuple[Sequence[Case], Sequence[Case], Sequence[Case]],
    folder: Path,
    *,
    chosen: Preset,
    store: Store,
    seed: int = 0,
    compute: Compute,
    title: str = "training",
) -> dict[str, Any]:
    """Train one network into `folder`: model.json, weights.safetensors, metrics.json; a finished one is kept.

    Validation cases choose the epoch and the temperature; without any, the last epoch is kept and nothing is scaled.
    `metrics.json` also holds what the network says of every test case.

    Raises:
        InputError: a class without a training case, a folder with another training, a scan that does not fit.
    """
    ids = [[case.id for case in part] for part in parts]
    content = [
        chosen.card.to_dict(),
        chosen.settings.record(),
        seed,
        ids,
        [cohort.labels[i] for part in ids for i in part],
    ]
    identity = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    known = finished(folder, identity, of="cases")
    if known is not None:
        return known
    output_folder(folder)
    counts = np.bincount([cohort.labels[name] for name in ids[0]], minlength=len(cohort.classes)).tolist()
    if not all(counts):
        held = ", ".join(f"{count} {name}" for count, name in zip(counts, cohort.classes, strict=True))
        raise InputError(f"{title}: training needs cases of every class; it has {held}: give more, or fewer folds")
    for part in parts:
        store.read(part)
    network = new_network(chosen.card, seed)
    training, validation = (
        [Example(case.id, cohort.labels[case.id], partial(store.image, case)) for case in part] for part in parts[:2]
    )
    result = train(
        network, training, validation, folder, settings=chosen.settings, seed=seed, compute=compute, title=title
    )
    facts: dict[str, Any] = {
        "data": cohort.data,
        "labels": "one per scan, the class of the tumour; no voxel labels",
        "ids": ids[0],
        "validation_ids": ids[1],
        "n_cases": dict(zip(cohort.classes, counts, strict=True)),
        "epochs": result.best_epoch,
        "settings": chosen.settings.record(),
        "seed": seed,
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "seconds": result.seconds,
        "limits": _LIMITS,
    } | ({} if cohort.caution is None else {"caution": cohort.caution})
    scale = temperature_scaling(
        logits_of(network, parts[1], store, compute), np.array([cohort.labels[name] for name in ids[1]], dtype=int)
    )
    facts["calibration"] = {"method": "temperature (Guo 2017)", "labels": "validation cases", "n_cases": len(ids[1])}
    description = (
        f"Says which kind of tumour a scan shows; learnt from one label per scan. Data: {cohort.data}. {_LIMITS}"
    )
    card = dataclasses.replace(chosen.card, calibration=(round(scale, 4), 0.0), description=description, training=facts)
    save_model(network, card, folder, half_precision=True)
    model = load_model(folder)
    write_text(grading_page(model.card), folder / "README.md")
    metrics = {
        "identity": identity,
        "losses": list(result.training_losses),
        "validation_losses": list(result.validation_losses),
        "test_ids": ids[2],
        "predictions": predictions(model, parts[2], cohort, store, compute),
        **facts,
    }
    finish(folder, metrics)
    return metrics


def logits_of(network: torch.nn.Module, cases: Sequence[Case], store: Store, compute: Compute) -> np.ndarray:
    """The network's raw scores of each case, (N, classes) float64."""
    device = compute.torch_device
    network = network.to(device).eval()
    found = []
    with compute.running(), torch.inference_mode():
        for case in cases:
            found.append(network(torch.from_numpy(store.image(case))[None].to(device))[0].float().cpu().numpy())
    return np.array(found, dtype=np.float64) if found else np.zeros((0, 2))


def predictions(
    model: Model, cases: Sequence[Case], cohort: Cohort, store: Store, compute: Compute
) -> list[dict[str, Any]]:
    """What a network says of each case: label, predicted class, and the calibrated probability of every class."""
    scale, shift = model.card.calibration
    found = []
    for case, logits in zip(cases, logits_of(model.network, cases, store, compute), strict=True):
        said = softmax(scale * logits + shift)
        line = {"case": case.id, "patient": case.patient, "label": cohort.labels[case.id]}
        line |= {"predicted": int(said.argmax()), "probabilities": [round(float(value), 6) for value in said]}
        found.append(line)
    return found
