"""Rows of the relevance study by hand: ranks, kinds, halves and whole scans, the grid and its choice."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import voxplain as vx
from voxplain import segment
from voxplain.datasets.case import Case
from voxplain.explanation import Explanation, Region
from voxplain.metrics.overlap import best_grouping, dice
from voxplain.model import Card, Model
from voxplain.scan import Labels, Scan
from voxplain.studies.paper_tables import PAPER
from voxplain.studies.relevance_grid import TABLE, best_cell, cells_of, fills_of, score_cells
from voxplain.studies.relevance_presets import PRESETS, Cell
from voxplain.studies.relevance_results import summed_up
from voxplain.studies.relevance_rows import (
    Line,
    Method,
    case_table,
    compare_fills,
    score_method,
    score_network_free,
    target_of,
)
from voxplain.studies.scoring import CASE_COLUMNS, as_rows, marked, parts_in, rank_figures
from voxplain.target import ClassScore

CPU = vx.Compute(device="cpu", threads=1)
GRID = vx.Grid((8, 4, 4), np.diag([-10.0, -10, 10, 1]))  # voxels of 1 ml
CASE = Case("Brats18_2013_1_1", "Brats18_2013_1", {}, None, None, {})
BLANK = Method("relevance-map/blank", vx.RelevanceMap(), ranked=True)


def regions(positive: bool = True, whole: bool = False) -> tuple[Region, ...]:
    if whole:
        return (Region("whole", ((0, 8), (0, 4), (0, 4)), 0.1, -2.0, positive),)
    boxes = {"right": (0, 4), "left": (4, 8)}
    return tuple(Region(name, (x, (0, 4), (0, 4)), 0.9, 2.0, positive) for name, x in boxes.items())


def explained(scores: list[float], **which: bool) -> Explanation:
    """Slabs of one voxel along x, 16 ml each, with these scores."""
    labels = np.broadcast_to(np.arange(1, 9)[:, None, None], GRID.shape)
    painted = np.append(0.0, scores)[labels][None]
    return Explanation(painted, ("all",), GRID, False, "x", regions(**which), Labels(labels, GRID), np.array(scores))


def scan() -> Scan:
    return Scan(np.ones((1, *GRID.shape)), GRID, ("flair",))


def tumour(first: int = 4, last: int = 6) -> Labels:
    """Slabs `first` to before `last`, on the left by default."""
    data = np.zeros(GRID.shape, dtype=int)
    data[first:last] = 1
    return Labels(data, GRID)


def card(region: str = "half") -> Card:
    return Card("made", ("flair",), ("tumour",), region=region)  # type: ignore[arg-type]


def by_row(lines: list[Line], table: str) -> dict[str, float]:
    assert {line[3] for line in lines if line[1] == table} <= {"dice"}
    return {line[2]: line[5] for line in lines if line[1] == table}


def test_rows_of_a_half_by_hand() -> None:
    # On the left slabs 5 and 6 hold the tumour; ranks 1 to 4 are slabs 5, 7, 6, 8. The right half has none.
    why = explained([9, 9, 9, 9, 8, 6, 7, 1])
    lines = score_method(BLANK, why, scan(), tumour(), card())
    assert {line[0] for line in lines} == {"left"}
    single, together = by_row(lines, "single-ranks"), by_row(lines, "cumulative-ranks")
    np.testing.assert_allclose([single[f"relevance-map/blank/rank-{k}"] for k in range(1, 5)], [2 / 3, 0, 2 / 3, 0])
    # The fifth of four supervoxels alone is nothing; the first five of them are all four.
    assert np.isnan(single["relevance-map/blank/rank-5"])
    expected = [2 / 3, 1 / 2, 4 / 5, 2 / 3, 2 / 3]
    np.testing.assert_allclose([together[f"relevance-map/blank/top-{k}"] for k in range(1, 6)], expected)
    # Otsu parts 8, 7, 6 from 1.
    assert by_row(lines, "comparison") == pytest.approx(
        {"relevance-map/blank/otsu": 4 / 5, "relevance-map/blank/best-grouping": 4 / 5}
    )
    kinds = {line[2].rpartition("/")[2]: line[4] for line in lines}
    assert kinds["best-grouping"] == "oracle"
    assert {kinds[name] for name in ("otsu", "rank-1", "top-5")} == {"deployable"}


def test_a_half_predicted_negative_counts_as_a_miss_and_a_whole_scan_does_not() -> None:
    scores = [9.0, 9, 9, 9, 8, 6, 7, 1]
    missed = score_method(BLANK, explained(scores, positive=False), scan(), tumour(), card())
    assert {line[5] for line in missed if line[4] == "deployable"} == {0.0}
    assert by_row(missed, "comparison")["relevance-map/blank/best-grouping"] == pytest.approx(4 / 5)
    whole = explained([1, 1, 1, 1, 8, 8, 1, 1], positive=False, whole=True)
    found = score_method(BLANK, whole, scan(), tumour(), card("whole"))
    assert by_row(found, "comparison")["relevance-map/blank/otsu"] == 1.0
    assert by_row(found, "cumulative-ranks")["relevance-map/blank/top-2"] == 1.0


def test_halves_that_are_not_labelled_as_tumour_are_not_scored() -> None:
    data = np.zeros(GRID.shape, dtype=int)
    data[4, 0, 0] = 1  # 1 ml: no label
    assert score_method(BLANK, explained([1.0] * 8), scan(), Labels(data, GRID), card()) == []
    data[4, 0, :3] = 1
    assert {line[0] for line in score_method(BLANK, explained([1.0] * 8), scan(), Labels(data, GRID), card())} == {
        "left"
    }


def test_equal_relevances_rank_nothing() -> None:
    why = explained([3.0] * 8)
    lines = score_method(BLANK, why, scan(), tumour(), card())
    assert {line[5] for line in lines if line[4] == "deployable"} == {0.0}
    assert not segment.top_ranks(why, count=2).data.any()
    # The oracle still groups, by label number: slabs 5 and 6 are the first of that half.
    assert by_row(lines, "comparison")["relevance-map/blank/best-grouping"] == 1.0


def test_ranks_of_few_parts() -> None:
    parts, reference = np.array([[[1, 2, 2]]]), np.array([[[True, False, False]]])
    found = dict(rank_figures(parts, np.array([1.0, 5.0]), reference))
    assert found["rank-1"] == 0.0
    assert found["rank-2"] == 1.0
    assert np.isnan([found["rank-3"], found["rank-5"]]).all()
    assert [found[f"top-{k}"] for k in range(1, 6)] == [0.0, 0.5, 0.5, 0.5, 0.5]
    alone = dict(rank_figures(np.ones((1, 1, 3), dtype=int), np.array([0.5]), reference))
    assert alone["rank-1"] == alone["top-5"] == 0.5
    assert rank_figures(np.zeros((1, 1, 3), dtype=int), np.zeros(0), reference) == []


def test_rank_rows_are_the_masks_of_top_ranks() -> None:
    rng = np.random.default_rng(0)
    why = explained(rng.random(8).tolist())
    lines = by_row(score_method(BLANK, why, scan(), tumour(3, 7), card()), "cumulative-ranks")
    box = regions()[1].slices
    reference = tumour(3, 7).data[box] > 0
    # Of the last of two halves.
    for count in range(1, 6):
        mask = segment.top_ranks(why, count=count).data[box] > 0
        assert lines[f"relevance-map/blank/top-{count}"] == pytest.approx(dice(mask, reference))


def test_network_free_rows_stand_in_every_table_of_test_patients() -> None:
    lines = score_network_free(CASE, explained([1.0] * 8), scan(), tumour(), card(), seed=0)
    for table, name in (("single-ranks", "rank-1"), ("cumulative-ranks", "top-1"), ("comparison", "best-grouping")):
        rows = by_row(lines, table)
        assert {"intensity/flair", "whole-brain", f"random-rank/{name}"} <= set(rows)
        assert rows["whole-brain"] == pytest.approx(2 / 3)
    table = case_table(CASE, 1, lines, known=[CASE.id])
    # What needs no network has seen nothing; 20 draws are one figure.
    assert set(table["kind"]) == {"deployable", "oracle"}
    assert not table.duplicated(["table", "row", "metric", "kind"]).any()
    drawn = [line[5] for line in lines if line[2] == "random-rank"]
    assert len(drawn) == 20
    (mean,) = table.loc[table["row"] == "random-rank", "value"]
    assert mean == pytest.approx(np.mean(drawn))


def test_a_case_that_a_network_has_seen() -> None:
    lines: list[Line] = [("left", "comparison", "lime/otsu", "dice", "deployable", 0.5)]
    assert set(case_table(CASE, 0, lines)["kind"]) == {"deployable"}
    assert set(case_table(CASE, 0, lines, known=["Brats18_2013_1_2"])["kind"]) == {"seen"}
    assert list(case_table(CASE, 0, []).columns) == list(CASE_COLUMNS)


def compared(number: int, plain: list[float], moved: list[float], blank: float, optimal: float) -> pd.DataFrame:
    """A patient's rows of the fills."""
    case = dataclasses.replace(CASE, id=f"p{number}", patient=f"p{number}")
    rows = {"relevance-map/blank/otsu": blank, "relevance-map/optimal/otsu": optimal}
    own = case_table(case, 0, [("left", "comparison", row, "dice", "deployable", v) for row, v in rows.items()])
    scores = {"relevance-map/blank": np.array(plain), "relevance-map/optimal": np.array(moved)}
    return case_table(case, 0, compare_fills(own, scores, "relevance-map/optimal"))


def test_the_optimal_fill_is_compared_with_blank_in_pairs() -> None:
    rng = np.random.default_rng(1)
    gains, tables = [], []
    for number in range(8):
        plain, moved = rng.random(5), rng.random(5) + 0.2
        blank, optimal = rng.random(2)
        tables.append(compared(number, plain.tolist(), moved.tolist(), blank, optimal))
        gains.append((moved.mean() - plain.mean(), optimal - blank))
    summary = summed_up(pd.concat(tables), [], seed=0).set_index(["row", "metric"])
    change, overlap = np.array(gains).T
    row = "relevance-map/optimal"
    assert summary.loc[(row, "gain_over_blank"), "value"] == pytest.approx(change.mean())
    assert summary.loc[(row, "p_wilcoxon"), "value"] == pytest.approx(stats.wilcoxon(change).pvalue)
    assert summary.loc[(f"{row}/otsu", "dice_gain_over_blank"), "value"] == pytest.approx(overlap.mean())
    assert summary.loc[(f"{row}/otsu", "p_holm"), "value"] == pytest.approx(stats.wilcoxon(overlap).pvalue)
    assert set(summary["n"]) == {8}
    one = compared(0, [0.1, 0.2], [0.3, 0.1], 0.2, 0.6).set_index(["row", "metric"])["value"]
    assert one[(row, "share_moved_further")] == 0.5
    assert one[(row, "mean_abs_change")] == pytest.approx(0.2)
    assert one[("relevance-map/blank", "mean_abs_change")] == pytest.approx(0.15)


def made_head(folder: Path) -> tuple[Scan, Labels]:
    rng = np.random.default_rng(0)
    shape, brain = (20, 16, 12), np.zeros((20, 16, 12), dtype=bool)
    brain[2:18, 2:14, 1:11] = True
    labels = np.zeros(shape, dtype=int)
    labels[11:15, 5:9, 3:7] = 1
    data = np.stack([np.where(brain, rng.normal(100, 5, shape) + k * labels, 0) for k in (150, 30)])
    grid = vx.Grid(shape, np.diag([-5.0, -5, 5, 1]))
    return Scan(data, grid, ("flair", "t2")), Labels(labels, grid)


def made_model(region: str) -> Model:
    import torch

    from voxplain.networks.resnet import resnet

    shape = (10, 16, 12) if region == "half" else (20, 16, 12)
    made = Card(
        "made", ("flair", "t2"), ("tumour",), threshold=0.01, normalisation="z-score", orientation="LPS",
        region=region, shape=shape, spacing=(5, 5, 5),
    )  # type: ignore[arg-type]  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(resnet(depth=10, in_channels=2, classes=1, width=4), made)


@pytest.mark.parametrize("region", ["half", "whole"])
def test_cells_of_the_grid_are_relevance_maps(region: str, tmp_path: Path) -> None:
    head, mask = made_head(tmp_path)
    model = made_model(region)
    fills = ("min", "tissue-mean") if region == "half" else ("blank", "mirror")
    cells = [Cell(channel, count, fill) for channel in ("flair", "t2") for count in (4, 8) for fill in fills]
    lines = score_cells(head, mask, model, cells, mask="brain", seed=0, compute=CPU)
    found = {(line[2], line[3]): line[5] for line in lines}
    assert {line[0] for line in lines} == ({"left"} if region == "half" else {"whole"})
    foreground = Labels(head.foreground(), head.grid)
    for cell in cells:
        explain = vx.RelevanceMap(fill=cell.fill, segments=cell.segments, channel=cell.channel)
        why = explain(model, head, compute=CPU)
        (of,) = [one for one in why.regions if one.name == lines[0][0]]
        reference = mask.data[of.slices] > 0
        parts, values = parts_in(why, of)
        otsu = segment.otsu(why, mask=foreground).data[of.slices] > 0
        assert found[f"{cell.row}/best-grouping", "dice"] == pytest.approx(best_grouping(parts, values, reference).dice)
        assert found[f"{cell.row}/best-grouping", "supervoxels"] == len(values)
        assert found[f"{cell.row}/otsu", "dice"] == pytest.approx(dice(otsu, reference))
    assert ("whole-brain", "dice") in found


def test_slow_methods_explain_only_halves_that_are_scored(tmp_path: Path) -> None:
    head, mask = made_head(tmp_path)
    model = made_model("half")
    slow = Method("rise", vx.RISE(samples=4))
    target = target_of(slow, head, mask, model.card)
    assert target is not None
    both = slow.explainer(model, head, compute=CPU)
    one = slow.explainer(model, head, target=target, compute=CPU)
    assert [region.name for region in one.regions] == ["left"]
    box = one.regions[0].slices
    np.testing.assert_array_equal(one.map[0][box], both.map[0][box])
    lines = [score_method(slow, why, head, mask, model.card) for why in (one, both)]
    assert lines[0] == lines[1]
    assert lines[0]
    # How far a fill moves the output is a mean over all supervoxels of the scan.
    everywhere = dataclasses.replace(slow, everywhere=True)
    assert target_of(everywhere, head, mask, model.card) == ClassScore("tumour")
    nothing = Labels(np.zeros(head.grid.shape, dtype=int), head.grid)
    assert target_of(slow, head, nothing, model.card) is None


def test_the_best_cell_is_the_best_mean_over_patients() -> None:
    cells = [Cell("t2", 50, "blank"), Cell("t2", 100, "blank"), Cell("flair", 50, "min")]
    values = {0: (0.2, 0.5, 0.5), 1: (0.6, 0.5, 0.5)}
    rows = [
        ("c", f"p{patient}", 0, half, TABLE, f"{cell.row}/best-grouping", "dice", "seen", value)
        for patient, figures in values.items()
        for half in ("left", "right")[: 1 + patient]
        for cell, value in zip(cells, figures, strict=True)
    ]
    # Otsu does not choose, nor do numbers of supervoxels.
    rows.append(("c", "p0", 0, "left", TABLE, f"{cells[0].row}/otsu", "dice", "seen", 1.0))
    rows.append(("c", "p0", 0, "left", TABLE, f"{cells[0].row}/best-grouping", "supervoxels", "seen", 99.0))
    table = pd.DataFrame(rows, columns=list(CASE_COLUMNS))
    # A mean over halves would take the first, whose better patient has two of them; of equal cells the first is taken.
    assert best_cell(table, cells) == cells[1]
    assert best_cell(table[:0], cells) is None


def test_fills_of_the_grid_suit_the_region() -> None:
    small = PRESETS["small"]
    assert "mirror" not in fills_of(small, "half")
    assert "mirror" in fills_of(small, "whole")
    with pytest.raises(vx.InputError, match="a network that reads halves"):
        fills_of(dataclasses.replace(small, grid_fills=("blank", "mirror")), "half")
    both = dataclasses.replace(card(), channels=("flair", "t2"))
    assert len(cells_of(both, small)) == 2 * 3 * 5
    # Every cell of the paper's table is one of ours.
    ours = {cell.row for cell in cells_of(dataclasses.replace(card(), channels=("flair", "t1", "t1ce", "t2")), small)}
    assert {row.removesuffix("/best-grouping") for row in PAPER["best-grouping-grid"]} <= ours


def test_the_papers_figures() -> None:
    grid = PAPER["best-grouping-grid"]
    assert len(grid) == 36
    assert grid["relevance-map/blank/t2/100/best-grouping"] == "0.40"
    assert grid["relevance-map/min/flair/50/best-grouping"] == "0.24"
    assert grid["relevance-map/max/t1/50/best-grouping"] == "0.09"
    assert PAPER["single-ranks"]["relevance-map/optimal/rank-2"] == "0.18"
    assert PAPER["cumulative-ranks"]["relevance-map/blank/top-5"] == "0.16"
    assert PAPER["comparison"]["lime/otsu"] == "0.06"


def test_a_figure_stands_beside_the_papers_and_says_that_it_means_nothing() -> None:
    line = ("comparison", "lime/otsu", "dice", "deployable", 0.2, 0.1, 0.3, 5)
    names = ["table", "row", "metric", "kind", "value", "low", "high", "n"]
    summary = pd.DataFrame([line], columns=names)
    header, found = as_rows(summary, "comparison", PAPER["comparison"], too_few="too few")
    assert header == ("row", "kind", "dice", "n", "paper")
    assert found == ("lime/otsu", "deployable, too few", "0.20 [0.10, 0.30]", "5", "0.06")
    assert as_rows(summary, "comparison", {"another": "0.1"})[0] == ("row", "kind", "dice", "n")
    assert list(marked(summary, "too few")["kind"]) == ["deployable, too few"]
    assert marked(summary, None) is summary
