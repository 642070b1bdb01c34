"""What lies far from the tumour in BraTS patients: real brains in which lesions of multiple sclerosis can be made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from voxplain.datasets.case import Case
from voxplain.errors import InputError
from voxplain.grid import Grid
from voxplain.scan import Scan

# Oedema and displaced tissue reach beyond what experts mark.
_APART_MM = 15.0
# The middle of a brain's box in MNI space: between those of the two patients with multiple sclerosis.
_MIDDLE_MM = (0.0, -20.0, 7.0)


def tumour_free(case: Case, sequences: Sequence[str] = ("flair", "t1")) -> Scan:
    """A patient's brain at 1 mm, 0 within 15 mm of the tumour, its middle where brains in MNI space have theirs.

    Axes keep their directions; coarser scans are interpolated linearly, without the outermost voxel of the brain, which
    is part background. There is no registration: a place in MNI space is met to within some mm.

    Raises:
        InputError: a sequence or the expert mask is missing, or nothing of the brain is left.
    """
    scan, tumour = case.scan(sequences), case.tumour()
    brain = scan.foreground()
    if not brain.any():
        raise InputError(f"case {case.id}: zero in every voxel; expected a skull-stripped brain")
    corners = [(int(found.start), int(found.stop) - 1) for found in ndimage.find_objects(brain.astype(np.int8))[0]]
    middle = scan.grid.world([(low + high) / 2 for low, high in corners])
    affine = scan.grid.affine.copy()
    affine[:3, 3] += np.array(_MIDDLE_MM) - middle
    moved = Scan(scan.data, Grid(scan.grid.shape, affine), scan.channels)
    keep = ndimage.binary_erosion(brain, np.ones((3, 3, 3)))
    if (tumour.data > 0).any():
        keep &= ndimage.distance_transform_edt(tumour.data == 0, sampling=scan.grid.spacing) > _APART_MM
    if not keep.any():
        raise InputError(f"case {case.id}: no part of the brain lies {_APART_MM:g} mm from the tumour; leave it out")
    fine = moved.grid.with_spacing((1.0, 1.0, 1.0))
    kept = Scan(keep[None].astype(np.float32), moved.grid, ("brain",)).on(fine).data[0] > 0.5
    return Scan(np.where(kept, moved.on(fine).data, 0), fine, scan.channels)
