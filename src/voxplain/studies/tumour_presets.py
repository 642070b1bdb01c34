"""What is trained for paper grading (003) to segment tumours: SegResNet with a variational branch, in three sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from voxplain.errors import InputError
from voxplain.model import Card
from voxplain.segmentation_losses import TumourSettings
from voxplain.tumour_regions import PARTS, REGIONS

OUTPUTS = {"parts": PARTS, "regions": REGIONS}
_CARD = Card(
    name="tumour-segmentation",
    channels=("flair", "t1", "t1ce", "t2"),
    classes=PARTS,
    orientation="LPS",
    normalisation="z-score",
    fit="head",
    skull_stripped=True,
)


@dataclass(frozen=True)
class TumourPreset:
    """A network, how it is trained, and whether a variational branch rebuilds the image meanwhile.

    Its branch is thrown away after training: what is left is a SegResNet, as the card's factory builds it. An epoch has
    as many steps as there are training cases where `every_case` says so. `patch` is what the network learns from, in
    voxels; None takes the card's window, in which it will read scans.
    """

    card: Card
    settings: TumourSettings
    variational: bool = True
    every_case: bool = False
    patch: tuple[int, int, int] | None = None

    @property
    def patch_size(self) -> tuple[int, int, int]:
        """Voxels of a patch along each axis."""
        assert self.card.window is not None
        return self.patch or self.card.window


def _segresnet(spacing: float, window: tuple[int, int, int], filters: int, dropout: float) -> Card:
    arguments = {"spatial_dims": 3, "init_filters": filters, "in_channels": 4, "out_channels": 3}
    return replace(
        _CARD,
        spacing=(spacing,) * 3,
        window=window,
        factory="monai.networks.nets.segresnet:SegResNet",
        arguments=arguments | ({"dropout_prob": dropout} if dropout else {}),
    )


def _unet(channels: list[int]) -> Card:
    arguments = {"spatial_dims": 3, "in_channels": 4, "out_channels": 3, "channels": channels}
    return replace(
        _CARD,
        spacing=(2, 2, 2),
        window=(80, 96, 64),
        factory="monai.networks.nets.unet:UNet",
        arguments=arguments | {"strides": [2] * (len(channels) - 1), "num_res_units": 2},
    )


PRESETS = {
    # 003, IV.A and IV.B.1: 160 x 192 x 128 voxels of 1 mm, batch 1, 300 epochs. Adam with 1e-4 and weight decay 1e-5,
    # falling, is Myronenko 2018's, as are 32 filters and dropout 0.2.
    "paper": TumourPreset(
        _segresnet(1.0, (160, 192, 128), 32, 0.2),
        TumourSettings(
            epochs=300,
            batch_size=1,
            optimiser="adam",
            learning_rate=1e-4,
            weight_decay=1e-5,
            schedule="cosine",
            averaging=0,
            clip=None,
        ),
        every_case=True,
    ),
    # The same field of view at half the resolution, in three quarters of an hour a fold on two CPU cores.
    "small": TumourPreset(
        _segresnet(2.0, (80, 96, 64), 8, 0.0),
        TumourSettings(epochs=20, steps=30, batch_size=1, learning_rate=2e-3, averaging=0.95, cross_entropy=0.5),
    ),
    # No part of the paper: a U-Net with 4.8 million weights, which needs a fifth of the time.
    "unet": TumourPreset(
        _unet([16, 32, 64, 128, 256]),
        TumourSettings(epochs=60, steps=50, batch_size=1, learning_rate=1.5e-3, averaging=0.98, cross_entropy=1.0),
        variational=False,
    ),
    # Half as wide, for phantoms: `phantom-tumour-parts`, which voxplain ships, in a quarter of an hour.
    "phantom": TumourPreset(
        _unet([8, 16, 32, 64, 128]),
        TumourSettings(epochs=24, steps=50, batch_size=1, averaging=0.98, cross_entropy=1.0),
        variational=False,
    ),
    # A smoke run: every step, in seconds, with figures that mean nothing.
    "quick": TumourPreset(
        _segresnet(4.0, (32, 32, 32), 8, 0.0), TumourSettings(epochs=1, steps=2, batch_size=1, precision="float32")
    ),
}


def preset(name: str, outputs: str = "parts") -> TumourPreset:
    """The preset of a name, whose network gives "parts" of the tumour (as the paper) or the "regions" ET, TC and WT.

    Raises:
        InputError: no such preset, or no such outputs.
    """
    if name not in PRESETS:
        raise InputError(f"--preset is one of {', '.join(PRESETS)}; got {name!r}")
    if outputs not in OUTPUTS:
        raise InputError(f"--outputs is one of {', '.join(OUTPUTS)}; got {outputs!r}")
    found = PRESETS[name]
    return replace(found, card=replace(found.card, classes=OUTPUTS[outputs]))
