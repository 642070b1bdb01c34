"""What is trained for paper grading (003) to classify tumours: a 3D DenseNet on whole heads, in three sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from voxplain.errors import InputError
from voxplain.model import Card
from voxplain.studies.task import Preset
from voxplain.training import Settings

# 003, IV.A.2: background cropped, 120 x 148 x 120 voxels, z-score.
_PAPER = Card(
    name="grading-paper",
    channels=("flair", "t1", "t1ce", "t2"),
    classes=("class",),  # those of the data set take its place
    activation="softmax",
    orientation="LPS",
    normalisation="z-score",
    shape=(120, 148, 120),
    fit="stretch",
    skull_stripped=True,
    factory="voxplain.networks.densenet:densenet",
    arguments={"in_channels": 4},
)


def _smaller(name: str, shape: tuple[int, int, int], arguments: Mapping[str, Any]) -> Card:
    return dataclasses.replace(_PAPER, name=name, shape=shape, arguments={**_PAPER.arguments, **arguments})


_SMALL = _smaller("grading", (60, 74, 60), {"blocks": [4, 2], "growth": 16, "width": 32, "dropout": 0.0})
_SMALL_SETTINGS = Settings(
    epochs=60,
    patience=60,
    batch_size=4,
    learning_rate=4e-3,
    schedule="one-cycle",
    averaging=0.9,
    precision="bfloat16",
    augmentation="gentle",
    loss="cross-entropy",
)

PRESETS = {
    # 003, IV.B.2: DenseNet-BC 169 with 18,613,571 weights for three classes; the optimiser is left open, Adam here.
    "paper": Preset(
        _PAPER,
        Settings(
            epochs=20,
            patience=20,
            batch_size=4,
            optimiser="adam",
            learning_rate=1e-4,
            weight_decay=1e-5,
            schedule="constant",
            averaging=0,
            augmentation="elastic",
            loss="cross-entropy",
        ),
    ),
    # Half of the paper's resolution, in minutes a fold on two CPU cores.
    "small": Preset(_SMALL, _SMALL_SETTINGS),
    # No part of the paper: one number a feature from where it is high, not from the whole head and the air around it.
    "small-log-sum-exp": Preset(
        dataclasses.replace(_SMALL, arguments={**_SMALL.arguments, "pooling": "log-sum-exp:4"}), _SMALL_SETTINGS
    ),
    # A smoke run: every step, in seconds, with figures that mean nothing.
    "quick": Preset(
        _smaller("grading-quick", (32, 40, 32), {"blocks": [1, 1], "growth": 2, "width": 4, "dropout": 0.0}),
        Settings(epochs=1, loss="cross-entropy", augmentation=False),
    ),
}


def preset(name: str, classes: Sequence[str]) -> Preset:
    """The preset of a name, for these classes.

    Raises:
        InputError: no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"--preset is one of {', '.join(PRESETS)}; got {name!r}")
    found = PRESETS[name]
    arguments = {**found.card.arguments, "classes": len(classes)}
    return dataclasses.replace(found, card=dataclasses.replace(found.card, classes=tuple(classes), arguments=arguments))
