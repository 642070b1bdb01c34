"""How bright white matter is: the yardstick by which lesions of one scanner look like those of another."""

from __future__ import annotations

import numpy as np

from voxplain.errors import InputError
from voxplain.scan import Scan

# Of the brain's voxels by T1: between these shares lies white matter, whatever the scanner.
_PERCENTILES = (70, 95)


def white_matter(scan: Scan) -> dict[str, float]:
    """The median intensity of white matter by sequence, of a skull-stripped scan with T1.

    White matter is taken to be what lies between the 70th and the 95th percentile of T1 over the brain; where lesions
    are dark on T1 they have no part in it.

    Raises:
        InputError: no t1, a scan without brain, or white matter that is not above 0 in a sequence.
    """
    if "t1" not in scan.channels:
        raise InputError(f"white matter is found on T1; the scan has {', '.join(scan.channels)}: give its t1, too")
    t1, brain = scan.channel("t1"), scan.foreground()
    if not brain.any():
        raise InputError("the scan is zero in every voxel; expected a skull-stripped brain")
    low, high = np.percentile(t1[brain], _PERCENTILES)
    inside = brain & (t1 >= low) & (t1 <= high)
    found = {name: float(np.median(data[inside])) for name, data in zip(scan.channels, scan.data, strict=True)}
    if strange := [f"{name} {value:.3g}" for name, value in found.items() if value <= 0]:
        raise InputError(
            f"white matter is above 0 in images as a scanner gives them; its median here is {', '.join(strange)}: give "
            "the scan before it was normalised"
        )
    return found
