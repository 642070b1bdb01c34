"""Paper gp's own figures (002, tables 1, 3, 4 and 5), to be printed beside ours.

Theirs are of one test part (Cheng) or three random quarters (BraTS 2020, 346 patients) of slices split at random, so
that slices of one patient train and test; Dice after offsets chosen on the test slices. They give no intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_FIGURES = ("precision", "recall", "F1", "accuracy")
_TABLE_3 = {
    "inception-v3": (0.96, 0.97, 0.97, 0.97),
    "resnext50": (0.96, 0.96, 0.96, 0.97),
    "gp-reconresnet": (0.96, 0.95, 0.95, 0.95),
    "gp-shuffleunet": (0.94, 0.92, 0.93, 0.93),
    "gp-unet": (0.86, 0.85, 0.85, 0.85),
}
_TABLE_4 = {
    "inception-v3": (0.95, 0.95, 0.95, 0.95),
    "resnext50": (0.95, 0.95, 0.95, 0.95),
    "gp-unet": (0.93, 0.93, 0.93, 0.93),
    "gp-shuffleunet": (0.94, 0.94, 0.93, 0.94),
    "gp-reconresnet": (0.93, 0.93, 0.92, 0.93),
}
# Median Dice; on BraTS after multi-Otsu minus an offset of 0.3, 0.1 and 1.6, or above 0.5.
_DICE = {
    "cheng": {"gp-reconresnet/otsu": 0.10, "gp-shuffleunet/otsu": 0.04, "gp-unet/otsu": 0.05},
    "brats-grade-slices": {
        "gp-unet/multi-otsu-offset": 0.67,
        "gp-shuffleunet/multi-otsu-offset": 0.53,
        "gp-reconresnet/multi-otsu-offset": 0.50,
        "gp-reconresnet/fixed-0.5": 0.60,
    },
}
_TUMOURS_ALONE = {"gp-unet": 0.9827, "gp-shuffleunet": 0.9874, "gp-reconresnet": 0.9799}
# Table 1: million weights, and days of training on an RTX 2080 TI.
SIZES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "inception-v3": (21.8, 2),
        "resnext50": (23.0, 2),
        "gp-unet": (1.90, 4),
        "gp-shuffleunet": (26.4, 13),
        "gp-reconresnet": (17.3, 9),
    }
)


def published(dataset: str) -> dict[tuple[str, str, str], float]:
    """The paper's figures of a data set by (table, row, metric), under the names that our tables give them.

    "brats-slices" asks another question than the paper (tumour or not, without grades): it has the paper's Dice alone.
    """
    found: dict[tuple[str, str, str], float] = {}
    tables = {"cheng": _TABLE_3, "brats-grade-slices": _TABLE_4}
    for network, values in tables.get(dataset, {}).items():
        found |= {("classification", network, name): value for name, value in zip(_FIGURES, values, strict=True)}
    for row, value in _DICE["cheng" if dataset == "cheng" else "brats-grade-slices"].items():
        network, _, rule = row.partition("/")
        found["localisation", f"{network}/heat-map/{rule}", "median Dice"] = value
    if dataset == "brats-grade-slices":
        for network, value in _TUMOURS_ALONE.items():
            found["classification", network, "accuracy, tumour slices"] = value
    return found
