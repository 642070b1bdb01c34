"""The figures of the instance study: medians by class, tests of all pairs, what tells TP from FP, context, placements.

Intervals are bootstrapped over lesions. Lesions of one patient are not independent of each other, so that neither
intervals nor p-values say anything of a population.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
from scipy import stats

from voxplain.metrics.classification import auc, auc_within
from voxplain.metrics.lesion_filter import LesionFigures
from voxplain.metrics.statistics import bootstrap_interval
from voxplain.studies import context
from voxplain.studies.instance_lesions import ALL
from voxplain.studies.instance_patients import CLASSES

COLUMNS = ("table", "row", "metric", "kind", "value", "low", "high", "n")
Row = tuple[str, str, str, str, float, float, float, int]
POOLED, PHANTOMS = "pooled", "phantoms pooled, phantom (software check)"
_RESAMPLES = 500
# Low, high and n of a figure that the number of lesions beside it speaks for.
_NO_INTERVAL = (np.nan, np.nan, 0)


@dataclass(frozen=True)
class Group:
    """Lines of one patient, or of several: its name and kind in tables, and whose they are."""

    name: str
    kind: str
    cases: tuple[str, ...]

    def of(self, lines: pd.DataFrame) -> pd.DataFrame:
        """The group's lines of a table with a column `case`."""
        return lines[lines["case"].isin(self.cases)]


def groups_of(kinds: Mapping[str, str], made: Sequence[str]) -> list[Group]:
    """Every patient, then all real ones of one kind together, then all phantoms; one patient alone is not pooled."""
    real = [case for case in kinds if case not in made]
    found = [Group(case, kinds[case], (case,)) for case in real]
    for kind in dict.fromkeys(kinds[case] for case in real):
        its = tuple(case for case in real if kinds[case] == kind)
        if len(its) > 1:
            found.append(Group(f"{POOLED}, {len(its)} patients", kind, its))
    found += [Group(f"{case}, phantom (software check)", kinds[case], (case,)) for case in made]
    if len(made) > 1:
        found.append(Group(PHANTOMS, kinds[made[0]], tuple(made)))
    return found


def of_groups(summary: pd.DataFrame, groups: Sequence[Group], wanted: Sequence[Group]) -> pd.DataFrame:
    """The figures without those of groups that are not wanted; how many lesions each patient has is kept of all."""
    dropped = {group.name for group in groups} - {group.name for group in wanted}
    return summary[(summary["table"] == "counts") | ~summary["row"].str.split("/").str[0].isin(dropped)]


def sequence_rows(lines: pd.DataFrame, groups: Sequence[Group], channels: Sequence[str]) -> Iterator[Row]:
    """Part 1 (004, 3.2): of each class the median over lesions of each sequence's positive and negative median."""
    for group, kind, its in _by_class(lines, groups):
        row = f"{group.name}/{kind}"
        for channel in channels:
            for sign in ("positive", "negative"):
                yield _median("sequences", row, f"{channel} {sign}", group.kind, its[f"{channel}_{sign}"])
        if "flair" in channels:
            yield _median("sequences", row, "share of flair", group.kind, its["flair_share"])
        yield _median("sequences", row, "fades at, mm", group.kind, its["fades_mm"])


def side_rows(sides: pd.DataFrame, groups: Sequence[Group], channels: Sequence[str]) -> Iterator[Row]:
    """Where positive and negative values lie: of each class the median over lesions inside of them, and outside."""
    for group, kind, its in _by_class(sides, groups):
        for side in ("inside", "outside"):
            there = its[its["side"] == side]
            for channel in channels:
                of = there[there["sequence"] == channel]
                row = f"{group.name}/{kind}, {side}"
                for sign in ("positive", "negative"):
                    for metric, column in ((f"{channel} {sign}", sign), (f"{channel} {sign} voxels", f"{sign}_count")):
                        values = of[column].dropna().astype(float)
                        middle = float(values.median()) if len(values) else np.nan
                        yield ("sides", row, metric, group.kind, middle, np.nan, np.nan, len(values))


def class_rows(lines: pd.DataFrame, groups: Sequence[Group], channel: str) -> Iterator[Row]:
    """Part 2 (004, 3.3): medians of the maps' maxima and minima by class, and whether TP > FP > FN > TN."""
    for group, kind, its in _by_class(lines, groups):
        for extreme in ("maximum", "minimum"):
            yield _median("classes", f"{group.name}/{kind}", extreme, group.kind, its[f"{channel}_{extreme}"])
    for group in groups:
        its = group.of(lines)
        for extreme, sign in (("maximum", 1), ("minimum", -1)):
            holds, count = in_order(its, f"{channel}_{extreme}", sign=sign)
            yield ("order", group.name, f"{extreme}: TP > FP > FN > TN", group.kind, holds, np.nan, np.nan, count)


def in_order(lines: pd.DataFrame, column: str, *, sign: int = 1) -> tuple[float, int]:
    """Whether the medians of the classes that occur fall from TP to TN, 1 or 0, and how many occur; NaN below two."""
    medians = [lines.loc[lines["kind"] == kind, column].median() for kind in CLASSES]
    known = [sign * value for value in medians if not np.isnan(value)]
    if len(known) < 2:
        return np.nan, len(known)
    return float(all(a > b for a, b in pairwise(known))), len(known)


def pair_rows(lines: pd.DataFrame, groups: Sequence[Group], channel: str) -> Iterator[Row]:
    """Two-sided Mann-Whitney p-values of all pairs of classes; NaN where one of them is empty. n counts both."""
    for group in groups:
        its = group.of(lines)
        for one, other in combinations(CLASSES, 2):
            row, count = f"{group.name}/{one} against {other}", 0
            for extreme in ("maximum", "minimum"):
                a, b = (
                    its.loc[its["kind"] == kind, f"{channel}_{extreme}"].dropna().to_numpy() for kind in (one, other)
                )
                count = len(a) + len(b)
                value = float(stats.mannwhitneyu(a, b, alternative="two-sided").pvalue) if len(a) and len(b) else np.nan
                yield ("tests", row, f"{extreme}, p", group.kind, value, np.nan, np.nan, count)


def method_rows(lines: pd.DataFrame, groups: Sequence[Group], channel: str) -> Iterator[Row]:
    """Part 6: how well the maximum of each method's map tells TP from FP, on all of its lesions and on those of all.

    AUROC within patients (their mean, where there are several), and passes per lesion.
    """
    rows = list(dict.fromkeys(lines["row"]))
    for group in groups:
        its = group.of(lines)
        its = its[its["kind"].isin(("TP", "FP"))]
        counts = its.groupby(["case", "lesion"])["row"].nunique()
        shared = its.set_index(["case", "lesion"]).index.isin(counts[counts == len(rows)].index)
        for row in rows:
            name = f"{group.name}/{row}"
            for metric, some in (("TP against FP, AUROC", its), ("the same, lesions of all methods", its[shared])):
                of = some[some["row"] == row]
                column = f"{channel}_maximum"
                if of[column].isna().all() and f"{ALL}_maximum" in of:
                    column = f"{ALL}_maximum"
                yield _auroc("methods", name, metric, group.kind, of, column)
            of = its[its["row"] == row]
            for metric, column in (("forward passes", "forward_passes"), ("backward passes", "backward_passes")):
                value = float(of[column].mean()) if len(of) else np.nan
                yield ("methods", name, f"{metric} per lesion", group.kind, value, np.nan, np.nan, len(of))


def rival_rows(lines: pd.DataFrame, groups: Sequence[Group], channel: str) -> Iterator[Row]:
    """What plain features of the same lesions tell of TP and FP, beside the map's maximum."""
    for group in groups:
        its = group.of(lines)
        its = its[its["kind"].isin(("TP", "FP"))]
        for name, column in (
            (f"{channel} maximum", f"{channel}_maximum"),
            ("mean probability", "mean_probability"),
            ("maximum probability", "max_probability"),
            ("volume", "volume_mm3"),
        ):
            yield _auroc("plain rivals", f"{group.name}/{name}", "TP against FP, AUROC", group.kind, its, column)


def context_rows(lines: pd.DataFrame, groups: Sequence[Group]) -> Iterator[Row]:
    """Part 4 (004, 3.5): for each set of lesions how many appear, from what mm on, and where scores level off."""
    for group in groups:
        its = group.of(lines)
        for name in (context.REAL, context.MADE):
            of = its[its["set"] == name]
            found = context.summed_up(of)
            row = f"{group.name}/{name}"
            for metric, value, count in (
                ("lesions", float(found.n), found.n),
                ("found with the whole scan", float(found.found), found.n),
                ("90 % appear, mm", found.appear_90, found.found),
                ("all appear, mm", found.appear_all, found.found),
                ("scores level off, mm", found.levels_off, found.n),
            ):
                yield ("context", row, metric, group.kind, value, np.nan, np.nan, count)


def placement_rows(lines: pd.DataFrame, kinds: Mapping[str, str], channel: str) -> Iterator[Row]:
    """Part 3 (004, 3.4): what is predicted in a moved lesion, and its map's extremes; one lesion a patient."""
    for line in lines.to_dict("records"):
        row, kind = f"{line['case']}/{line['place']}", kinds[line["case"]]
        for metric, column in (
            ("mean probability", "mean_probability"),
            ("highest probability", "max_probability"),
            ("detected", "detected"),
            ("maximum", f"{channel}_maximum"),
            ("minimum", f"{channel}_minimum"),
        ):
            yield ("placements", row, metric, kind, float(line[column]), np.nan, np.nan, 1)


def count_rows(counts: Mapping[str, Mapping[str, int]], groups: Sequence[Group]) -> Iterator[Row]:
    """How many lesions of each class there are, explained or not."""
    for group in groups:
        totals = {kind: sum(counts[case][kind] for case in group.cases) for kind in CLASSES}
        for kind, total in totals.items():
            yield ("counts", group.name, kind, group.kind, float(total), np.nan, np.nan, total)


def detection_rows(detection: Mapping[str, LesionFigures], groups: Sequence[Group]) -> Iterator[Row]:
    """Precision, recall and F1 of the predicted lesions, of several patients the mean."""
    for group in groups:
        for place, name in enumerate(LesionFigures._fields):
            values = np.array([detection[case][place] for case in group.cases if case in detection])
            value = float(values.mean()) if values.size else np.nan
            yield ("counts", group.name, f"lesion {'F1' if name == 'f1' else name}", group.kind, value, *_NO_INTERVAL)


def _by_class(lines: pd.DataFrame, groups: Sequence[Group]) -> Iterator[tuple[Group, str, pd.DataFrame]]:
    for group in groups:
        its = group.of(lines)
        for kind in CLASSES:
            yield group, kind, its[its["kind"] == kind]


def _median(table: str, row: str, metric: str, kind: str, values: pd.Series) -> Row:
    found = values.dropna().to_numpy(dtype=np.float64)
    value = float(np.median(found)) if found.size else np.nan
    return (table, row, metric, kind, value, *_interval((found,), np.median), found.size)


def _auroc(table: str, row: str, metric: str, kind: str, lines: pd.DataFrame, column: str) -> Row:
    lines = lines[lines[column].notna()]
    labels, scores = (lines["kind"] == "TP").to_numpy().astype(int), lines[column].to_numpy(dtype=np.float64)
    cases = lines["case"].to_numpy()
    # Within one patient without the cost of grouping.
    if len(set(cases)) < 2:
        value, low_high = auc(labels, scores), _interval((labels, scores), auc)
    else:
        value = auc_within(labels, scores, cases)
        low_high = _interval((labels, scores, cases), auc_within)
    return (table, row, metric, kind, value, *low_high, len(lines))


def _interval(values: tuple[np.ndarray, ...], statistic: Callable[..., float]) -> tuple[float, float]:
    if not values[0].size:
        return np.nan, np.nan
    if any(array.dtype.kind not in "fiu" for array in values):
        # Names of patients become numbers, since rows with NaN are looked for.
        values = (*values[:-1], np.unique(values[-1], return_inverse=True)[1])
    return bootstrap_interval(values, statistic=statistic, resamples=_RESAMPLES)


def statistics_of(
    lines: pd.DataFrame,
    sides: pd.DataFrame,
    *,
    groups: Sequence[Group],
    counts: Mapping[str, Mapping[str, int]],
    detection: Mapping[str, LesionFigures],
    channels: Sequence[str],
    row: str,
    methods: bool,
) -> list[Row]:
    """All figures that follow from `lesions.tsv`: `row` is the method whose maps the first parts are on."""
    main = lines[lines["row"] == row]
    channel = "flair" if "flair" in channels else channels[0]
    found = [
        *count_rows(counts, groups),
        *detection_rows(detection, groups),
        *sequence_rows(main, groups, channels),
        *side_rows(sides, groups, channels),
        *class_rows(main, groups, channel),
        *pair_rows(main, groups, channel),
        *rival_rows(main, groups, channel),
    ]
    return [*found, *method_rows(lines, groups, channel)] if methods else found
