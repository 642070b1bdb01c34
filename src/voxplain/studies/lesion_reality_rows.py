"""Figures of an error score: how well it ranks and how well it is calibrated, and lesion F1 before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from voxplain.metrics.classification import auc, auc_within
from voxplain.metrics.lesion_filter import figures_of_kept
from voxplain.metrics.reliability import expected_calibration_error
from voxplain.metrics.statistics import bootstrap_interval
from voxplain.studies.lesion_overlaps import overlaps_of_case

SCORE_COLUMNS = ("table", "row", "metric", "kind", "value", "low", "high", "n")
PHANTOMS, PATIENTS = "errors-phantoms", "errors-patients"
RIVALS = ("mean probability", "maximum probability", "log volume")
BEFORE = "all lesions"
# What is compared with what: a set of features, its rival ("" stands for the best of RIVALS), and the metric's name.
GAINS = (
    ("plain+maps", "plain", "AUROC gain over plain"),
    ("maps", "", "AUROC gain over best plain rival"),
)
# Thresholds that are tried: a lesion is dropped when its score is above; at 1 none is.
THRESHOLDS = np.arange(1, 101) / 100

Row = tuple[str, str, str, str, float, float, float, int]


@dataclass(frozen=True, eq=False)
class Scored:
    """One cohort, with a score of error for each of its N predicted lesions and set of features.

    Attributes:
        name: the table of its figures.
        method: of explaining.
        table: all lines of the method.
        lines: those of predicted lesions, N.
        scores: by set, (N,), 0 to 1; NaN where a lesion is not scored.
        kept: by set, (N,) boolean: what is left when lesions above the threshold are dropped.
        kinds: of figure, by case.
        thresholds: by set; empty where they differ between folds.
        folds: which regression scored a case, by case.
    """

    name: str
    method: str
    table: pd.DataFrame
    lines: pd.DataFrame
    scores: Mapping[str, np.ndarray]
    kept: Mapping[str, np.ndarray]
    kinds: Mapping[str, str]
    thresholds: Mapping[str, float]
    folds: Mapping[str, int]

    @property
    def scored(self) -> np.ndarray:
        """Which lesions (N,) have a score of every set: the same ones whatever is compared."""
        known = [~np.isnan(values) for values in self.scores.values()]
        found: np.ndarray = np.logical_and.reduce(known) if known else np.zeros(len(self.lines), dtype=bool)
        return found

    @property
    def wrong(self) -> np.ndarray:
        """1 for each false positive among the lesions that are scored."""
        return (self.lines["kind"] == "FP").to_numpy(dtype=int)[self.scored]

    def of_set(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """1 for a false positive, and the score: of the lesions that are scored."""
        return self.wrong, self.scores[name][self.scored]

    def of(self, case: str) -> Scored:
        """One case alone, as a cohort of its own."""
        own = (self.lines["case"] == case).to_numpy()
        return replace(
            self,
            name=f"errors-{case}",
            table=self.table[self.table["case"] == case],
            lines=self.lines[own].reset_index(drop=True),
            scores={name: values[own] for name, values in self.scores.items()},
            kept={name: values[own] for name, values in self.kept.items()},
            kinds={case: self.kinds[case]},
            folds={case: self.folds[case]},
        )


def f1_by_threshold(table: pd.DataFrame, lines: pd.DataFrame, values: np.ndarray) -> dict[str, np.ndarray]:
    """Lesion F1 of each case at each of `THRESHOLDS`, by case (T,), when lesions whose score is above are dropped.

    Args:
        table: all lines of one method.
        lines: its predicted lesions, N.
        values: their scores (N,); lesions with NaN are kept.
    """
    found = {}
    for case in dict.fromkeys(table["case"]):
        touches, experts = overlaps_of_case(table[table["case"] == case])
        own = values[(lines["case"] == case).to_numpy()]
        found[str(case)] = np.array(
            [figures_of_kept(touches, ~(own > limit), experts=experts).f1 for limit in THRESHOLDS]
        )
    return found


def rows_of(cohort: Scored, best_rival: str, *, seed: int, resamples: int) -> list[Row]:
    """The rows of `scores.tsv` of one cohort; a figure that has no lesions to be of is NaN with n = 0.

    Intervals are over patients, whose lesions are drawn together; n counts patients. "AUROC" ranks the lesions of all
    patients of a fold together, and is the mean over folds: scores of different regressions are never ranked together,
    which would speak against features that say little. "AUROC per patient" is the mean over patients.
    """
    rows: list[Row] = []
    kind = next(iter(set(cohort.kinds.values())), "deployable")
    if "seen" in cohort.kinds.values():
        kind = "seen"
    groups = cohort.lines["case"].to_numpy(dtype=str)[cohort.scored] if len(cohort.lines) else np.zeros(0, dtype=str)

    fold = np.array([cohort.folds[case] for case in groups], dtype=int)

    def add(row: str, metric: str, value: float, low: float = np.nan, high: float = np.nan, n: int = 0) -> None:
        rows.append(
            (cohort.name, f"{cohort.method}/{row}", metric, kind, value, low, high, 0 if np.isnan(value) else n)
        )

    def over_patients(row: str, metric: str, statistic: Callable[..., float], *arrays: np.ndarray) -> None:
        low, high = bootstrap_interval(arrays, statistic=statistic, groups=groups, resamples=resamples, seed=seed)
        add(row, metric, statistic(*arrays), low, high, len(np.unique(groups)))

    patients = len(cohort.kinds)
    for metric, kinds in (("true positives", ["TP"]), ("false positives", ["FP"]), ("predicted lesions", ["TP", "FP"])):
        add(BEFORE, metric, float(cohort.lines["kind"].isin(kinds).sum()), n=patients)
    add(BEFORE, "lesions without score", float((~cohort.scored).sum()), n=patients)
    for name in cohort.scores:
        over_patients(name, "AUROC", auc_within, *cohort.of_set(name), fold)
        each = _within(cohort, name, groups)
        low, high = bootstrap_interval(each, resamples=resamples, seed=seed)
        add(name, "AUROC per patient", float(each.mean()) if each.size else np.nan, low, high, each.size)
        over_patients(name, "calibration error", expected_calibration_error, *cohort.of_set(name))
    for name, rival, metric in GAINS:
        against = rival or best_rival
        if against in cohort.scores and name in cohort.scores:
            wrong, values = cohort.of_set(name)
            over_patients(name, metric, _gain, wrong, values, cohort.of_set(against)[1], fold)
    before = _figures(cohort, np.ones(len(cohort.lines), dtype=bool))
    for place, metric in enumerate(("lesion precision", "lesion recall", "lesion F1")):
        add(BEFORE, metric, *_mean(before[:, place], seed, resamples))
    for name, kept in cohort.kept.items():
        after = _figures(cohort, kept)
        for place, metric in enumerate(("lesion precision", "lesion recall", "lesion F1")):
            add(name, metric, *_mean(after[:, place], seed, resamples))
        add(name, "lesion F1 gain", *_mean(after[:, 2] - before[:, 2], seed, resamples))
        for metric, of_kind in (("true positives dropped", "TP"), ("false positives dropped", "FP")):
            dropped = (cohort.lines["kind"] == of_kind).to_numpy() & ~kept
            add(name, metric, float(dropped.sum()), n=patients)
        if name in cohort.thresholds:
            add(name, "threshold", cohort.thresholds[name], n=patients)
    return rows


def _gain(wrong: np.ndarray, one: np.ndarray, other: np.ndarray, fold: np.ndarray) -> float:
    return auc_within(wrong, one, fold) - auc_within(wrong, other, fold)


def _within(cohort: Scored, name: str, groups: np.ndarray) -> np.ndarray:
    """The AUROC of each patient who has both, right and wrong lesions."""
    wrong, values = cohort.of_set(name)
    found = np.array([auc(wrong[groups == group], values[groups == group]) for group in np.unique(groups)])
    return found[~np.isnan(found)]


def _figures(cohort: Scored, kept: np.ndarray) -> np.ndarray:
    """Lesion precision, recall and F1 of each case, (cases, 3)."""
    cases = cohort.lines["case"].to_numpy(dtype=str) if len(cohort.lines) else np.zeros(0, dtype=str)
    found = []
    for case in cohort.kinds:
        touches, experts = overlaps_of_case(cohort.table[cohort.table["case"] == case])
        found.append(figures_of_kept(touches, kept[cases == case], experts=experts))
    return np.array(found, dtype=np.float64).reshape(-1, 3)


def _mean(values: np.ndarray, seed: int, resamples: int) -> tuple[float, float, float, int]:
    """Mean over patients with its interval, and how many they are; those without the figure are left out."""
    known = values[~np.isnan(values)]
    low, high = bootstrap_interval(known, resamples=resamples, seed=seed)
    return float(known.mean()) if known.size else np.nan, low, high, known.size
