"""One training of paper gp (002): a network learns from one label per slice, and is kept with its card."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voxplain.compute import Compute
from voxplain.io.atomic import output_folder, write_text
from voxplain.io.bundle import load_model, save_model
from voxplain.model import Card, Model
from voxplain.optimisation import finish, finished
from voxplain.studies.cross_validation import new_network
from voxplain.studies.gp_data import LabelledSlice, Stack, check_classes, read_slices
from voxplain.studies.gp_presets import preset
from voxplain.studies.model_page import slices_page
from voxplain.training import train

_DATA = {
    "cheng": (
        "Jun Cheng, brain tumor dataset: T1ce slices of meningiomas, gliomas and pituitary tumours, CC BY 4.0, "
        "figshare 10.6084/m9.figshare.1512427"
    ),
    "brats-slices": (
        "axial slices of glioma scans in BraTS layout (BraTS: Menze 2015, 10.1109/TMI.2014.2377694; Bakas 2017, "
        "10.1038/sdata.2017.117; Bakas 2018, arXiv 1811.02629)"
    ),
}
_DATA["brats-grade-slices"] = _DATA["brats-slices"]
_LABELS = {
    "cheng": "one per slice, the kind of tumour; no voxel labels",
    "brats-slices": "one per slice, whether the expert mask marks any of it; no voxel labels in training",
    "brats-grade-slices": "one per slice: tumour-free by the expert mask, else the patient's grade; no voxel labels",
}
_LIMITS = (
    "Research software, not a medical device; other diseases, sequences or scanners are outside of what it has seen."
)
_AT_A_TIME = 32


class Store:
    """The slices of scans as one geometry reads them, each read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], list[LabelledSlice]] = {}

    def slices(self, some: Sequence[Stack], card: Card, compute: Compute) -> list[LabelledSlice]:
        """The labelled slices of some scans, in their order."""
        geometry = json.dumps([card.classes, card.spacing, card.shape, card.normalisation])
        missing = [stack for stack in some if (geometry, stack.id) not in self._known]
        for stack in missing:
            self._known[geometry, stack.id] = []
        for one in read_slices(missing, card, compute):
            self._known[geometry, one.stack.id].append(one)
        return [one for stack in some for one in self._known[geometry, stack.id]]


def train_network(
    training: Sequence[Stack],
    validation: Sequence[Stack],
    folder: Path,
    *,
    network: str,
    dataset: str,
    size: str,
    store: Store,
    seed: int = 0,
    compute: Compute,
    title: str = "training",
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Train one network into `folder`: model.json, weights.safetensors and metrics.json; a finished one is kept.

    The last epoch is kept: validation slices choose nothing here but, later, an offset (`voxplain.studies.gp`). They
    must hold every class. `changes` replaces
    "arguments" of the network and "settings" of the training: the rows of an ablation.

    Raises:
        InputError: no such network, data set or size; a class without a slice; or a folder with another training.
    """
    chosen = preset(network, dataset, size)
    changes = changes or {}
    card = dataclasses.replace(chosen.card, arguments={**chosen.card.arguments, **changes.get("arguments", {})})
    settings = dataclasses.replace(chosen.settings, **changes.get("settings", {}))
    ids = [[stack.id for stack in part] for part in (training, validation)]
    content = [card.to_dict(), settings.record(), seed, ids]
    identity = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    known = finished(folder, identity, of="slices")
    if known is not None:
        return known
    output_folder(folder)
    learnt = store.slices(training, card, compute)
    check_classes(learnt, card, "training")
    if validation:
        check_classes(store.slices(validation, card, compute), card, "validation")
    built = new_network(card, seed)
    result = train(
        built,
        [one.example for one in learnt],
        [],
        folder,
        settings=settings,
        seed=seed,
        compute=compute,
        title=title,
    )
    counts = np.bincount([one.label for one in learnt], minlength=len(card.classes)).tolist()
    facts = {
        "data": _DATA[dataset],
        "labels": _LABELS[dataset],
        "ids": ids[0],
        "validation_ids": ids[1],
        "n_slices": dict(zip(card.classes, counts, strict=True)),
        "epochs": result.best_epoch,
        "settings": settings.record(),
        "seed": seed,
        "parameters": sum(weight.numel() for weight in built.parameters()),
        "seconds": result.seconds,
        "limits": _LIMITS,
    }
    description = f"Learnt from one label per slice, no voxel labels. Data: {_DATA[dataset]}. {_LIMITS}"
    save_model(built, dataclasses.replace(card, description=description, training=facts), folder, half_precision=True)
    write_text(slices_page(load_model(folder).card), folder / "README.md")
    metrics = {"identity": identity, **dataclasses.asdict(result), **facts}
    finish(folder, metrics)
    return metrics


def scores_of(
    model: Model, slices: Sequence[LabelledSlice], compute: Compute, *, mirrored: tuple[int, ...] = ()
) -> np.ndarray:
    """The network's raw scores of each slice (C, X, Y), mirrored along some axes, (N, classes)."""
    device = compute.torch_device
    network = model.network.to(device).eval()
    found = []
    with compute.running(), torch.inference_mode():
        for start in range(0, len(slices), _AT_A_TIME):
            images = np.stack([np.flip(one.image, mirrored) for one in slices[start : start + _AT_A_TIME]])
            images = images.astype(np.float32)
            found.append(network(torch.from_numpy(images).to(device)).float().cpu().numpy())
    return np.concatenate(found) if found else np.zeros((0, len(model.card.classes)))
