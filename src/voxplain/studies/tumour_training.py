"""One segmenter of paper grading (003): a network learns the parts of a tumour from expert masks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import SegResNetVAE

from voxplain.compute import Compute
from voxplain.datasets.case import Case
from voxplain.datasets.tumour_masks import Tumour, draw, tumour_of
from voxplain.engine.progress import tracked
from voxplain.io.atomic import output_folder, write_text
from voxplain.io.bundle import build_network, load_model, save_model
from voxplain.model import Card
from voxplain.optimisation import finish, finished
from voxplain.segmentation_losses import tumour_loss
from voxplain.segmentation_training import train_segmentation
from voxplain.studies.model_page import tumours_page
from voxplain.studies.tumour_presets import TumourPreset
from voxplain.tumour_regions import channels_of

_LIMITS = (
    "Research software, not a medical device: not for diagnosis. Other tumours, sequences or scanners are outside of "
    "what it has seen."
)
# MONAI calls what belongs to the variational branch so.
_BRANCH = "vae"


class Store:
    """Scans and their parts as a card reads them, each prepared once and kept in 16 bits."""

    def __init__(self, card: Card, compute: Compute) -> None:
        self._card, self._compute = card, compute
        self._known: dict[str, Tumour] = {}

    def read(self, cases: Sequence[Case], shown: str = "reading scans") -> list[Tumour]:
        """What is known of these cases; those that are not known yet are prepared, with progress."""
        missing = [case for case in cases if case.id not in self._known]
        for case in tracked(missing, shown, shown=self._compute.progress):
            self._known[case.id] = tumour_of(case, self._card)
        return [self._known[case.id] for case in cases]


def training_network(chosen: TumourPreset, seed: int) -> torch.nn.Module:
    """The network that learns: the card's own, with a variational branch where the preset has one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if not chosen.variational:
            return build_network(chosen.card)
        return SegResNetVAE(input_image_size=chosen.patch_size, **chosen.card.arguments)


def without_branch(network: torch.nn.Module, card: Card) -> torch.nn.Module:
    """The network that the card describes, with the weights of one that may have a variational branch beside."""
    found = build_network(card)
    weights = {name: value for name, value in network.state_dict().items() if not name.startswith(_BRANCH)}
    found.load_state_dict(weights)
    return found.eval()


def train_network(
    cases: Sequence[Case],
    data: str,
    folder: Path,
    *,
    chosen: TumourPreset,
    store: Store,
    seed: int = 0,
    compute: Compute,
    title: str = "training",
) -> dict[str, Any]:
    """Train one network into `folder`: model.json, weights.safetensors, metrics.json; a finished one is kept.

    Raises:
        InputError: a folder with another training, or a case that does not fit.
    """
    ids = [case.id for case in cases]
    settings = dataclasses.replace(chosen.settings, steps=len(ids)) if chosen.every_case else chosen.settings
    content = [chosen.card.to_dict(), dataclasses.asdict(settings), chosen.variational, chosen.patch_size, seed, ids]
    identity = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    known = finished(folder, identity, of="cases")
    if known is not None:
        return known
    output_folder(folder)
    tumours = store.read(cases)
    channels = channels_of(chosen.card.classes)
    network = training_network(chosen, seed)
    result = train_segmentation(
        network,
        lambda random: draw(tumours, chosen.patch_size, random),
        folder,
        loss=lambda network, images, parts: tumour_loss(network, images, parts, channels, settings),
        settings=settings,
        identity=identity,
        seed=seed,
        compute=compute,
        title=title,
    )
    kept = without_branch(network, chosen.card)
    facts: dict[str, Any] = {
        "data": data,
        "labels": "expert masks of oedema, non-enhancing core and enhancing tumour of the training patients",
        "ids": ids,
        "settings": dataclasses.asdict(settings),
        "variational_branch": chosen.variational,
        "seed": seed,
        "parameters": sum(weight.numel() for weight in kept.parameters()),
        "parameters_in_training": sum(weight.numel() for weight in network.parameters()),
        "seconds": result.seconds,
        "limits": _LIMITS,
    }
    description = f"Segments the parts of a glioma; learnt from expert masks. Data: {data}. {_LIMITS}"
    save_model(
        kept,
        dataclasses.replace(chosen.card, description=description, training=facts),
        folder,
        half_precision=True,
    )
    write_text(tumours_page(load_model(folder).card), folder / "README.md")
    metrics = {"identity": identity, "losses": list(result.losses), **facts}
    finish(folder, metrics)
    return metrics
