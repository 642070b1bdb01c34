"""Losses, as functions of tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PerturbationLoss:
    """How little a perturbation moves the probability: low where the change |p - p'| is large.

    `form="reciprocal"` is the papers' mean(1 / (|p - p'| + eps)) (000, 3.4.1; 001 has the sum). Its gradient grows as
    1 / |p - p'|^2, so parts that hardly matter outvote those that do. Two forms are ours: "logarithm",
    mean(-log(|p - p'| + eps)), where it counts by which factor each change grows; and "difference",
    mean(1 - |p - p'|), where it counts by how much, which is the figure that held-out patients are scored by. `eps`
    keeps the first two finite where nothing changes.
    """

    eps: float = 1e-6
    form: str = "reciprocal"

    def __post_init__(self) -> None:
        if self.form not in ("reciprocal", "logarithm", "difference") or not 0 < self.eps < 1:
            raise ValueError(
                "form is reciprocal, logarithm or difference, and eps between 0 and 1; "
                f"got {self.form!r} and {self.eps}"
            )

    def __call__(self, clean: torch.Tensor, perturbed: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar, of probabilities (B,) before and after."""
        change = (clean - perturbed).abs()
        if self.form == "difference":
            return (1 - change).mean()
        return (1 / (change + self.eps)).mean() if self.form == "reciprocal" else -(change + self.eps).log().mean()


def normalised_dice_loss(
    probability: torch.Tensor,
    reference: torch.Tensor,
    *,
    load: float = 0.001,
    lightest: float = 0.0,
    heaviest: float | None = None,
) -> torch.Tensor:
    """1 - normalised Dice (Raina 2023, as in 004), a scalar in [0, 1]: the mean over the batch.

    False positives weigh kappa = h (1 / load - 1), where h is how many reference voxels there are per voxel of
    background: patches with few lesion voxels then cost no more than those with many. One voxel is added to both sides
    of the fraction, so that the loss of an empty reference is finite: 0 where nothing is predicted either, and there
    kappa is 1.

    Args:
        probability: of the lesion, (B, X, Y, Z), 0 to 1.
        reference: whether a voxel is lesion, boolean (B, X, Y, Z).
        load: the share of lesion voxels at which this is the plain Dice, above 0 and below 1.
        lightest: the smallest kappa. Where lesions are tiny, false positives else weigh next to nothing.
        heaviest: the largest kappa, None for any. Where a large lesion fills a patch, kappa may reach 20 and more, and
            a network learns to leave such lesions alone; 1 makes it the plain Dice there.

    Raises:
        ValueError: shapes differ, or a load or a weight outside of its range.
    """
    _check_shapes(probability, reference, load, lightest, heaviest)
    inside = reference.flatten(1).to(probability.dtype)
    predicted = probability.flatten(1)
    size = inside.sum(dim=1)
    hits = (inside * predicted).sum(dim=1)
    kappa = _false_positive_weight(size, inside.shape[1], load, lightest, heaviest)
    return (1 - _dice_of(hits, predicted.sum(dim=1) - hits, size, kappa)).mean()


def blob_loss(
    probability: torch.Tensor,
    blobs: torch.Tensor,
    *,
    load: float | None = None,
    lightest: float = 0.0,
    heaviest: float | None = None,
) -> torch.Tensor:
    """1 - Dice of each blob by itself (Kofler 2022), a scalar in [0, 1]: small lesions count as much as large ones.

    The voxels of all other blobs are left out of a blob's Dice: their probabilities are masked, not their logits, and
    within each item of the batch by itself. The loss is the mean over the blobs of an item, then over the items that
    have any; without any it is 0.

    Args:
        probability: of the lesion, (B, X, Y, Z), 0 to 1.
        blobs: numbers of the blobs from 1 on, without gaps, 0 elsewhere, int64 (B, X, Y, Z).
        load: takes the normalised Dice at this lesion load instead, each blob being the reference.
        lightest: the smallest weight of false positives in the normalised Dice.
        heaviest: the largest, None for any.

    Raises:
        ValueError: shapes differ, or a load or a weight outside of its range.
    """
    _check_shapes(probability, blobs, load, lightest, heaviest)
    found = []
    for predicted, numbers in zip(probability.flatten(1), blobs.flatten(1), strict=True):
        count = int(numbers.max())
        if not count:
            continue
        # All blobs at once: what is predicted inside each of them, and outside of all (first place).
        sums = predicted.new_zeros(count + 1).index_add(0, numbers, predicted)
        sizes = torch.bincount(numbers, minlength=count + 1).to(predicted.dtype)
        extent = sizes[0] + sizes[1:]
        kappa = torch.ones_like(extent)
        if load is not None:
            kappa = _false_positive_weight(sizes[1:], extent, load, lightest, heaviest)
        found.append((1 - _dice_of(sums[1:], sums[0], sizes[1:], kappa)).mean())
    return torch.stack(found).mean() if found else probability.sum() * 0


def _dice_of(
    hits: torch.Tensor, false_positives: torch.Tensor, size: torch.Tensor, kappa: torch.Tensor
) -> torch.Tensor:
    """Soft Dice, with one voxel added to both sides; false negatives are what is missing of the reference's size."""
    return (2 * hits + 1) / (hits + size + kappa * false_positives + 1)


def _false_positive_weight(
    size: torch.Tensor, extent: torch.Tensor | int, load: float, lightest: float, heaviest: float | None
) -> torch.Tensor:
    """How much false positives weigh in the normalised Dice of a reference; 1 for an empty one."""
    # A reference that fills all of the patch leaves no room for false positives.
    weight = size / (extent - size).clamp(min=1) * (1 / load - 1)
    weight = weight.clamp(min=lightest, max=heaviest)
    return torch.where(size > 0, weight, torch.ones_like(weight))


def _check_shapes(
    probability: torch.Tensor, reference: torch.Tensor, load: float | None, lightest: float, heaviest: float | None
) -> None:
    if probability.shape != reference.shape:
        raise ValueError(f"expected a reference of shape {tuple(probability.shape)}; got {tuple(reference.shape)}")
    if load is not None and not 0 < load < 1:
        raise ValueError(f"load is a share above 0 and below 1; got {load}")
    if heaviest is not None and not heaviest > 0:
        raise ValueError(f"heaviest is a weight above 0; got {heaviest}")
    if not 0 <= lightest <= (math.inf if heaviest is None else heaviest):
        raise ValueError(f"lightest is a weight of at least 0, and at most heaviest; got {lightest} and {heaviest}")
