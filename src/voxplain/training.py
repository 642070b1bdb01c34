"""One readable loop: a classifier learns from labels of whole inputs, nothing else."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, RandAffine, RandScaleIntensity, RandStdShiftIntensity
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from voxplain.compute import Compute
from voxplain.engine.probe import console, tracked
from voxplain.errors import InputError
from voxplain.io.atomic import output_folder, write_json, writing

_CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class Settings:
    """How a network is trained.

    `averaging` is the decay per step of the running mean of the weights, which is what is validated and kept (0 keeps
    the weights themselves); `patience` how many epochs without a better validation loss end the training.
    """

    epochs: int = 20
    patience: int = 8
    batch_size: int = 4
    optimiser: str = "adamw"
    learning_rate: float = 3e-4
    weight_decay: float = 1e-2
    averaging: float = 0.9
    augmentation: bool = True


@dataclass(frozen=True, eq=False)
class Example:
    """One input of a network with its label: `load` gives float32 (C, X, Y, Z)."""

    name: str
    label: int
    load: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Trained:
    """What a training came to: the epoch that was kept (1-based) and the losses of every epoch."""

    best_epoch: int
    training_losses: tuple[float, ...]
    validation_losses: tuple[float, ...]
    seconds: float


def augmentation() -> Compose:
    """Random rotation, scaling and shift of the head, and contrast and brightness per sequence; zeros stay zero."""
    return Compose(
        [
            RandAffine(
                prob=0.5,
                rotate_range=(0.17, 0.17, 0.17),
                translate_range=(2, 4, 4),
                scale_range=(0.1, 0.1, 0.1),
                mode="bilinear",
                padding_mode="zeros",
            ),
            RandScaleIntensity(factors=0.2, prob=0.5, channel_wise=True),
            RandStdShiftIntensity(factors=0.2, prob=0.5, nonzero=True, channel_wise=True),
        ]
    )


def train(
    network: nn.Module,
    training: Sequence[Example],
    validation: Sequence[Example],
    folder: Path,
    *,
    settings: Settings,
    seed: int = 0,
    compute: Compute | None = None,
    title: str = "training",
) -> Trained:
    """Train a network with one sigmoid output on binary cross-entropy; the best weights end up in the network.

    With validation examples the epoch of lowest validation loss is kept; without, the last one. After every epoch a
    checkpoint is written into `folder`; a training that was killed goes on from there and comes to the same result.

    Raises:
        InputError: no example of one of the two labels, or a checkpoint of a training with other settings.
    """
    compute = compute or Compute()
    labels = {example.label for example in training}
    if labels != {0, 1}:
        raise InputError(f"training needs examples with label 0 and with label 1; got labels {sorted(labels)}")
    output_folder(folder)
    device = compute.torch_device
    network.to(device)
    averaged = copy.deepcopy(network).eval()
    optimiser = _optimiser(network, settings)
    identity = json.dumps(
        asdict(settings)
        | {"seed": seed, "training": [e.name for e in training], "validation": [e.name for e in validation]},
        sort_keys=True,
    )
    losses: list[float] = []
    validation_losses: list[float] = []
    best: tuple[float, int, dict[str, torch.Tensor]] = (float("inf"), 0, {})
    seconds = 0.0
    checkpoint = folder / _CHECKPOINT
    if checkpoint.is_file():
        state = _read_checkpoint(checkpoint, identity)
        network.load_state_dict(state["network"])
        averaged.load_state_dict(state["averaged"])
        optimiser.load_state_dict(state["optimiser"])
        losses, validation_losses, seconds = state["losses"], state["validation_losses"], state["seconds"]
        best = (state["best_loss"], state["best_epoch"], state["best"])

    transform = augmentation() if settings.augmentation else None
    with compute.running():
        for epoch in range(len(losses) + 1, settings.epochs + 1):
            if validation and epoch - 1 - best[1] >= settings.patience:
                break
            started = time.perf_counter()
            losses.append(
                _one_epoch(network, averaged, optimiser, training, transform, settings, seed, epoch, compute, title)
            )
            if validation:
                validation_losses.append(_loss(averaged, validation, device))
                if validation_losses[-1] < best[0]:
                    best = (validation_losses[-1], epoch, _weights(averaged))
            else:
                best = (losses[-1], epoch, _weights(averaged))
            seconds += time.perf_counter() - started
            _write_checkpoint(
                checkpoint,
                {
                    "identity": identity,
                    "network": network.state_dict(),
                    "averaged": averaged.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "losses": losses,
                    "validation_losses": validation_losses,
                    "best_loss": best[0],
                    "best_epoch": best[1],
                    "best": best[2],
                    "seconds": seconds,
                },
            )
            if compute.progress:
                shown = f", validation loss {validation_losses[-1]:.3f} (best epoch {best[1]})" if validation else ""
                left = (settings.epochs - epoch) * seconds / epoch
                console.print(
                    f"{title}: epoch {epoch}/{settings.epochs}, loss {losses[-1]:.3f}{shown}, at most {left:.0f} s to go",
                    highlight=False,
                )
    network.load_state_dict(best[2])
    network.to("cpu").eval()
    return Trained(best[1], tuple(losses), tuple(validation_losses), round(seconds, 1))


def finish(folder: Path, metrics: dict[str, Any]) -> None:
    """Write `metrics.json` and drop the checkpoint: the training is done."""
    write_json(metrics, folder / "metrics.json")
    (folder / _CHECKPOINT).unlink(missing_ok=True)


def _optimiser(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    if settings.optimiser == "adam":
        return torch.optim.Adam(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    raise InputError(f"optimiser is adamw or adam; got {settings.optimiser!r}")


def _one_epoch(
    network: nn.Module,
    averaged: nn.Module,
    optimiser: torch.optim.Optimizer,
    training: Sequence[Example],
    transform: Compose | None,
    settings: Settings,
    seed: int,
    epoch: int,
    compute: Compute,
    title: str,
) -> float:
    """Run one epoch; returns the mean loss. All randomness follows from seed and epoch, so that resuming repeats it."""
    rng = np.random.default_rng((seed, epoch))
    if transform is not None:
        transform.set_random_state(seed=int(rng.integers(2**31)))
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(int(rng.integers(2**31)))  # dropout, where a network has any
    device = compute.torch_device
    network.train()
    losses = []
    try:
        order = rng.permutation(len(training))
        # A last batch of one would give batch normalisation nothing to work with.
        batches = [batch for batch in _split(order, settings.batch_size) if len(batch) > 1]
        for batch in tracked(batches, f"{title}: epoch {epoch}", shown=compute.progress):
            images = np.stack([_augmented(training[index].load(), transform) for index in batch])
            inputs = _to(images, device)
            labels = torch.tensor([float(training[index].label) for index in batch], device=device)
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.type == "cuda"):
                output = network(inputs)
            loss = binary_cross_entropy_with_logits(output[:, 0].float(), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            _average(averaged, network, settings.averaging)
            losses.append(float(loss.detach()))
    finally:
        torch.random.set_rng_state(torch_state)
    return float(np.mean(losses))


def _augmented(image: np.ndarray, transform: Compose | None) -> np.ndarray:
    return image if transform is None else np.asarray(transform(torch.from_numpy(image)))


def _to(images: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
    return tensor.to(device, memory_format=torch.channels_last_3d)


def _split(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.no_grad()
def _average(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    for mean, value in zip(averaged.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.dtype.is_floating_point:
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


@torch.inference_mode()
def _loss(network: nn.Module, examples: Sequence[Example], device: torch.device) -> float:
    logits = torch.cat([network(_to(example.load()[None], device))[:, 0].float().cpu() for example in examples])
    labels = torch.tensor([float(example.label) for example in examples])
    return float(binary_cross_entropy_with_logits(logits, labels))


def _weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def _write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    with writing(path) as temporary:
        torch.save(state, temporary)


def _read_checkpoint(path: Path, identity: str) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"the checkpoint {path} cannot be read; remove it to train from the start") from error
    if state["identity"] != identity:
        raise InputError(
            f"{path.parent} holds a half-finished training with other patients or settings; "
            "remove the folder, or give another --out"
        )
    return state
