"""How bright white and grey matter are: yardsticks by which lesions of one scanner look like those of another."""

from __future__ import annotations

import numpy as np

from voxplain.errors import InputError
from voxplain.scan import Scan

# Of the brain's voxels by T1: between these shares lies white matter, whatever the scanner.
_PERCENTILES = (70, 95)
# Grey matter's T1 as a share of white matter's: darker is fluid, or a voxel that holds some.
_GREY = (0.6, 0.85)


def white_matter(scan: Scan) -> dict[str, float]:
    """The median intensity of white matter by sequence, of a skull-stripped scan with T1.

    White matter is taken to be what lies between the 70th and the 95th percentile of T1 over the brain; where lesions
    are dark on T1 they have no part in it.

    Raises:
        InputError: no t1, a scan without brain, or white matter that is not above 0 in a sequence.
    """
    return _medians(scan, white_matter_voxels(scan), "white matter")


def white_matter_voxels(scan: Scan) -> np.ndarray:
    """The voxels that are taken to be white matter, boolean (X, Y, Z), as of `white_matter`.

    Raises:
        InputError: no t1, or a scan without brain.
    """
    t1, brain = _t1_of_brain(scan)
    low, high = np.percentile(t1[brain], _PERCENTILES)
    inside: np.ndarray = brain & (t1 >= low) & (t1 <= high)
    return inside


def grey_matter(scan: Scan) -> dict[str, float]:
    """The median intensity of grey matter by sequence, of a skull-stripped scan with T1.

    Grey matter is taken to be what is 0.6 to 0.85 times as bright on T1 as white matter. Lesions of white matter are as
    dark, but hardly ever so many that a median would notice. On FLAIR, cortex is what they have to be told from.

    Raises:
        InputError: as `white_matter`, or nothing in the brain is as dark as grey matter.
    """
    white = white_matter(scan)["t1"]
    t1, brain = _t1_of_brain(scan)
    inside = brain & (t1 >= _GREY[0] * white) & (t1 <= _GREY[1] * white)
    if not inside.any():
        raise InputError(
            f"no voxel's T1 is {_GREY[0]} to {_GREY[1]} times that of white matter ({white:.3g}), as grey matter's is; "
            "is this the T1 of a brain?"
        )
    return _medians(scan, inside, "grey matter")


def _t1_of_brain(scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """T1 (X, Y, Z), and which voxels are brain."""
    if "t1" not in scan.channels:
        raise InputError(
            f"white and grey matter are found on T1; the scan has {', '.join(scan.channels)}: give its t1, too"
        )
    brain = scan.foreground()
    if not brain.any():
        raise InputError("the scan is zero in every voxel; expected a skull-stripped brain")
    return scan.channel("t1"), brain


def _medians(scan: Scan, inside: np.ndarray, tissue: str) -> dict[str, float]:
    found = {name: float(np.median(data[inside])) for name, data in zip(scan.channels, scan.data, strict=True)}
    if strange := [f"{name} {value:.3g}" for name, value in found.items() if value <= 0]:
        raise InputError(
            f"{tissue} is above 0 in images as a scanner gives them; its median here is {', '.join(strange)}: give "
            "the scan before it was normalised"
        )
    return found
