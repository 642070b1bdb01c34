"""Maps of lesions, cut to where they are not zero: hundreds of them fit where a few whole volumes would."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from voxplain.errors import InputError
from voxplain.explanation import Explanation
from voxplain.grid import Grid
from voxplain.lesions import Lesions
from voxplain.target import RegionScore


@dataclass(frozen=True, eq=False)
class LesionMap:
    """One method's map of one lesion.

    Attributes:
        method: what the page calls the method.
        number: the lesion's.
        start: first voxel of the box (X, Y, Z) in which the map is not zero.
        values: (K, x, y, z) float32 in that box.
        channels: names of the K maps.
        unit, signed: as of the explanation.
        peaks: by channel, the value of the largest size, with its sign.
        provenance: of the explanation.
    """

    method: str
    number: int
    start: tuple[int, int, int]
    values: np.ndarray
    channels: tuple[str, ...]
    unit: str
    signed: bool
    peaks: dict[str, float]
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, method: str, explanation: Explanation, lesions: Lesions) -> LesionMap:
        """The map of an explanation whose target is one of the lesions.

        Raises:
            InputError: the target is no region, or another one, or the map is not finite or lies on another grid.
        """
        target = dict(explanation.provenance.get("target", {}))
        number = target.get("label")
        if target.get("kind") != "RegionScore" or number not in lesions.numbers:
            raise InputError(f"{method} explains no lesion of this list: its target is {target or 'not stated'}")
        if difference := lesions.labels.grid.difference(explanation.grid):
            raise InputError(f"{method} lies on another grid than the lesions: {difference}")
        if RegionScore(str(target.get("name")), lesions.labels, number).record() != target:
            raise InputError(
                f"{method} explains another lesion {number} than that of the list, of {target.get('voxels')} voxels; "
                "explain it again, or remove its files"
            )
        if not np.isfinite(explanation.map).all():
            raise InputError(f"the map of lesion {number} by {method} is NaN or infinite somewhere; mend it first")
        box = []
        seen = (explanation.map != 0).any(axis=0)
        for axis in range(3):
            found = np.flatnonzero(seen.any(axis=tuple(other for other in range(3) if other != axis)))
            box.append((int(found[0]), int(found[-1]) + 1) if len(found) else (0, 1))
        cut = explanation.map[(slice(None), *(slice(*side) for side in box))].copy()
        start = (box[0][0], box[1][0], box[2][0])
        return cls(
            *(method, int(number), start, cut, explanation.channels, explanation.unit, explanation.signed),
            explanation.peaks,
            explanation.provenance,
        )

    def on(self, grid: Grid) -> np.ndarray:
        """The whole map, (K, X, Y, Z) float32."""
        whole = np.zeros((len(self.channels), *grid.shape), dtype=np.float32)
        box = (slice(a, a + n) for a, n in zip(self.start, self.values.shape[1:], strict=True))
        whole[(slice(None), *box)] = self.values
        return whole
