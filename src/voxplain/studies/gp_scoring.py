"""How well paper gp's networks classify slices, and how well their maps show the tumour (002, 2.4).

Two tables, one line per slice each: what was predicted, and the Dice of every way to make a mask. A slice with tumour
whose class is predicted as tumour-free has no mask, and counts 0; on a slice without tumour a mask has no Dice, and its
area is what counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from scipy.special import softmax

from voxplain import refine, segment
from voxplain.compute import Compute
from voxplain.engine.progress import tracked
from voxplain.explain.evidence import HeatMap
from voxplain.explanation import Explanation, Region
from voxplain.metrics.network_free import network_free_masks
from voxplain.metrics.overlap import dice
from voxplain.model import Card, Model
from voxplain.preparation import prepare
from voxplain.scan import Labels, Scan
from voxplain.studies.gp_data import LabelledSlice, Stack
from voxplain.studies.gp_training import scores_of
from voxplain.studies.slice_rows import network_free_slice_masks
from voxplain.target import ClassScore, PredictedClass

# Subtracted from the top multi-Otsu threshold, in logit; the paper's are 0.1, 0.3 and 1.6 (002, figure 6).
OFFSETS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.6, 2.0, 3.0)
OFFSET_ROW = "heat-map/multi-otsu-offset"
# Of the Gaussian over neighbouring slices, in slices.
NEIGHBOURS_SIGMA = 1.5
_CHANCE_MM = 8.0
# Past the paper; borders by intensities begin from the last one.
_OURS = {
    "heat-map, mirrored": HeatMap(mirrored=True),
    "log-odds": HeatMap(show="log-odds"),
    "log-odds, mirrored": HeatMap(show="log-odds", mirrored=True),
}
# What a table of kept lines must agree in.
RULES = (*_OURS, *map(str, OFFSETS))


def localisation(
    model: Model,
    stacks: Sequence[Stack],
    *,
    kind: str,
    offsets_only: bool = False,
    seed: int = 0,
    compute: Compute,
    title: str = "explaining",
) -> pd.DataFrame:
    """Dice and area of every mask of every slice: columns stack, group, slice, label, predicted, row, kind, dice, area.

    `kind` is "deployable", or "seen" where the network was trained on these slices; `offsets_only` leaves out all rows
    but those among which an offset is chosen. `area` is in mm^2 (pixels where an image does not say how large they
    are).
    """
    lines: list[dict[str, Any]] = []
    quiet = dataclasses.replace(compute, progress=False)
    shown = [name for name in model.card.classes if name not in model.card.absent]
    # Where only one class can be shown its map is asked for in every slice, so that neighbours can be listened to.
    target = ClassScore(shown[0]) if len(shown) == 1 and len(model.card.classes) == 2 else PredictedClass()
    for stack in tracked(stacks, title, shown=compute.progress):
        scan, truth = stack.scan(), stack.mask().data > 0
        foreground = Labels(scan.foreground(), scan.grid)
        why = HeatMap()(model, scan, target=target, seed=seed, compute=quiet)
        masks: dict[str, np.ndarray] = {}
        if not offsets_only:
            added = HeatMap(show="contributions")(model, scan, target=target, seed=seed, compute=quiet)
            masks = _masks(why, added, foreground)
            for name, method in _OURS.items():
                found = method(model, scan, target=target, seed=seed, compute=quiet)
                masks[f"{name}/otsu"] = segment.otsu(found, mask=foreground).data > 0
            masks |= _refined(found, scan, seed)
            if isinstance(target, ClassScore):
                masks["heat-map/otsu, neighbours"] = _with_neighbours(why, foreground)
        for region in why.regions:
            its = truth[region.slices]
            facts = _facts(stack, region.name, its, model.card.classes)
            facts["predicted"] = _predicted(why, region, model.card)
            pixel = _pixel_area(scan)
            lines += [facts | _line(row, kind, mask[region.slices], its, pixel) for row, mask in masks.items()]
            for offset, mask in zip(OFFSETS, _offsets(why, region, foreground), strict=True):
                lines.append(facts | _line(f"{OFFSET_ROW}={offset:g}", kind, mask, its, pixel))
    return pd.DataFrame(lines)


def plain_localisation(
    stacks: Sequence[Stack], card: Card, *, seed: int = 0, compute: Compute, title: str = "without a network"
) -> pd.DataFrame:
    """The same lines for what needs no network, on the slices that a network with this card would judge."""
    lines: list[dict[str, Any]] = []
    for number, stack in enumerate(tracked(stacks, title, shown=compute.progress)):
        scan, truth = stack.scan(), stack.mask().data > 0
        plain = _plain(scan, seed + 1000 * number)
        for prepared in prepare(scan, card):
            box = tuple(slice(start, stop) for start, stop in prepared.box)
            facts = _facts(stack, prepared.name, truth[box], card.classes) | {"predicted": ""}
            lines += [
                facts | _line(row, "plain", mask[box], truth[box], _pixel_area(scan)) for row, mask in plain.items()
            ]
    return pd.DataFrame(lines)


def with_chosen_offsets(test: pd.DataFrame, validation: pd.DataFrame) -> pd.DataFrame:
    """The lines of one fold with one row per way of choosing the offset instead of one per offset.

    0 is deployable; the one with the highest median Dice on the validation slices is "validation-masks", on the test
    slices themselves "oracle" ("seen" where the network has seen them). Of equal medians the smallest offset is taken.
    """
    kept = test[~test.row.str.startswith(OFFSET_ROW)]
    if kept.empty or not test.row.str.startswith(OFFSET_ROW).any():
        return test
    found = [kept]
    seen = bool((test.kind == "seen").any())
    for kind, judged in (("validation-masks", validation), ("oracle", test)):
        medians = [_median(judged, f"{OFFSET_ROW}={offset:g}") for offset in OFFSETS]
        if np.isnan(medians).all():
            continue
        best = OFFSETS[int(np.nanargmax(medians))]
        chosen = test[test.row == f"{OFFSET_ROW}={best:g}"].copy()
        chosen["row"], chosen["kind"], chosen["offset"] = OFFSET_ROW, "seen" if seen else kind, best
        found.append(chosen)
    return pd.concat(found, ignore_index=True)


def _median(lines: pd.DataFrame, row: str) -> float:
    if lines.empty:
        return np.nan
    return float(lines[(lines.row == row) & lines.dice.notna()].dice.median())


def _masks(why: Explanation, added: Explanation, foreground: Labels) -> dict[str, np.ndarray]:
    """The masks of a whole scan, boolean (X, Y, Z), by row."""
    rules: dict[str, Callable[[Explanation], Labels]] = {
        "otsu": lambda one: segment.otsu(one, mask=foreground),
        "multi-otsu": lambda one: segment.multi_otsu(one, mask=foreground),
        "fixed-0.5": lambda one: segment.fixed(one, threshold=0.5, mask=foreground),
    }
    masks = {f"heat-map/{name}": rule(why) for name, rule in rules.items()}
    masks["heat-map/otsu, largest component"] = segment.otsu(why, mask=foreground, components=1)
    masks["contributions/otsu"] = rules["otsu"](added)
    return {row: mask.data > 0 for row, mask in masks.items()}


def _refined(why: Explanation, scan: Scan, seed: int) -> dict[str, np.ndarray]:
    """Volumes with FLAIR and T2: the borders that intensities draw around the map's evidence; a random map the same."""
    if not {"flair", "t2"} <= set(scan.channels):
        return {}
    chance = np.random.default_rng(seed).random(scan.grid.shape, dtype=np.float32)
    # Blobs of the size of a tumour, since noise of single voxels is evidence of nothing.
    chance = gaussian_filter(chance, [_CHANCE_MM / step for step in scan.grid.spacing]) * scan.foreground()
    inside = chance[scan.foreground()]
    chance = np.maximum(chance - np.percentile(inside, 75), 0)
    random = dataclasses.replace(why, map=chance[None], parts=None, scores=None)
    return {
        "log-odds, mirrored/mixture": refine.mixture(why, scan).data > 0,
        "random-map/mixture": refine.mixture(random, scan).data > 0,
    }


def _with_neighbours(why: Explanation, foreground: Labels) -> np.ndarray:
    """The Otsu masks of slices in which neighbours together see the class, boolean (X, Y, Z)."""
    chances = np.clip([region.probability for region in why.regions], 1e-6, 1 - 1e-6)
    seen = gaussian_filter1d(np.log(chances / (1 - chances)), NEIGHBOURS_SIGMA) > 0
    heard = [dataclasses.replace(region, positive=bool(one)) for region, one in zip(why.regions, seen, strict=True)]
    return segment.otsu(dataclasses.replace(why, regions=tuple(heard)), mask=foreground).data > 0


def _predicted(why: Explanation, region: Region, card: Card) -> str:
    named = str(why.provenance["facts"][region.name].get("class", ""))
    if named:
        return named
    return next(name for name in card.classes if (name not in card.absent) == region.positive)


def _offsets(why: Explanation, region: Region, foreground: Labels) -> list[np.ndarray]:
    """The mask of a region for every offset, boolean (X, Y, 1): as `segment.multi_otsu`, the threshold found once."""
    values = np.maximum(why.total[region.slices], 0)
    inside = foreground.data[region.slices] > 0
    threshold = segment.multi_otsu_threshold(values[inside]) if region.positive else None
    if threshold is None:
        return [np.zeros(values.shape, dtype=bool)] * len(OFFSETS)
    return [inside & (values > max(threshold - offset, 0)) for offset in OFFSETS]


def _plain(scan: Scan, seed: int) -> dict[str, np.ndarray]:
    """The masks that need no network, by row, boolean (X, Y, Z) each; slices are thresholded one by one."""
    found: dict[str, np.ndarray] = {}
    main = scan.channels[0] if "flair" not in scan.channels else "flair"
    image = scan.channel(main)
    for index in range(image.shape[2]):
        for row, mask in network_free_slice_masks(image[..., index], seed=seed + index).items():
            found.setdefault(row, np.zeros(image.shape, dtype=bool))[..., index] = mask
    if "flair" in scan.channels:
        found["intensity/flair"] = network_free_masks(scan)["intensity/flair"]
    return found


def _facts(stack: Stack, name: str, truth: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    return {"stack": stack.id, "group": stack.group, "slice": name, "label": stack.label_of(truth, classes)}


def _pixel_area(scan: Scan) -> float:
    return float(np.prod(scan.grid.spacing[:2]))


def _line(row: str, kind: str, mask: np.ndarray, truth: np.ndarray, pixel: float) -> dict[str, Any]:
    return {
        "row": row,
        "kind": kind,
        "dice": dice(mask, truth) if truth.any() else np.nan,
        # A slice of a coarser network stands for several of the scan.
        "area": float(np.count_nonzero(mask)) * pixel / mask.shape[2],
    }


def predictions(model: Model, slices: Sequence[LabelledSlice], *, kind: str, compute: Compute) -> pd.DataFrame:
    """What the network says of each slice: columns stack, group, slice, label, predicted, probability, kind, reading.

    `reading` is "alone"; "mirrored": the mean score of the slice and its mirror images along both axes; or, for the
    slices of volumes, "neighbours": scores smoothed over neighbouring slices (Gaussian of 1.5 slices), because a tumour
    does not end and begin again from slice to slice.
    """
    scores = scores_of(model, slices, compute)
    found = [_predictions(model.card, slices, scores, kind, "alone")]
    views = [scores, *(scores_of(model, slices, compute, mirrored=axes) for axes in ((1,), (2,), (1, 2)))]
    found.append(_predictions(model.card, slices, np.mean(views, axis=0), kind, "mirrored"))
    if model.card.slices is not None:
        smooth = scores.copy()
        stacks = np.array([one.stack.id for one in slices])
        for name in dict.fromkeys(stacks):
            smooth[stacks == name] = gaussian_filter1d(scores[stacks == name], NEIGHBOURS_SIGMA, axis=0)
        found.append(_predictions(model.card, slices, smooth, kind, "neighbours"))
    return pd.concat(found, ignore_index=True)


def _predictions(
    card: Card, slices: Sequence[LabelledSlice], scores: np.ndarray, kind: str, reading: str
) -> pd.DataFrame:
    shares = softmax(scores, axis=1)
    classes = card.classes
    lines = [
        {
            "stack": one.stack.id,
            "group": one.stack.group,
            "slice": one.name,
            "label": classes[one.label],
            "predicted": classes[int(share.argmax())],
            "probability": float(share.max()),
            "kind": kind,
            "reading": reading,
        }
        for one, share in zip(slices, shares, strict=True)
    ]
    return pd.DataFrame(lines)
