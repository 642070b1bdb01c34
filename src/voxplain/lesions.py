"""Lesion instances: one number per lesion, right or wrong beside a reference, and a table of all of them.

A lesion is a connected component with 18 neighbours (voxels that share a face or an edge) of at least `smallest` mm^3
(004, section 2.3). Lesions are numbered from 1, the largest first; of equal ones the one whose first voxel comes first
(by X, then Y, then Z).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import ndimage

from voxplain.errors import InputError
from voxplain.grid import Grid
from voxplain.scan import Labels

SMALLEST_MM3 = 5.0
# What every table of lesions has; `volume_mm3` to `z_mm` are of the whole lesion, probabilities over its voxels.
COLUMNS = ("lesion", "kind", "volume_mm3", "x_mm", "y_mm", "z_mm", "mean_probability", "max_probability")
NEIGHBOURS_18 = ndimage.generate_binary_structure(3, 2)
_NEIGHBOURS_26 = ndimage.generate_binary_structure(3, 3)


@dataclass(frozen=True, eq=False)
class Lesions:
    """The lesions of one scan: a number in every voxel, and a line for every number.

    Attributes:
        labels: (X, Y, Z), 0 outside of lesions; predicted lesions come first, then those that were missed.
        table: one line per lesion, by number, with the columns of `COLUMNS`. `kind` is "TP", "FP" or "FN", and ""
            where there is no reference; a probability is NaN where there is none.
    """

    labels: Labels
    table: pd.DataFrame

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of all lesions, in order."""
        return tuple(int(number) for number in self.table["lesion"])

    @property
    def predicted(self) -> Labels:
        """The labels of the predicted lesions alone, without those that were missed."""
        missed = self.table.loc[self.table["kind"] == "FN", "lesion"].to_numpy()
        return Labels(np.where(np.isin(self.labels.data, missed), 0, self.labels.data), self.labels.grid)

    def check(self, number: int) -> None:
        """Raise InputError, with the numbers that do exist, when there is no lesion of this number."""
        if number not in self.numbers:
            raise InputError(f"there is no lesion {number}; {_in_words(self.numbers)}")


def find_lesions(
    mask: Labels,
    *,
    probability: np.ndarray | None = None,
    reference: Labels | None = None,
    smallest: float = SMALLEST_MM3,
) -> Lesions:
    """The lesions of a predicted mask, and beside a reference which of them are right and what was missed.

    A predicted lesion is a true positive (TP) when at least one voxel of it lies in the reference, else a false
    positive (FP). A lesion of the reference that no predicted lesion touches is a false negative (FN); it gets a number
    after the predicted ones, in the same labels, so that it can be explained, too.

    Args:
        mask: the predicted mask (X, Y, Z); everything above 0 is lesion.
        probability: (X, Y, Z) on the same grid, for the table.
        reference: the expert's mask on the same grid, of any labels; everything above 0 is lesion.
        smallest: volume in mm^3, of the reference's lesions too, below which a component is none.

    Raises:
        InputError: `smallest` is no volume, or images lie on different grids.
    """
    grid = mask.grid
    if probability is not None and probability.shape != grid.shape:
        raise InputError(f"expected a probability for each of {grid.shape} voxels; got {probability.shape}")
    labels = instances(mask, smallest=smallest).data
    kinds = [""] * int(labels.max())
    if reference is not None:
        if difference := grid.difference(reference.grid):
            raise InputError(
                f"the reference lies on another grid than the scan: {difference}; give it on the scan's grid"
            )
        right = np.unique(labels[reference.data > 0])
        kinds = ["TP" if number in right else "FP" for number in range(1, len(kinds) + 1)]
        theirs = instances(reference, smallest=smallest).data
        found = np.unique(theirs[labels > 0])
        missed = np.setdiff1d(np.arange(1, int(theirs.max()) + 1), found)
        renumbered = np.zeros(int(theirs.max()) + 1, dtype=labels.dtype)
        renumbered[missed] = len(kinds) + 1 + np.arange(len(missed))
        labels = np.where(labels > 0, labels, renumbered[theirs])
        kinds += ["FN"] * len(missed)
    whole = Labels(labels, grid)
    return Lesions(whole, _table(whole, kinds, probability))


def instances(mask: Labels, *, smallest: float = SMALLEST_MM3) -> Labels:
    """The lesions of a mask (X, Y, Z), of which everything above 0 is lesion, as labels 1 to N.

    Args:
        mask: which voxels are lesion.
        smallest: components below this volume, in mm^3, are none.

    Raises:
        InputError: `smallest` is no volume.
    """
    if not 0 <= smallest < math.inf:
        raise InputError(f"smallest is a volume in mm^3, at least 0; got {smallest}")
    pieces, count = ndimage.label(mask.data > 0, structure=NEIGHBOURS_18)
    where = np.flatnonzero(pieces)
    numbers, first = np.unique(pieces.ravel()[where], return_index=True)
    sizes = np.bincount(pieces.ravel()[where], minlength=count + 1)[numbers]
    order = np.lexsort((where[first], -sizes))
    # A voxel of 1 mm whose affine was rounded may measure 0.9999999 mm^3.
    order = order[sizes[order] * mask.grid.voxel_volume >= smallest * (1 - 1e-6)]
    renumbered = np.zeros(count + 1, dtype=np.int32)
    renumbered[numbers[order]] = np.arange(1, len(order) + 1)
    return Labels(renumbered[pieces], mask.grid)


def true_negatives(
    brain: Labels,
    prediction: Labels,
    reference: Labels | None = None,
    *,
    count: int = 10,
    volume: float = 93.0,
    seed: int = 0,
) -> Labels:
    """Spheres at random places of the brain where there is no lesion, as labels 1 to `count` (004, section 2.5).

    A sphere is the whole shells of voxels around one of them that come nearest to the volume (93 of 1 mm^3). It lies
    inside the brain and touches neither mask, nor another sphere. Where there is no room for more, fewer are made, with
    a warning.

    Args:
        brain: where spheres may lie; everything above 0.
        prediction: the predicted mask; everything above 0.
        reference: the expert's mask, where there is one; everything above 0.
        count: how many spheres, at least 1.
        volume: of each, in mm^3.
        seed: of the places.

    Raises:
        InputError: images lie on different grids, `count` or `volume` is not above 0, or nowhere is room for one.
    """
    grid = brain.grid
    if count < 1 or not 0 < volume < math.inf:
        raise InputError(f"count is at least 1 and volume above 0 mm^3; got {count} and {volume}")
    masks = {"prediction": prediction} | ({} if reference is None else {"reference": reference})
    for name, mask in masks.items():
        if difference := grid.difference(mask.grid):
            raise InputError(f"the {name} lies on another grid than the brain: {difference}; give both on one grid")
    offsets = _sphere(grid, volume)
    radius = float(np.linalg.norm(offsets * grid.spacing, axis=1).max())
    lesion = np.logical_or.reduce([mask.data > 0 for mask in masks.values()])
    free = (brain.data > 0) & ~ndimage.binary_dilation(lesion, _NEIGHBOURS_26)
    # A voxel's sphere is free when the nearest voxel that is not lies further away than the sphere reaches.
    room = ndimage.distance_transform_edt(np.pad(free, 1), sampling=grid.spacing)[1:-1, 1:-1, 1:-1]
    centres = np.argwhere(room > radius * (1 + 1e-9))
    if not len(centres):
        raise InputError(f"there is no room for a sphere of {volume:.4g} mm^3 in the brain away from all lesions")
    rng = np.random.default_rng(seed)
    apart = 2 * radius + float(np.linalg.norm(grid.spacing))
    found = np.zeros(grid.shape, dtype=np.int32)
    for number in range(1, count + 1):
        if not len(centres):
            warnings.warn(
                f"there is room for {number - 1} of {count} spheres of {volume:.4g} mm^3 away from all lesions",
                UserWarning,
                stacklevel=2,
            )
            break
        centre = centres[rng.integers(len(centres))]
        found[tuple((centre + offsets).T)] = number
        centres = centres[np.linalg.norm((centres - centre) * grid.spacing, axis=1) > apart]
    return Labels(found, grid)


def _sphere(grid: Grid, volume: float) -> np.ndarray:
    """Offsets (n, 3) of the voxels of a sphere: shells of one distance, until the volume is met as closely as can."""
    reach = [math.ceil(1.5 * (3 * volume / (4 * math.pi)) ** (1 / 3) / size) for size in grid.spacing]
    offsets = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1).reshape(-1, 3)
    away = np.round(((offsets * grid.spacing) ** 2).sum(axis=1), 6)
    shells, counts = np.unique(away, return_counts=True)
    volumes = np.cumsum(counts) * grid.voxel_volume
    return offsets[away <= shells[int(np.argmin(np.abs(volumes - volume)))]]


def _table(labels: Labels, kinds: list[str], probability: np.ndarray | None) -> pd.DataFrame:
    grid, count = labels.grid, len(kinds)
    where = np.nonzero(labels.data)
    numbers = labels.data[where]

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(numbers, weights=values, minlength=count + 1)[1:] / np.maximum(sizes, 1)

    sizes = np.bincount(numbers, minlength=count + 1)[1:]
    centres = grid.world(np.stack([mean(axis) for axis in where], axis=1))
    means, highest = np.full(count, np.nan), np.full(count, np.nan)
    if probability is not None:
        values = probability[where].astype(np.float64)
        means, highest = mean(values), np.full(count, -np.inf)
        np.maximum.at(highest, numbers - 1, values)
    columns = (np.arange(1, count + 1), kinds, np.round(sizes * grid.voxel_volume, 6), *centres.T, means, highest)
    table = pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))
    return table.astype({"lesion": int, "kind": object})


def _in_words(numbers: tuple[int, ...]) -> str:
    """Which lesions there are; numbers run from 1 without gaps."""
    if not numbers:
        return "no lesion was found"
    return f"there are lesions {numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else "there is lesion 1 alone"
