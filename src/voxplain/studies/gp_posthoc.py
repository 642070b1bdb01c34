"""Post-hoc methods on paper gp's networks (002, 3.3): occlusion and guided backpropagation beside the heat maps.

The heat map is what a network that explains itself decides by, so that it tells how far a post-hoc method can be
trusted there. A few slices that every network classifies right are explained, one by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from voxplain import segment
from voxplain.compute import Compute
from voxplain.engine.progress import tracked
from voxplain.explain.evidence import HeatMap
from voxplain.explain.explainer import Explainer
from voxplain.explain.gradient import GuidedBackprop
from voxplain.explain.occlusion import Occlusion
from voxplain.explanation import Explanation
from voxplain.metrics.overlap import dice
from voxplain.metrics.sanity import spearman
from voxplain.metrics.statistics import bootstrap_interval
from voxplain.model import Model
from voxplain.networks.self_explaining import SelfExplaining
from voxplain.preparation import prepare
from voxplain.scan import Labels, Scan
from voxplain.studies.gp_data import Stack
from voxplain.studies.gp_results import Row
from voxplain.target import ClassScore

_TOP_SHARE = 0.02
# Edge of a window and step between windows, in pixels of the network's input.
_WINDOW, _STEP = 16, 8


@dataclasses.dataclass(frozen=True, eq=False)
class OneSlice:
    """A slice as a network reads it: normalised, Z = 1, with its mask and class; `card` reads it as it is."""

    name: str
    scan: Scan
    mask: Labels
    label: str


def one_slice(stack: Stack, model: Model) -> OneSlice:
    """The slice of a scan with the largest tumour, as the model reads it: normalised with its whole scan."""
    scan, mask = stack.scan(), stack.mask()
    regions = prepare(scan, model.card)
    masks = [mask.on(one.input.grid) for one in regions]
    best = int(np.argmax([np.count_nonzero(one.data) for one in masks]))
    label = stack.label_of(masks[best].data > 0, model.card.classes)
    return OneSlice(f"{stack.id} {regions[best].name}", regions[best].input, masks[best], label)


def reading_as_it_is(model: Model) -> Model:
    """The model with a card that reads slices as `one_slice` gives them: prepared already."""
    card = dataclasses.replace(
        model.card, normalisation="none", orientation=None, spacing=None, slices=None, shape=None, skull_stripped=False
    )
    return Model(model.network, card)


def methods(scan: Scan) -> dict[str, Explainer]:
    """The two post-hoc methods of the paper, occlusion in windows that suit the slice's pixels."""
    pixel = scan.grid.spacing[0]
    return {
        "occlusion": Occlusion(partition=f"cubes:{_WINDOW * pixel:g}", stride=_STEP * pixel),
        "guided-backprop": GuidedBackprop(),
    }


def compare(
    models: Mapping[str, Model], some: Sequence[Stack], *, seed: int = 0, compute: Compute
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """How the post-hoc maps of every network agree with its own heat map, and with the expert mask.

    Returns:
        Lines (network, slice, method, metric, value): "agreement" is the Spearman correlation of the positive parts of
        the two maps over the brain, "top overlap" the share of the highest 2 % of pixels that both have (opaque
        networks have no heat map, and no such lines); "Dice" that of the map's Otsu mask. And, for pictures, the maps
        of every slice.
    """
    quiet = dataclasses.replace(compute, progress=False)
    lines, pictures = [], []
    for stack in tracked(some, "post-hoc methods", shown=compute.progress):
        for network, model in models.items():
            shown = one_slice(stack, model)
            reader = reading_as_it_is(model)
            target = ClassScore(shown.label)
            found: dict[str, Explanation] = {}
            if isinstance(model.network, SelfExplaining):
                found["heat-map"] = HeatMap()(reader, shown.scan, target=target, seed=seed, compute=quiet)
            for name, method in methods(shown.scan).items():
                found[name] = method(reader, shown.scan, target=target, seed=seed, compute=quiet)
            inside = shown.scan.foreground()
            for name, why in found.items():
                mask = segment.otsu(why, everywhere=True, mask=Labels(inside, why.grid))
                value = dice(mask.data > 0, shown.mask.data > 0)
                facts = {"network": network, "slice": shown.name, "method": name}
                lines.append(facts | {"metric": "Dice", "value": value})
                if name != "heat-map" and "heat-map" in found:
                    pair = [np.maximum(one.total[inside], 0) for one in (found["heat-map"], why)]
                    lines.append(facts | {"metric": "agreement", "value": spearman(*pair)})
                    lines.append(facts | {"metric": "top overlap", "value": _overlap(*pair)})
            pictures.append({"network": network, "slice": shown, "maps": found})
    return pd.DataFrame(lines), pictures


def summary_rows(lines: pd.DataFrame, *, seed: int) -> list[Row]:
    """Means over slices, with intervals, of `compare`: how far post-hoc maps agree with the network's own."""
    rows: list[Row] = []
    for (network, method, metric), found in lines.groupby(["network", "method", "metric"], sort=False):
        values = found.value[found.value.notna()].to_numpy()
        low, high = bootstrap_interval(values, seed=seed)
        mean = float(values.mean()) if values.size else np.nan
        rows.append(("post-hoc", f"{network}/{method}", str(metric), "deployable", mean, low, high, values.size))
    return rows


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Share of the highest pixels that two maps (N,) have in common, 0 to 1; NaN where one of them is constant."""
    count = max(1, round(_TOP_SHARE * len(first)))
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    highest = [set(np.argsort(-values, kind="stable")[:count].tolist()) for values in (first, second)]
    return len(highest[0] & highest[1]) / count
