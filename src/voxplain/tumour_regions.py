"""The regions of a glioma that are scored, whichever of two ways a network tells its parts apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from voxplain.errors import InputError

# Outputs of a network: parts that do not overlap, as paper grading (003) has them, or the regions of BraTS themselves.
PARTS = ("oedema", "non-enhancing", "enhancing")
REGIONS = ("ET", "TC", "WT")
NAMES = {"WT": "whole tumour", "TC": "tumour core", "ET": "enhancing tumour"}
# The numbers of the parts, from 1 on as in PARTS, that make up each region.
_MADE_OF = {"WT": [1, 2, 3], "TC": [2, 3], "ET": [3]}


def channels_of(classes: Sequence[str]) -> list[list[int]]:
    """The numbers of the parts (1 oedema, 2 non-enhancing, 3 enhancing) that each class of a network stands for.

    Raises:
        InputError: the classes are neither `PARTS` nor `REGIONS`.
    """
    if tuple(classes) == PARTS:
        return [[1], [2], [3]]
    if tuple(classes) == REGIONS:
        return [_MADE_OF[name] for name in classes]
    raise InputError(
        f"a network that segments tumours has the classes {', '.join(PARTS)} or {', '.join(REGIONS)}; this one has "
        f"{', '.join(classes)}"
    )


def regions_of(probabilities: Mapping[str, np.ndarray], threshold: float) -> dict[str, np.ndarray]:
    """Masks of the whole tumour (WT), its core (TC) and what enhances (ET), boolean (X, Y, Z), in this order.

    `probabilities` (X, Y, Z) are those of `PARTS` or `REGIONS`, by name. A region is the union of the parts that reach
    the threshold; where a network gives regions, the larger ones hold the smaller ones.

    Raises:
        InputError: the names are neither.
    """
    found: dict[str, np.ndarray] = {}
    places = channels_of(tuple(probabilities))
    for region, parts in _MADE_OF.items():
        inside = [
            values >= threshold
            for values, made_of in zip(probabilities.values(), places, strict=True)
            if set(made_of) <= set(parts)
        ]
        found[region] = np.any(inside, axis=0)
    return found


def regions_in(parts: np.ndarray) -> dict[str, np.ndarray]:
    """The same regions of an expert's parts (X, Y, Z), numbered 1 oedema, 2 non-enhancing, 3 enhancing."""
    return {region: np.isin(parts, values) for region, values in _MADE_OF.items()}
