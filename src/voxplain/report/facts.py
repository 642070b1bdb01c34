"""What the page says in words: the verdict, the figures beside what needs no network, and how far to believe a map."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pandas as pd

from voxplain.explanation import Explanation, Region
from voxplain.metrics.controls import CONTROLS
from voxplain.metrics.network_free import NETWORK_FREE
from voxplain.scan import Labels

KINDS = {
    "deployable": "no expert mask of any patient was looked at: what a new scan gets",
    "validation-masks": "expert masks of other patients chose: what a new scan gets after annotating a few",
    "oracle": "this scan's own expert mask chose: a ceiling, not a result",
    "seen": "the network was trained on this scan: says nothing about new patients",
    "plain": "nothing to choose",
}

_COLUMNS = {
    "dice": ("Dice", "overlap with the expert mask, 0 to 1", 3),
    "hd95_mm": ("HD95 mm", "95 % Hausdorff distance to the expert mask; none where a mask is empty", 1),
    "volume_ml": ("ml", "volume of the mask", 1),
    "volume_error_ml": ("error ml", "volume minus that of the expert mask", 1),
    "agreement": ("Dice to FLAIR", "Dice with the mask of intensity/flair, which is no measure of how right it is", 3),
}
_ORACLE_ROWS = ("/best-grouping", "/best-threshold", "supervoxel-ceiling")
# Between here and the peak nothing in the map moves the score by anything that a reader would call a change.
_SMALL_CHANGE = 0.05


# Halves of a head are named one by one; of the slices of a volume it is said how many.
SHOWN_REGIONS = 4


@dataclass(frozen=True)
class FigureRow:
    """One row of the figures table, ready to print; `group` is "map", "free" (no network) or "ceiling"."""

    name: str
    kind: str
    meaning: str
    cells: tuple[str, ...]
    group: str
    best: bool


@dataclass(frozen=True)
class FigureTable:
    """The figures of one scan, its columns as (name, meaning), and the gain over the network-free rows in words.

    `beaten` says whether any map row has a higher Dice than the best network-free row, on a scan that its network has
    not seen.
    """

    columns: tuple[tuple[str, str], ...]
    rows: tuple[FigureRow, ...]
    kinds: tuple[tuple[str, str], ...]
    headline: str | None
    beaten: bool
    gains: tuple[str, ...]


def number(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, as short as it can be; a true minus sign."""
    return f"{value:.{digits}g}".replace("-", "−")


def without_folders(value: Any) -> Any:
    """A value of provenance with every absolute path in it cut down to its last name, so that pages stay private."""
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    if not isinstance(value, str):
        return value
    if PurePosixPath(value).is_absolute():
        return PurePosixPath(value).name
    if PureWindowsPath(value).is_absolute():
        return PureWindowsPath(value).name
    return re.sub(r"(?<![\w.])(?:~|[A-Za-z]:)?[\\/](?:[^\\/\s\"'][^\\/\n\"']*[\\/])+", "", value)


def method_name(explanation: Explanation) -> str:
    """The method as the command line calls it, from the provenance's class name: RelevanceMap is relevance-map."""
    kind = str(explanation.provenance.get("explainer", "map")).rpartition(":")[2]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", kind).lower()


def method_names(explanations: Sequence[Explanation]) -> list[str]:
    """Names of methods, each once: those that share a name are told apart by the options in which they differ."""
    names = [method_name(explanation) for explanation in explanations]
    options = [dict(explanation.provenance.get("options", {})) for explanation in explanations]
    told = []
    for index, name in enumerate(names):
        twins = [options[other] for other in range(len(names)) if names[other] == name and other != index]
        differing = [key for key, value in options[index].items() if any(twin.get(key) != value for twin in twins)]
        told.append(" ".join([name, *(f"{key}={without_folders(options[index][key])}" for key in differing)]))
    return unique(told)


def unique(names: Sequence[str]) -> list[str]:
    """The names, those that come again numbered."""
    return [name if name not in names[:i] else f"{name} ({names[:i].count(name) + 1})" for i, name in enumerate(names)]


def target_name(explanation: Explanation) -> str:
    """What was explained, in a word or two: the class's name, and which region where the target is one."""
    target = dict(explanation.provenance.get("target", {}))
    if predicted(explanation):
        return "the predicted class"
    name = str(target.get("name") or target.get("kind") or "its class")
    if target.get("kind") != "RegionScore":
        return name
    label = target.get("label")
    which = f"a region of {target.get('voxels')} voxels" if label is None else f"the region labelled {label}"
    return f"{name} in {which}"


def predicted(explanation: Explanation) -> bool:
    """Whether each region was explained for the class that the network predicts there."""
    return bool(explanation.provenance.get("target", {}).get("kind") == "PredictedClass")


def network_name(explanation: Explanation) -> str:
    """The network's name by its card."""
    return str(explanation.provenance.get("model", {}).get("name") or "the network")


def threshold(explanation: Explanation) -> float | None:
    """The probability from which the card calls a region positive; None where that is not said, or not the rule."""
    if predicted(explanation):
        return None
    value = explanation.provenance.get("model", {}).get("threshold")
    return None if value is None else float(value)


def region_name(name: str) -> str:
    """A region in words: halves are "left half" and "right half"."""
    return {"left": "left half", "right": "right half", "whole": "whole scan"}.get(name, name)


def verdict(explanation: Explanation) -> str:
    """What the network said of each region, in one sentence."""
    target, regions = target_name(explanation), explanation.regions
    if not regions:
        return f"What the network said of {target} is not recorded."
    if predicted(explanation):
        return _verdict_by_class(regions)
    if len(regions) > SHOWN_REGIONS:
        highest = max(regions, key=lambda region: region.probability)
        count = sum(region.positive for region in regions)
        return (
            f"The network calls {count} of {len(regions)} slices positive for {target}; the highest is "
            f"{highest.name} ({probability(highest.probability)})."
        )
    yes = [f"the {region_name(r.name)} ({probability(r.probability)})" for r in regions if r.positive]
    no = [f"the {region_name(r.name)} ({probability(r.probability)})" for r in regions if not r.positive]
    if not no:
        return f"The network calls {joined(yes)} positive for {target}."
    if not yes:
        return f"The network calls {joined(no)} negative for {target}."
    return f"The network calls {joined(yes)} positive for {target}, and {joined(no)} negative."


def _verdict_by_class(regions: Sequence[Region]) -> str:
    """What the network predicted, by region, or by class where there are many of them."""
    if len(regions) <= SHOWN_REGIONS:
        said = [f"the {region_name(r.name)} {r.target} ({probability(r.probability)})" for r in regions]
    else:
        counts = Counter(region.target for region in regions)
        said = [f"{count} of {len(regions)} slices {name}" for name, count in counts.most_common()]
    return f"The network calls {joined(said)}."


def probability(value: float) -> str:
    """A probability with three digits that never rounds to a certainty."""
    if value > 0.9995:
        return "> 0.999" if value < 1 else "1.000"
    return "< 0.001" if 0 < value < 0.0005 else f"{value:.3f}"


def figure_table(figures: pd.DataFrame) -> FigureTable:
    """A table of figures (columns row, kind and metrics) grouped into maps, what needs no network, and ceilings."""
    metrics = [name for name in figures.columns if name not in ("row", "kind") and figures[name].notna().any()]
    columns = [_COLUMNS.get(name, (name, name, 3)) for name in metrics]
    groups = [_group(str(row), str(kind)) for row, kind in zip(figures["row"], figures["kind"], strict=True)]
    best = _best_free(figures, groups)
    rows = []
    for group in ("map", "free", "ceiling"):
        for index in [i for i, found in enumerate(groups) if found == group]:
            line = figures.iloc[index]
            cells = tuple(_cell(line[name], digits) for name, (_, _, digits) in zip(metrics, columns, strict=True))
            kind = str(line["kind"])
            rows.append(FigureRow(str(line["row"]), kind, KINDS.get(kind, kind), cells, group, index == best))
    kinds = tuple((kind, KINDS.get(kind, kind)) for kind in dict.fromkeys(row.kind for row in rows))
    return FigureTable(tuple((n, m) for n, m, _ in columns), tuple(rows), kinds, *_gains(figures, groups, best))


def _group(row: str, kind: str) -> str:
    if kind == "oracle" or row.endswith(_ORACLE_ROWS):
        return "ceiling"
    return "free" if row.startswith((*NETWORK_FREE, *CONTROLS)) else "map"


def is_taken(name: str) -> bool:
    """Whether a map of this name would pass for a row that needs no network, or for a ceiling; controls may be maps."""
    return _group(name, "") == "ceiling" or name.startswith(NETWORK_FREE)


def seen(explanation: Explanation) -> bool | None:
    """Whether the network was trained on this scan; None where that is not recorded."""
    value = explanation.provenance.get("seen")
    return None if value is None else bool(value)


def _best_free(figures: pd.DataFrame, groups: Sequence[str]) -> int | None:
    """The position of the network-free row with the highest Dice."""
    if "dice" not in figures:
        return None
    values = [d if g == "free" else np.nan for d, g in zip(figures["dice"].astype(float), groups, strict=True)]
    return None if np.isnan(values).all() else int(np.nanargmax(values))


def _gains(figures: pd.DataFrame, groups: Sequence[str], best: int | None) -> tuple[str | None, bool, tuple[str, ...]]:
    """Does a map beat what needs no network: in one sentence, as yes or no, and row by row where there are several."""
    if best is None:
        return None, False, ()
    opponent = f"the best of what needs no network, {figures['row'].iloc[best]}"
    bar = round(float(figures["dice"].iloc[best]), 3)
    bar_words = f"{bar:.3f}, {figures['kind'].iloc[best]}"
    found = [
        (str(row), str(kind), round(float(value), 3))
        for row, kind, value, group in zip(figures["row"], figures["kind"], figures["dice"], groups, strict=True)
        if group == "map" and np.isfinite(value)
    ]
    if not found:
        return None, False, ()
    said = tuple(
        f"{row}: Dice {value:.3f} ({kind}), {value - bar:+.3f}".replace("-0.", "−0.") for row, kind, value in found
    )
    won = sum(value > bar for *_, value in found)
    # On a scan of the training nothing is won.
    beaten = any(value > bar and kind != "seen" for _, kind, value in found)
    if len(found) == 1:
        row, kind, value = found[0]
        words = "beats" if won else "does not beat"
        gain = f"{value - bar:+.3f}".replace("-", "−")
        return f"{row} (Dice {value:.3f}, {kind}) {words} {opponent} ({bar_words}): {gain}.", beaten, ()
    words = (
        f"{won} of {len(found)} maps {'beats' if won == 1 else 'beat'}"
        if won
        else f"None of the {len(found)} maps beats"
    )
    return f"{words} {opponent} (Dice {bar_words}).", beaten, said


def _cell(value: float, digits: int) -> str:
    return "–" if pd.isna(value) else f"{value:.{digits}f}".replace("-", "−")


def beliefs(
    names: Sequence[str],
    explanations: Sequence[Explanation],
    masks: Sequence[Labels | None],
    *,
    truth: Labels | None,
    figures: FigureTable | None,
    foreground: np.ndarray,
) -> list[str]:
    """What limits how far the maps can be believed, from the facts at hand; `foreground` is boolean (X, Y, Z)."""
    said = [
        "A map shows what this network's answer hangs on. It does not show where the disease is: "
        "a network can be right for a wrong reason, and that is what a map is there to find out."
    ]
    if truth is None:
        said.append("There is no expert mask: nothing on this page says how right a map or a mask is.")
    elif not truth.data.any():
        said.append(
            "The expert mask is empty: there is nothing to overlap with, so there are no figures but volumes, "
            "and whatever a mask holds is too much."
        )
    known = {seen(explanation) for explanation in explanations}
    if True in known:
        said.append(seen_words(names, explanations) + " Answers and maps say nothing about new patients.")
    if None in known:
        said.append(
            "Whether the network was trained on this scan is not recorded; if it was, nothing here speaks of new "
            "patients."
        )
    if figures is not None and any(row.group == "ceiling" for row in figures.rows):
        said.append(
            "Ceilings (oracle rows, and rows named best-…) let this scan's own expert mask choose a threshold or a "
            "grouping. They say what a map holds at best, not what a new scan would get."
        )
    for name, explanation, mask in zip(names, explanations, masks, strict=True):
        said += [f"{name}: {fact}" for fact in _facts(explanation, mask, foreground)]
    return said


def _facts(explanation: Explanation, mask: Labels | None, foreground: np.ndarray) -> list[str]:
    said = []
    regions, total = explanation.regions, explanation.total
    if regions and not any(region.positive for region in regions):
        empty = mask is not None and not mask.data.any()
        said.append("the network called no region positive" + (", so the mask is empty by rule." if empty else "."))
    elif mask is not None and not mask.data.any():
        said.append("the mask is empty although a region is positive: no part of the map stood out.")
    peak = float(np.abs(total).max())
    if peak == 0:
        said.append("the map is zero everywhere: nothing that was tried moved the score.")
    elif explanation.scores is not None and "probability" in explanation.unit and peak < _SMALL_CHANGE:
        said.append(
            f"no part alone moves the probability by more than {number(peak, 2)}; the answer rests on many parts "
            "together, and small differences between ranks mean little."
        )
    outside = float(np.abs(total[~foreground]).sum(dtype=float)) / (float(np.abs(total).sum(dtype=float)) or 1.0)
    if outside >= 0.01:
        said.append(
            f"{outside:.0%} of its absolute relevance lies outside of the brain, where the scan is zero; "
            "the viewer may not show all of that."
        )
    said += [f"warning when it was made: {text}" for text in explanation.provenance.get("warnings", [])]
    return said


def seen_words(names: Sequence[str], explanations: Sequence[Explanation]) -> str:
    """Which maps are of networks that were trained on this scan, in a sentence."""
    of = [name for name, explanation in zip(names, explanations, strict=True) if seen(explanation)]
    return f"The network{'' if len(of) == len(names) else ' of ' + joined(of)} was trained on this scan."


def provenance_lines(explanation: Explanation, mask: Labels | None) -> list[tuple[str, str]]:
    """The provenance as (what, value) lines, without folders."""
    known = dict(explanation.provenance)
    regions = known.pop("regions", None)
    lines = []
    if regions is not None:
        said = [f"{r.name} {number(r.probability, 6)} (logit {number(r.logit, 5)})" for r in explanation.regions]
        lines.append(("probabilities", "; ".join(said)))
    for key, value in known.items():
        if key in ("unit", "signed", "channels", "checks"):
            continue
        lines.append((key, _flat(without_folders(value))))
    lines.append(
        (
            "map",
            f"{explanation.unit}; {'signed' if explanation.signed else 'unsigned'}; {', '.join(explanation.channels)}",
        )
    )
    if mask is not None and "mask" not in known:
        lines.append(("mask", f"{mask.volume:.1f} ml"))
    return lines


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_flat(item)}" for key, item in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(_flat(item) for item in value) or "–"
    return "–" if value is None else str(value)


def joined(words: Sequence[str]) -> str:
    """Words in a row as a sentence has them: commas, and "and" before the last."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
