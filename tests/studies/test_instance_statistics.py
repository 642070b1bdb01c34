"""Figures of the instance study against counting by hand, and its tables and pictures."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from voxplain.datasets.phantom_cohort import SOFTWARE_CHECK
from voxplain.metrics.lesion_filter import LesionFigures
from voxplain.report.instance_figures import context_curves, violins
from voxplain.studies import context, instance_statistics
from voxplain.studies.instance_lesions import SIDES, columns
from voxplain.studies.instance_patients import CLASSES
from voxplain.studies.instance_statistics import COLUMNS, PHANTOMS, groups_of, in_order, of_groups
from voxplain.studies.instance_tables import PAPER, markdown, table_lines

COUNTS = {"a": {"TP": 6, "FP": 4, "FN": 3, "TN": 5}, "b": {"TP": 5, "FP": 6, "FN": 0, "TN": 5}}


def lesions(counts: dict[str, dict[str, int]] = COUNTS, row: str = "instance-smoothgrad") -> pd.DataFrame:
    """Made lines of `lesions.tsv`; maxima fall from TP to TN, with overlap."""
    random = np.random.default_rng(0)
    lines = []
    for case, its in counts.items():
        kinds = [kind for kind in CLASSES for _ in range(its[kind])]
        for number, kind in enumerate(kinds, start=1):
            level = 4 - CLASSES.index(kind)
            line = dict.fromkeys(columns(("flair", "t1")), 0.0)
            line |= {name: float(level + random.normal(0, 1)) for name in line}
            lines.append(line | {"case": case, "row": row, "kind": kind, "lesion": number})
    return pd.DataFrame(lines, columns=list(columns(("flair", "t1"))))


def sides(lines: pd.DataFrame) -> pd.DataFrame:
    found = [
        {"case": line["case"], "kind": line["kind"], "lesion": line["lesion"], "sequence": sequence, "side": side}
        | {"positive": 1.0, "negative": np.nan, "positive_count": 3, "negative_count": 0}
        for line in lines.to_dict("records")
        for sequence in ("flair", "t1")
        for side in ("inside", "outside")
    ]
    return pd.DataFrame(found, columns=list(SIDES))


def summary_of(
    lines: pd.DataFrame, *, made: tuple[str, ...] = (), counts: dict[str, dict[str, int]] = COUNTS
) -> pd.DataFrame:
    groups = groups_of(dict.fromkeys(counts, "deployable"), made)
    rows = instance_statistics.statistics_of(
        *(lines, sides(lines)),
        groups=groups,
        counts=counts,
        detection={"a": LesionFigures(0.6, 0.75, 2 / 3), "b": LesionFigures(0.4, 0.25, 4 / 13)},
        channels=("flair", "t1"),
        row="instance-smoothgrad",
        methods=True,
    )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def value(summary: pd.DataFrame, table: str, row: str, metric: str) -> pd.Series:
    (found,) = [
        line for _, line in summary[(summary["table"] == table) & (summary["row"] == row)].iterrows()
        if line["metric"] == metric
    ]  # fmt: skip
    return found


def test_detection_of_several_patients_is_their_mean() -> None:
    summary = summary_of(lesions())
    assert value(summary, "counts", "a", "lesion precision")["value"] == 0.6
    pooled = value(summary, "counts", "pooled, 2 patients", "lesion F1")
    assert pooled["value"] == pytest.approx((2 / 3 + 4 / 13) / 2)
    (line,) = [line for line in table_lines(summary, "counts") if line[0] == "b"]
    assert line[-4:] == ["0.4", "0.25", "0.308", "6"]


def test_medians_tests_and_areas_by_hand() -> None:
    lines = lesions()
    summary = summary_of(lines)
    its = lines[(lines["case"] == "a") & (lines["kind"] == "FP")]
    found = value(summary, "classes", "a/FP", "maximum")
    assert found["value"] == np.median(its["flair_maximum"])
    assert found["low"] <= found["value"] <= found["high"]
    assert found["n"] == 4
    pooled = lines[lines["kind"] == "TP"]
    assert value(summary, "classes", "pooled, 2 patients/TP", "minimum")["value"] == np.median(pooled["flair_minimum"])
    assert value(summary, "sequences", "a/TP", "t1 negative")["n"] == 6

    # Wins of TP over FP, counted.
    right, wrong = (
        lines.loc[(lines["case"] == "a") & (lines["kind"] == kind), "flair_maximum"] for kind in ("TP", "FP")
    )
    wins = sum((a > b) + 0.5 * (a == b) for a, b in itertools.product(right, wrong))
    auroc = wins / (len(right) * len(wrong))
    row = "a/instance-smoothgrad"
    assert value(summary, "methods", row, "TP against FP, AUROC")["value"] == pytest.approx(auroc)
    assert value(summary, "plain rivals", "a/flair maximum", "TP against FP, AUROC")["value"] == pytest.approx(auroc)
    passes = lines.loc[(lines["case"] == "a") & lines["kind"].isin(("TP", "FP")), "backward_passes"]
    assert value(summary, "methods", row, "backward passes per lesion")["value"] == pytest.approx(passes.mean())

    # The exact two-sided p-value of Mann and Whitney: of all ways to deal the values, those as far from the middle.
    values = [*right, *wrong]
    middle, extreme, ways = len(right) * len(wrong) / 2, 0, 0
    for chosen in itertools.combinations(range(len(values)), len(right)):
        inside = [values[place] for place in chosen]
        outside = [values[place] for place in range(len(values)) if place not in chosen]
        statistic = sum(a > b for a, b in itertools.product(inside, outside))
        extreme += abs(statistic - middle) >= abs(wins - middle)
        ways += 1
    assert value(summary, "tests", "a/TP against FP", "maximum, p")["value"] == pytest.approx(min(1, extreme / ways))


def test_the_order_of_medians() -> None:
    lines = pd.DataFrame({"kind": ["TP", "TP", "FP", "FN", "TN"], "x": [9.0, 3, 4, 2, 1]})
    assert in_order(lines, "x") == (1.0, 4)
    assert in_order(lines.assign(x=-lines["x"]), "x", sign=-1) == (1.0, 4)
    assert in_order(lines.assign(x=[9.0, 3, 4, 5, 1]), "x") == (0.0, 4)
    # Classes without lesions are left out.
    assert in_order(lines[lines["kind"].isin(("TP", "TN"))], "x") == (1.0, 2)
    value, count = in_order(lines[lines["kind"] == "TP"], "x")
    assert np.isnan(value)
    assert count == 1


def test_an_empty_class_is_a_line_with_n_0() -> None:
    summary = summary_of(lesions())
    for metric in ("maximum", "minimum"):
        found = value(summary, "classes", "b/FN", metric)
        assert np.isnan(found["value"])
        assert found["n"] == 0
    assert np.isnan(value(summary, "tests", "b/TP against FN", "maximum, p")["value"])
    assert "| b/FN | deployable | - | - | 0 |" in markdown(summary)
    none = {"a": dict.fromkeys(CLASSES, 0)}
    empty = lesions().iloc[:0].astype({"flair_maximum": float})
    nothing = summary_of(empty, counts=none)
    assert nothing["n"].max() == 0


def test_methods_are_compared_on_the_lesions_that_all_explain() -> None:
    main = lesions()
    other = main[(main["case"] == "a") & main["lesion"].isin((1, 2, 7, 8))].copy()
    other["row"], other["all_maximum"] = "occlusion", [1.0, 2.0, 1.5, 0.5]
    other["flair_maximum"] = np.nan
    summary = summary_of(pd.concat([main, other], ignore_index=True))
    found = value(summary, "methods", "a/occlusion", "TP against FP, AUROC")
    assert (found["value"], found["n"]) == (0.75, 4)
    same = value(summary, "methods", "a/instance-smoothgrad", "the same, lesions of all methods")
    assert same["n"] == 4
    its = main[main["case"] == "a"].set_index("lesion")["flair_maximum"]
    assert same["value"] == np.mean([its[a] > its[b] for a in (1, 2) for b in (7, 8)])


def test_groups_pool_no_phantom_with_a_patient_and_no_patient_alone() -> None:
    kinds = {"a": "deployable", "b": "seen", "c": "deployable", "p": "deployable", "q": "deployable"}
    found = {group.name: (group.kind, group.cases) for group in groups_of(kinds, ["p", "q"])}
    assert found["pooled, 2 patients"] == ("deployable", ("a", "c"))
    assert found["b"] == ("seen", ("b",))
    assert found["p, phantom (software check)"] == ("deployable", ("p",))
    assert found["phantoms pooled, phantom (software check)"][1] == ("p", "q")
    assert len(found) == 7
    assert [group.name for group in groups_of({"a": "seen"}, [])] == ["a"]


def test_tables_show_the_papers_figures_beside_ours() -> None:
    lines = table_lines(summary_of(lesions()), "classes")
    assert lines[0] == ["row", "kind", "maximum", "minimum", "n"]
    assert lines[-4:] == [
        [f"004/{kind}", "deployable", f"{PAPER['classes', kind, 'maximum']:.4g}",
         f"{PAPER['classes', kind, 'minimum']:.4g}", f"{count} of 37 patients"]
        for kind, count in (("TP", 3050), ("FP", 1818), ("FN", 789), ("TN", 1010))
    ]  # fmt: skip
    text = markdown(summary_of(lesions()), ["a note"])
    assert text.startswith("- a note\n- Lesions of one patient are not independent")


def test_context_and_placement_rows() -> None:
    shown = context.table_of(
        [
            {"case": "a", "set": context.REAL, "lesion": 1, "volume_mm3": 90, "mm": mm}
            | {"mean_probability": score, "max_probability": score, "detected": float(score > 0.3)}
            for mm, score in ((0.0, 0.1), (1.0, 0.5), (np.inf, 0.5))
        ]
    )
    groups = groups_of({"a": "deployable"}, [])
    rows = {(row[1], row[2]): (row[4], row[7]) for row in instance_statistics.context_rows(shown, groups)}
    assert rows["a/real, 30-300 mm3", "all appear, mm"] == (1.0, 1)
    assert rows["a/made, 90-120 mm3", "lesions"] == (0.0, 0)
    moved = pd.DataFrame(
        [{"case": "a", "place": "original", "mean_probability": 0.5, "max_probability": 0.9, "detected": 1.0}]
    ).assign(flair_maximum=2.0, flair_minimum=-1.0)
    found = {row[2]: row[4] for row in instance_statistics.placement_rows(moved, {"a": "seen"}, "flair")}
    assert found == {
        **{"mean probability": 0.5, "highest probability": 0.9, "detected": 1.0},
        **{"maximum": 2.0, "minimum": -1.0},
    }
    assert list(instance_statistics.placement_rows(pd.DataFrame(), {}, "flair")) == []


def test_pictures_open_even_where_classes_are_empty() -> None:
    classes = {"TP": np.array([1.0, 2, 3]), "FP": np.array([1.0]), "FN": np.zeros(0), "TN": np.array([1.0, 1.0])}
    picture = violins([("a", {"maximum": classes, "minimum": classes})], "unit")
    assert Image.open(io.BytesIO(picture)).size[0] == 900
    lines = pd.DataFrame({"mm": [0.0, 1], "n": [2, 2], "mean": [0.1, 0.5], "sd": [0.1, np.nan], "detected": [0, 2]})
    curves = context_curves([("real", lines), ("made", lines.iloc[:0])], 0.3)
    assert Image.open(io.BytesIO(curves)).size[0] == 900
    empty = context_curves([("real", lines.iloc[:0])], 0.3)
    assert empty != curves


def test_single_phantoms_are_counted_and_else_shown_together() -> None:
    groups = groups_of(dict.fromkeys(("p07", "made001", "made002"), "deployable"), ["made001", "made002"])
    together = [group for group in groups if group.name in ("p07", PHANTOMS)]
    names = [f"made001, {SOFTWARE_CHECK}", "p07", PHANTOMS]
    rows = [("counts", name, "TP") for name in names] + [("extremes", f"{name}/TP", "maximum") for name in names]
    rows.append(("errors-phantoms", "instance-smoothgrad/maps", "AUROC"))
    summary = pd.DataFrame(rows, columns=["table", "row", "metric"])
    kept = of_groups(summary, groups, together)
    assert kept["row"].tolist() == [*names, "p07/TP", f"{PHANTOMS}/TP", "instance-smoothgrad/maps"]
    assert len(of_groups(summary, groups, groups)) == len(summary)
