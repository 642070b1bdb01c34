"""What a segmentation network says of a whole scan, on the scan's own grid, and its lesions on disk."""

from __future__ import annotations

import dataclasses
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from voxplain.compute import Compute
from voxplain.engine.windows import Tiling, stitched_prediction
from voxplain.errors import InputError
from voxplain.explain.explainer import in_evaluation, versions
from voxplain.grid import Grid, resample
from voxplain.io.atomic import output_folder, read_json, write_json, writing
from voxplain.io.nifti import read_labels, read_map, save
from voxplain.lesions import COLUMNS, Lesions
from voxplain.model import Card, Model
from voxplain.preparation import prepare
from voxplain.scan import Labels, Scan
from voxplain.target import probabilities

LABELS, TABLE = "lesions.nii.gz", "lesions.tsv"
# What of a card says how raw scores become probabilities on the scan's grid; its weights are the model's fingerprint.
_DECIDES = (
    *("channels", "classes", "activation", "calibration", "spacing", "orientation", "normalisation", "shape"),
    *("region", "window", "overlap", "skull_stripped", "fit"),
)


@dataclass(frozen=True, eq=False)
class Prediction:
    """The probability of one class in every voxel of a scan.

    Attributes:
        probability: (X, Y, Z) float32, 0 to 1, after the card's calibration; 0 where the network does not look.
        grid: the scan's own.
        name: the class.
        provenance: model, scan, passes, seconds, preparation, versions, warnings.
    """

    probability: np.ndarray
    grid: Grid
    name: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def mask(self, threshold: float) -> Labels:
        """Where the probability reaches a threshold, as labels 0 and 1.

        Raises:
            InputError: the threshold is not between 0 and 1.
        """
        if not 0 < threshold < 1:
            raise InputError(f"a threshold is a probability between 0 and 1; got {threshold}")
        return Labels(self.probability >= threshold, self.grid)


def predict(model: Model, scan: Scan, *, name: str | None = None, compute: Compute | None = None) -> Prediction:
    """Segment a scan: the probability of one class in every voxel, brought back to the scan's own grid.

    A network whose card has a window reads the scan window by window, blended; any other reads it at once.

    Args:
        model: a 3D network that gives a map per class.
        scan: the scan, on any grid; the card's orientation and spacing are seen to, and undone.
        name: the class; by default the only one that is not among the card's `absent`.
        compute: how to run.

    Raises:
        InputError: model and scan do not fit each other, there is no such class or more than one to choose from, or
            the network gives one score per class and no map.
    """
    return _predicted(model, scan, (segmented_class(model.card, name),), compute or Compute())[0]


def predict_classes(model: Model, scan: Scan, *, compute: Compute | None = None) -> dict[str, Prediction]:
    """The probability of every class in every voxel, by the names of the classes; the network runs once.

    Arguments and errors as of `predict`.
    """
    found = _predicted(model, scan, model.card.classes, compute or Compute())
    return {prediction.name: prediction for prediction in found}


def _predicted(model: Model, scan: Scan, names: Sequence[str], compute: Compute) -> list[Prediction]:
    card, started = model.card, time.perf_counter()
    probability = np.zeros((len(names), *scan.grid.shape), dtype=np.float32)
    passes = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        regions = prepare(scan, card)
    with compute.running(), in_evaluation(model.network, compute.torch_device):
        for prepared in regions:
            scores = torch.from_numpy(stitched_prediction(model, prepared, compute))[None]
            maps = probabilities(card.calibrated(scores), card)[0].float().numpy()
            passes += len(Tiling.of(card, prepared.input.grid.shape).boxes)
            box = tuple(slice(start, stop) for start, stop in prepared.box)
            there = scan.grid.window([start for start, _ in prepared.box], [b - a for a, b in prepared.box])
            for its, name in zip(probability, names, strict=True):
                its[box] = resample(maps[card.classes.index(name)], prepared.map_grid, there)
    said = [str(warning.message) for warning in caught]
    for message in said:
        warnings.warn(message, UserWarning, stacklevel=3)
    provenance = {
        "model": {"name": card.name, "fingerprint": model.fingerprint},
        "card": deciding(card),
        "scan": {"fingerprint": scan.fingerprint, "channels": list(scan.channels), "shape": list(scan.grid.shape)},
        "compute": dataclasses.asdict(compute) | {"device": str(compute.torch_device)},
        "passes": {"forward": passes},
        "seconds": round(time.perf_counter() - started, 3),
        "preparation": dict(regions[0].record),
        "warnings": said,
        "versions": versions(),
    }
    probability.setflags(write=False)
    return [
        Prediction(values, scan.grid, name, {"class": name} | provenance)
        for values, name in zip(probability, names, strict=True)
    ]


def segmented_class(card: Card, name: str | None = None) -> str:
    """The class that a segmentation network looks for: the one that is named, else the only one that is not `absent`.

    Raises:
        InputError: no such class, or not exactly one to choose from.
    """
    if name is not None:
        if name not in card.classes:
            raise InputError(f"the model has no class {name!r}; it has {', '.join(card.classes)}")
        return name
    present = [each for each in card.classes if each not in card.absent]
    if len(present) != 1:
        raise InputError(
            f"the model has the classes {', '.join(card.classes)}, of which {len(present)} say that something is "
            "there; name the one to segment (--target on the command line), or list the others in the card's absent"
        )
    return present[0]


def write_prediction(
    prediction: Prediction, lesions: Lesions, folder: str | Path, *, facts: Mapping[str, Any]
) -> dict[str, Path]:
    """Write `probability.nii.gz`, `lesions.nii.gz`, `lesions.tsv` and the provenance `prediction.json`.

    `facts` join the provenance: threshold, smallest volume, the scan's files, whether it was seen in training.

    Returns:
        The paths, by what they hold.
    """
    folder = output_folder(folder)
    paths = {"probability": folder / "probability.nii.gz", "provenance": folder / "prediction.json"}
    save(Scan(prediction.probability[None], prediction.grid, ("probability",)), paths["probability"])
    write_json(json.loads(json.dumps({**prediction.provenance, **facts}, default=str)), paths["provenance"])
    paths |= {"lesions": folder / LABELS, "table": folder / TABLE}
    save(lesions.labels, paths["lesions"])
    write_table(lesions.table, paths["table"])
    return paths


def read_prediction(folder: str | Path, model: Model, scan: Scan, name: str) -> Prediction | None:
    """What `write_prediction` left of this very model, scan and class; None where the folder holds no such thing."""
    folder = Path(folder)
    try:
        content = read_json(folder / "prediction.json")
    except ValueError:
        return None
    path = folder / "probability.nii.gz"
    if content is None or not path.is_file():
        return None
    asked = {
        "model": {"name": model.card.name, "fingerprint": model.fingerprint},
        "card": json.loads(json.dumps(deciding(model.card))),
        "class": name,
    }
    stated = {key: content.get(key) for key in asked}
    its_scan = content.get("scan") or {}
    if stated != asked or its_scan.get("fingerprint") != scan.fingerprint:
        return None
    values, grid = read_map(path)
    if len(values) != 1 or scan.grid.difference(grid) or not np.isfinite(values).all():
        return None
    return Prediction(values[0], scan.grid, name, content)


def with_peaks(table: pd.DataFrame, peaks: Mapping[int, Mapping[str, float]]) -> pd.DataFrame:
    """A table of lesions with a column `peak_CHANNEL` for each map; NaN where a lesion was not explained."""
    table = table.copy()
    for channel in dict.fromkeys(channel for known in peaks.values() for channel in known):
        table[f"peak_{channel}"] = [peaks.get(number, {}).get(channel, np.nan) for number in table["lesion"]]
    return table


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table of lesions, six digits to a number."""
    with writing(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False, float_format="%.6g")


def read_lesions(folder: str | Path, grid: Grid) -> Lesions:
    """The lesions that `write_prediction` left in a folder, on the scan's grid, with all columns of their table.

    Raises:
        InputError: a file is missing or damaged, they lie on another grid, or table and labels do not belong together.
    """
    folder = Path(folder)
    again = f"run `voxplain predict ... --out {folder}`, or explain, again"
    labels = read_labels(folder / LABELS)
    if difference := grid.difference(labels.grid):
        raise InputError(f"{folder / LABELS} lies on another grid than the scan: {difference}; {again}")
    path = folder / TABLE
    try:
        table = pd.read_csv(path, sep="\t").fillna({"kind": ""})
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is missing or damaged ({' '.join(str(error).split())[:80]}); {again}") from error
    if not set(COLUMNS) <= set(table.columns) or table["lesion"].tolist() != list(range(1, int(labels.data.max()) + 1)):
        raise InputError(f"{path} does not name each of the lesions of {LABELS} once; {again}")
    return Lesions(Labels(labels.data, grid), table.astype({"kind": object}))


def deciding(card: Card) -> dict[str, Any]:
    """What of a card decides on scores in a scan, as plain data; the weights are the model's fingerprint."""
    whole = card.to_dict()
    return {key: whole[key] for key in _DECIDES if key in whole}
