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
from monai.transforms import Compose
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from voxplain.augmentation import AUGMENTATIONS, augmentation
from voxplain.balance import balanced_order, weights_of
from voxplain.compute import Compute
from voxplain.engine.progress import console, tracked
from voxplain.errors import InputError
from voxplain.io.atomic import output_folder
from voxplain.io.checkpoint import read_checkpoint
from voxplain.networks.self_explaining import SelfExplaining
from voxplain.optimisation import (
    CHECKPOINT,
    OPTIMISERS,
    PRECISIONS,
    SCHEDULES,
    average,
    copied_weights,
    learning_rate_at,
    optimiser_of,
    to_device,
    write_checkpoint,
)

# What is called after an epoch: its number (1-based), the network whose weights were validated, the mean training loss
# and the validation loss (NaN without validation examples).
AfterEpoch = Callable[[int, nn.Module, float, float], None]


@dataclass(frozen=True)
class Settings:
    """How a network is trained.

    `loss` is "binary" (one sigmoid output, the two labels by turns) or "cross-entropy" (one output per class, weighted
    so that every class counts as much, by its share of the training examples); `schedule` lets the learning rate fall
    along a cosine over the epochs, keeps it "constant", or is "one-cycle": up over the first fifth, then down, step by
    step (Smith 2018). `accumulation` is how many batches make a step; `clip` the largest norm of its gradient.
    `sparsity` weighs the mean positive heat map of a network that explains itself, which is added to the loss: evidence
    that lies where the pooling does not look then costs without a use, and maps become compact.
    `precision` "bfloat16" computes in 16 bits, in about half the time where a CPU can; a GPU always does.
    `label_smoothing` moves the labels towards equal shares by this much; `augmentation` is False, True, "gentle",
    "elastic", "slices" or "turns" (see `voxplain.augmentation`);
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
    loss: str = "binary"
    accumulation: int = 1
    clip: float | None = None
    precision: str = "float32"
    sparsity: float = 0.0

    def __post_init__(self) -> None:
        # One input has no batch statistics.
        for name, smallest in (("epochs", 1), ("patience", 1), ("batch_size", 2), ("accumulation", 1)):
            if getattr(self, name) < smallest:
                raise InputError(f"{name} must be at least {smallest}; got {getattr(self, name)}")
        choices = (
            ("optimiser", OPTIMISERS),
            ("schedule", SCHEDULES),
            ("augmentation", (False, *AUGMENTATIONS)),
            ("loss", ("binary", "cross-entropy")),
            ("precision", PRECISIONS),
        )
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is one of {', '.join(map(str, allowed))}; got {getattr(self, name)!r}")
        if not 0 <= self.sparsity < math.inf:
            raise InputError(f"sparsity is a weight of at least 0; got {self.sparsity}")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip is the largest norm of a gradient, above 0, or None; got {self.clip}")

    def record(self) -> dict[str, Any]:
        """The settings as plain data; those that came later are left out where they are as if they were not there.

        A training that was finished, or stopped, before they came is thus still known.
        """
        later = {"loss": "binary", "accumulation": 1, "clip": None, "precision": "float32", "sparsity": 0.0}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}


@dataclass(frozen=True, eq=False)
class Example:
    """One input of a network with the number of its label: `load` gives float32 (C, X, Y, Z), or (C, X, Y) in 2D."""

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
    """Train a classifier on labels of whole inputs; the best weights end up in the network.

    With validation examples the epoch that the settings' tolerance names is kept; without, the last one, which
    `stop_after` may put before the last one of the settings. After every epoch a checkpoint is written into `folder`;
    a training that was killed goes on from there and comes to the same result. `after_epoch` is called before that
    checkpoint: for every epoch at least once, and again, with the same weights, for one whose checkpoint was not
    written. It must leave the network as it is.

    Raises:
        InputError: no example of one of the labels, or a checkpoint of a training with other settings.
    """
    compute = compute or Compute()
    class_weights = weights_of([example.label for example in training], binary=settings.loss == "binary")
    output_folder(folder)
    device = compute.torch_device
    network.to(device)
    averaged = copy.deepcopy(network).eval()
    optimiser = optimiser_of(
        network, settings.optimiser, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay
    )
    identity = json.dumps(
        settings.record()
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
    checkpoint = folder / CHECKPOINT
    if checkpoint.is_file():
        state = read_checkpoint(checkpoint, identity, of="patients")
        try:
            network.load_state_dict(state["network"])
        except RuntimeError as mismatch:
            words = "holds a half-finished training of another network; remove the folder, or give another --out"
            raise InputError(f"{folder} {words}") from mismatch
        averaged.load_state_dict(state["averaged"])
        optimiser.load_state_dict(state["optimiser"])
        losses, validation_losses, seconds = state["losses"], state["validation_losses"], state["seconds"]
        records = [tuple(record) for record in state["records"]]

    last = stop_after or settings.epochs
    transform = augmentation(settings.augmentation) if settings.augmentation else None
    with compute.running():
        for epoch in range(len(losses) + 1, last + 1):
            if validation and records and epoch - 1 - records[-1][0] >= settings.patience:
                break
            started = time.perf_counter()
            arguments = (training, class_weights, transform, settings, seed, epoch, compute, title)
            losses.append(_one_epoch(network, averaged, optimiser, *arguments))
            if not math.isfinite(losses[-1]):
                raise InputError(f"{title}: the loss of epoch {epoch} is {losses[-1]}; lower the learning rate")
            if validation:
                each = _losses(averaged, validation, class_weights, settings, device)
                validation_losses.append(float(each.mean()))
                if not math.isfinite(found := validation_losses[-1]):
                    raise InputError(
                        f"{title}: the validation loss of epoch {epoch} is {found}; lower the learning rate"
                    )
                if not records or validation_losses[-1] < records[-1][1]:
                    error = float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else 0.0
                    records = records if settings.tolerance else []
                    records.append((epoch, validation_losses[-1], error, copied_weights(averaged)))
            else:
                records = [(epoch, losses[-1], 0.0, copied_weights(averaged))]
            seconds += time.perf_counter() - started
            if after_epoch is not None:
                after_epoch(epoch, averaged, losses[-1], validation_losses[-1] if validation else math.nan)
            write_checkpoint(
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


def _one_epoch(
    network: nn.Module,
    averaged: nn.Module,
    optimiser: torch.optim.Optimizer,
    training: Sequence[Example],
    weights: torch.Tensor,
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
    half = settings.precision == "bfloat16" or device.type == "cuda"
    network.train()
    losses = []
    try:
        labels = [example.label for example in training]
        order = balanced_order(labels, rng) if settings.loss == "binary" else rng.permutation(len(labels))
        # A last batch of one would give batch normalisation nothing to work with.
        batches = [batch for batch in _split(order, settings.batch_size) if len(batch) > 1]
        for number, batch in enumerate(tracked(batches, f"{title}: epoch {epoch}", shown=compute.progress), start=1):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate_at(
                    settings.schedule,
                    settings.learning_rate,
                    epochs=settings.epochs,
                    epoch=epoch,
                    done=(number - 1) / len(batches),
                )
            images = np.stack([_augmented(training[index].load(), transform) for index in batch])
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
                output, evidence = _answer(network, to_device(images, device), settings)
            its_labels = torch.tensor([labels[index] for index in batch])
            loss = _loss(output.float(), its_labels, weights, settings).mean()
            # Several batches make the step that one of all their examples would make, whatever their classes.
            first = (number - 1) // settings.accumulation * settings.accumulation
            step = [labels[index] for one in batches[first : first + settings.accumulation] for index in one]
            share = (weights[its_labels].sum() / weights[step].sum()).item()
            (share * loss + len(batch) / len(step) * settings.sparsity * evidence).backward()
            losses.append(float((loss + settings.sparsity * evidence).detach()))
            if number % settings.accumulation and number < len(batches):
                continue
            if settings.clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
            optimiser.step()
            optimiser.zero_grad()
            average(averaged, network, settings.averaging)
    finally:
        torch.random.set_rng_state(torch_state)
    return float(np.mean(losses))


def _answer(network: nn.Module, inputs: torch.Tensor, settings: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores (B, classes); and the mean positive heat map, added up over classes, where it is asked for."""
    if not settings.sparsity:
        return network(inputs), torch.zeros((), device=inputs.device)
    if not isinstance(network, SelfExplaining):
        raise InputError(
            f"sparsity is for networks that explain themselves; {type(network).__name__} has no heat map: set it to 0"
        )
    features = network.features(inputs)
    maps = network.last(features).float()
    return network.score(features), maps.clamp(min=0).flatten(2).mean(dim=2).sum(dim=1).mean()


def _loss(output: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, settings: Settings) -> torch.Tensor:
    """The loss of each example, (B,), weighted so that its mean is that of the batch."""
    if settings.loss == "binary":
        half = settings.label_smoothing / 2
        smoothed = half + labels.float() * (1 - 2 * half)
        return binary_cross_entropy_with_logits(output[:, 0], smoothed.to(output.device), reduction="none")
    if output.shape[1] != len(weights):
        raise InputError(
            f"the network has {output.shape[1]} outputs, the training examples {len(weights)} classes; give it one "
            "output per class"
        )
    share = weights[labels] / weights[labels].mean()
    each = cross_entropy(output, labels.to(output.device), reduction="none", label_smoothing=settings.label_smoothing)
    return each * share.to(output.device)


def _augmented(image: np.ndarray, transform: Compose | None) -> np.ndarray:
    return image if transform is None else np.asarray(transform(torch.tensor(image)))


def _split(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _kept(
    records: Sequence[tuple[int, float, float, dict[str, torch.Tensor]]], tolerance: float
) -> tuple[int, float, float, dict[str, torch.Tensor]]:
    """The first record within the tolerance of the lowest loss, which is the last record."""
    _, lowest, error, _ = records[-1]
    return next(record for record in records if record[1] <= lowest + tolerance * error)


@torch.inference_mode()
def _losses(
    network: nn.Module, examples: Sequence[Example], weights: torch.Tensor, settings: Settings, device: torch.device
) -> torch.Tensor:
    """The loss of each example, (N,)."""
    logits = torch.cat([network(to_device(example.load()[None], device)).float().cpu() for example in examples])
    return _loss(logits, torch.tensor([example.label for example in examples]), weights, settings)
