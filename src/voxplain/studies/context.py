"""How much of what lies around a lesion the network needs to find it (paper instance, 004, sections 2.5 and 3.5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from voxplain.compute import Compute
from voxplain.datasets.made_lesions import paint_lesions
from voxplain.io.nifti import read_labels
from voxplain.lesions import instances
from voxplain.model import Model
from voxplain.preparation import Prepared
from voxplain.scan import Labels, Scan
from voxplain.studies.instance_patients import chosen
from voxplain.studies.region_scores import WHOLE, probability_within

COLUMNS = ("case", "set", "lesion", "volume_mm3", "mm", "mean_probability", "max_probability", "detected")
# 004 took lesions of 90 to 120 mm^3; of real ones that holds hardly any here.
REAL_MM3, MADE_MM3 = (30.0, 300.0), (90.0, 120.0)
REAL, MADE = "real, 30-300 mm3", "made, 90-120 mm3"
_LEVEL = 0.02


@dataclass(frozen=True, eq=False)
class MadeLesion:
    """One painted lesion: the scan that holds it, where, and the volume in mm^3."""

    scan: Scan
    region: Labels
    volume: float


@dataclass(frozen=True)
class Summary:
    """A set of lesions: how many, how many of them are found with the whole scan, and from what distance in mm on.

    `appear_90` and `appear_all` are the first mm from which on 90 % and all of `found` stay detected, `levels_off` that
    from which on the mean score stays within 0.02 of its value at the largest distance; NaN where there is none.
    """

    n: int
    found: int
    appear_90: float
    appear_all: float
    levels_off: float


def context_lines(
    model: Model, prepared: Prepared, region: np.ndarray, *, name: str, distances: Sequence[float], compute: Compute
) -> list[dict[str, float]]:
    """One lesion's mean and highest probability by the distance in mm that is shown around it, and with everything.

    `region` is boolean (X, Y, Z) on the network's input; a lesion is detected where one voxel of it reaches the card's
    threshold. The last line, of distance infinity, is the plain prediction.
    """
    shown = [*distances, WHOLE]
    found = probability_within(model, prepared, region, name=name, distances=shown, compute=compute)
    return [
        {
            "mm": float(distance),
            "mean_probability": float(values.mean()),
            "max_probability": float(values.max()),
            "detected": float(values.max() >= model.card.threshold),
        }
        for distance, values in zip(shown, found, strict=True)
    ]


def real_lesions(table: pd.DataFrame, *, most: int, seed: int) -> list[int]:
    """Numbers of the TP of 30 to 300 mm^3, at most so many, drawn at random."""
    low, high = REAL_MM3
    return chosen(table[table["volume_mm3"].between(low, high)], most=most, seed=seed, kinds=("TP",))


def made_lesions(
    scan: Scan, known: Labels, shapes: Sequence[Path], *, most: int, seed: int, masks: int = 6
) -> Iterator[MadeLesion]:
    """Lesions of 90 to 120 mm^3, painted into healthy tissue of a scan: shapes and places of other patients' masks.

    Those of one mask are painted together; what of one falls away (outside the brain, near a known lesion) must leave
    it in the band. `masks` of the shapes are tried at most, in an order drawn from the seed.

    Args:
        scan: with flair and t1, not normalised.
        known: lesions that the scan has, on its grid.
        shapes: files of masks in the same space.
        most: how many lesions at most.
        seed: of order and painting.
        masks: how many files are read at most.
    """
    random = np.random.default_rng(seed)
    low, high = MADE_MM3
    count = 0
    for file in random.permutation(len(shapes))[:masks].tolist():
        if count >= most:
            return
        its_seed = int(random.integers(2**31))
        candidates = instances(read_labels(shapes[file]).on(scan.grid))
        sizes = np.bincount(candidates.data.ravel()) * scan.grid.voxel_volume
        fitting = np.flatnonzero((sizes >= low) & (sizes <= high) & (np.arange(len(sizes)) > 0))
        if not len(fitting):
            continue
        wanted = Labels(np.isin(candidates.data, fitting), scan.grid)
        painted, mask = paint_lesions(scan, wanted, seed=its_seed, known=known)
        made = instances(Labels((mask.data > 0) & (known.data == 0), scan.grid))
        volumes = np.bincount(made.data.ravel())[1:] * scan.grid.voxel_volume
        for number, volume in enumerate(volumes.tolist(), start=1):
            if low <= volume <= high and count < most:
                count += 1
                yield MadeLesion(painted, Labels(made.data == number, scan.grid), volume)


def table_of(lines: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Lines of `context.tsv` as a table, numbers as numbers even where there is no line."""
    table = pd.DataFrame(lines, columns=list(COLUMNS))
    return table.astype({name: float for name in COLUMNS[3:]} | {"lesion": int, "case": object, "set": object})


def curve(lines: pd.DataFrame) -> pd.DataFrame:
    """Of a set of lesions, by mm: n, mean of the mean probabilities, their standard deviation over lesions, detected.

    The standard deviation is that of the sample, NaN of one lesion.
    """
    found = lines.groupby("mm", sort=True).agg(
        n=("mean_probability", "size"),
        mean=("mean_probability", "mean"),
        sd=("mean_probability", "std"),
        detected=("detected", "sum"),
    )
    return found.reset_index()


def summed_up(lines: pd.DataFrame) -> Summary:
    """What the curves of a set of lesions come to; all NaN where there is no lesion."""
    whole = lines[np.isinf(lines["mm"])]
    shown = lines[~np.isinf(lines["mm"])]
    right = whole.loc[whole["detected"] > 0, ["case", "lesion"]]
    if shown.empty:
        return Summary(len(whole), len(right), np.nan, np.nan, np.nan)
    means = curve(shown)
    close = (means["mean"] - means["mean"].iloc[-1]).abs() <= _LEVEL
    among = shown.merge(right, on=["case", "lesion"])
    shares = among.groupby("mm", sort=True)["detected"].mean()
    return Summary(
        len(whole),
        len(right),
        _from_which_on(shares.index.to_numpy(), (shares >= 0.9 - 1e-9).to_numpy()),
        _from_which_on(shares.index.to_numpy(), (shares >= 1).to_numpy()),
        _from_which_on(means["mm"].to_numpy(), close.to_numpy()),
    )


def _from_which_on(distances: np.ndarray, holds: np.ndarray) -> float:
    """The first distance from which on something holds to the end; NaN where it does not hold there."""
    if not len(holds) or not holds[-1]:
        return np.nan
    broken = np.flatnonzero(~holds)
    return float(distances[broken[-1] + 1 if len(broken) else 0])
