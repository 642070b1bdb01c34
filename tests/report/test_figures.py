import numpy as np
import pandas as pd
import pytest

import voxplain as vx
from voxplain.metrics.overlap import dice
from voxplain.report.figures import FIGURE_COLUMNS, scan_figures

SHAPE = (20, 18, 16)


def made() -> tuple[vx.Scan, vx.Labels, dict[str, vx.Explanation], dict[str, vx.Labels]]:
    """A noisy block of brain with a bright cube; a map of slabs that finds it half, and a voxel-wise one that does."""
    rng = np.random.default_rng(0)
    brain = np.zeros(SHAPE, dtype=bool)
    brain[2:-2, 2:-2, 2:-2] = True
    truth = np.zeros(SHAPE, dtype=int)
    truth[4:8, 4:12, 4:10] = 1
    flair = np.where(brain, rng.normal(50, 2, SHAPE) + 30 * truth, 0)
    grid = vx.Grid(SHAPE, np.diag([2.0, 2, 2, 1]))
    scan = vx.Scan(np.stack([flair, flair]), grid, ("flair", "t1"))
    region = vx.Region("whole", tuple((0, n) for n in SHAPE), 0.9, 2.2, True)
    slabs = np.where(brain, 1 + (np.indices(SHAPE)[0] - 2) // 2, 0)
    scores = np.zeros(8)
    scores[1] = 1.0
    painted = np.concatenate([[0], scores])[slabs][None]
    maps = {
        "slabs": vx.Explanation(painted, ("all",), grid, False, "x", (region,), vx.Labels(slabs, grid), scores),
        "voxels": vx.Explanation(truth[None] * 2.0 + 0.1, ("all",), grid, False, "x", (region,)),
    }
    masks = {"slabs": vx.Labels(slabs == 2, grid), "voxels": vx.Labels(truth, grid)}
    return scan, vx.Labels(truth, grid), maps, masks


def value(table: pd.DataFrame, row: str, column: str = "dice") -> float:
    (found,) = table.loc[table["row"] == row, column]
    return float(found)


def test_rows_against_the_masks_themselves():
    scan, truth, maps, masks = made()
    table = scan_figures(scan, maps, masks, truth)
    assert tuple(table.columns) == FIGURE_COLUMNS
    assert value(table, "voxels") == 1.0
    assert value(table, "slabs") == pytest.approx(dice(masks["slabs"].data > 0, truth.data > 0))
    assert value(table, "slabs", "volume_ml") == pytest.approx(masks["slabs"].data.sum() * 0.008)
    assert value(table, "slabs", "volume_error_ml") == pytest.approx(
        (masks["slabs"].data.sum() - truth.data.sum()) * 0.008
    )
    assert value(table, "voxels/best-threshold") == 1.0
    assert value(table, "slabs/best-grouping") == value(table, "slabs")
    # Slabs 2 and 3 hold tumour; all of slab 2 and 3 together is the best that slabs can do.
    both = np.isin(maps["slabs"].parts.data, (2, 3))
    assert value(table, "supervoxel-ceiling") == pytest.approx(dice(both, truth.data > 0))
    assert 0 < value(table, "random-rank") < 1


def test_every_row_carries_its_kind_and_oracles_come_last():
    scan, truth, maps, masks = made()
    table = scan_figures(scan, maps, masks, truth)
    kinds = dict(zip(table["row"], table["kind"], strict=True))
    assert {row for row, kind in kinds.items() if kind == "oracle"} == {
        "slabs/best-grouping",
        "voxels/best-threshold",
        "intensity/supervoxel-rank/best-grouping",
        "random-rank/best-grouping",
        "supervoxel-ceiling",
    }
    assert {kind for kind in kinds.values()} == {"deployable", "oracle"}
    assert list(table["kind"]) == sorted(table["kind"])
    seen = scan_figures(scan, maps, masks, truth, seen=True)
    kinds = dict(zip(seen["row"], seen["kind"], strict=True))
    assert kinds["slabs"] == kinds["slabs/best-grouping"] == "seen"
    # What needs no network has not seen anything.
    assert kinds["intensity/flair"] == "deployable"
    assert kinds["supervoxel-ceiling"] == "oracle"


def test_without_an_expert_mask_there_are_volumes_and_no_dice():
    scan, _, maps, masks = made()
    table = scan_figures(scan, maps, masks)
    assert list(table["row"]) == ["slabs", "voxels", "intensity/flair", "whole-brain"]
    assert table["dice"].isna().all()
    assert table["volume_ml"].notna().all()
    assert value(table, "voxels", "agreement") > 0.5
    assert np.isnan(value(table, "intensity/flair", "agreement"))


def test_an_empty_expert_mask_is_an_answer_too():
    scan, truth, maps, masks = made()
    empty = vx.Labels(np.zeros(SHAPE, dtype=int), truth.grid)
    table = scan_figures(scan, maps, masks | {"nothing": empty}, empty)
    assert value(table, "nothing") == 1.0
    assert value(table, "slabs") == 0.0
