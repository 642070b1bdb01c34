"""What the page says: verdicts, gains over what needs no network, privacy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from voxplain.explanation import Explanation
from voxplain.report import facts
from voxplain.report.facts import beliefs, figure_table, verdict
from voxplain.scan import Labels


def test_the_verdict(make_head: Any, parts_map: Callable[..., Explanation]) -> None:
    scan = make_head((20, 24, 20), 8.0).scan()
    assert verdict(parts_map(scan)) == (
        "The network calls the left half (0.900) positive for tumour, and the right half (0.100) negative."
    )
    assert verdict(parts_map(scan, probabilities=(0.2, 0.00001))) == (
        "The network calls the left half (0.200) and the right half (< 0.001) negative for tumour."
    )
    assert "(> 0.999)" in verdict(parts_map(scan, probabilities=(0.99999, 0.8)))


def test_the_verdict_on_predicted_classes_and_many_slices(
    make_head: Any, parts_map: Callable[..., Explanation]
) -> None:
    why = parts_map(make_head((20, 24, 20), 8.0).scan())
    predicted = replace(
        why,
        provenance=why.provenance | {"target": {"kind": "PredictedClass"}},
        regions=tuple(replace(region, target=name) for region, name in zip(why.regions, ("high", "free"), strict=True)),
    )
    assert verdict(predicted) == "The network calls the left half high (0.900) and the right half free (0.100)."
    assert facts.threshold(predicted) is None
    assert facts.threshold(why) is not None
    assert facts.target_name(predicted) == "the predicted class"
    slices = tuple(
        replace(predicted.regions[0], name=f"axial {k:03d}", probability=k / 10, positive=k > 4, target="ab"[k > 6])
        for k in range(9)
    )
    assert verdict(replace(why, regions=slices)) == (
        "The network calls 4 of 9 slices positive for tumour; the highest is axial 008 (0.800)."
    )
    assert verdict(replace(predicted, regions=slices)) == "The network calls 7 of 9 slices a and 2 of 9 slices b."


def figures(**changes: float) -> pd.DataFrame:
    rows = {"relevance-map": 0.6, "grad-cam": 0.4, "intensity/flair": 0.7, "whole-brain": 0.1} | changes
    table = [(row, "deployable", value) for row, value in rows.items()]
    table += [
        ("relevance-map/best-grouping", "oracle", 0.9),
        ("intensity/supervoxel-rank/best-grouping", "oracle", 0.95),
    ]
    return pd.DataFrame(table, columns=["row", "kind", "dice"]).assign(hd95_mm=np.nan)


def test_the_gain_is_over_the_best_row_without_a_network() -> None:
    table = figure_table(figures())
    assert [name for name, _ in table.columns] == ["Dice"]
    assert [row.name for row in table.rows if row.best] == ["intensity/flair"]
    assert not table.beaten
    assert table.headline == (
        "None of the 2 maps beats the best of what needs no network, intensity/flair (Dice 0.700, deployable)."
    )
    assert table.gains == (
        "relevance-map: Dice 0.600 (deployable), −0.100",
        "grad-cam: Dice 0.400 (deployable), −0.300",
    )
    assert [row.group for row in table.rows] == ["map", "map", "free", "free", "ceiling", "ceiling"]
    won = figure_table(figures(**{"relevance-map": 0.75}))
    assert won.beaten
    assert won.headline is not None
    assert won.headline.startswith("1 of 2 maps beats")
    one = figure_table(figures().query("row != 'grad-cam'"))
    assert one.headline == (
        "relevance-map (Dice 0.600, deployable) does not beat the best of what needs no network, intensity/flair "
        "(0.700, deployable): −0.100."
    )


def test_nothing_is_won_on_a_scan_of_the_training() -> None:
    given = figures(**{"relevance-map": 0.75})
    given.loc[given["row"] == "relevance-map", "kind"] = "seen"
    table = figure_table(given)
    assert not table.beaten
    assert "relevance-map: Dice 0.750 (seen), +0.050" in table.gains


def test_a_tie_is_no_win_and_volumes_alone_say_nothing() -> None:
    assert not figure_table(figures(**{"relevance-map": 0.7, "grad-cam": 0.69999})).beaten
    table = figure_table(figures().drop(columns="dice").assign(volume_ml=3.0))
    assert table.headline is None
    assert not any(row.best for row in table.rows)


def test_paths_are_cut_to_their_last_name() -> None:
    given = {
        "sources": {"flair": "/home/someone/data/P_flair.nii.gz", "t1": "C:\\Users\\someone\\P_t1.nii.gz"},
        "fill": "optimal:/home/someone/run 3/generator",
        "warnings": ["the file '/data/patients/x.nii' is old"],
        "unit": "mg/ml",
        "steps": [1, None],
    }
    assert facts.without_folders(given) == {
        "sources": {"flair": "P_flair.nii.gz", "t1": "P_t1.nii.gz"},
        "fill": "optimal:generator",
        "warnings": ["the file 'x.nii' is old"],
        "unit": "mg/ml",
        "steps": [1, None],
    }


def test_names_are_told_apart(make_head: Any, parts_map: Callable[..., Explanation]) -> None:
    why = parts_map(make_head((20, 24, 20), 8.0).scan())
    other = replace(why, provenance=why.provenance | {"options": {"fill": "optimal:/a/b", "channel": "t1"}})
    assert facts.method_names([why]) == ["relevance-map"]
    assert facts.method_names([why, other]) == ["relevance-map fill=blank", "relevance-map fill=optimal:b"]
    assert facts.method_names([why, why]) == ["relevance-map", "relevance-map (2)"]
    assert facts.method_name(replace(why, provenance={"explainer": "a.b:GradCAM"})) == "grad-cam"
    assert facts.method_name(replace(why, provenance={})) == "map"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"truth": True, "known": False}, None),
        ({}, "Whether the network was trained on this scan is not recorded"),
        ({"known": False}, "There is no expert mask"),
        ({"truth": True, "empty": True}, "The expert mask is empty: there is nothing to overlap with"),
        ({"known": True}, "The network was trained on this scan. Answers and maps say nothing about new patients."),
        ({"negative": True, "empty": True}, "called no region positive, so the mask is empty by rule"),
        ({"negative": True}, "called no region positive."),
        ({"empty": True}, "the mask is empty although a region is positive"),
        ({"zero": True}, "the map is zero everywhere"),
        ({"small": True}, "no part alone moves the probability by more than 0.02"),
    ],
)
def test_beliefs(
    make_head: Any, parts_map: Callable[..., Explanation], options: dict[str, bool], said: str | None
) -> None:
    scan = make_head((20, 24, 20), 8.0).scan()
    why = parts_map(scan, probabilities=(0.1, 0.1) if "negative" in options else (0.9, 0.1))
    assert why.scores is not None
    factor = 0.0 if "zero" in options else 0.02 / float(why.scores.max()) if "small" in options else 1.0
    why = replace(why, map=why.map * factor, scores=why.scores * factor)
    if "known" in options:
        why = replace(why, provenance=why.provenance | {"seen": options["known"]})
    mask = Labels(np.zeros(scan.grid.shape) if "empty" in options else scan.foreground(), scan.grid)
    found = beliefs(
        ["m"],
        [why],
        [mask],
        truth=mask if "truth" in options else None,
        figures=None,
        foreground=scan.foreground(),
    )
    if said is None:
        assert len(found) == 1
    else:
        assert sum(said in text for text in found) == 1


def test_relevance_outside_of_the_brain_is_said(make_head: Any, voxel_map: Callable[..., Explanation]) -> None:
    scan = make_head((20, 24, 20), 8.0).scan()
    why = voxel_map(scan)
    moved = replace(why, map=np.where(scan.foreground(), 0, 1)[None] + why.map)
    found = facts.beliefs(["m"], [moved], [None], truth=None, figures=None, foreground=scan.foreground())
    assert any("lies outside of the brain" in text for text in found)


def test_each_map_is_seen_or_not_by_itself(make_head: Any, parts_map: Callable[..., Explanation]) -> None:
    scan = make_head((20, 24, 20), 8.0).scan()
    new, old = (replace(parts_map(scan), provenance={"seen": value}) for value in (False, True))
    assert facts.seen_words(["a", "b"], [new, old]) == "The network of b was trained on this scan."
    assert facts.seen_words(["a", "b"], [old, old]) == "The network was trained on this scan."


@pytest.mark.parametrize("name", ["intensity/flair", "whole-brain", "random-rank/otsu", "mine/best-grouping"])
def test_names_of_rows_without_a_network_are_taken(name: str) -> None:
    assert facts.is_taken(name)
    assert not facts.is_taken("my " + name.split("/")[0])
