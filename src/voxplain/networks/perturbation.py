"""The network of optimal perturbations: a U-Net that says how to dim one supervoxel (papers 000, 3.4.1, and 001, B)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import UNet
from torch import nn
from torch.nn import functional


class PerturbationUNet(nn.Module):
    """A MONAI U-Net that turns one visible part of a scan into a mask to multiply it by.

    Input (B, channels, X, Y, Z), or (B, channels, X, Y) for `spatial_dims` 2: the scan minus its background, 0 outside
    of the part. Output of the same shape: one mask per sequence, from 0 (background) to `largest` (1 leaves a voxel as
    it is). Each level after the first of `widths` halves the grid; inputs are padded with zeros to what that needs. The
    papers give neither widths nor the mask's range; the defaults are those of MONAI's examples, and a range in whose
    middle a voxel stays as it is.
    """

    def __init__(
        self,
        channels: int = 4,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        residual_units: int = 2,
        largest: float = 2.0,
        spatial_dims: int = 3,
    ) -> None:
        super().__init__()
        self.largest = largest
        self.multiple = 2 ** (len(widths) - 1)
        self.unet = UNet(
            spatial_dims=spatial_dims,
            in_channels=channels,
            out_channels=channels,
            channels=tuple(widths),
            strides=(2,) * (len(widths) - 1),
            num_res_units=residual_units,
        )

    def forward(self, visible: torch.Tensor) -> torch.Tensor:
        """The mask of the one visible part, of the input's shape, from 0 to `largest`."""
        size = visible.shape[2:]
        missing = [-n % self.multiple for n in size]
        padded = functional.pad(visible, [side for n in reversed(missing) for side in (0, n)])
        mask = self.unet(padded)[(..., *(slice(n) for n in size))]
        return self.largest * torch.sigmoid(mask)
