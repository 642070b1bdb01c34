"""Which sequence carries the evidence: the table of a map per sequence, parts by sequences, and the shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voxplain.explanation import Explanation
from voxplain.report import facts
from voxplain.report.heat import HeatTable, heat_cell

_SHOWN_PARTS = 10


@dataclass(frozen=True)
class SequenceEvidence:
    """A map per sequence: what it comes to, and as tables the highest parts by sequence and each region's shares.

    There are no tables where nothing moved the score.
    """

    name: str
    said: tuple[str, ...]
    tables: tuple[HeatTable, ...]


def sequence_evidence(names: Sequence[str], explanations: Sequence[Explanation]) -> list[SequenceEvidence]:
    """The tables of every map of parts that has a map per sequence (`sequences="each"`).

    A sequence's share of a region is the sum of its absolute relevance over the region's parts, of that of all
    sequences; none where nothing moved the score. Positive regions come first.
    """
    return [
        _evidence(name, explanation)
        for name, explanation in zip(names, explanations, strict=True)
        if len(explanation.channels) > 1 and explanation.parts is not None
    ]


def _evidence(name: str, explanation: Explanation) -> SequenceEvidence:
    assert explanation.scores is not None
    # A label without voxels has no relevance in any sequence, and no line.
    values = explanation.sequence_scores()
    labels = np.flatnonzero(~np.isnan(values).any(axis=0)) + 1
    order = labels[np.argsort(-explanation.scores[labels - 1], kind="stable")]
    region_of = {int(label): region for region in explanation.regions for label in explanation.labels_in(region)}
    shown = order[:_SHOWN_PARTS]
    peak = float(np.abs(values[:, shown - 1]).max(initial=0))
    # All with as many decimals as give the peak four digits: what is small beside it looks small.
    decimals = max(0, 3 - math.floor(math.log10(peak or 1)))
    rows = []
    for rank, label in enumerate(shown.tolist(), start=1):
        where = f", {facts.region_name(region_of[label].name)}" if label in region_of else ""
        cells = tuple(heat_cell(float(v), f"{v:.{decimals}f}", peak=peak) for v in values[:, label - 1])
        rows.append((f"{rank}: part {label}{where}", cells))
    parts = HeatTable(
        f"The {len(shown)} highest of {len(order)} parts ({explanation.unit})",
        "rank and part",
        explanation.channels,
        tuple(rows),
    )
    judged = sorted(explanation.regions, key=lambda region: not region.positive)
    regions = [(facts.region_name(region.name), explanation.labels_in(region)) for region in judged]
    lines, said = [], []
    for region, inside in regions or [("all parts", labels)]:
        moved = np.abs(values[:, np.intersect1d(inside, labels) - 1]).sum(axis=1)
        total = float(moved.sum())
        shares = moved / total if total > 0 else np.full(len(moved), np.nan)
        lines.append((region, tuple(heat_cell(float(share), f"{share:.0%}") for share in shares)))
        if total > 0:
            most = int(np.argmax(shares))
            said.append(f"{region}: {explanation.channels[most]} carries {shares[most]:.0%} of the relevance.")
        else:
            said.append(f"{region}: no sequence of any part moves the score.")
    shared = HeatTable("Share of each sequence", "region", explanation.channels, tuple(lines))
    return SequenceEvidence(name, tuple(said), (parts, shared) if peak > 0 else ())
