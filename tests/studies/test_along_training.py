"""Relevance along training: epochs on disk, the measures by hand, going on after a stop, and the table."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import voxplain as vx
from voxplain.datasets.brats import cases as brats_cases
from voxplain.datasets.case import Case
from voxplain.datasets.phantom import write_case
from voxplain.metrics.concentration import relevance_entropy, top_share
from voxplain.metrics.overlap import best_grouping
from voxplain.studies import along_training as study
from voxplain.studies import cross_validation
from voxplain.studies.along_training import MEASURES, along_training
from voxplain.studies.hemispheres import PRESETS, cross_validate
from voxplain.studies.scoring import SCORE_COLUMNS
from voxplain.studies.task import Preset
from voxplain.training import Settings

CPU = vx.Compute(device="cpu", threads=1)
SHAPE = (24, 20, 12)
GRID = vx.Grid(SHAPE, np.diag([-5.0, -5, 5, 1]))
OPTIONS = {"preset": "tiny", "epochs": 3, "folds": 3, "segments": 12, "compute": CPU}


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """Six brains of 5 mm voxels, each with a bright cube in one half."""
    folder = tmp_path_factory.mktemp("patients")
    for number in range(6):
        rng = np.random.default_rng(number)
        brain = np.zeros(SHAPE, dtype=bool)
        brain[2:22, 2:18, 1:11] = True
        labels = np.zeros(SHAPE, dtype=int)
        x, y, z = 5 if number % 2 else 15, rng.integers(4, 10), rng.integers(2, 5)
        labels[x : x + 4, y : y + 4, z : z + 4] = 2
        data = [np.where(brain, rng.normal(100, 5, SHAPE) + 150 * (labels > 0), 0) for _ in range(4)]
        scan = vx.Scan(np.stack(data), GRID, ("flair", "t1", "t1ce", "t2"))
        write_case(scan, vx.Labels(labels, GRID), folder / f"Brats18_2013_{number}_1")
    return brats_cases(folder)


@pytest.fixture(scope="module", autouse=True)
def _tiny_preset() -> Iterator[None]:
    small = PRESETS["small"].card
    card = dataclasses.replace(
        small, name="tiny", spacing=(5, 5, 5), shape=(12, 16, 12), skull_stripped=False,
        arguments={**small.arguments, "width": 4},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", Preset(card, Settings(epochs=5, patience=1, batch_size=4, learning_rate=2e-3)))
        yield


@pytest.fixture(scope="module")
def done(patients: list[Case], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    out = tmp_path_factory.mktemp("along")
    return out, along_training(patients, out, seeds=(0, 1), **OPTIONS)


def value(table: pd.DataFrame, row: str, metric: str) -> float:
    (found,) = table[(table["row"] == row) & (table["metric"] == metric)]["value"]
    return float(found)


def test_what_is_written(done: tuple[Path, pd.DataFrame]) -> None:
    out, table = done
    names = {path.name for path in out.iterdir()}
    files = {"along-training.tsv", "along-training-cases.tsv", "along-training.svg"}
    assert names == files | {"seed0", "seed1", "maps", "halves.json"}
    for number in (0, 1):
        folder = out / f"seed{number}"
        assert sorted(path.name for path in folder.iterdir()) == ["epoch1", "epoch2", "epoch3", "metrics.json"]
    assert tuple(table.columns) == SCORE_COLUMNS
    read = pd.read_csv(out / "along-training.tsv", sep="\t")
    pd.testing.assert_frame_equal(read, table, check_exact=False)
    assert set(table["kind"]) == {"plain", "oracle"}
    assert set(table.loc[table["kind"] == "oracle", "metric"]) == {
        "best_grouping_dice",
        "spearman_best_grouping_dice_validation_loss",
    }
    drawn = (out / "along-training.svg").read_text(encoding="utf-8")
    assert all(words in drawn for words in ("validation loss", "seed 0", "seed 1", *(w for _, w in MEASURES.values())))
    assert not table["metric"].str.startswith("p_").any()


def test_the_split_is_fold_0_and_seed_0_its_training(
    done: tuple[Path, pd.DataFrame], patients: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, table = done
    tiny = PRESETS["tiny"]
    longer = dataclasses.replace(tiny.settings, patience=5)
    monkeypatch.setitem(PRESETS, "tiny", Preset(tiny.card, longer))
    cross_validate(patients, tmp_path, preset="tiny", folds=3, compute=CPU)
    fold = json.loads((tmp_path / "fold0" / "metrics.json").read_text())
    card = vx.load_model(out / "seed0" / "epoch2").card
    assert (card.training["ids"], card.training["validation_ids"]) == (fold["training_ids"], fold["validation_ids"])
    for epoch in range(3):
        assert value(table, f"seed 0/epoch {epoch + 1}", "validation_loss") == fold["validation_losses"][epoch]
    assert value(table, "seed 1/epoch 1", "validation_loss") != fold["validation_losses"][0]


def test_the_measures_are_those_of_the_maps(done: tuple[Path, pd.DataFrame], patients: list[Case]) -> None:
    out, table = done
    card = vx.load_model(out / "seed0" / "epoch1").card
    (case,) = [case for case in patients if case.id in card.training["validation_ids"]]
    tumour = case.tumour().data > 0
    scores = []
    for epoch in (1, 2):
        model = vx.load_model(out / "seed0" / f"epoch{epoch}")
        why = vx.RelevanceMap(segments=12, channel="flair")(model, case.scan(), compute=CPU)
        (region,) = [region for region in why.regions if tumour[region.slices].any()]
        its = why.scores[why.labels_in(region) - 1]
        row = f"seed 0/epoch {epoch}"
        assert value(table, row, "entropy") == pytest.approx(relevance_entropy(its), abs=1e-6)
        assert value(table, row, "top_1_share") == pytest.approx(top_share(its), abs=1e-6)
        dice = best_grouping(why.parts.data[region.slices], why.scores, tumour[region.slices]).dice
        assert value(table, row, "best_grouping_dice") == pytest.approx(dice, abs=1e-6)
        scores.append(its)
    assert np.isnan(value(table, "seed 0/epoch 1", "correlation_with_previous"))
    expected = spearmanr(*scores).statistic
    assert value(table, "seed 0/epoch 2", "correlation_with_previous") == pytest.approx(expected, abs=1e-6)


def test_correlations_with_the_validation_loss(done: tuple[Path, pd.DataFrame]) -> None:
    _, table = done
    for seed in (0, 1):
        rows = [f"seed {seed}/epoch {epoch}" for epoch in (1, 2, 3)]
        losses = [value(table, row, "validation_loss") for row in rows]
        line = table[(table["row"] == f"seed {seed}") & (table["metric"] == "spearman_entropy_validation_loss")].iloc[0]
        expected = spearmanr([value(table, row, "entropy") for row in rows], losses).statistic
        assert line["value"] == pytest.approx(expected)
        # It counts epochs, and has neither interval nor p-value: epochs are not independent.
        assert line["n"] == 3
        assert np.isnan([line["low"], line["high"]]).all()


def test_what_is_there_is_kept_and_a_stop_changes_nothing(
    done: tuple[Path, pd.DataFrame], patients: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, table = done
    calls = []
    train = study.train

    def stopping(*arguments, title: str, **options):
        calls.append(title)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*arguments, title=title, **options)

    monkeypatch.setattr(study, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        along_training(patients, tmp_path, seeds=(0, 1), **OPTIONS)
    again = along_training(patients, tmp_path, seeds=(0, 1), **OPTIONS)
    pd.testing.assert_frame_equal(again, table)
    assert calls == ["seed 0", "seed 1", "seed 1"]
    before = (out / "along-training.svg").read_bytes()
    pd.testing.assert_frame_equal(along_training(patients, out, seeds=(0, 1), **OPTIONS), table)
    assert (out / "along-training.svg").read_bytes() == before
    assert len(calls) == 3


def test_bad_input(done: tuple[Path, pd.DataFrame], patients: list[Case], tmp_path: Path) -> None:
    out, _ = done
    for changed in ({"epochs": 1}, {"seeds": ()}, {"patients": 0}):
        with pytest.raises(vx.InputError, match="at least 2 epochs, 1 seed and 1 patient"):
            along_training(patients, tmp_path / "out", **{**OPTIONS, **changed})
    assert not (tmp_path / "out").exists()
    with pytest.raises(vx.InputError, match="on other patients or with other settings"):
        along_training(patients, out, seeds=(0,), **{**OPTIONS, "epochs": 2})
    with pytest.raises(vx.InputError, match="preset is one of"):
        along_training(patients, tmp_path / "out", **{**OPTIONS, "preset": "huge"})


def test_a_shorter_preset_is_drawn_out(patients: list[Case], tmp_path: Path) -> None:
    assert cross_validation.new_network(PRESETS["tiny"].card, 0) is not None
    table = along_training(patients, tmp_path, seeds=(3,), patients=1, **{**OPTIONS, "epochs": 6})
    assert table["row"].str.startswith("seed 3/epoch 6").any()
