"""Where to look: a voxel inside each part, and the most relevant place of a map."""

from __future__ import annotations

import numpy as np

from voxplain.explanation import Explanation
from voxplain.scan import Labels

Voxel = tuple[int, int, int]


def places_of_parts(parts: Labels) -> dict[int, Voxel]:
    """For each label that has voxels, the one of them nearest to its centre of mass, which may lie outside."""
    flat = parts.data.ravel()
    order = np.argsort(flat, kind="stable")
    labels, starts = np.unique(flat[order], return_index=True)
    found = {}
    for label, members in zip(labels, np.split(order, starts[1:]), strict=True):
        if label == 0:
            continue
        voxels = np.stack(np.unravel_index(members, parts.grid.shape), axis=1)
        away = (voxels - voxels.mean(axis=0)) * parts.grid.spacing
        x, y, z = voxels[int(np.argmin((away**2).sum(axis=1)))]
        found[int(label)] = (int(x), int(y), int(z))
    return found


def most_relevant(explanation: Explanation, mask: Labels | None = None) -> Voxel:
    """A voxel inside the part of rank 1, or the map's highest voxel; its lowest where no value is above zero.

    Where the whole map is zero it is a voxel inside the mask, and without a mask the middle of the scan.
    """
    total = explanation.total
    if explanation.parts is not None and explanation.scores is not None and np.any(explanation.scores):
        places = places_of_parts(explanation.parts)
        for label in np.argsort(-explanation.scores, kind="stable") + 1:
            if int(label) in places:
                return places[int(label)]
    if total.any():
        return _voxel(int(np.argmax(total if total.max() > 0 else -total)), explanation)
    if mask is not None and mask.data.any():
        return places_of_parts(Labels(mask.data > 0, mask.grid))[1]
    x, y, z = (size // 2 for size in explanation.grid.shape)
    return x, y, z


def _voxel(index: int, explanation: Explanation) -> Voxel:
    x, y, z = (int(i) for i in np.unravel_index(index, explanation.grid.shape))
    return x, y, z
