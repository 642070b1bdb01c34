"""What a perturbed part is filled with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from voxplain.errors import InputError

# A fill takes the network's input (C, X, Y, Z), the part as a boolean mask (X, Y, Z) and the background (C,), and
# gives the values (C, n) or (C, 1) for the part's n voxels.
Fill = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def blank(image: np.ndarray, part: np.ndarray, background: np.ndarray) -> np.ndarray:
    """What the raw value 0 (background) became on the network's input."""
    return background[:, None]


def region_minimum(image: np.ndarray, part: np.ndarray, background: np.ndarray) -> np.ndarray:
    """The part's own minimum per channel (paper 000, 3.4)."""
    return image[:, part].min(axis=1, keepdims=True)


def region_maximum(image: np.ndarray, part: np.ndarray, background: np.ndarray) -> np.ndarray:
    """The part's own maximum per channel (paper 000, 3.4)."""
    return image[:, part].max(axis=1, keepdims=True)


def sequence_minimum(image: np.ndarray, part: np.ndarray, background: np.ndarray) -> np.ndarray:
    """The whole channel's minimum (paper 001, B)."""
    return image.reshape(len(image), -1).min(axis=1, keepdims=True)


def sequence_maximum(image: np.ndarray, part: np.ndarray, background: np.ndarray) -> np.ndarray:
    """The whole channel's maximum (paper 001, B)."""
    return image.reshape(len(image), -1).max(axis=1, keepdims=True)


_FILLS: dict[tuple[str, str], Fill] = {
    ("blank", "region"): blank,
    ("blank", "sequence"): blank,
    ("min", "region"): region_minimum,
    ("min", "sequence"): sequence_minimum,
    ("max", "region"): region_maximum,
    ("max", "sequence"): sequence_maximum,
}


def fill_named(name: str, scope: str) -> Fill:
    """The fill of a name ("blank", "min", "max") and the scope that minimum and maximum look at.

    Raises:
        InputError: no such fill or scope.
    """
    if (name, scope) not in _FILLS:
        names, scopes = (sorted({key[i] for key in _FILLS}) for i in range(2))
        raise InputError(f"fill is one of {', '.join(names)} and scope one of {', '.join(scopes)}; got {name}, {scope}")
    return _FILLS[name, scope]
