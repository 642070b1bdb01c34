"""The grade task: which cases take part, what is said where there are too few, the presets, and the folds on disk."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import voxplain as vx
from voxplain import cli
from voxplain.datasets.brats import cases as brats_cases
from voxplain.datasets.case import Case
from voxplain.datasets.phantom import write_case
from voxplain.networks.resnet import resnet
from voxplain.studies import cross_validation
from voxplain.studies.cross_validation import new_network
from voxplain.studies.grades import PRESETS, TASK, cross_validate, graded, labelled_scan, too_few, train_final
from voxplain.studies.task import Preset
from voxplain.training import Example, Settings, train

CPU = vx.Compute(device="cpu", threads=1)
SHAPE = (24, 20, 12)
GRID = vx.Grid(SHAPE, np.diag([-5.0, -5, 5, 1]))


def unread(grade: str | None, number: int, patient: str | None = None) -> Case:
    return Case(f"{grade}_{number}", patient or f"{grade}_{number}", {}, None, grade, {})


def cohort(high: int, low: int, without: int = 0) -> list[Case]:
    counts = {"HGG": high, "LGG": low, None: without}
    return [unread(grade, number) for grade, count in counts.items() for number in range(count)]


@pytest.mark.parametrize(("high", "low"), [(10, 10), (31, 10), (30, 30)])
def test_ten_patients_of_each_grade_are_enough(high: int, low: int) -> None:
    assert too_few(cohort(high, low)) is None


def test_too_few_says_of_which_grade() -> None:
    assert too_few(cohort(31, 3)) == "too few to mean anything (LGG: 3 patients)"
    assert too_few(cohort(9, 0, 50)) == "too few to mean anything (HGG: 9 patients, LGG: 0 patients)"
    # Twelve scans of four patients are four patients.
    again = [unread("LGG", number, f"P{number % 4}") for number in range(12)]
    assert too_few([*cohort(31, 0), *again]) == "too few to mean anything (LGG: 4 patients)"


def test_cases_without_a_grade_are_left_out_and_named() -> None:
    with pytest.warns(UserWarning, match=r"2 of 5 cases have no grade .* left out: None_0, None_1"):
        assert [case.grade for case in graded(cohort(2, 1, 2))] == ["HGG", "HGG", "LGG"]


@pytest.mark.parametrize(
    ("cases", "words"),
    [
        (cohort(3, 0), "got 3 HGG, 0 LGG and 0 without a grade: give patients of LGG"),
        (cohort(0, 3, 1), "got 0 HGG, 3 LGG and 1 without a grade: give patients of HGG"),
        ([], "give patients of HGG and LGG"),
    ],
)
def test_both_grades_are_needed(cases: list[Case], words: str, tmp_path: Path) -> None:
    for function in (cross_validate, train_final):
        with pytest.raises(vx.InputError, match=words):
            function(cases, tmp_path / "out", compute=CPU)
    assert not (tmp_path / "out").exists()


def test_a_preset_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(vx.InputError, match=r"preset is one of small, .*got 'large'"):
        cross_validate(cohort(3, 3), tmp_path / "out", preset="large", compute=CPU)


def test_every_preset_reads_whole_scans_of_the_four_sequences() -> None:
    for name, preset in PRESETS.items():
        card = preset.card
        assert (card.region, card.classes, card.channels) == ("whole", ("high-grade",), ("flair", "t1", "t1ce", "t2"))
        if name != "tiny":
            assert card.name == ("tumour-grade" if name == "small" else f"tumour-grade-{name}")
        assert card.skull_stripped == (name != "tiny")


def test_the_paper_preset_is_the_papers() -> None:
    """000, 3.1 and 3.2: ResNet-50, 4 x 128^3 from the middle, min-max, Adam 0.01, 100 epochs, nothing augmented."""
    card, settings = PRESETS["paper"].card, PRESETS["paper"].settings
    assert (card.shape, card.spacing, card.normalisation) == ((128, 128, 128), (1, 1, 1), "min-max")
    assert (settings.optimiser, settings.learning_rate, settings.schedule) == ("adam", 0.01, "constant")
    assert (settings.epochs, settings.weight_decay, settings.averaging, settings.augmentation) == (100, 0, 0, False)
    with torch.device("meta"):
        network = resnet(**card.arguments)
    # He 2016, table 1, in 3D: the stem, then 3, 4, 6, 3 blocks of 1^3, 3^3, 1^3, a norm (two per feature) after each.
    count, before = 4 * 7**3 * 64 + 2 * 64, 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            count += before * width + 27 * width * width + width * 4 * width + 2 * (width + width + 4 * width)
            if block == 0:
                count += (before + 1) * 4 * width + 2 * 4 * width  # MONAI's shortcuts have a bias
            before = 4 * width
    count += before + 1
    assert sum(value.numel() for value in network.parameters()) == count == 46_226_817
    image = torch.empty(2, 4, *card.shape, device="meta")
    assert network(image).shape == (2, 1)


def test_one_step_of_the_paper_preset_on_a_reduced_volume(tmp_path: Path) -> None:
    preset = PRESETS["paper"]
    network = new_network(preset.card, 0)
    before = network.fc.weight.detach().clone()
    rng = np.random.default_rng(0)
    images = rng.random((2, 4, 32, 32, 32), dtype=np.float32)
    examples = [Example(str(label), label, lambda label=label: images[label]) for label in (0, 1)]
    settings = dataclasses.replace(preset.settings, epochs=1, batch_size=2)
    result = train(network, examples, [], tmp_path, settings=settings, compute=CPU)
    assert np.isfinite(result.training_losses).all()
    moved = (network.fc.weight.detach() - before).abs()
    # Adam's first step is the learning rate, whatever the gradient.
    assert moved.max() == pytest.approx(0.01, rel=1e-3)


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """Eight brains of 5 mm voxels, four of each grade; those of high grade hold a bright cube on T1ce."""
    folder = tmp_path_factory.mktemp("patients")
    for number in range(8):
        rng = np.random.default_rng(number)
        brain = np.zeros(SHAPE, dtype=bool)
        brain[2:22, 2:18, 1:11] = True
        labels = np.zeros(SHAPE, dtype=int)
        x, y, z = rng.integers(4, 16), rng.integers(4, 10), rng.integers(2, 5)
        labels[x : x + 4, y : y + 4, z : z + 4] = 2
        high = number % 2 == 0
        bright = (150, 0, 150 * high, 0)
        data = [np.where(brain, rng.normal(100, 5, SHAPE) + extra * (labels > 0), 0) for extra in bright]
        scan = vx.Scan(np.stack(data), GRID, ("flair", "t1", "t1ce", "t2"))
        write_case(scan, vx.Labels(labels, GRID), folder / ("HGG" if high else "LGG") / f"Brats18_2013_{number}_1")
    return brats_cases(folder)


@pytest.fixture(scope="module", autouse=True)
def _tiny_preset() -> Iterator[None]:
    small = PRESETS["small"].card
    card = dataclasses.replace(
        small, name="tiny", spacing=(5, 5, 5), shape=(24, 20, 12), skull_stripped=False,
        arguments={**small.arguments, "width": 4},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            PRESETS, "tiny", Preset(card, Settings(epochs=2, patience=2, batch_size=2, augmentation="gentle"))
        )
        yield


@pytest.fixture(scope="module")
def trained(patients: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    cross_validate(patients, out, preset="tiny", folds=2, compute=CPU)
    train_final(patients, out, preset="tiny", compute=CPU)
    return out


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_scan_is_one_input_with_its_grade(patients: list[Case]) -> None:
    for case in patients:
        (one,) = labelled_scan(case, PRESETS["tiny"].card)
        assert (one.region, one.label) == ("whole", int(case.grade == "HGG"))
        assert one.image.shape == (4, 24, 20, 12)
        assert one.example.load().dtype == np.float32


def test_folds_on_disk(trained: Path, patients: list[Case]) -> None:
    grades = {case.id: case.grade for case in patients}
    caution = "too few to mean anything (HGG: 4 patients, LGG: 4 patients)"
    tested: list[str] = []
    for index in range(2):
        folder = trained / f"fold{index}"
        assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "model.json", "weights.safetensors"]
        metrics = read(folder / "metrics.json")
        groups = [metrics[name] for name in ("training_ids", "validation_ids", "test_ids")]
        assert sorted(name for group in groups for name in group) == sorted(grades)
        assert sorted(grades[name] for name in groups[2]) == ["HGG", "HGG", "LGG", "LGG"]
        assert metrics["test"]["caution"] == caution
        assert [line["label"] for line in metrics["predictions"]] == [int(grades[n] == "HGG") for n in groups[2]]
        assert {line["region"] for line in metrics["predictions"]} == {"whole"}
        tested += groups[2]
        card = vx.load_model(folder).card
        assert card.training_ids == {*groups[0], *groups[1]}
        assert card.training["n_scans"] == len(groups[0])
    assert sorted(tested) == sorted(grades)
    summary = read(trained / "metrics.json")
    assert (summary["n_scans"], summary["n_patients"], summary["caution"]) == (8, 8, caution)


def test_the_final_networks_page_carries_the_caution(trained: Path) -> None:
    page = (trained / "final" / "README.md").read_text(encoding="utf-8")
    assert "8 patients, 8 labelled scans, 4 of high grade" in page
    assert "**These figures are too few to mean anything (HGG: 4 patients, LGG: 4 patients).**" in page
    assert "high-grade" in page
    assert vx.load_model(trained / "final").card.training["cross_validation"]["caution"]


def test_finished_folds_are_kept(trained: Path, patients: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_training(*_: object, **__: object) -> None:
        raise AssertionError("nothing was left to train")

    monkeypatch.setattr("voxplain.studies.cross_validation.train", no_training)
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    cross_validate(patients, trained, preset="tiny", folds=2, compute=CPU)
    train_final(patients, trained, preset="tiny", compute=CPU)
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_the_best_of_several_attempts_is_kept_and_a_stopped_one_goes_on(
    patients: list[Case], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "tried", dataclasses.replace(PRESETS["tiny"], attempts=3))
    started: list[str] = []

    def stopping(*arguments, title: str, **options):
        started.append(title)
        if len(started) == 3:
            raise KeyboardInterrupt
        return train(*arguments, title=title, **options)

    monkeypatch.setattr(cross_validation, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(patients, tmp_path, preset="tried", folds=2, compute=CPU)
    assert sorted(path.name for path in (tmp_path / "fold0").iterdir()) == ["attempt0", "attempt1"]
    cross_validate(patients, tmp_path, preset="tried", folds=2, compute=CPU)
    assert started[:3] == [f"fold 0, attempt {number}" for number in (1, 2, 3)]
    for index in range(2):
        folder = tmp_path / f"fold{index}"
        assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "model.json", "weights.safetensors"]
        metrics, once = (read(out / f"fold{index}" / "metrics.json") for out in (tmp_path, trained))
        # The first attempt is the training without a choice.
        assert metrics["attempts"][:1] == once["attempts"]
        assert len(metrics["attempts"]) == 3
        assert metrics["validation_losses"][metrics["best_epoch"] - 1] == min(metrics["attempts"])
        assert metrics["identity"] != once["identity"]


def test_a_fold_that_would_learn_from_one_grade_alone(patients: list[Case], tmp_path: Path) -> None:
    one = [case for case in patients if case.grade == "HGG"] + [case for case in patients if case.grade == "LGG"][:1]
    with pytest.raises(vx.InputError, match=r"training part of fold 0 has labels \[1\]: give more patients"):
        cross_validate(one, tmp_path, preset="tiny", folds=2, compute=CPU)


def test_the_command_marks_every_figure(
    patients: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = patients[0].files["flair"].parents[2]
    monkeypatch.setattr(
        "sys.argv", ["voxplain", "train", "grades", "--data", str(data), "--out", str(tmp_path), "--preset", "tiny",
                     "--folds", "2", "--device", "cpu", "--threads", "1"]
    )  # fmt: skip
    with contextlib.suppress(SystemExit):
        cli.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if "95 %" in line]
    assert len(lines) == 2
    assert all("too few to mean anything (HGG: 4 patients, LGG: 4 patients)" in line for line in lines)


def test_labels_are_not_masks() -> None:
    assert TASK.labels.endswith("no voxel labels")
