"""Is this lesion real: folds, figures by brute force, and what is said where maps add something and where not."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from voxplain.datasets.phantom_cohort import SOFTWARE_CHECK
from voxplain.errors import InputError
from voxplain.grid import Grid
from voxplain.lesion_errors import read_error_score
from voxplain.lesions import find_lesions, instances
from voxplain.metrics.lesionwise import lesion_f1
from voxplain.scan import Labels
from voxplain.studies import lesion_reality
from voxplain.studies.lesion_overlaps import with_overlaps
from voxplain.studies.lesion_reality import LesionReality, cross_validated, folds_of, is_lesion_real
from voxplain.studies.lesion_reality_page import markdown, sentences, write_lesion_reality
from voxplain.studies.lesion_reality_rows import PATIENTS, PHANTOMS

GRID = Grid((24, 24, 8), np.eye(4))
METHOD = "instance-smoothgrad"
MAPS = (
    *("flair_maximum", "flair_minimum", "flair_positive", "flair_negative"),
    *("t1_maximum", "t1_minimum", "t1_positive", "t1_negative"),
    *("flair_share", "fades_mm"),
)


class Patient:
    """Bars of 8 or more voxels: some of the expert's, predicted ones on and beside them; volumes and table."""

    def __init__(self, case: str, seed: int, *, maps: float, plain: float) -> None:
        random = np.random.default_rng(seed)
        expert, predicted = (np.zeros(GRID.shape, dtype=int) for _ in range(2))
        for x, y in product(range(1, 24, 3), range(2)):
            start = 12 * y + 1
            luck = random.random()
            if luck < 0.6:
                expert[x, start : start + 4, 2:4] = 1
                # Some of the expert's lesions are two to which one predicted lesion reaches.
                if random.random() < 0.4:
                    expert[x, start + 6 : start + 10, 2:4] = 1
            if luck < 0.45 or luck > 0.6:
                predicted[x, start + 2 : start + (8 if random.random() < 0.5 else 4), 2:4] = 1
        self.expert, self.predicted = Labels(expert, GRID), Labels(predicted, GRID)
        probability = random.uniform(0.3, 1, GRID.shape).astype(np.float32)
        self.lesions = find_lesions(self.predicted, probability=probability, reference=self.expert)
        its = self.lesions.table
        wrong = (its["kind"] == "FP").to_numpy()
        noise = pd.DataFrame(random.normal(0, 1, (len(its), len(MAPS))), columns=list(MAPS))
        noise["flair_maximum"] -= maps * wrong
        table = its[["lesion", "kind", "volume_mm3"]].assign(case=case, row=METHOD)
        table["mean_probability"] = random.normal(0, 1, len(its)) - plain * wrong
        table["max_probability"] = random.normal(0, 1, len(its))
        table = pd.concat([table, noise], axis=1)
        self.table = with_overlaps(table, self.lesions, self.expert, case=case, methods=[METHOD])


def cohort(name: str, n: int, first: int, *, maps: float, plain: float) -> tuple[dict[str, Patient], pd.DataFrame]:
    patients = {f"{name}{k}": Patient(f"{name}{k}", first + k, maps=maps, plain=plain) for k in range(n)}
    return patients, pd.concat([patient.table for patient in patients.values()], ignore_index=True)


@pytest.fixture(scope="module")
def made() -> tuple[dict[str, Patient], pd.DataFrame]:
    return cohort("made", 10, 0, maps=3.0, plain=0.5)


@pytest.fixture(scope="module")
def real() -> tuple[dict[str, Patient], pd.DataFrame]:
    return cohort("patient", 2, 100, maps=3.0, plain=0.5)


@pytest.fixture(scope="module")
def found(
    made: tuple[dict[str, Patient], pd.DataFrame], real: tuple[dict[str, Patient], pd.DataFrame]
) -> LesionReality:
    return is_lesion_real(made[1], real[1], method=METHOD, resamples=200, seed=3)


def value(found: LesionReality, table: str, row: str, metric: str, column: str = "value") -> float:
    its = found.summary
    (line,) = its[(its.table == table) & (its.row == f"{METHOD}/{row}") & (its.metric == metric)][column]
    return line


def brute_force_auc(wrong: np.ndarray, scores: np.ndarray) -> float:
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[wrong == 1] for b in scores[wrong == 0]]
    return float(np.mean(pairs))


def test_a_patient_is_never_in_training_and_test(made: tuple[dict[str, Patient], pd.DataFrame]) -> None:
    seen: list[tuple[set[str], set[str]]] = []
    with pytest.MonkeyPatch.context() as patch:
        fit = lesion_reality.fit_error_score

        class Spy:
            def __init__(self, training: pd.DataFrame, features: list[str]) -> None:
                self.cases, self.score = set(training["case"]), fit(training, features)

            def predict(self, test: pd.DataFrame) -> np.ndarray:
                seen.append((self.cases, set(test["case"])))
                return self.score.predict(test)

        patch.setattr(lesion_reality, "fit_error_score", Spy)
        lines = made[1][made[1]["kind"].isin(["TP", "FP"])].reset_index(drop=True)
        fold_of = folds_of(set(lines["case"]), folds=4, seed=0)
        scores = cross_validated(lines, ["flair_maximum"], lines["case"].map(fold_of).to_numpy())
    assert len(seen) == 4
    assert not [test & training for training, test in seen if test & training]
    assert set().union(*(test for _, test in seen)) == set(made[0])
    assert np.isfinite(scores).all()
    with pytest.raises(InputError, match="lesions of one patient lie in one fold"):
        cross_validated(lines, ["flair_maximum"], np.arange(len(lines)) % 2)


def test_folds_follow_from_the_seed_and_are_even() -> None:
    names = [f"p{k}" for k in range(11)]
    folds = folds_of(names, folds=4, seed=1)
    assert folds == folds_of(reversed(names), folds=4, seed=1)
    assert folds != folds_of(names, folds=4, seed=2)
    assert sorted(np.bincount(list(folds.values()))) == [2, 3, 3, 3]
    assert sorted(folds_of(names[:2], folds=5, seed=0).values()) == [0, 1]
    assert folds_of([], folds=5, seed=0) == {}


def test_auroc_is_the_share_of_pairs(found: LesionReality) -> None:
    for table, its in ((PHANTOMS, found.phantoms), (PATIENTS, found.patients)):
        for name, scores in its.scores.items():
            wrong = (its.lines["kind"] == "FP").to_numpy(dtype=int)
            # Lesions that one regression scored are ranked together: those of a fold, those of all real patients.
            fold = its.lines["case"].map(dict(its.folds)).to_numpy()
            each = [brute_force_auc(wrong[fold == number], scores[fold == number]) for number in np.unique(fold)]
            assert len(each) == (5 if table == PHANTOMS else 1)
            assert value(found, table, name, "AUROC") == pytest.approx(np.mean(each))
            each = [
                brute_force_auc(wrong[own], scores[own])
                for own in ((its.lines["case"] == case).to_numpy() for case in its.kinds)
                if len(set(wrong[own])) == 2
            ]
            assert value(found, table, name, "AUROC per patient") == pytest.approx(np.mean(each))
            assert value(found, table, name, "AUROC per patient", "n") == len(each)
    gain = value(found, PHANTOMS, "plain+maps", "AUROC gain over plain")
    difference = value(found, PHANTOMS, "plain+maps", "AUROC") - value(found, PHANTOMS, "plain", "AUROC")
    assert gain == pytest.approx(difference)
    assert value(found, PHANTOMS, "plain+maps", "AUROC gain over plain", "low") < gain
    assert found.best_rival == max(
        ("mean probability", "maximum probability", "log volume"),
        key=lambda name: value(found, PHANTOMS, name, "AUROC"),
    )


def test_f1_after_dropping_is_that_of_the_volumes(
    found: LesionReality,
    made: tuple[dict[str, Patient], pd.DataFrame],
    real: tuple[dict[str, Patient], pd.DataFrame],
) -> None:
    for table, its, patients in ((PHANTOMS, found.phantoms, made[0]), (PATIENTS, found.patients, real[0])):
        before = [lesion_f1(p.lesions.predicted.data, instances(p.expert).data) for p in patients.values()]
        assert value(found, table, "all lesions", "lesion F1") == pytest.approx(np.mean(before))
        for name in ("maps", "plain", "plain+maps"):
            after = []
            for case, patient in patients.items():
                own = (its.lines["case"] == case).to_numpy()
                gone = its.lines["lesion"].to_numpy()[own & ~its.kept[name]]
                left = np.where(np.isin(patient.lesions.predicted.data, gone), 0, patient.lesions.predicted.data)
                after.append(lesion_f1(left, instances(patient.expert).data))
            assert value(found, table, name, "lesion F1") == pytest.approx(np.mean(after))
            assert value(found, table, name, "lesion F1 gain") == pytest.approx(np.mean(after) - np.mean(before))
    assert not found.patients.kept["maps"].all()
    np.testing.assert_array_equal(
        found.patients.kept["maps"], found.patients.scores["maps"] <= found.thresholds["maps"]
    )
    assert value(found, PATIENTS, "maps", "threshold") == found.thresholds["maps"]


def test_patients_change_nothing_that_is_applied_to_them(
    found: LesionReality, made: tuple[dict[str, Patient], pd.DataFrame]
) -> None:
    alone = is_lesion_real(made[1], made[1].head(0), method=METHOD, resamples=200, seed=3)
    assert alone.scores == found.scores
    assert alone.thresholds == found.thresholds
    for name, score in found.scores.items():
        np.testing.assert_array_equal(found.patients.scores[name], score.predict(found.patients.lines))
    assert (alone.summary[alone.summary.table == PATIENTS].n == 0).all()


def test_kinds(
    found: LesionReality, made: tuple[dict[str, Patient], pd.DataFrame], real: tuple[dict, pd.DataFrame]
) -> None:
    kinds = found.summary.groupby("table")["kind"].unique()
    assert kinds[PHANTOMS].tolist() == ["validation-masks"]
    assert kinds[PATIENTS].tolist() == kinds["errors-patient0"].tolist() == ["deployable"]
    known = is_lesion_real(made[1], real[1], method=METHOD, resamples=200, seen={"patient1"})
    kinds = known.summary.groupby("table")["kind"].unique()
    assert kinds[PATIENTS].tolist() == kinds["errors-patient1"].tolist() == ["seen"]
    assert kinds["errors-patient0"].tolist() == ["deployable"]
    assert any("was trained on patient1" in note for note in known.notes)


def test_it_says_where_maps_tell_more(found: LesionReality) -> None:
    said = "\n".join(sentences(found))
    assert (
        "On made patients, the score of plain+maps tells more than the plain rivals together (plain): gain in AUROC +"
        in said
    )
    assert f"On made patients, the score of maps tells more than the best plain rival ({found.best_rival})" in said
    assert "adds nothing" not in said
    # Two patients: whatever the interval, no verdict.
    assert "On real patients, the score of plain+maps beside" in said
    assert "so few patients prove nothing either way" in said
    assert "Two real patients: no claim about a population." in said


def test_it_says_where_maps_add_nothing() -> None:
    _, made = cohort("made", 10, 0, maps=0.0, plain=2.0)
    _, real = cohort("patient", 4, 100, maps=0.0, plain=2.0)
    found = is_lesion_real(made, real, method=METHOD, resamples=200)
    said = "\n".join(sentences(found))
    assert found.best_rival == "mean probability"
    assert "On made patients, the score of maps tells less than the best plain rival (mean probability)" in said
    assert "On made patients, the score of plain+maps " in said
    assert "plain+maps tells more" not in said
    assert "The maps are not worth their passes for this." in said
    assert "The maps are not worth their passes for this." in markdown(found)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.02, 0.03, "adds nothing that shows to"),
        (0.0, 0.03, "adds nothing that shows to"),
        (-0.03, -0.01, "tells less than"),
        (0.01, 0.03, "tells more than"),
    ],
)
def test_the_interval_decides_what_is_said(found: LesionReality, low: float, high: float, verdict: str) -> None:
    summary = found.summary.copy()
    gains = (summary.table == PHANTOMS) & summary.metric.str.startswith("AUROC gain")
    assert gains.sum() == 2
    summary.loc[gains, ["value", "low", "high"]] = (low + high) / 2, low, high
    said = sentences(replace(found, summary=summary))
    for line, (name, against) in zip(said[:2], (("plain+maps", "the plain rivals"), ("maps", "the best")), strict=True):
        assert line.startswith(f"On made patients, the score of {name} {verdict} {against}")
        assert ("not worth their passes" in line) == (verdict != "tells more than")


def test_one_made_patient(real: tuple[dict, pd.DataFrame]) -> None:
    _, one = cohort("made", 1, 0, maps=2.0, plain=0.5)
    found = is_lesion_real(one, real[1], method=METHOD, resamples=200)
    assert "1 made patient: no cross-validation, and no score of errors" in found.notes
    assert not found.scores
    aurocs = found.summary[found.summary.metric == "AUROC"]
    assert len(aurocs)
    assert (aurocs.n == 0).all()
    assert aurocs["value"].isna().all()
    assert value(found, PATIENTS, "all lesions", "lesion F1") > 0
    assert "1 made patient: no cross-validation" in markdown(found)


def test_one_class_alone(real: tuple[dict, pd.DataFrame], tmp_path: Path) -> None:
    _, table = cohort("made", 3, 0, maps=2.0, plain=0.5)
    right = table[table["kind"] != "FP"]
    right = right.assign(predicted=right.groupby("case")["kind"].transform(lambda kinds: kinds.isin(["TP"]).sum()))
    found = is_lesion_real(right, real[1].head(0), method=METHOD, resamples=200)
    assert any("not both right and wrong" in note for note in found.notes)
    assert value(found, PHANTOMS, "all lesions", "false positives") == 0
    assert value(found, PHANTOMS, "maps", "AUROC", "n") == 0
    write_lesion_reality(found, tmp_path)


def test_lesions_without_a_map_stay(real: tuple[dict, pd.DataFrame]) -> None:
    _, table = cohort("made", 6, 0, maps=2.0, plain=0.5)
    table.loc[table.index[::5], list(MAPS)] = np.nan
    found = is_lesion_real(table, real[1], method=METHOD, resamples=200)
    lines = found.phantoms.lines
    unexplained = lines[list(MAPS)].isna().all(axis=1).to_numpy()
    assert unexplained.any()
    for name, scores in found.phantoms.scores.items():
        np.testing.assert_array_equal(np.isnan(scores), unexplained)
        assert found.phantoms.kept[name][unexplained].all()
    assert value(found, PHANTOMS, "all lesions", "lesions without score") == unexplained.sum()


def test_files(found: LesionReality, tmp_path: Path) -> None:
    paths = write_lesion_reality(found, tmp_path)
    table = pd.read_csv(paths["table"], sep="\t")
    assert list(table.columns) == ["table", "row", "metric", "kind", "value", "low", "high", "n"]
    assert len(table) == len(found.summary)
    assert read_error_score(paths["score plain+maps"]) == found.scores["plain+maps"]
    with Image.open(paths["curve"]) as picture:
        assert picture.width > 2 * picture.height * 0.9
    page = paths["page"].read_text(encoding="utf-8")
    assert f"{value(found, PHANTOMS, 'maps', 'AUROC'):.3f} [" in page
    assert SOFTWARE_CHECK in page
    lesions = pd.read_csv(paths["lesions"], sep="\t")
    assert len(lesions) == len(found.phantoms.lines) + len(found.patients.lines)
    np.testing.assert_allclose(
        lesions["score: maps"],
        np.concatenate([found.phantoms.scores["maps"], found.patients.scores["maps"]]),
        rtol=1e-5,
    )


def test_what_is_refused(made: tuple[dict, pd.DataFrame], real: tuple[dict, pd.DataFrame]) -> None:
    with pytest.raises(InputError, match="at least 2 folds; got 1"):
        is_lesion_real(made[1], real[1], method=METHOD, resamples=200, folds=1)
    with pytest.raises(InputError, match="in both tables: made0"):
        is_lesion_real(made[1], made[1][made[1]["case"] == "made0"], method=METHOD, resamples=200)
    with pytest.raises(InputError, match="no line of occlusion; the table has instance-smoothgrad"):
        is_lesion_real(made[1], real[1], method="occlusion")
    with pytest.raises(InputError, match="no column touches, experts, predicted"):
        is_lesion_real(made[1].drop(columns=["touches", "experts", "predicted"]), real[1], method=METHOD, resamples=200)
