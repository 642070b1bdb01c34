"""The figures of one scan: every map's mask beside what needs no network, each with its kind."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

from voxplain import segment
from voxplain.explanation import Explanation
from voxplain.metrics.network_free import network_free_masks, network_free_rankings
from voxplain.metrics.overlap import (
    best_grouping,
    best_threshold,
    dice,
    hausdorff95,
    supervoxel_ceiling,
    volume_error,
)
from voxplain.scan import Labels, Scan

FIGURE_COLUMNS = ("row", "kind", "dice", "hd95_mm", "volume_error_ml", "volume_ml", "agreement")


def scan_figures(
    scan: Scan,
    explanations: Mapping[str, Explanation],
    masks: Mapping[str, Labels],
    truth: Labels | None = None,
    *,
    seen: bool | Collection[str] = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Figures of one whole scan, for maps and masks by the name of their row, all on the scan's grid.

    With an expert mask (`truth`, everything above 0): Dice (0 to 1), 95 % Hausdorff distance in mm, volume error in
    ml; the oracle rows of each map; and the network-free rows, with the parts of the first map that has any ranked by
    intensity and by chance. Without one only volumes. `agreement` is each mask's Dice with the network-free mask of
    FLAIR, which is no measure of how right it is. `seen` says that the network was trained on this scan, or names the
    rows of which this is so.

    Returns:
        A table with the columns `FIGURE_COLUMNS`, map rows first, then network-free rows, oracles last; NaN where a
        row has no such figure.
    """
    known = {*masks, *explanations} if seen is True else set(seen or ())
    reference = None if truth is None else truth.data > 0
    foreground = Labels(scan.foreground(), scan.grid)
    plain = network_free_masks(scan)
    by_intensity = plain.get("intensity/flair")
    rows: list[dict[str, object]] = []

    def add_mask(row: str, kind: str, prediction: np.ndarray) -> None:
        line: dict[str, object] = {"row": row, "kind": kind}
        line["volume_ml"] = np.count_nonzero(prediction) * scan.grid.voxel_volume / 1000
        if by_intensity is not None and row != "intensity/flair":
            line["agreement"] = dice(prediction, by_intensity)
        if reference is not None:
            line["dice"] = dice(prediction, reference)
            line["hd95_mm"] = hausdorff95(prediction, reference, spacing=scan.grid.spacing)
            line["volume_error_ml"] = volume_error(prediction, reference, voxel_volume=scan.grid.voxel_volume)
        rows.append(line)

    for row, mask in masks.items():
        add_mask(row, "seen" if row in known else "deployable", mask.data > 0)
    for row, prediction in plain.items():
        add_mask(row, "deployable", prediction)
    if reference is None:
        return pd.DataFrame(rows).reindex(columns=list(FIGURE_COLUMNS))

    ranked = [(row, why) for row, why in explanations.items() if why.parts is not None]
    rankings = network_free_rankings(scan, ranked[0][1], seed=seed) if ranked else []
    for row, why in rankings:
        prediction = segment.otsu(why, everywhere=True).data > 0
        rows.append({"row": row, "kind": "deployable", "dice": dice(prediction, reference)})
    for row, why in explanations.items():
        oracle = "seen" if row in known else "oracle"
        if why.parts is None:
            value = best_threshold(np.where(foreground.data > 0, why.total, 0), reference).dice
            rows.append({"row": f"{row}/best-threshold", "kind": oracle, "dice": value})
        else:
            rows.append({"row": f"{row}/best-grouping", "kind": oracle, "dice": _grouped(why, reference)})
    for row, why in rankings:
        rows.append({"row": f"{row}/best-grouping", "kind": "oracle", "dice": _grouped(why, reference)})
    if ranked:
        assert ranked[0][1].parts is not None
        ceiling = supervoxel_ceiling(ranked[0][1].parts.data, reference)
        rows.append({"row": "supervoxel-ceiling", "kind": "oracle", "dice": ceiling})
    table = pd.DataFrame(rows)
    # The draws of a random ranking are one row: their mean.
    table = table.groupby(["row", "kind"], sort=False, as_index=False, dropna=False).mean()
    return table.reindex(columns=list(FIGURE_COLUMNS))


def _grouped(why: Explanation, reference: np.ndarray) -> float:
    assert why.parts is not None
    assert why.scores is not None
    return best_grouping(why.parts.data, why.scores, reference).dice
