"""How classes of unequal size come to count the same in a training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from voxplain.errors import InputError


def weights_of(labels: Sequence[int], *, binary: bool) -> torch.Tensor:
    """What an example of each class counts, (classes,), so that every class counts as much; 1 where it is binary."""
    counts = np.bincount(labels) if len(labels) else np.zeros(1)
    if binary:
        if set(labels) != {0, 1}:
            raise InputError(f"training needs examples with label 0 and with label 1; got labels {sorted(set(labels))}")
        return torch.ones(2)
    if len(counts) < 2 or not counts.all():
        raise InputError(
            f"training needs examples of every class; it got {counts.tolist()} of classes 0 to {len(counts) - 1}"
        )
    return torch.tensor(len(labels) / (len(counts) * counts), dtype=torch.float32)


def balanced_order(labels: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """An epoch's order, (N,): as many steps as there are examples, the two labels by turns.

    The rarer label's examples come more than once, so that the network's own prior is one half.
    """
    turns = []
    for label in (0, 1):
        members = np.flatnonzero(np.asarray(labels) == label)
        rounds = [rng.permutation(members) for _ in range(math.ceil(len(labels) / len(members)))]
        turns.append(np.concatenate(rounds)[: math.ceil(len(labels) / 2)])
    return np.stack(turns, axis=1).ravel()[: len(labels)]
