"""Paper grading (003) as one answer: which tumour, where it is, and whether the classifier looked there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from voxplain import segment
from voxplain.compute import Compute
from voxplain.errors import InputError
from voxplain.explain.cam import ClassActivationMap, GradCAM
from voxplain.explain.every_layer import every_layer
from voxplain.explain.explainer import in_evaluation, versions
from voxplain.explanation import Explanation
from voxplain.metrics.controls import edge_detector, random_map
from voxplain.metrics.localisation import (
    mass_inside,
    mass_on_empty_slices,
    peak_distance,
    peak_inside,
    place_of_evidence,
)
from voxplain.metrics.overlap import dice
from voxplain.model import Model
from voxplain.prediction import predict_classes
from voxplain.preparation import prepare
from voxplain.scan import Labels, Scan
from voxplain.target import PredictedClass, probabilities
from voxplain.tumour_regions import channels_of, regions_of

CONTROLS = ("random-map", "edge-detector")
SEGMENTED = "the segmented whole tumour"
AGREEMENT = ("map", "kind", "cells", "cell_mm", "mass_inside", "pointing", "dice", "peak_mm", "place")


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What two networks say of a scan, and how well they agree.

    Attributes:
        probabilities: that of every class, after the classifier's calibration.
        regions: the masks of the segmenter: WT, TC and ET, on the scan's grid.
        maps: the maps of the predicted class, by layer, first block first.
        agreement: a line per map, then the controls, which know nothing of the network; the columns `AGREEMENT`. It is
            beside the segmented whole tumour: share of the map's mass inside, pointing game, Dice of its Otsu mask, and
            distance from its peak in mm; `place` is "in", "beside", "away" or "" (cannot be said). Voxels of the head
            count.
        share: how much of the head the whole tumour takes.
        empty_slices: what the first map does on axial slices without tumour.
        provenance: both models, the scan, method, seed, versions.
    """

    probabilities: Mapping[str, float]
    regions: Mapping[str, Labels]
    maps: Mapping[str, Explanation]
    agreement: pd.DataFrame
    share: float
    empty_slices: Mapping[str, float]
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def predicted(self) -> str:
        """The class with the highest probability."""
        return max(self.probabilities, key=lambda name: self.probabilities[name])

    @property
    def sentence(self) -> str:
        """Where the classifier's evidence lies, by the first block's map, as paper grading has it."""
        first, segmented = self.agreement.iloc[0], self.provenance["compared_with"] == SEGMENTED
        if not self.share:
            nothing = "The segmenter finds no tumour" if segmented else "The mask that was given holds no tumour"
            return f"{nothing}: whether the classifier looked at one cannot be said."
        what = "segmented tumour" if segmented else "tumour that was given"
        if not first["place"]:
            return "The classifier's map is the same everywhere: where its evidence lies cannot be said."
        where = {"in": "in", "beside": "beside", "away": "away from"}[str(first["place"])]
        # A peak inside is enough for "in": a reader must not take that for all of the map.
        elsewhere = "; most of the map lies elsewhere" if where == "in" and first["mass_inside"] < 0.5 else ""
        return (
            f"The classifier's evidence lies {where} the {what}: {first['mass_inside']:.0%} of its map at "
            f"{first['map']} lie inside, which takes {self.share:.0%} of the head, and the map's peak is "
            f"{first['peak_mm']:.0f} mm from it{elsewhere}."
        )


def diagnose(
    classifier: Model,
    segmenter: Model,
    scan: Scan,
    *,
    explainer: ClassActivationMap | None = None,
    tumour: Labels | None = None,
    seed: int = 0,
    compute: Compute | None = None,
    progress: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Classify the tumour of a scan, segment it, and see where the classifier looked.

    Args:
        classifier: a network that says one of several classes of a whole scan (`voxplain train grading`).
        segmenter: a network that gives the parts of a tumour or its regions (`voxplain train segmentation`).
        scan: the scan, with the sequences of both.
        explainer: the method, whose layer is every block in turn; Grad-CAM by default.
        tumour: what maps are compared with in place of the segmented whole tumour, such as an expert mask.
        seed: of the random map.
        compute: how to run.
        progress: is told what is done next.

    Raises:
        InputError: a network that is not of that kind, or one that does not fit the scan.
    """
    compute, said = compute or Compute(), progress or (lambda words: None)
    check_classifier(classifier)
    channels_of(segmenter.card.classes)
    said("classifying")
    known = class_probabilities(classifier, scan, compute=compute)
    said("segmenting")
    found = predict_classes(segmenter, scan, compute=compute)
    masks = regions_of({name: one.probability for name, one in found.items()}, segmenter.card.threshold)
    regions = {name: Labels(mask.astype(np.int32), scan.grid) for name, mask in masks.items()}
    explainer = explainer or GradCAM()
    # The class of the highest calibrated score is that of the highest raw one.
    target = PredictedClass()
    maps: dict[str, Explanation] = {}
    for layer, why in every_layer(explainer, classifier, scan, target=target, seed=seed, compute=compute):
        said(f"explained {layer}")
        maps[layer] = why
    if not maps:
        raise InputError(f"no block of {classifier.card.name} has a grid of more than one cell: nothing to localise")
    where = regions["WT"] if tumour is None else Labels((tumour.data > 0).astype(np.int32), tumour.grid)
    foreground = scan.foreground()
    first = next(iter(maps.values()))
    provenance = {
        "classifier": {"name": classifier.card.name, "fingerprint": classifier.fingerprint},
        "segmenter": {"name": segmenter.card.name, "fingerprint": segmenter.fingerprint},
        "threshold": segmenter.card.threshold,
        "method": explainer.name,
        "compared_with": SEGMENTED if tumour is None else "a mask that was given",
        "scan": {"fingerprint": scan.fingerprint, "channels": list(scan.channels), "shape": list(scan.grid.shape)},
        "seed": seed,
        "compute": dataclasses.asdict(compute) | {"device": str(compute.torch_device)},
        "versions": versions(),
    }
    return Diagnosis(
        probabilities=known,
        regions=regions,
        maps=maps,
        agreement=agreement(maps, scan, where, seed=seed),
        share=float((where.data > 0)[foreground].mean()),
        empty_slices=mass_on_empty_slices(first.total, where.data > 0, inside=foreground, axis=scan.grid.axis("SI")),
        provenance=provenance,
    )


def check_classifier(model: Model) -> None:
    """Nothing, if a network says one of several classes of a whole volume.

    Raises:
        InputError: it does not.
    """
    card = model.card
    if card.activation != "softmax" or len(card.classes) < 2 or card.spatial_dims != 3 or card.region != "whole":
        raise InputError(
            f"the classifier says one of several classes (softmax) of whole volumes; {card.name} has "
            f"{len(card.classes)} classes ({card.activation}), {card.spatial_dims}D, region {card.region}"
        )
    if card.window is not None:
        raise InputError(f"{card.name} has a window: it segments; give it as the segmenter, and another classifier")


def class_probabilities(model: Model, scan: Scan, *, compute: Compute | None = None) -> dict[str, float]:
    """The probability of every class of a whole scan, after the card's calibration.

    Raises:
        InputError: model and scan do not fit each other, or the network gives a map.
    """
    compute = compute or Compute()
    (prepared,) = prepare(scan, model.card)
    with compute.running(), in_evaluation(model.network, compute.torch_device), torch.inference_mode():
        image = torch.from_numpy(prepared.input.data[None].copy()).to(compute.torch_device)
        output = model.network(image)
    if not isinstance(output, torch.Tensor) or output.ndim != 2 or output.shape[1] != len(model.card.classes):
        raise InputError(
            f"a classifier gives one score per class, {len(model.card.classes)} of them; {model.card.name} returns "
            f"{tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__}"
        )
    found = probabilities(model.card.calibrated(output.float()), model.card)[0].cpu().tolist()
    return dict(zip(model.card.classes, found, strict=True))


def agreement(maps: Mapping[str, Explanation], scan: Scan, tumour: Labels, *, seed: int = 0) -> pd.DataFrame:
    """How each map agrees with a tumour, and how two controls made after the first map do: columns `AGREEMENT`.

    Raises:
        InputError: a map or the tumour lies on another grid than the scan.
    """
    if difference := scan.grid.difference(tumour.grid):
        raise InputError(f"the tumour does not lie on the scan's grid: {difference}")
    first = next(iter(maps.values()))
    controls: dict[str, Explanation] = {
        CONTROLS[0]: random_map(scan, first, seed=seed),
        CONTROLS[1]: edge_detector(scan, first),
    }
    rows = []
    for name, why in {**maps, **controls}.items():
        facts: Mapping[str, Any] = {}
        if name in maps:
            (facts,) = why.provenance["facts"].values()
        cells = " x ".join(map(str, facts.get("layer_shape", ())))
        size = " x ".join(f"{step:.1f}" for step in facts.get("layer_grid_mm", ()))
        rows.append(
            {"map": name, "cells": cells, "cell_mm": size, "kind": "deployable"} | agreement_of(why, scan, tumour)
        )
    return pd.DataFrame(rows, columns=list(AGREEMENT))


def agreement_of(why: Explanation, scan: Scan, tumour: Labels) -> dict[str, Any]:
    """The figures of one map beside a tumour, over the voxels of the head."""
    foreground = scan.foreground()
    values, inside = np.where(foreground, why.total, 0), tumour.data > 0
    spacing = scan.grid.spacing
    mask = segment.otsu(why, everywhere=True, mask=Labels(foreground, scan.grid))
    return {
        "mass_inside": mass_inside(values, inside),
        "pointing": peak_inside(values, inside),
        "dice": dice(mask.data > 0, inside),
        "peak_mm": peak_distance(values, inside, spacing=spacing),
        "place": place_of_evidence(values, inside, inside=foreground, spacing=spacing) or "",
    }
