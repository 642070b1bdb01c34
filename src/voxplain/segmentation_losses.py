"""What segmentation networks learn: lesions, each counting once (paper instance, 004), or parts of a tumour (003)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from monai.losses import DiceLoss
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from voxplain.errors import InputError
from voxplain.losses import blob_loss, normalised_dice_loss
from voxplain.segmentation_training import SegmentationSettings


@dataclass(frozen=True)
class LesionSettings(SegmentationSettings):
    """How a network for lesions is trained (`SegmentationSettings`), and what it learns.

    The loss is normalised Dice at lesion load `load`, in which false positives weigh `lightest` at least and `heaviest`
    at most (None: as much as they do), plus `blob` times the blob loss; the paper has nothing else. `cross_entropy`
    adds so much of the cross-entropy (no part of paper instance, 004).
    """

    load: float = 0.001
    lightest: float = 0.0
    heaviest: float | None = None
    blob: float = 1.0
    cross_entropy: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_weights(self, "blob", "cross_entropy")
        limit = math.inf if self.heaviest is None else self.heaviest
        if not 0 <= self.lightest <= limit or not limit > 0:
            raise InputError(
                "lightest and heaviest are the least and the most that false positives weigh, from 0 on; got "
                f"{self.lightest} and {self.heaviest}"
            )


@dataclass(frozen=True)
class TumourSettings(SegmentationSettings):
    """How a network for the parts of a tumour is trained (`SegmentationSettings`), and what it learns.

    The loss is the mean Dice loss of its sigmoid channels, squares in the denominator, plus `reconstruction` times what
    a variational branch says of itself: the mean squared error of the image that it rebuilds and the Kullback-Leibler
    divergence of what it codes (both weigh 0.1 in Myronenko 2018, which paper grading, 003, follows).
    `cross_entropy` adds so much of the cross-entropy of every channel (no part of the paper).
    """

    augmentation: bool | str = "contrast"
    reconstruction: float = 0.1
    cross_entropy: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_weights(self, "reconstruction", "cross_entropy")


def _check_weights(settings: SegmentationSettings, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(settings, name) < math.inf:
            raise InputError(f"{name} is a weight of at least 0; got {getattr(settings, name)}")


def lesion_loss(output: torch.Tensor, blobs: torch.Tensor, lesion: int, settings: LesionSettings) -> torch.Tensor:
    """The loss, a scalar, of raw scores (B, classes, x, y, z) where blobs (B, x, y, z) number the lesions."""
    if output.ndim != 5 or output.shape[2:] != blobs.shape[1:] or not 0 <= lesion < output.shape[1]:
        raise InputError(
            f"expected a map per class on the patch's grid, {tuple(blobs.shape[1:])}, with class {lesion} among them; "
            f"the network returns {tuple(output.shape)}"
        )
    probability = torch.softmax(output, dim=1)[:, lesion]
    weights: dict[str, Any] = {"load": settings.load, "lightest": settings.lightest, "heaviest": settings.heaviest}
    loss = normalised_dice_loss(probability, blobs > 0, **weights)
    if settings.blob:
        loss = loss + settings.blob * blob_loss(probability, blobs, **weights)
    if settings.cross_entropy:
        other = 1 if lesion == 0 else 0
        loss = loss + settings.cross_entropy * cross_entropy(output, torch.where(blobs > 0, lesion, other))
    return loss


def tumour_loss(
    network: nn.Module, images: torch.Tensor, parts: torch.Tensor, channels: list[list[int]], settings: TumourSettings
) -> torch.Tensor:
    """The loss, a scalar, of a network on images (B, C, x, y, z) whose voxels are of parts (B, x, y, z).

    `channels` lists for each output of the network the numbers of the parts that it is to find. A network that returns
    a pair gives the loss of its variational branch second, as MONAI's SegResNetVAE does in training.
    """
    # MONAI's variational branch fails on the layout that is fast for the others.
    said = network(images.contiguous())
    output, branch = said if isinstance(said, tuple) else (said, None)
    output = output.float()
    if output.ndim != 5 or output.shape[2:] != parts.shape[1:] or output.shape[1] != len(channels):
        raise InputError(
            f"expected {len(channels)} maps on the patch's grid, {tuple(parts.shape[1:])}; the network returns "
            f"{tuple(output.shape)}"
        )
    wanted = torch.stack([torch.isin(parts, torch.tensor(values, device=parts.device)) for values in channels], dim=1)
    loss: torch.Tensor = DiceLoss(sigmoid=True, squared_pred=True)(output, wanted.float())
    if branch is not None:
        loss = loss + settings.reconstruction * branch.float()
    if settings.cross_entropy:
        loss = loss + settings.cross_entropy * binary_cross_entropy_with_logits(output, wanted.float())
    return loss
