"""One patient of the instance study: scan, prediction, and the lesions of all four classes, TN spheres among them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from voxplain.compute import Compute
from voxplain.datasets.case import Case
from voxplain.errors import InputError
from voxplain.lesions import SMALLEST_MM3, Lesions, find_lesions, true_negatives
from voxplain.model import Card, Model
from voxplain.prediction import Prediction, predict, read_prediction, segmented_class, write_prediction
from voxplain.preparation import Prepared, prepare
from voxplain.scan import Labels, Scan

CLASSES = ("TP", "FP", "FN", "TN")


@dataclass(frozen=True, eq=False)
class Patient:
    """A patient, the network that explains, and what it predicted.

    `lesions` are TP, FP, FN and TN, by number; `seen` says whether the network was trained on this patient, and `made`
    whether the scan is.
    """

    id: str
    scan: Scan
    reference: Labels
    model: Model
    prediction: Prediction
    lesions: Lesions
    seen: bool
    made: bool

    @property
    def kind(self) -> str:
        """The kind of figures of this patient: the expert's mask tells the classes apart, and chooses nothing."""
        return "seen" if self.seen else "deployable"

    @property
    def ill(self) -> np.ndarray:
        """Where the expert or the network sees a lesion, boolean (X, Y, Z)."""
        marked: np.ndarray = self.reference.data > 0
        return marked | (self.prediction.mask(self.model.card.threshold).data > 0)

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each class."""
        return {name: int((self.lesions.table["kind"] == name).sum()) for name in CLASSES}


def check_readable(card: Card) -> None:
    """Raise InputError where the card's network does not segment whole volumes."""
    segmented_class(card)
    if card.spatial_dims != 3 or card.region != "whole":
        raise InputError(
            "the experiments are on 3D networks that read whole volumes; this card says spatial_dims "
            f"{card.spatial_dims} and region {card.region}: use a segmentation network such as ms-lesions"
        )


def prepared_of(scan: Scan, card: Card) -> Prepared:
    """The network's input: the one region of a card that `check_readable` lets pass."""
    with warnings.catch_warnings():
        # Said already when the scan was predicted.
        warnings.simplefilter("ignore", UserWarning)
        (found,) = prepare(scan, card)
    return found


def read_patient(case: Case, model: Model, out: Path, *, made: bool, seed: int, compute: Compute) -> Patient:
    """Read a patient, predict unless `out/ID/prediction` holds this very prediction, and class the lesions.

    True negatives are ten spheres of 93 mm^3 inside the brain, away from prediction and mask (004, 2.5); where there is
    no room for any, there are none, with a warning.

    Raises:
        InputError: a sequence or the mask is missing or broken.
    """
    check_readable(model.card)
    scan = case.scan(model.card.channels)
    reference = Labels(case.tumour().data, scan.grid)
    name = segmented_class(model.card)
    folder = out / case.id / "prediction"
    known = read_prediction(folder, model, scan, name)
    prediction = known or predict(model, scan, name=name, compute=compute)
    mask = prediction.mask(model.card.threshold)
    found = find_lesions(mask, probability=prediction.probability, reference=reference)
    seen = case.id in model.card.training_ids
    if known is None:
        facts = {"threshold": model.card.threshold, "smallest_mm3": SMALLEST_MM3, "seen": seen}
        write_prediction(prediction, found, folder, facts=facts)
    lesions = with_spheres(found, _spheres(scan, mask, reference, case.id, seed), prediction.probability)
    return Patient(case.id, scan, reference, model, prediction, lesions, seen, made)


def _spheres(scan: Scan, mask: Labels, reference: Labels, name: str, seed: int) -> Labels:
    brain = Labels(scan.foreground(), scan.grid)
    try:
        return true_negatives(brain, mask, reference, seed=seed)
    except InputError as error:
        warnings.warn(f"{name} has no TN volumes: {error}", UserWarning, stacklevel=3)
        return Labels(np.zeros(scan.grid.shape, dtype=np.int32), scan.grid)


def with_spheres(lesions: Lesions, spheres: Labels, probability: np.ndarray) -> Lesions:
    """Lesions with the spheres (labels 1 to N that touch none of them) after them, of kind TN."""
    last, count = max(lesions.numbers, default=0), int(spheres.data.max())
    if not count:
        return lesions
    numbers = np.arange(1, count + 1)
    grid = spheres.grid
    centres = grid.world(np.array(ndimage.center_of_mass(spheres.data > 0, spheres.data, numbers)).reshape(-1, 3))
    table = pd.DataFrame(
        {
            "lesion": last + numbers,
            "kind": "TN",
            "volume_mm3": np.round(np.bincount(spheres.data.ravel())[1:] * grid.voxel_volume, 6),
            **{f"{axis}_mm": centres[:, place] for place, axis in enumerate("xyz")},
            "mean_probability": ndimage.mean(probability, spheres.data, numbers),
            "max_probability": ndimage.maximum(probability, spheres.data, numbers),
        }
    )
    data = np.where(spheres.data > 0, spheres.data + last, lesions.labels.data)
    whole = table if lesions.table.empty else pd.concat([lesions.table, table], ignore_index=True)
    return Lesions(Labels(data, grid), whole)


def without_spheres(lesions: Lesions) -> Lesions:
    """The lesions that a network or an expert marked: all but the spheres, which have no part in detection."""
    spheres = lesions.table.loc[lesions.table["kind"] == "TN", "lesion"].to_numpy()
    data = np.where(np.isin(lesions.labels.data, spheres), 0, lesions.labels.data)
    table = lesions.table[lesions.table["kind"] != "TN"].reset_index(drop=True)
    return Lesions(Labels(data, lesions.labels.grid), table)


def chosen(table: pd.DataFrame, *, most: int | None, seed: int, kinds: tuple[str, ...] = CLASSES) -> list[int]:
    """The numbers of the lesions of these classes, of each at most so many, drawn at random; sorted."""
    random = np.random.default_rng(seed)
    found: list[int] = []
    for kind in kinds:
        numbers = table.loc[table["kind"] == kind, "lesion"].to_numpy()
        if most is not None and len(numbers) > most:
            numbers = random.choice(numbers, most, replace=False)
        found += [int(number) for number in numbers]
    return sorted(found)
