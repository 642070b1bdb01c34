"""Optimal perturbation: a network learns how to dim a supervoxel so that a classifier answers differently.

Papers 000, 3.4.1, and 001, B. The fill that makes use of it is `voxplain.explain.fills.Optimal`.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from voxplain.compute import Compute
from voxplain.engine.progress import console, tracked
from voxplain.errors import InputError
from voxplain.explain.explainer import in_evaluation
from voxplain.io.atomic import output_folder, writing
from voxplain.io.bundle import load_model
from voxplain.io.checkpoint import read_checkpoint
from voxplain.losses import PerturbationLoss
from voxplain.model import Model
from voxplain.target import Target

_CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class PerturbationSettings:
    """How a perturbation network is trained: Adam on `loss` (see `voxplain.losses.PerturbationLoss`).

    An epoch shows each supervoxel once, or so many of each input as `supervoxels` says, drawn anew. The last epoch is
    the one that is kept. `clip` is the largest norm of a step's gradient (none in the papers): that of the papers' loss
    spans many orders of magnitude, and Adam remembers the largest for a thousand steps.
    """

    epochs: int = 25
    learning_rate: float = 0.01
    batch_size: int = 4
    supervoxels: int | None = None
    loss: str = "reciprocal"
    eps: float = 1e-6
    clip: float | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "supervoxels"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1; got {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be above 0; got {getattr(self, name)}")
        try:
            PerturbationLoss(self.eps, self.loss)
        except ValueError as error:
            raise InputError(f"loss: {error}") from error


@dataclass(frozen=True, eq=False)
class PartedInput:
    """An input of the classifier, float32 (C, X, Y, Z), its background (C,), and its parts (X, Y, Z), labels 1..N."""

    name: str
    image: np.ndarray
    background: tuple[float, ...]
    parts: np.ndarray


def load_perturbation_network(folder: str | Path, classifier: Model) -> Model:
    """The perturbation network in a folder, which must have been trained for this classifier.

    Raises:
        InputError: no model there, another kind of network, or one trained for another classifier.
    """
    if not (Path(folder) / "model.json").is_file():
        raise InputError(
            f"there is no perturbation network in {folder}; expected a folder that `voxplain train perturbation` wrote"
        )
    found = load_model(folder)
    trained_for = found.card.training.get("classifier")
    if not isinstance(trained_for, Mapping) or not {"name", "fingerprint"} <= trained_for.keys():
        raise InputError(
            f"{folder} holds {found.card.name}, which is no perturbation network; expected a folder that "
            "`voxplain train perturbation` wrote"
        )
    if trained_for["fingerprint"] != classifier.fingerprint:
        raise InputError(
            f"the perturbation network in {folder} was trained for another classifier: {trained_for['name']} with "
            f"fingerprint {trained_for['fingerprint']}; this one is {classifier.card.name}, {classifier.fingerprint}: "
            "train one for it with voxplain train perturbation"
        )
    return found


def perturbed(network: nn.Module, image: torch.Tensor, part: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
    """The input with a part multiplied by the mask that the network gives for it; all else stays as it is.

    The network sees the part alone. What is multiplied is the difference from the background, so that a mask of 0 is
    the blank fill whatever the normalisation.

    Args:
        network: from (B, C, X, Y, Z), or (B, C, X, Y) for 2D networks, to a mask of that shape.
        image: (B, C, X, Y, Z).
        part: boolean (B, 1, X, Y, Z).
        background: broadcasts to the image.
    """
    visible = torch.where(part, image - background, 0)
    flat = image.shape[-1] == 1
    mask = network(visible[..., 0])[..., None] if flat else network(visible)
    return torch.where(part, background + mask * visible, image)


def train_perturbation(
    network: nn.Module,
    classifier: Model,
    target: Target,
    inputs: Sequence[PartedInput],
    folder: Path,
    *,
    settings: PerturbationSettings,
    seed: int = 0,
    compute: Compute | None = None,
) -> tuple[float, ...]:
    """Train a perturbation network against a classifier, which stays as it is; returns the mean loss of each epoch.

    After every epoch a checkpoint is written into `folder`; a training that was stopped goes on from there and comes
    to the same result. Remove it with `drop_checkpoint` when all is saved.

    Raises:
        InputError: no supervoxels, a loss that is not finite, or a checkpoint of another training.
    """
    compute = compute or Compute()
    if not any(one.parts.any() for one in inputs):
        raise InputError("training needs supervoxels, and none of the inputs has any; is there tissue in the scans?")
    device = compute.torch_device
    network.to(device).train()
    optimiser = torch.optim.Adam(network.parameters(), settings.learning_rate)
    identity = _identity(network, classifier, target, inputs, settings, seed)
    checkpoint = output_folder(folder) / _CHECKPOINT
    losses: list[float] = []
    seconds = 0.0
    if checkpoint.is_file():
        state = read_checkpoint(checkpoint, identity, of="scans")
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        losses, seconds = state["losses"], state["seconds"]
    loss = PerturbationLoss(settings.eps, settings.loss)
    with compute.running(), in_evaluation(classifier.network, device):
        task = _Task(classifier, target, inputs, device)
        for epoch in range(len(losses) + 1, settings.epochs + 1):
            started = time.perf_counter()
            samples = _samples(inputs, settings, np.random.default_rng((seed, epoch)))
            batches = [samples[i : i + settings.batch_size] for i in range(0, len(samples), settings.batch_size)]
            found = []
            for batch in tracked(batches, f"perturbation: epoch {epoch}", shown=compute.progress):
                optimiser.zero_grad()
                value = loss(*task.probabilities(network, batch))
                value.backward()
                if settings.clip is not None:
                    nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
                optimiser.step()
                found.append(float(value.detach()))
            losses.append(float(np.mean(found)))
            if not math.isfinite(losses[-1]):
                raise InputError(f"the loss of epoch {epoch} is {losses[-1]}; lower the learning rate")
            seconds += time.perf_counter() - started
            state = {"network": network.state_dict(), "optimiser": optimiser.state_dict()}
            with writing(checkpoint) as temporary:
                torch.save(state | {"identity": identity, "losses": losses, "seconds": seconds}, temporary)
            if compute.progress:
                left = f"about {(settings.epochs - epoch) * seconds / epoch:.0f} s to go"
                console.print(
                    f"perturbation: epoch {epoch}/{settings.epochs}, loss {losses[-1]:.4g}, {left}", highlight=False
                )
    network.to("cpu").eval()
    return tuple(losses)


def drop_checkpoint(folder: Path) -> None:
    """Remove what `train_perturbation` keeps to go on from."""
    (folder / _CHECKPOINT).unlink(missing_ok=True)


class _Task:
    """The inputs as tensors, and what the classifier says of them before and after."""

    def __init__(self, classifier: Model, target: Target, inputs: Sequence[PartedInput], device: torch.device) -> None:
        self.classifier, self.target = classifier, target
        self.images = [torch.tensor(one.image[None], device=device) for one in inputs]
        self.parts = [torch.tensor(one.parts[None, None], device=device) for one in inputs]
        self.background = [
            torch.tensor(one.background, dtype=torch.float32, device=device)[None, :, None, None, None]
            for one in inputs
        ]
        with torch.no_grad():
            self.clean = torch.cat([self._probability(image) for image in self.images])

    def probabilities(self, network: nn.Module, batch: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities (B,) before and after, of (input, label) pairs."""
        which = [index for index, _ in batch]
        part = torch.cat([self.parts[index] == label for index, label in batch])
        image, background = (torch.cat([held[index] for index in which]) for held in (self.images, self.background))
        return self.clean[which], self._probability(perturbed(network, image, part, background))

    def _probability(self, image: torch.Tensor) -> torch.Tensor:
        read = image[..., 0] if self.classifier.card.spatial_dims == 2 else image
        return self.target.probability(self.classifier.network(read), self.classifier.card)


def _samples(
    inputs: Sequence[PartedInput], settings: PerturbationSettings, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """An epoch's supervoxels as (input, label), in random order."""
    found: list[tuple[int, int]] = []
    for index, one in enumerate(inputs):
        labels = rng.permutation(int(one.parts.max(initial=0)))[: settings.supervoxels] + 1
        found += [(index, int(label)) for label in labels]
    return [found[place] for place in rng.permutation(len(found))]


def _identity(
    network: nn.Module,
    classifier: Model,
    target: Target,
    inputs: Sequence[PartedInput],
    settings: PerturbationSettings,
    seed: int,
) -> str:
    """What a half-finished training must agree in to be gone on with."""
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    content = [shapes, classifier.fingerprint, target.record(), asdict(settings), seed]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for one in inputs:
        digest.update(np.ascontiguousarray(one.image).tobytes() + np.ascontiguousarray(one.parts).tobytes())
    return digest.hexdigest()[:16]
