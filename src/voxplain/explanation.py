"""What an explainer returns: a map on the scan's grid, its parts and scores, and how it came about."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from voxplain.errors import InputError
from voxplain.grid import Grid
from voxplain.scan import Labels, frozen_array


@dataclass(frozen=True)
class Region:
    """A box of the scan that the network judged on its own: the whole scan, one half, or one slice.

    `box` is (start, stop) in voxels of the scan's grid for each axis; `logit` is the network's raw score of the
    explained class, `probability` what it comes to after the card's calibration, and `positive` whether that reaches
    the card's threshold, or whether the predicted class says that something is there. `target` is the class that was
    explained here, "" where that is not recorded.
    """

    name: str
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    probability: float
    logit: float
    positive: bool
    target: str = ""

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as index slices."""
        x, y, z = (slice(start, stop) for start, stop in self.box)
        return x, y, z


@dataclass(frozen=True, eq=False)
class Explanation:
    """A relevance map on the scan's own grid.

    `map` is (K, X, Y, Z) float32, not normalised, signed where the method is signed, in `unit`; `channels` names the
    K maps: one for all sequences together, or one per sequence. Methods that score parts also give `parts` (labels
    1..N on the same grid) and `scores` (one per part, in the same unit; with several maps their sum). `regions` says
    what the network judged, and `provenance` replays the run.
    """

    map: np.ndarray
    channels: tuple[str, ...]
    grid: Grid
    signed: bool
    unit: str
    regions: tuple[Region, ...]
    parts: Labels | None = None
    scores: np.ndarray | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if np.shape(self.map) != (len(self.channels), *self.grid.shape):
            raise InputError(
                f"a map is an array (K, X, Y, Z): expected {(len(self.channels), *self.grid.shape)}, "
                f"got {np.shape(self.map)}"
            )
        if (self.parts is None) != (self.scores is None):
            raise InputError("parts and scores come together, or not at all")
        if self.parts is not None and self.scores is not None:
            if difference := self.grid.difference(self.parts.grid):
                raise InputError(f"the parts lie on the map's grid; these differ: {difference}")
            if len(self.scores) != (count := int(self.parts.data.max())):
                raise InputError(
                    f"expected one score per part, {count} for labels 1 to {count}; got {len(self.scores)}"
                )
        object.__setattr__(self, "map", frozen_array(self.map, np.float32))
        if self.scores is not None:
            object.__setattr__(self, "scores", frozen_array(self.scores, np.float64))

    @property
    def total(self) -> np.ndarray:
        """The map summed over its K channels, (X, Y, Z) float32: what a threshold is applied to."""
        return self.map[0] if len(self.map) == 1 else self.map.sum(axis=0)

    @property
    def peaks(self) -> dict[str, float]:
        """The value of the largest size in each of the K maps, with its sign, by channel; of equal ones the first."""
        flat = self.map.reshape(len(self.map), -1)
        highest = np.abs(flat).argmax(axis=1)
        return {name: float(one[place]) for name, one, place in zip(self.channels, flat, highest, strict=True)}

    def scaled(self) -> Explanation:
        """The same explanation scaled to 0-100 as in the relevance papers (000, 3.5); all-equal maps become zeros."""
        low, high = float(self.map.min()), float(self.map.max())
        if self.scores is not None and len(self.scores) and len(self.channels) == 1:
            low, high = min(low, float(self.scores.min())), max(high, float(self.scores.max()))
        factor = 100 / (high - low) if high > low else 0.0
        # Of several maps each is shifted, so their sum is shifted that many times.
        scores = None if self.scores is None else (self.scores - len(self.channels) * low) * factor
        return replace(self, map=(self.map - low) * factor, scores=scores, unit="0-100", signed=False)

    def sequence_scores(self) -> np.ndarray:
        """What each of the K maps holds in each part, (K, N): which sequence carries the evidence; NaN for no voxels.

        Raises:
            InputError: the method does not score parts.
        """
        if self.parts is None or self.scores is None:
            raise InputError("only maps of parts (such as a relevance map) score them; this one is voxel-wise")
        labels, first = np.unique(self.parts.data, return_index=True)
        found = np.full((len(self.map), len(self.scores) + 1), np.nan)
        found[:, labels] = self.map.reshape(len(self.map), -1)[:, first]
        return found[:, 1:]

    def ranks(self) -> pd.DataFrame:
        """The parts as a table, most relevant first; ties by label number.

        Columns: rank, label, score (in `unit`), volume_ml, x_mm, y_mm, z_mm (centre of mass), region; and with a map
        per sequence, what each of them adds to the score: score_flair and so on.

        Raises:
            InputError: the method does not score parts.
        """
        if self.parts is None or self.scores is None:
            raise InputError("only maps of parts (such as a relevance map) have ranks; this one is voxel-wise")
        labels = np.arange(1, len(self.scores) + 1)
        flat = self.parts.data.ravel()
        counts = np.bincount(flat, minlength=len(labels) + 1)[1:]
        axes = np.indices(self.grid.shape).reshape(3, -1)
        sums = np.stack([np.bincount(flat, weights=axis, minlength=len(labels) + 1)[1:] for axis in axes], axis=1)
        centres = self.grid.world(sums / np.maximum(counts, 1)[:, None])
        centres[counts == 0] = np.nan
        table = pd.DataFrame(
            {
                "label": labels,
                "score": self.scores,
                "volume_ml": counts * self.grid.voxel_volume / 1000,
                "x_mm": centres[:, 0],
                "y_mm": centres[:, 1],
                "z_mm": centres[:, 2],
                "region": self._region_of_parts(),
            }
        )
        if len(self.channels) > 1:
            for channel, values in zip(self.channels, self.sequence_scores(), strict=True):
                table[f"score_{channel}"] = values
        table = table.sort_values(["score", "label"], ascending=[False, True], ignore_index=True)
        table.insert(0, "rank", np.arange(1, len(table) + 1))
        return table

    def labels_in(self, region: Region) -> np.ndarray:
        """The part labels that occur in a region."""
        assert self.parts is not None
        found = np.unique(self.parts.data[region.slices])
        return found[found > 0]

    def _region_of_parts(self) -> list[str]:
        assert self.scores is not None
        names = [""] * len(self.scores)
        for region in self.regions:
            for label in self.labels_in(region):
                names[label - 1] = region.name
        return names
