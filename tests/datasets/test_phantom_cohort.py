import json
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from voxplain.cli import app
from voxplain.datasets import phantom_cohort
from voxplain.datasets.brats import cases
from voxplain.datasets.phantom import SHORTCUT_SEQUENCE, TYPES, glioma
from voxplain.datasets.phantom_cohort import write_gliomas, write_multiple_sclerosis
from voxplain.errors import InputError
from voxplain.grid import Grid
from voxplain.io.nifti import save
from voxplain.scan import Labels


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cohort") / "phantoms"
    result = CliRunner().invoke(
        app, ["phantom", "glioma", "--n", "2", "--seed", "5", "--out", str(out), "--shortcut", "HGG"]
    )
    assert result.exit_code == 0, result.output
    assert "Phantom_glioma_0002 (LGG)" in result.output
    assert "2 phantoms (software check, not patients)" in result.output
    return out


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_types_are_dealt_in_turn_and_read_back(tmp_path: Path) -> None:
    written = list(write_gliomas(tmp_path / "types", n=3, grades=TYPES))
    assert [case.grade for case in written] == ["G", "A", "O"]
    both = CliRunner().invoke(
        app, ["phantom", "glioma", "--n", "3", "--types", "--clear", "--out", str(tmp_path / "x")]
    )
    assert "got --types and --clear" in str(both.exception)
    assert [case.grade for case in cases(tmp_path / "types")] == ["G", "A", "O"]


def test_brats_reads_it(cohort: Path) -> None:
    found = cases(cohort)
    assert [(case.id, case.grade) for case in found] == [("Phantom_glioma_0001", "HGG"), ("Phantom_glioma_0002", "LGG")]
    assert (cohort / "name_mapping.csv").read_text().splitlines()[0] == "Grade,Phantom_subject_ID"
    assert found[0].tumour().volume > 10
    assert (found[0].labels().data == 4).any()
    assert not (found[1].labels().data == 4).any()


def test_another_brightness_is_another_cohort(cohort: Path) -> None:
    words = ["phantom", "glioma", "--n", "2", "--seed", "5", "--shortcut", "HGG", "--brightness", "16"]
    result = CliRunner().invoke(app, [*words, "--out", str(cohort)])
    assert "holds a cohort made with another brightness" in str(result.exception)


def test_it_says_what_it_is(cohort: Path) -> None:
    record = json.loads((cohort / "phantom.json").read_text())
    assert record["what"] == "phantom (software check)"
    assert (record["kind"], record["n"], record["seed"], record["spacing_mm"]) == ("glioma", 2, 5, 2.0)
    assert (record["grades"], record["shortcut"]) == (["HGG", "LGG"], "HGG")
    own = [json.loads((case.segmentation.parent / "phantom.json").read_text()) for case in cases(cohort)]
    assert own[0]["shortcut"]["sequence"] == SHORTCUT_SEQUENCE
    assert own[1]["shortcut"] is None
    again = glioma(own[0]["seed"], grade="HGG", shortcut=True)
    assert again.side == own[0]["side"]
    assert again.scan.fingerprint == cases(cohort)[0].scan().fingerprint


def test_finished_patients_are_kept(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(cohort)
    monkeypatch.setattr(phantom_cohort, "glioma", lambda *a, **k: pytest.fail("made again"))
    assert len(list(write_gliomas(cohort, n=2, seed=5, shortcut="HGG"))) == 2
    assert len(list(write_gliomas(cohort, n=1, seed=5, shortcut="HGG"))) == 1
    after = contents(cohort)
    assert {name: text for name, (_, text) in before.items()} == {name: text for name, (_, text) in after.items()}
    seg = str(cohort / "Phantom_glioma_0001" / "Phantom_glioma_0001_seg.nii.gz")
    assert before[seg] == after[seg]


def test_another_cohort_does_not_mix_in(cohort: Path, tmp_path: Path) -> None:
    for options, what in (({"seed": 6}, "seed"), ({"seed": 5, "spacing": 1}, "shortcut, spacing_mm")):
        with pytest.raises(InputError, match=f"made with another .*{what}"):
            write_gliomas(cohort, n=2, **options)
    with pytest.raises(InputError, match="made with another"):
        write_multiple_sclerosis(cohort, n=2, seed=5)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="something other than a cohort of phantoms"):
        write_gliomas(tmp_path, n=2)


def test_stopped_in_the_middle_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = phantom_cohort.write_case

    def stop(*arguments: object) -> None:
        written(*arguments)
        raise KeyboardInterrupt

    out = tmp_path / "phantoms"
    with monkeypatch.context() as patched:
        patched.setattr(phantom_cohort, "write_case", stop)
        with pytest.raises(KeyboardInterrupt):
            list(write_gliomas(out, n=1))
    assert sorted(os.listdir(out)) == ["name_mapping.csv", "phantom.json"]
    with pytest.raises(InputError, match="found no BraTS patient"):
        cases(out)
    assert [case.id for case in write_gliomas(out, n=1)] == ["Phantom_glioma_0001"]
    assert [case.grade for case in cases(out)] == ["HGG"]


def test_clear_brains(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["phantom", "glioma", "--n", "1", "--clear", "--out", str(tmp_path / "clear")])
    assert result.exit_code == 0, result.output
    (case,) = cases(tmp_path / "clear")
    assert case.grade is None
    assert case.tumour().volume == 0


def test_multiple_sclerosis_from_masks(tmp_path: Path) -> None:
    data = np.zeros((40, 40, 40))
    data[10:14, 20:26, 15:19] = 1
    mask = Labels(data, Grid((40, 40, 40), [[1, 0, 0, 15], [0, 1, 0, -40], [0, 0, 1, 10], [0, 0, 0, 1]]))
    save(mask, tmp_path / "lesions.nii.gz")
    arguments = [
        "--n",
        "2",
        "--seed",
        "1",
        "--out",
        str(tmp_path / "ms"),
        "--lesions",
        str(tmp_path / "lesions.nii.gz"),
    ]
    result = CliRunner().invoke(app, ["phantom", "ms", *arguments])
    assert result.exit_code == 0, result.output
    found = cases(tmp_path / "ms")
    assert [case.id for case in found] == ["Phantom_ms_0001", "Phantom_ms_0002"]
    for case in found:
        labels = case.labels()
        assert np.array_equal(labels.data, mask.on(labels.grid).data)
        assert set(case.files) == {"flair", "t1", "t1ce", "t2"}
    assert not (tmp_path / "ms" / "name_mapping.csv").exists()
    with pytest.raises(InputError, match="made with another lesions"):
        write_multiple_sclerosis(tmp_path / "ms", n=2, seed=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "at least 1 patient; got 0"),
        ({"n": 2, "seed": -1}, "at least 0; got -1"),
        ({"n": 2, "spacing": 3}, "1 or 2 mm; got 3"),
        ({"n": 2, "grades": ["IV"]}, r"got \['IV'\]"),
        ({"n": 2, "grades": []}, r"got \[\]"),
        ({"n": 2, "shortcut": "all"}, "got 'all'"),
        ({"n": 2, "grades": ["LGG"], "shortcut": "HGG"}, r"\(LGG\); got 'HGG'"),
    ],
)
def test_what_is_refused_before_anything_is_written(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_gliomas(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_clear_brains_have_no_grade(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["phantom", "glioma", "--n", "1", "--clear", "--grade", "HGG", "--out", str(tmp_path / "out")]
    )
    assert isinstance(result.exception, InputError)
    assert not (tmp_path / "out").exists()
