"""Which sequence a file name speaks of."""

from __future__ import annotations

from pathlib import Path

import pytest

from voxplain.errors import InputError
from voxplain.io.sequences import canonical, patient_folder_files, sequence_of, without_suffix


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Brats18_CBICA_APZ_1_flair.nii.gz", "flair"),
        ("Brats18_CBICA_APZ_1_t1.nii.gz", "t1"),
        ("Brats18_CBICA_APZ_1_t1ce.nii", "t1ce"),
        ("Brats18_CBICA_APZ_1_t2.NII.GZ", "t2"),
        ("BraTS-GLI-00000-000-t1n.nii.gz", "t1"),
        ("BraTS-GLI-00000-000-t1c.nii.gz", "t1ce"),
        ("BraTS-GLI-00000-000-t2w.nii.gz", "t2"),
        ("BraTS-GLI-00000-000-t2f.nii.gz", "flair"),
        ("BraTS-GLI-00000-000-seg.nii.gz", "seg"),
        ("sub-01_T1w.nii.gz", "t1"),
        ("sub-01_FLAIR.nii.gz", "flair"),
        ("T1Gd.nii", "t1ce"),
        ("f.nii.gz", None),
        ("t1_to_t2.nii.gz", None),
        ("at1b.nii.gz", None),
        ("t10.nii.gz", None),
        ("flair_t2f.nii.gz", "flair"),
    ],
)
def test_sequence_of(name: str, expected: str | None) -> None:
    assert sequence_of(name) == expected


def test_canonical_names() -> None:
    assert [canonical(name) for name in ("T1C", "t2F", "FLAIR", "t1Gd", "ADC")] == [
        "t1ce",
        "flair",
        "flair",
        "t1ce",
        "adc",
    ]
    assert without_suffix(Path("a/b.c.nii.GZ")) == "b.c"


def folder_of(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).touch()
    return tmp_path


def test_files_of_a_patient(tmp_path: Path) -> None:
    names = ("P_t1.nii.gz", "P_t2.nii", "P_seg.nii.gz", "P_notes.txt", "P_adc.nii.gz", "._P_t1.nii.gz", "P_flair.json")
    found = patient_folder_files(folder_of(tmp_path, *names))
    assert {name: path.name for name, path in found.items()} == {
        "t1": "P_t1.nii.gz",
        "t2": "P_t2.nii",
        "seg": "P_seg.nii.gz",
    }


def test_two_files_for_one_sequence_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sequence t1 comes twice in .*: P_t1.nii and P_t1.nii.gz; keep one"):
        patient_folder_files(folder_of(tmp_path, "P_t1.nii", "P_t1.nii.gz"))


def test_folders_without_sequences_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        patient_folder_files(tmp_path / "nothing")
    with pytest.raises(InputError, match="found no sequence"):
        patient_folder_files(folder_of(tmp_path, "P_seg.nii.gz"))
