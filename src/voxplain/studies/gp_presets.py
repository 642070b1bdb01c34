"""What is trained for paper gp (002): five networks, what they read, and how, by data set and size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from voxplain.errors import InputError
from voxplain.model import Card
from voxplain.studies.task import Preset
from voxplain.training import Settings

_FACTORIES = {
    "gp-unet": "voxplain.networks.gp_unet:GPUNet",
    "gp-reconresnet": "voxplain.networks.gp_reconresnet:GPReconResNet",
    "gp-shuffleunet": "voxplain.networks.gp_shuffleunet:GPShuffleUNet",
    "inception-v3": "voxplain.networks.inception:InceptionV3",
    "resnext50": "voxplain.networks.resnext:ResNeXt50",
}
NETWORKS = tuple(_FACTORIES)
OPAQUE = ("inception-v3", "resnext50")

# At two cores' size; the paper's size is each network's own default.
_SMALL: Mapping[str, Mapping[str, Any]] = {
    "gp-unet": {"stride": 2, "normalisation": "batch", "upsampling": "linear", "dropout": 0.1},
    "gp-reconresnet": {"width": 12, "blocks": 4, "upsampling": "linear", "dropout": 0.1},
    "gp-shuffleunet": {"width": 8, "dropout": 0.1},
    "inception-v3": {"width": 0.25},
    "resnext50": {"width": 16},
}
# The same sizes, built and trained as the paper has it.
_SMALL_AS_PAPER: Mapping[str, Mapping[str, Any]] = {
    "gp-unet": {"width": 16},
    "gp-reconresnet": {"width": 12, "blocks": 4},
    "gp-shuffleunet": {"width": 8},
    "inception-v3": {"width": 0.25},
    "resnext50": {"width": 16},
}
# Numbers that mean nothing, in seconds.
_TINY: Mapping[str, Mapping[str, Any]] = {
    "gp-unet": {"width": 4},
    "gp-reconresnet": {"width": 4, "blocks": 1},
    "gp-shuffleunet": {"width": 4, "levels": 2},
    "inception-v3": {"width": 0.05},
    "resnext50": {"width": 16},
}

# 002, 2.2: Adam 0.001, weight decay 5e-4, gradient clip 1, effective batch 128 by accumulation; 300 epochs are stated
# for BraTS alone. The epoch is not chosen: the last one is kept (`patience` and `averaging` are out of use).
_PAPER = Settings(
    epochs=300,
    patience=300,
    batch_size=16,
    accumulation=8,
    optimiser="adam",
    learning_rate=1e-3,
    weight_decay=5e-4,
    schedule="constant",
    averaging=0,
    augmentation="turns",
    loss="cross-entropy",
    clip=1.0,
)
_OURS = Settings(
    epochs=30,
    patience=30,
    batch_size=16,
    optimiser="adamw",
    learning_rate=2e-3,
    weight_decay=1e-2,
    schedule="one-cycle",
    label_smoothing=0.1,
    averaging=0.98,
    augmentation="slices",
    loss="cross-entropy",
    clip=1.0,
    precision="bfloat16",
)

CARDS = {
    # Images without a stated size of their pixels: spacing counts pixels, 512 become 128.
    "cheng": Card(
        name="cheng",
        channels=("t1ce",),
        classes=("meningioma", "glioma", "pituitary"),
        activation="softmax",
        spatial_dims=2,
        spacing=(4, 4, 1),
        shape=(128, 128, 1),
        normalisation="tissue",
    ),
    "brats-slices": Card(
        name="brats-slices",
        channels=("flair", "t1", "t1ce", "t2"),
        classes=("tumour-free", "tumour"),
        absent=("tumour-free",),
        activation="softmax",
        spatial_dims=2,
        slices="axial",
        spacing=(2, 2, 2),
        orientation="LPS",
        shape=(80, 96, 1),
        normalisation="z-score",
        skull_stripped=True,
    ),
}
CARDS["brats-grade-slices"] = dataclasses.replace(
    CARDS["brats-slices"], name="brats-grade-slices", classes=("tumour-free", "LGG", "HGG")
)
DATASETS = tuple(CARDS)
# One thing changed at a time: network, what it is called in tables, and what `train_network` replaces.
VARIANTS: tuple[tuple[str, str, Mapping[str, Mapping[str, Any]]], ...] = (
    ("gp-unet", "max pooling", {"arguments": {"pooling": "max"}}),
    ("gp-unet", "log-sum-exp pooling", {"arguments": {"pooling": "log-sum-exp:4"}}),
    ("gp-unet", "top 10 %", {"arguments": {"pooling": "top:0.1"}}),
    ("gp-unet", "positive evidence", {"arguments": {"evidence": "positive"}}),
    ("gp-unet", "sparse evidence", {"settings": {"sparsity": 0.3}}),
)
PRESETS = ("small", "small-paper-recipe", "paper", "quick")


def preset(network: str, dataset: str, size: str) -> Preset:
    """The card and the training of one network on one data set.

    `size` is "small" (two cores, our recipe), "small-paper-recipe" (the same size, the paper's recipe), "paper" (its
    sizes and recipe, for a GPU) or "quick" (a smoke run whose figures mean nothing).

    Raises:
        InputError: no such network, data set or size.
    """
    for what, given, known in (
        ("network", network, NETWORKS),
        ("dataset", dataset, DATASETS),
        ("preset", size, PRESETS),
    ):
        if given not in known:
            raise InputError(f"{what} is one of {', '.join(known)}; got {given!r}")
    card = CARDS[dataset]
    settings = _OURS if size == "small" else _PAPER
    arguments: dict[str, Any] = {"in_channels": len(card.channels), "classes": len(card.classes)}
    epochs = _EPOCHS[dataset][network]
    if size == "small":
        arguments |= dict(_SMALL[network]) | ({} if network in OPAQUE else {"pooling": _POOLING[dataset]})
        arguments |= dict(_WIDTHS[dataset]) if network == "gp-unet" else {}
        rate = 3e-3 if dataset == "cheng" else 2e-3
        settings = dataclasses.replace(settings, epochs=epochs, patience=epochs, learning_rate=rate)
    elif size == "small-paper-recipe":
        arguments |= _SMALL_AS_PAPER[network]
        settings = dataclasses.replace(settings, epochs=epochs, patience=epochs, precision="bfloat16")
    elif size == "quick":
        arguments |= _TINY[network]
        settings = dataclasses.replace(_OURS, epochs=1, precision="float32")
        card = dataclasses.replace(card, **_QUICK_SIZE.get(dataset, {}))
    else:
        card = dataclasses.replace(card, **_PAPER_SIZE[dataset])
        settings = dataclasses.replace(settings, epochs=_PAPER_EPOCHS[dataset], patience=_PAPER_EPOCHS[dataset])
    if network == "gp-reconresnet" and size in ("paper", "small-paper-recipe"):
        arguments["dropout"] = 0.2 if dataset == "cheng" else 0.5
    name = f"{dataset}-{network}" + ("" if size == "small" else f"-{size}")
    return Preset(dataclasses.replace(card, name=name, factory=_FACTORIES[network], arguments=arguments), settings)


# Kinds of tumour ask for a view of the whole head; whether there is one shows in its neighbourhood.
_WIDTHS: Mapping[str, Mapping[str, Any]] = {
    "cheng": {"width": 24, "levels": 4},
    "brats-slices": {"width": 32, "levels": 3},
    "brats-grade-slices": {"width": 32, "levels": 3},
}
_POOLING = {"cheng": "top:0.02", "brats-slices": "top:0.03", "brats-grade-slices": "top:0.03"}
# What two cores can do: gp-unet, which is rotated over the folds, learns longest.
_EPOCHS = {
    "cheng": {"gp-unet": 20, "gp-reconresnet": 3, "gp-shuffleunet": 3, "inception-v3": 6, "resnext50": 6},
    # Longer trainings classify a little better and show a smaller part of the tumour.
    "brats-slices": {"gp-unet": 8, "gp-reconresnet": 4, "gp-shuffleunet": 4, "inception-v3": 8, "resnext50": 8},
}
_EPOCHS["brats-grade-slices"] = _EPOCHS["brats-slices"]
# 512 x 512 for Cheng, 240 x 240 for BraTS; the epochs on Cheng are not stated.
_PAPER_SIZE: Mapping[str, Mapping[str, Any]] = {
    "cheng": {"spacing": (1, 1, 1), "shape": (512, 512, 1)},
    "brats-slices": {"spacing": (1, 1, 1), "shape": (240, 240, 1)},
    "brats-grade-slices": {"spacing": (1, 1, 1), "shape": (240, 240, 1)},
}
# InceptionV3 has nothing left of fewer than 75 pixels.
_QUICK_SIZE: Mapping[str, Mapping[str, Any]] = {"cheng": {"spacing": (6.4, 6.4, 1), "shape": (80, 80, 1)}}
_PAPER_EPOCHS = {"cheng": 300, "brats-slices": 300, "brats-grade-slices": 300}
