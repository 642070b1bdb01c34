"""What every training shares: optimiser, learning rate, running mean of the weights, checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from voxplain.errors import InputError
from voxplain.io.atomic import read_json, write_json, writing

CHECKPOINT = "checkpoint.pt"
OPTIMISERS = ("adamw", "adam")
SCHEDULES = ("cosine", "constant", "one-cycle")
PRECISIONS = ("float32", "bfloat16")


def optimiser_of(network: nn.Module, name: str, *, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """The optimiser "adamw" or "adam" over all weights of a network."""
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return kind(network.parameters(), learning_rate, weight_decay=weight_decay)


def learning_rate_at(schedule: str, highest: float, *, epochs: int, epoch: int, done: float) -> float:
    """The learning rate at a step of an epoch (1-based), of which the share `done` is over.

    "constant"; "cosine": falls along a cosine over the epochs; "one-cycle": up over the first fifth, then down, step by
    step (Smith 2018).
    """
    if schedule == "constant":
        return highest
    if schedule == "cosine":
        return highest * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2
    progress, warming = (epoch - 1 + done) / epochs, 0.2
    falling = (1 + math.cos(math.pi * (progress - warming) / (1 - warming))) / 2
    return highest * (max(progress / warming, 0.04) if progress < warming else falling)


@torch.no_grad()
def average(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the running mean of a network's weights and statistics one step on, in place."""
    for mean, value in zip(averaged.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.dtype.is_floating_point:
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def copied_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """A copy on the CPU of all weights and statistics."""
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def to_device(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """A batch (B, C, X, Y, Z) or (B, C, X, Y) as a copy, which a network may write into, in the layout that is fast."""
    tensor = torch.tensor(images, dtype=torch.float32)
    return tensor.to(device, memory_format=torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d)


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Keep the state of a training, whole or not at all."""
    with writing(path) as temporary:
        torch.save(state, temporary)


def finished(folder: Path, identity: str, *, of: str) -> dict[str, Any] | None:
    """The `metrics.json` of a training that is done, None where there is none; `of` is what it learnt from.

    Raises:
        InputError: the folder holds another training.
    """
    known = read_json(folder / "metrics.json")
    if known is not None and known["identity"] != identity:
        raise InputError(f"{folder} holds a training on other {of} or with other settings; give another --out")
    return known


def finish(folder: Path, metrics: dict[str, Any]) -> None:
    """Write `metrics.json` and drop the checkpoint: the training is done."""
    write_json(metrics, folder / "metrics.json")
    (folder / CHECKPOINT).unlink(missing_ok=True)
