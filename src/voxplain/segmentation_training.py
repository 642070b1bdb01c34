"""One readable loop: a segmentation network learns from patches of scans with marked lesions."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from monai.transforms import Compose
from torch import nn

from voxplain.augmentation import UNMOVED, augmentation
from voxplain.compute import Compute
from voxplain.engine.progress import console, tracked
from voxplain.errors import InputError
from voxplain.io.atomic import output_folder
from voxplain.io.checkpoint import read_checkpoint
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

# A patch (C, x, y, z) and what is to be learnt of it (x, y, z), whole numbers, drawn with a source of randomness.
Draw = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]


# The loss, a scalar, of a network on images (B, C, x, y, z) float32 and their targets (B, x, y, z).
Loss = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class SegmentationSettings:
    """How a segmentation network is trained; the last epoch is kept.

    An epoch has `steps` batches of `batch_size` patches. Optimiser, schedule, `averaging`, `clip` and `precision` are
    as in `voxplain.training.Settings`; `augmentation` names one of `voxplain.augmentation` that moves no voxel, True is
    "lesions".
    """

    epochs: int = 20
    steps: int = 100
    batch_size: int = 2
    optimiser: str = "adamw"
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    schedule: str = "one-cycle"
    averaging: float = 0.98
    clip: float | None = 5.0
    precision: str = "bfloat16"
    augmentation: bool | str = True

    def __post_init__(self) -> None:
        for name, smallest in (("epochs", 1), ("steps", 1), ("batch_size", 1)):
            if getattr(self, name) < smallest:
                raise InputError(f"{name} must be at least {smallest}; got {getattr(self, name)}")
        for name, allowed in (("optimiser", OPTIMISERS), ("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        if self.augmentation not in (True, False, *UNMOVED):
            raise InputError(f"augmentation is True, False or one of {', '.join(UNMOVED)}; got {self.augmentation!r}")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip is the largest norm of a gradient, above 0, or None; got {self.clip}")


@dataclass(frozen=True)
class SegmentationTrained:
    """What a training came to: the mean loss of every epoch, and how long it took."""

    losses: tuple[float, ...]
    seconds: float


def train_segmentation(
    network: nn.Module,
    draw: Draw,
    folder: Path,
    *,
    loss: Loss,
    settings: SegmentationSettings,
    identity: str,
    seed: int = 0,
    compute: Compute | None = None,
    title: str = "training",
) -> SegmentationTrained:
    """Train a network (B, C, x, y, z) -> (B, classes, x, y, z) on drawn patches, in place.

    `loss` runs the network on a batch, under the precision of the settings, and judges what comes out; `identity` says
    what `draw` draws from. After every epoch a checkpoint is written into `folder`; a training that was killed goes on
    from there and comes to the same result.

    Raises:
        InputError: a loss that is not finite, or a checkpoint of another training.
    """
    compute = compute or Compute()
    output_folder(folder)
    device = compute.torch_device
    network.to(device)
    averaged = copy.deepcopy(network).eval()
    optimiser = optimiser_of(
        network, settings.optimiser, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay
    )
    whole = json.dumps([asdict(settings), seed, identity], sort_keys=True)
    losses: list[float] = []
    seconds = 0.0
    checkpoint = folder / CHECKPOINT
    if checkpoint.is_file():
        state = read_checkpoint(checkpoint, whole, of="scans")
        network.load_state_dict(state["network"])
        averaged.load_state_dict(state["averaged"])
        optimiser.load_state_dict(state["optimiser"])
        losses, seconds = state["losses"], state["seconds"]
    with compute.running(), torch.random.fork_rng():
        for epoch in range(len(losses) + 1, settings.epochs + 1):
            started = time.perf_counter()
            losses.append(_one_epoch(network, averaged, optimiser, draw, loss, settings, seed, epoch, compute, title))
            if not math.isfinite(losses[-1]):
                raise InputError(f"{title}: the loss of epoch {epoch} is {losses[-1]}; lower the learning rate")
            seconds += time.perf_counter() - started
            write_checkpoint(
                checkpoint,
                {
                    "identity": whole,
                    "network": network.state_dict(),
                    "averaged": averaged.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "losses": losses,
                    "seconds": seconds,
                },
            )
            if compute.progress:
                left = f"about {(settings.epochs - epoch) * seconds / epoch:.0f} s to go"
                console.print(
                    f"{title}: epoch {epoch}/{settings.epochs}, loss {losses[-1]:.3f}, {left}",
                    highlight=False,
                    soft_wrap=True,
                )
    network.load_state_dict(copied_weights(averaged))
    network.to("cpu").eval()
    return SegmentationTrained(tuple(losses), round(seconds, 1))


def _one_epoch(
    network: nn.Module,
    averaged: nn.Module,
    optimiser: torch.optim.Optimizer,
    draw: Draw,
    loss: Loss,
    settings: SegmentationSettings,
    seed: int,
    epoch: int,
    compute: Compute,
    title: str,
) -> float:
    """Run one epoch; returns the mean loss. All randomness follows from seed and epoch, so that resuming repeats it."""
    device = compute.torch_device
    half = settings.precision == "bfloat16" or device.type == "cuda"
    kind = "lesions" if settings.augmentation is True else settings.augmentation
    transform = augmentation(kind) if kind else None

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng((seed, epoch, step))
        drawn = [_augmented(*draw(random), transform, random) for _ in range(settings.batch_size)]
        images, targets = zip(*drawn, strict=True)
        return np.stack(images), np.stack(targets)

    network.train()
    losses = []
    # Networks that draw for themselves (dropout, variational branches) draw the same after a restart.
    torch.manual_seed(int(np.random.default_rng((seed, epoch)).integers(2**31)))
    # The next batch is made while the network learns from this one.
    with ThreadPoolExecutor(max_workers=1) as ahead:
        coming = ahead.submit(batch, 0)
        for step in tracked(range(settings.steps), f"{title}: epoch {epoch}", shown=compute.progress):
            images, targets = coming.result()
            if step + 1 < settings.steps:
                coming = ahead.submit(batch, step + 1)
            rate = learning_rate_at(
                settings.schedule,
                settings.learning_rate,
                epochs=settings.epochs,
                epoch=epoch,
                done=step / settings.steps,
            )
            for group in optimiser.param_groups:
                group["lr"] = rate
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
                value = loss(network, to_device(images, device), torch.from_numpy(targets).to(device))
            value.backward()
            losses.append(float(value.detach()))
            if settings.clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
            optimiser.step()
            optimiser.zero_grad()
            average(averaged, network, settings.averaging)
    return float(np.mean(losses))


def _augmented(
    image: np.ndarray, target: np.ndarray, transform: Compose | None, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Another scanner's view of a patch; what is background in all sequences stays 0."""
    if transform is None:
        return image, target
    transform.set_random_state(seed=int(random.integers(2**31)))
    changed = np.asarray(transform(torch.from_numpy(image)))
    return np.where((image != 0).any(axis=0), changed, 0), target
