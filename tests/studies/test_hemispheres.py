"""The hemisphere study from made patients to tables: splits, files, and going on after a stop."""

import dataclasses
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import voxplain as vx
from voxplain.calibration import platt_scaling
from voxplain.datasets.brats import cases as brats_cases
from voxplain.datasets.case import Case
from voxplain.datasets.hemispheres import split
from voxplain.datasets.phantom import write_case
from voxplain.studies import cross_validation, evaluation
from voxplain.studies.evaluation import evaluate
from voxplain.studies.hemispheres import PRESETS, Preset, cross_validate, study, train_final
from voxplain.studies.scoring import CASE_COLUMNS, NETWORK_FREE
from voxplain.training import Settings

CPU = vx.Compute(device="cpu", threads=1)
SHAPE = (24, 20, 12)
GRID = vx.Grid(SHAPE, np.diag([-5.0, -5, 5, 1]))


def unread(patient: str, scan: int = 1) -> Case:
    """A case without files: enough to split."""
    return Case(f"{patient}_{scan}", patient, {}, None, None, {})


@pytest.mark.parametrize(("patients", "folds"), [(3, 2), (3, 3), (7, 3), (11, 5), (34, 5), (34, 2), (20, 20)])
@pytest.mark.parametrize("seed", [0, 1])
def test_split_is_by_patient(patients: int, folds: int, seed: int) -> None:
    # Every second patient was scanned twice.
    cases = [unread(f"p{number}", scan) for number in range(patients) for scan in range(1 + number % 2)]
    parts = split(cases, folds, seed)
    assert len(parts) == folds
    tested: Counter[str] = Counter()
    for sides in parts:
        assert sorted(case.id for side in sides for case in side) == sorted(case.id for case in cases)
        groups = [{case.patient for case in side} for side in sides]
        assert all(groups[1:])
        assert not groups[0] & groups[1]
        assert not groups[0] & groups[2]
        assert not groups[1] & groups[2]
        tested.update(groups[2])
    assert tested == Counter({f"p{number}": 1 for number in range(patients)})


def test_split_of_34_patients_is_the_plans() -> None:
    for training, validation, testing in split([unread(f"p{number}") for number in range(34)], 5):
        assert len(testing) in (6, 7)
        assert len(validation) in (4, 5)
        assert len(training) in (22, 23)


@pytest.mark.parametrize("clear", [1, 5, 12, 34])
def test_patients_with_a_clear_half_are_spread_evenly(clear: int) -> None:
    cases = [unread(f"p{number}") for number in range(34)]
    known = {case.patient for case in cases[:clear]}
    parts = split(cases, 5, groups=dict.fromkeys(known, 0))
    for sort in (known, {case.patient for case in cases} - known):
        counts = [sum(case.patient in sort for case in testing) for _, _, testing in parts]
        assert sum(counts) == len(sort)
        assert max(counts) - min(counts) <= 1


def test_every_group_is_spread_evenly() -> None:
    cases = [unread(f"p{number}") for number in range(41)]
    groups = {case.patient: number % 7 % 3 for number, case in enumerate(cases)}
    parts = split(cases, 5, groups=groups)
    for group in range(3):
        counts = [sum(groups[case.patient] == group for case in testing) for _, _, testing in parts]
        assert sum(counts) == sum(value == group for value in groups.values())
        assert max(counts) - min(counts) <= 1


def test_split_follows_the_seed_alone() -> None:
    cases = [unread(f"p{number}") for number in range(12)]
    ids = lambda parts: [[{case.id for case in side} for side in fold] for fold in parts]  # noqa: E731
    assert ids(split(cases, 3)) == ids(split(cases[::-1], 3))
    assert ids(split(cases, 3, seed=1)) != ids(split(cases, 3, seed=2))


@pytest.mark.parametrize(("patients", "folds"), [(10, 1), (10, 0), (2, 2), (4, 5)])
def test_too_few_to_split(patients: int, folds: int) -> None:
    with pytest.raises(vx.InputError, match=rf"{folds} folds need .* got {patients} patients"):
        split([unread(f"p{number}") for number in range(patients)], folds)


def test_a_preset_that_does_not_exist() -> None:
    with pytest.raises(vx.InputError, match=r"preset is one of small, .*got 'large'"):
        cross_validate([], Path("nowhere"), preset="large", compute=CPU)
    assert not Path("nowhere").exists()


def made_patient(folder: Path, number: int) -> Case:
    """A brain of 5 mm voxels with a bright cube on the left, with odd numbers on the right."""
    rng = np.random.default_rng(number)
    brain = np.zeros(SHAPE, dtype=bool)
    brain[2:22, 2:18, 1:11] = True
    labels = np.zeros(SHAPE, dtype=int)
    x = 5 if number % 2 else 15
    y, z = rng.integers(4, 10), rng.integers(2, 5)
    labels[x : x + 4, y : y + 4, z : z + 4] = 2
    data = [np.where(brain, rng.normal(100, 5, SHAPE) + 150 * (labels > 0), 0) for _ in range(4)]
    scan = vx.Scan(np.stack(data), GRID, ("flair", "t1", "t1ce", "t2"))
    return write_case(scan, vx.Labels(labels, GRID), folder / f"Brats18_2013_{number}_1")


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    folder = tmp_path_factory.mktemp("patients")
    for number in range(1, 7):
        made_patient(folder, number)
    return brats_cases(folder)


def tiny_preset() -> Preset:
    small = PRESETS["small"].card
    card = dataclasses.replace(
        small, name="tiny", spacing=(5, 5, 5), shape=(12, 16, 12), skull_stripped=False,
        arguments={**small.arguments, "width": 4},
    )  # fmt: skip
    return Preset(card, Settings(epochs=2, patience=2, batch_size=4, learning_rate=2e-3))


@pytest.fixture(scope="module", autouse=True)
def _tiny_preset() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", tiny_preset())
        yield


@pytest.fixture(scope="module")
def trained(patients: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds and the final network, trained once for all tests that only read them."""
    out = tmp_path_factory.mktemp("trained")
    cross_validate(patients, out, preset="tiny", folds=3, compute=CPU)
    train_final(patients, out, preset="tiny", compute=CPU)
    return out


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def no_training(*_: object, **__: object) -> None:
    raise AssertionError("nothing was left to train")


def test_folds_and_final_on_disk(trained: Path, patients: list[Case]) -> None:
    ids = {case.id for case in patients}
    tested: list[str] = []
    for index in range(3):
        folder = trained / f"fold{index}"
        assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "model.json", "weights.safetensors"]
        metrics = read(folder / "metrics.json")
        groups = [metrics[name] for name in ("training_ids", "validation_ids", "test_ids")]
        assert [len(group) for group in groups] == [3, 1, 2]
        assert {one for group in groups for one in group} == ids
        tested += groups[2]
        assert 1 <= metrics["best_epoch"] <= 2
        model = vx.load_model(folder)
        assert model.card.training_ids == {*groups[0], *groups[1]}
        lines = metrics["predictions"]
        assert sorted({line["case"] for line in lines}) == sorted(groups[2])
        # Each patient has one half with a tumour of 8 ml and one without.
        assert Counter(line["label"] for line in lines) == {0: 2, 1: 2}
        assert all(line["predicted"] == (line["probability"] >= model.card.threshold) for line in lines)
    assert sorted(tested) == sorted(ids)
    summary = read(trained / "metrics.json")
    assert (summary["folds"], summary["n_patients"], summary["n_halves"]) == (3, 6, 12)
    assert summary["auc"] == pytest.approx(np.mean(summary["auc_per_fold"]))
    final = vx.load_model(trained / "final")
    assert set(final.card.training["ids"]) == ids
    assert final.card.training["epochs"] == int(np.median(summary["best_epochs"]))
    assert final.card.training["cross_validation"]["auc"] == summary["auc"]
    assert len(read(trained / "final" / "metrics.json")["training_losses"]) == final.card.training["epochs"]
    assert "not a medical device" in final.card.description


def test_networks_are_calibrated_on_labels_of_known_halves_and_the_final_one_on_unseen_ones(trained: Path) -> None:
    folds = [read(trained / f"fold{index}" / "metrics.json") for index in range(3)]
    for index, metrics in enumerate(folds):
        card = vx.load_model(trained / f"fold{index}").card
        scale, shift = card.calibration
        assert card.threshold == 0.5
        # 3 training patients and 1 validating one, two halves each.
        assert card.training["calibration"]["n_halves"] == 8
        for line in metrics["predictions"]:
            expected = 1 / (1 + np.exp(-(scale * line["logit"] + shift)))
            assert line["probability"] == pytest.approx(expected, abs=1e-5)
    unseen = [line for metrics in folds for line in metrics["predictions"]]
    final = vx.load_model(trained / "final").card
    logits, labels = (np.array([line[name] for line in unseen]) for name in ("logit", "label"))
    assert final.calibration == pytest.approx(platt_scaling(logits, labels), abs=1e-4)
    assert final.training["calibration"] == {
        "method": "Platt 1999",
        "labels": "the test halves of the folds",
        "n_halves": 12,
    }


def test_a_final_network_without_its_folds_is_calibrated_on_what_it_was_trained_on(
    patients: list[Case], tmp_path: Path
) -> None:
    train_final(patients, tmp_path, preset="tiny", compute=CPU)
    card = vx.load_model(tmp_path / "final").card
    assert card.training["calibration"]["labels"] == "the training halves"
    assert "the training halves" in (tmp_path / "final" / "README.md").read_text(encoding="utf-8")


def test_finished_trainings_are_kept(trained: Path, patients: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    monkeypatch.setattr(cross_validation, "train", no_training)
    cross_validate(patients, trained, preset="tiny", folds=3, compute=CPU)
    train_final(patients, trained, preset="tiny", compute=CPU)
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_other_patients_settings_or_seeds_are_refused(
    trained: Path, patients: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_validation, "train", no_training)
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    for changed in ({"seed": 1}, {"folds": 2}):
        with pytest.raises(vx.InputError, match="on other patients or with other settings"):
            cross_validate(patients, trained, preset="tiny", **{"folds": 3, **changed}, compute=CPU)
    with pytest.raises(vx.InputError, match="on other patients or with other settings"):
        cross_validate(patients[1:], trained, preset="tiny", folds=3, compute=CPU)
    with pytest.raises(vx.InputError, match="on other patients or with other settings"):
        train_final(patients[1:], trained, preset="tiny", compute=CPU)
    tiny = PRESETS["tiny"]
    other = dataclasses.replace(tiny, settings=dataclasses.replace(tiny.settings, learning_rate=0.1))
    monkeypatch.setitem(PRESETS, "tiny", other)
    with pytest.raises(vx.InputError, match="on other patients or with other settings"):
        cross_validate(patients, trained, preset="tiny", folds=3, compute=CPU)
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_a_cross_validation_that_was_stopped_goes_on_and_comes_to_the_same(
    trained: Path, patients: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    train = cross_validation.train

    def stopping(*arguments, title: str, **options):
        started.append(title)
        if len(started) == 2:
            raise KeyboardInterrupt
        return train(*arguments, title=title, **options)

    monkeypatch.setattr(cross_validation, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(patients, tmp_path, preset="tiny", folds=3, compute=CPU)
    assert (tmp_path / "fold0" / "metrics.json").is_file()
    assert not (tmp_path / "metrics.json").exists()
    cross_validate(patients, tmp_path, preset="tiny", folds=3, compute=CPU)
    assert started == ["fold 0", "fold 1", "fold 1", "fold 2"]
    for index in range(3):
        there, here = (read(folder / f"fold{index}" / "metrics.json") for folder in (trained, tmp_path))
        assert here["predictions"] == there["predictions"]


def test_final_without_folds_trains_for_the_presets_epochs(patients: list[Case], tmp_path: Path) -> None:
    metrics = train_final(patients, tmp_path, preset="tiny", compute=CPU)
    assert metrics["epochs"] == len(metrics["training_losses"]) == 2
    card = vx.load_model(tmp_path / "final").card
    assert "cross_validation" not in card.training


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def explainers() -> dict[str, vx.Explainer]:
    return {
        "relevance-map/blank": vx.RelevanceMap(partition="cubes:20"),
        "grad-cam/layer1": vx.GradCAM(layer="layer1"),
    }


def test_evaluate_writes_tables_and_goes_on_after_a_stop(
    trained: Path, patients: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vx.load_model(trained / "fold0")
    score_case = evaluation.score_case
    asked: list[str] = []

    def stopping(case: Case, *arguments, **options) -> pd.DataFrame:
        asked.append(case.id)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return score_case(case, *arguments, **options)

    monkeypatch.setattr(evaluation, "score_case", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, patients, tmp_path, explainers=explainers(), compute=CPU, console=quiet())
    ids = [case.id for case in patients]
    assert sorted(path.stem for path in (tmp_path / "cases").glob("*.json")) == ids[:2]
    assert not (tmp_path / "scores.tsv").exists()
    summary = evaluate(model, patients, tmp_path, explainers=explainers(), compute=CPU, console=quiet())
    assert asked == [*ids[:3], *ids[2:]]
    expected = ["cases", "cases.tsv", "provenance.json", "report.html", "scores.tsv", "tables.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected
    kinds = pd.read_csv(tmp_path / "cases.tsv", sep="\t").groupby("case")["kind"].agg(set)
    for case in patients:
        assert ("seen" in kinds[case.id]) == (case.id in model.card.training_ids)
    # What is finished is finished: the tables come again from what is kept.
    del asked[:]
    again = evaluate(model, patients, tmp_path, explainers=explainers(), compute=CPU, console=quiet())
    assert asked == []
    pd.testing.assert_frame_equal(again, summary)
    # A picture that is gone is drawn again, and every case stands on the page.
    (tmp_path / "cases" / f"{ids[1]}.webp").unlink()
    evaluate(model, patients, tmp_path, explainers=explainers(), compute=CPU, console=quiet())
    assert asked == [ids[1]]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp;base64,") == len(ids)
    assert all(name in page for name in ids)


@pytest.mark.parametrize("change", ["threshold", "options", "seed", "ids"])
def test_evaluate_scores_again_what_would_come_out_otherwise(
    trained: Path, patients: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    asked: list[str] = []

    def counting(case: Case, scan: object, tumour: object, model: vx.Model, *_: object, **__: object) -> pd.DataFrame:
        asked.append(case.id)
        line = (case.id, case.patient, 0, "left", "halves", "map/otsu", "dice", "deployable", model.card.threshold)
        return pd.DataFrame([line], columns=list(CASE_COLUMNS))

    monkeypatch.setattr(evaluation, "score_case", counting)
    model, methods, seed = vx.load_model(trained / "fold0"), explainers(), 0
    for _ in range(2):
        evaluate(model, patients[:2], tmp_path, explainers=methods, seed=seed, compute=CPU, console=quiet())
    assert len(asked) == 2
    card = model.card
    if change == "threshold":
        model = vx.Model(model.network, dataclasses.replace(card, threshold=0.9))
    elif change == "ids":
        model = vx.Model(model.network, dataclasses.replace(card, training={**card.training, "ids": []}))
    elif change == "options":
        methods["relevance-map/blank"] = vx.RelevanceMap(partition="cubes:30")
    else:
        seed = 1
    summary = evaluate(model, patients[:2], tmp_path, explainers=methods, seed=seed, compute=CPU, console=quiet())
    assert len(asked) == 4
    assert summary["value"].iloc[0] == pytest.approx(model.card.threshold)


def test_evaluate_refuses_nothing_to_score(trained: Path, tmp_path: Path) -> None:
    model = vx.load_model(trained / "final")
    with pytest.raises(vx.InputError, match="no case with an expert mask"):
        evaluate(model, [], tmp_path, explainers=explainers(), compute=CPU)


def test_study_scores_each_patient_with_a_network_that_has_not_seen_them(
    trained: Path, patients: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_validation, "train", no_training)
    summary = study(
        patients, trained, layers=["layer1"], segments=10, preset="tiny", folds=3, compute=CPU, console=quiet()
    )
    cases = pd.read_csv(trained / "cases.tsv", sep="\t")
    assert set(cases["case"]) == {case.id for case in patients}
    for fold, group in cases.groupby("fold"):
        assert set(group["case"]) == set(read(trained / f"fold{fold}" / "metrics.json")["test_ids"])
    assert set(summary["kind"]) == {"deployable", "oracle", "plain"}
    rows = set(summary.loc[summary["table"] == "halves", "row"])
    assert {"relevance-map/blank/otsu", "relevance-map/blank/best-grouping", "grad-cam/layer1/otsu"} <= rows
    assert set(NETWORK_FREE) <= rows
    auc = summary[(summary["row"] == "network") & (summary["metric"] == "auc")].iloc[0]
    # The AUC of the tables is that of the trainings: the same halves, cut and judged by the same card.
    assert auc["value"] == pytest.approx(read(trained / "metrics.json")["auc"])
    assert auc["n"] == 6
