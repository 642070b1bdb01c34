"""What is trained for the hemisphere task, and how: one network in three sizes, and one that explains itself."""

from __future__ import annotations

import dataclasses

from voxplain.model import Card
from voxplain.studies.task import Preset
from voxplain.training import Settings

_SMALL = Card(
    name="tumour-hemisphere",
    channels=("flair", "t1", "t1ce", "t2"),
    classes=("tumour",),
    spacing=(2, 2, 2),
    orientation="LPS",
    normalisation="z-score",
    region="half",
    shape=(40, 96, 76),
    skull_stripped=True,
    factory="voxplain.networks.resnet:resnet",
    arguments={"depth": 10, "in_channels": 4, "classes": 1, "width": 32, "stem_stride": 2, "stem_kernel": 7},
)

PRESETS = {
    # Sizes that finish on two CPU cores.
    "small": Preset(
        _SMALL,
        Settings(
            epochs=20,
            patience=20,
            batch_size=4,
            learning_rate=3e-4,
            label_smoothing=0.2,
            averaging=0.95,
            tolerance=0.5,
        ),
    ),
    # Paper gp (002) in three dimensions: the map that it shows is made of the numbers that it decides by.
    "gp": Preset(
        dataclasses.replace(
            _SMALL,
            name="tumour-hemisphere-gp",
            factory="voxplain.networks.gp_unet:GPUNet",
            arguments={
                "in_channels": 4,
                "classes": 1,
                "spatial_dims": 3,
                "width": 16,
                "levels": 3,
                "pooling": "top:0.03",
                "normalisation": "batch",
                "upsampling": "linear",
                "dropout": 0.1,
                "stride": 2,
            },
        ),
        Settings(
            epochs=15,
            patience=15,
            batch_size=4,
            learning_rate=2e-3,
            schedule="one-cycle",
            label_smoothing=0.2,
            averaging=0.95,
            clip=1.0,
            precision="bfloat16",
        ),
    ),
    # A smoke run: every step, in seconds, with figures that mean nothing.
    "quick": Preset(
        dataclasses.replace(_SMALL, name="tumour-hemisphere-quick", arguments={**_SMALL.arguments, "width": 4}),
        Settings(epochs=1),
    ),
    # The paper's own: ResNet-50, 4 x 128^3, min-max, Adam 0.01, 100 epochs (000, 3.1 and 3.2).
    "paper": Preset(
        dataclasses.replace(
            _SMALL,
            name="tumour-hemisphere-paper",
            spacing=(1, 1, 1),
            normalisation="min-max",
            shape=(128, 128, 128),
            arguments={**_SMALL.arguments, "depth": 50, "width": 64},
        ),
        Settings(
            epochs=100,
            patience=100,
            batch_size=4,
            optimiser="adam",
            learning_rate=0.01,
            weight_decay=0,
            schedule="constant",
            averaging=0,
            augmentation=False,
        ),
    ),
}
