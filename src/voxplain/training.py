"""One readable loop: a classifier learns from labels of whole inputs, nothing else."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, RandAffine, RandCoarseDropout, RandFlip, RandScaleIntensity, RandStdShiftIntensity
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from voxplain.compute import Compute
from voxplain.engine.progress import console, tracked
from voxplain.errors import InputError
from voxplain.io.atomic import output_folder, write_json, writing
from voxplain.io.checkpoint import read_checkpoint

_CHECKPOINT = "checkpoint.pt"
# What is called after an epoch: its number (1-based), the network whose weights were validated, the mean training loss
# and the validation loss (NaN without validation examples).
AfterEpoch = Callable[[int, nn.Module, float, float], None]


@dataclass(frozen=True)
class Settings:
    """How a network is trained; the learning rate falls along a cosine over all epochs, or stays, as `schedule` says.

    `label_smoothing` moves the labels towards 1/2 by this much (half of it on either side);
    `augmentation` is True, False or "gentle" (see `augmentation`);
    `averaging` is the decay per step of the running mean of the weights, which is what is validated and kept (0 keeps
    the weights themselves); `patience` how many epochs without a better validation loss end the training. The epoch
    that is kept is the first whose validation loss lies within `tolerance` standard errors of the lowest: 0 is the
    lowest itself, 1 the one-standard-error rule (Breiman 1984), which does not mistake the noise of a few validation
    patients for progress.
    """

    epochs: int = 20
    patience: int = 8
    batch_size: int = 4
    optimiser: str = "adamw"
    learning_rate: float = 3e-4
    weight_decay: float = 1e-2
    schedule: str = "cosine"
    label_smoothing: float = 0.0
    averaging: float = 0.9
    augmentation: bool | str = True
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        for name, smallest in (("epochs", 1), ("patience", 1), ("batch_size", 2)):  # one input has no batch statistics
            if getattr(self, name) < smallest:
                raise InputError(f"{name} must be at least {smallest}; got {getattr(self, name)}")
        choices = (
            ("optimiser", ("adamw", "adam")),
            ("schedule", ("cosine", "constant")),
            ("augmentation", (True, False, "gentle")),
        )
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is one of {', '.join(map(str, allowed))}; got {getattr(self, name)!r}")


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


def augmentation(*, gentle: bool = False) -> Compose:
    """Random mirroring, rotation, scaling and shift, contrast and brightness per sequence, and holes; zeros stay zero.

    Strong on purpose: with a few dozen labels a network otherwise knows its patients by heart within ten epochs, and
    its maps then show what it memorised instead of the lesion. The rotated inputs are mixed with unrotated ones, so
    that the network also sees images as sharp as those that it is going to read. The holes are what perturbation
    methods will show it: a network that has never seen one answers to the hole, not to what is missing.

    The `gentle` one mirrors, and hardly touches contrasts: for labels that hang on how bright one sequence is beside
    another, or on something small, which turning would blur and a hole could take away.
    """
    contrast = 0.1 if gentle else 0.5
    transforms = [
        *(RandFlip(prob=0.5, spatial_axis=axis) for axis in range(3)),
        RandAffine(
            prob=0.7,
            rotate_range=(0.35, 0.35, 0.35),
            translate_range=(2, 4, 4),
            scale_range=(0.1, 0.1, 0.1),
            mode="bilinear",
            padding_mode="zeros",
        ),
        RandScaleIntensity(factors=contrast, prob=0.5, channel_wise=True),
        RandStdShiftIntensity(factors=contrast, prob=0.5, nonzero=True, channel_wise=True),
        RandCoarseDropout(
            holes=1, max_holes=4, spatial_size=6, max_spatial_size=16, dropout_holes=True, fill_value=0, prob=0.8
        ),
    ]
    if gentle:
        transforms = [one for one in transforms if not isinstance(one, RandAffine | RandCoarseDropout)]
    return Compose(transforms)


def train(
    network: nn.Module,
    training: Sequence[Example],
    validation: Sequence[Example],
    folder: Path,
    *,
    settings: Settings,
    seed: int = 0,
    stop_after: int | None = None,
    compute: Compute | None = None,
    title: str = "training",
    after_epoch: AfterEpoch | None = None,
) -> Trained:
    """Train a network with one sigmoid output on binary cross-entropy; the best weights end up in the network.

    With validation examples the epoch that the settings' tolerance names is kept; without, the last one, which
    `stop_after` may put before the last one of the settings. After every epoch a checkpoint is written into `folder`;
    a training that was killed goes on from there and comes to the same result. `after_epoch` is called before that
    checkpoint: for every epoch at least once, and again, with the same weights, for one whose checkpoint was not
    written. It must leave the network as it is.

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
        | {
            "seed": seed,
            "stop_after": stop_after,
            "training": [e.name for e in training],
            "validation": [e.name for e in validation],
        },
        sort_keys=True,
    )
    losses: list[float] = []
    validation_losses: list[float] = []
    # Epochs whose validation loss was the lowest so far: (epoch, loss, standard error, weights). The first one within
    # the tolerance of the lowest is always among them.
    records: list[tuple[int, float, float, dict[str, torch.Tensor]]] = []
    seconds = 0.0
    checkpoint = folder / _CHECKPOINT
    if checkpoint.is_file():
        state = read_checkpoint(checkpoint, identity, of="patients")
        network.load_state_dict(state["network"])
        averaged.load_state_dict(state["averaged"])
        optimiser.load_state_dict(state["optimiser"])
        losses, validation_losses, seconds = state["losses"], state["validation_losses"], state["seconds"]
        records = [tuple(record) for record in state["records"]]

    last = stop_after or settings.epochs
    transform = augmentation(gentle=settings.augmentation == "gentle") if settings.augmentation else None
    with compute.running():
        for epoch in range(len(losses) + 1, last + 1):
            if validation and records and epoch - 1 - records[-1][0] >= settings.patience:
                break
            started = time.perf_counter()
            losses.append(
                _one_epoch(network, averaged, optimiser, training, transform, settings, seed, epoch, compute, title)
            )
            if not math.isfinite(losses[-1]):
                raise InputError(f"{title}: the loss of epoch {epoch} is {losses[-1]}; lower the learning rate")
            if validation:
                each = _losses(averaged, validation, settings, device)
                validation_losses.append(float(each.mean()))
                if not records or validation_losses[-1] < records[-1][1]:
                    error = float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else 0.0
                    records = records if settings.tolerance else []
                    records.append((epoch, validation_losses[-1], error, _weights(averaged)))
            else:
                records = [(epoch, losses[-1], 0.0, _weights(averaged))]
            seconds += time.perf_counter() - started
            if after_epoch is not None:
                after_epoch(epoch, averaged, losses[-1], validation_losses[-1] if validation else math.nan)
            _write_checkpoint(
                checkpoint,
                {
                    "identity": identity,
                    "network": network.state_dict(),
                    "averaged": averaged.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "losses": losses,
                    "validation_losses": validation_losses,
                    "records": records,
                    "seconds": seconds,
                },
            )
            if compute.progress:
                kept = _kept(records, settings.tolerance)[0]
                shown = f", validation loss {validation_losses[-1]:.3f} (keeping epoch {kept})" if validation else ""
                left = f"at most {(last - epoch) * seconds / epoch:.0f} s to go"
                console.print(
                    f"{title}: epoch {epoch}/{last}, loss {losses[-1]:.3f}{shown}, {left}",
                    highlight=False,
                    soft_wrap=True,
                )
    epoch, _, _, weights = _kept(records, settings.tolerance)
    network.load_state_dict(weights)
    network.to("cpu").eval()
    return Trained(epoch, tuple(losses), tuple(validation_losses), round(seconds, 1))


def finish(folder: Path, metrics: dict[str, Any]) -> None:
    """Write `metrics.json` and drop the checkpoint: the training is done."""
    write_json(metrics, folder / "metrics.json")
    (folder / _CHECKPOINT).unlink(missing_ok=True)


def _optimiser(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.Adam(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)


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
    for group in optimiser.param_groups:
        group["lr"] = _learning_rate(settings, epoch)
    if transform is not None:
        transform.set_random_state(seed=int(rng.integers(2**31)))
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(int(rng.integers(2**31)))  # dropout, where a network has any
    device = compute.torch_device
    network.train()
    losses = []
    try:
        order = _balanced_order([example.label for example in training], rng)
        # A last batch of one would give batch normalisation nothing to work with.
        batches = [batch for batch in _split(order, settings.batch_size) if len(batch) > 1]
        for batch in tracked(batches, f"{title}: epoch {epoch}", shown=compute.progress):
            images = np.stack([_augmented(training[index].load(), transform) for index in batch])
            inputs = _to(images, device)
            labels = _smoothed([training[index].label for index in batch], settings).to(device)
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


def _balanced_order(labels: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """An epoch's order, (N,): as many steps as there are examples, the two labels by turns.

    The rarer label's examples come more than once, so that the network's own prior is one half.
    """
    turns = []
    for label in (0, 1):
        members = np.flatnonzero(np.asarray(labels) == label)
        rounds = [rng.permutation(members) for _ in range(math.ceil(len(labels) / len(members)))]
        turns.append(np.concatenate(rounds)[: math.ceil(len(labels) / 2)])
    return np.stack(turns, axis=1).ravel()[: len(labels)]


def _learning_rate(settings: Settings, epoch: int) -> float:
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * (1 + math.cos(math.pi * (epoch - 1) / settings.epochs)) / 2


def _smoothed(labels: Sequence[int], settings: Settings) -> torch.Tensor:
    half = settings.label_smoothing / 2
    return torch.tensor([half + label * (1 - 2 * half) for label in labels])


def _augmented(image: np.ndarray, transform: Compose | None) -> np.ndarray:
    return image if transform is None else np.asarray(transform(torch.tensor(image)))


def _to(images: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.tensor(images, dtype=torch.float32)  # a copy: the network must not write into the examples
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


def _kept(
    records: Sequence[tuple[int, float, float, dict[str, torch.Tensor]]], tolerance: float
) -> tuple[int, float, float, dict[str, torch.Tensor]]:
    """The first record within the tolerance of the lowest loss, which is the last record."""
    _, lowest, error, _ = records[-1]
    return next(record for record in records if record[1] <= lowest + tolerance * error)


@torch.inference_mode()
def _losses(network: nn.Module, examples: Sequence[Example], settings: Settings, device: torch.device) -> torch.Tensor:
    """The loss of each example, (N,)."""
    logits = torch.cat([network(_to(example.load()[None], device))[:, 0].float().cpu() for example in examples])
    labels = _smoothed([example.label for example in examples], settings)
    return binary_cross_entropy_with_logits(logits, labels, reduction="none")


def _weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def _write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    with writing(path) as temporary:
        torch.save(state, temporary)
