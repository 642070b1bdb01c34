from pathlib import Path

import pytest

from voxplain.datasets.tumour_classes import cohort
from voxplain.errors import InputError


def patients(root: Path, grades: str, sequences: tuple[str, ...] = ("flair", "t1", "t1ce", "t2")) -> Path:
    """Empty files in BraTS layout, with a table of grades; "-" is a patient without one."""
    lines = ["Grade,Phantom_subject_ID"]
    for number, grade in enumerate(grades.split()):
        folder = root / f"P{number}"
        folder.mkdir(parents=True)
        for sequence in sequences:
            (folder / f"P{number}_{sequence}.nii.gz").touch()
        lines += [f"{grade},P{number}"] if grade != "-" else []
    (root / "name_mapping.csv").write_text("\n".join(lines) + "\n")
    return root


def test_types_of_phantoms(tmp_path: Path) -> None:
    found = cohort("phantom", patients(tmp_path, " ".join(["G A O"] * 10) + " -"))
    assert found.classes == ("glioblastoma", "astrocytoma", "oligodendroglioma")
    assert len(found.cases) == 30
    assert [found.labels[f"P{number}"] for number in range(3)] == [0, 1, 2]
    assert found.caution is None
    assert "phantom (software check)" in found.data


def test_grades_of_brats_with_too_few_of_one(tmp_path: Path) -> None:
    found = cohort("brats", patients(tmp_path, " ".join(["HGG"] * 12 + ["LGG"] * 3)))
    assert found.classes == ("high-grade", "low-grade")
    assert sum(found.labels.values()) == 3
    assert found.caution == "too few to mean anything (low-grade: 3 patients)"


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--dataset is one of cpm-radpath, brats, phantom; got 'ixi'"):
        cohort("ixi", tmp_path)
    with pytest.raises(
        InputError, match=r"no case of class oligodendroglioma in .*\(1 glioblastoma, 2 astrocytoma, 0 "
    ):
        cohort("phantom", patients(tmp_path / "two", "G A A HGG"))
    with pytest.raises(InputError, match=r"--types. makes such patients"):
        cohort("phantom", tmp_path / "two")
    with pytest.raises(InputError, match=r"3 of 3 cases lack a sequence: P0 \(t2\), P1 \(t2\), P2 \(t2\); add"):
        cohort("phantom", patients(tmp_path / "lacking", "G A O", ("flair", "t1", "t1ce")))
