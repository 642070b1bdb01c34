"""Is this lesion real? An error score from maps against rivals that need none: phantoms first, then patients as is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from voxplain.errors import InputError
from voxplain.lesion_errors import ErrorScore, feature_sets, feature_values, fit_error_score, predicted_lines
from voxplain.metrics.classification import auc_within
from voxplain.studies.lesion_reality_rows import (
    PATIENTS,
    PHANTOMS,
    RIVALS,
    SCORE_COLUMNS,
    THRESHOLDS,
    Scored,
    f1_by_threshold,
    rows_of,
)


@dataclass(frozen=True, eq=False)
class LesionReality:
    """What came out for one method of explaining.

    Attributes:
        method: the value of `row` in the tables of lesions.
        summary: rows of `scores.tsv`; tables `errors-phantoms`, `errors-patients`, and `errors-CASE` for each patient.
        phantoms: made patients with their scores, out of fold.
        patients: real ones, scored by what was fitted on all phantoms.
        scores: by set of features, fitted on all phantoms; empty where that was not possible.
        thresholds: by set, chosen on the phantoms' out-of-fold scores; at 1 nothing is dropped.
        best_rival: the plain rival with the highest AUROC on phantoms; "" where there is none.
        notes: what was not possible and what figures do not say, in words.
    """

    method: str
    summary: pd.DataFrame
    phantoms: Scored
    patients: Scored
    scores: Mapping[str, ErrorScore]
    thresholds: Mapping[str, float]
    best_rival: str
    notes: tuple[str, ...]


def is_lesion_real(
    phantoms: pd.DataFrame,
    patients: pd.DataFrame,
    *,
    method: str,
    folds: int = 5,
    seed: int = 0,
    seen: Collection[str] = (),
    resamples: int = 1000,
) -> LesionReality:
    """Fit, cross-validate and apply an error score for each set of features.

    Phantoms are scored out of fold, a patient's lesions together; scores that are fitted on all phantoms, and
    thresholds that are chosen on phantoms, are then applied to the patients unchanged. All sets are fitted and compared
    on the same lesions, those that were explained; the others are never dropped. Phantoms' lesions are dropped at the
    threshold that suits the out-of-fold scores of the other folds' phantoms: best mean lesion F1, of equal ones the
    highest.

    Args:
        phantoms: lines of made patients, with the columns of `lesions.tsv` and of `lesion_overlaps.COLUMNS`.
        patients: the same of real ones; may be empty.
        method: which value of `row` is scored.
        folds: how many; fewer where there are fewer phantoms.
        seed: of the folds and of the intervals.
        seen: patients whom the network was trained on: their figures are of kind `seen`.
        resamples: how often patients are drawn for an interval.

    Raises:
        InputError: columns or lines are missing, a lesion comes twice, a name is in both tables, or folds is below 2.
    """
    if folds < 2:
        raise InputError(f"cross-validation needs at least 2 folds; got {folds}")
    made, real = (_of_method(table, method) for table in (phantoms, patients))
    if both := sorted(set(made["case"]) & set(real["case"])):
        raise InputError(f"made and real patients have names of their own; in both tables: {', '.join(both)}")
    sets = feature_sets(made if len(made) else real) if len(made) or len(real) else {}
    fold_of = folds_of(set(made["case"]), folds=folds, seed=seed)

    lines = predicted_lines(made)
    explained = _explained(lines, sets)
    usable = lines[explained].reset_index(drop=True)
    fold = np.array([fold_of[case] for case in usable["case"]], dtype=int)
    enough = len(fold_of) > 1 and set(usable["kind"]) == {"TP", "FP"}
    out_of_fold, scores, thresholds, kept = {}, {}, {}, {}
    for name, features in sets.items():
        values = np.full(len(lines), np.nan)
        if enough:
            values[explained] = cross_validated(usable, features, fold)
            scores[name] = fit_error_score(usable, features)
            curves = f1_by_threshold(made, lines, values)
            thresholds[name] = _best_threshold(curves, list(fold_of))
            kept[name] = _kept_across_folds(lines, values, curves, fold_of)
        out_of_fold[name] = values
    # Masks of other made patients fitted the scores and chose the thresholds.
    kinds = dict.fromkeys(fold_of, "validation-masks")
    cohort = Scored(PHANTOMS, method, made, lines, out_of_fold, kept, kinds, {}, fold_of)
    best = _best_rival(cohort) if enough else ""

    lines = predicted_lines(real)
    explained = _explained(lines, sets)
    applied = {name: np.full(len(lines), np.nan) for name in sets}
    for name, score in scores.items():
        applied[name][explained] = score.predict(lines[explained]) if explained.any() else []
    kept = {name: ~(applied[name] > threshold) for name, threshold in thresholds.items()}
    kinds = {str(case): "seen" if case in seen else "deployable" for case in sorted(set(real["case"]))}
    tested = Scored(PATIENTS, method, real, lines, applied, kept, kinds, thresholds, dict.fromkeys(kinds, 0))

    rows = []
    for its in (cohort, tested, *(tested.of(case) for case in kinds)):
        rows += rows_of(its, best, seed=seed, resamples=resamples)
    summary = pd.DataFrame(rows, columns=list(SCORE_COLUMNS))
    notes = _notes(len(fold_of), enough, kinds)
    return LesionReality(method, summary, cohort, tested, scores, thresholds, best, notes)


def folds_of(cases: Collection[str], *, folds: int, seed: int) -> dict[str, int]:
    """The fold, from 0, of each patient: dealt in turn after a shuffle that follows from the seed and the names."""
    names = sorted(cases)
    order = np.random.default_rng(seed).permutation(len(names))
    dealt = {names[index]: place % min(folds, len(names)) for place, index in enumerate(order)}
    return {name: dealt[name] for name in names}


def cross_validated(lines: pd.DataFrame, features: Sequence[str], fold: np.ndarray) -> np.ndarray:
    """The score of each of N predicted lesions by a regression that saw none of its fold, (N,), 0 to 1.

    NaN where all other folds together hold one class only.

    Args:
        lines: predicted lesions, with `features`.
        features: as of `voxplain.lesion_errors.fit_error_score`.
        fold: (N,), the fold of each line's patient.

    Raises:
        InputError: a patient lies in two folds, or as `fit_error_score`.
    """
    pairs = pd.DataFrame({"case": lines["case"].to_numpy(), "fold": fold}).drop_duplicates()
    if pairs["case"].duplicated().any():
        doubled = pairs["case"][pairs["case"].duplicated()].iloc[0]
        raise InputError(f"lesions of one patient lie in one fold; those of {doubled} lie in two")
    found = np.full(len(lines), np.nan)
    for number in np.unique(fold):
        test = fold == number
        training = lines[~test]
        if set(training["kind"]) == {"TP", "FP"}:
            found[test] = fit_error_score(training, features).predict(lines[test])
    return found


def _of_method(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """The lines of one method; an empty table has none of any."""
    if table.empty:
        return pd.DataFrame({"case": [], "row": [], "kind": [], "lesion": []})
    if missing := [name for name in ("case", "row", "kind", "lesion") if name not in table.columns]:
        raise InputError(f"the table of lesions has no column {', '.join(missing)}")
    found = table[table["row"] == method].reset_index(drop=True)
    if found.empty:
        raise InputError(f"no line of {method}; the table has {', '.join(map(str, table['row'].unique()))}")
    return found.astype({"case": str})


def _explained(lines: pd.DataFrame, sets: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Which predicted lesions (N,) have a map: something that it says is known."""
    if lines.empty:
        return np.zeros(0, dtype=bool)
    known: np.ndarray = ~np.isnan(feature_values(lines, sets["maps"])).all(axis=1)
    return known


def _best_threshold(curves: Mapping[str, np.ndarray], cases: Sequence[str]) -> float:
    """The threshold with the best mean lesion F1 over some cases; of equal ones the highest, which drops least."""
    mean = np.mean([curves[case] for case in cases], axis=0)
    return float(THRESHOLDS[np.flatnonzero(mean >= mean.max() - 1e-12)[-1]])


def _kept_across_folds(
    lines: pd.DataFrame, values: np.ndarray, curves: Mapping[str, np.ndarray], fold_of: Mapping[str, int]
) -> np.ndarray:
    """Which of the predicted lesions (N,) are kept, each fold at the threshold that suits the others."""
    kept = np.ones(len(lines), dtype=bool)
    fold = np.array([fold_of[case] for case in lines["case"]], dtype=int)
    for number in set(fold_of.values()):
        others = [case for case, its in fold_of.items() if its != number]
        here = fold == number
        kept[here] = ~(values[here] > _best_threshold(curves, others))
    return kept


def _best_rival(cohort: Scored) -> str:
    """The plain rival whose AUROC within folds is highest; of equal ones the first."""
    fold = np.array([cohort.folds[case] for case in cohort.lines["case"][cohort.scored]], dtype=int)
    figures = {name: auc_within(*cohort.of_set(name), fold) for name in RIVALS}
    known = {name: value for name, value in figures.items() if not np.isnan(value)}
    return max(known, key=lambda name: known[name]) if known else ""


def _notes(phantoms: int, enough: bool, kinds: Mapping[str, str]) -> tuple[str, ...]:
    found = []
    if phantoms < 2:
        found.append(f"{phantoms or 'no'} made patient: no cross-validation, and no score of errors")
    elif not enough:
        found.append("the explained lesions of the made patients are not both right and wrong: no score of errors")
    if known := [case for case, kind in kinds.items() if kind == "seen"]:
        found.append(
            f"the network was trained on {', '.join(known)}: its errors there say nothing of those on other patients"
        )
    if len(kinds) in (1, 2):
        found.append(f"{('one real patient', 'two real patients')[len(kinds) - 1]}: no claim about a population")
    return tuple(found)
