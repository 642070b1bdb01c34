"""BraTS, the brain tumour challenges: the folder layouts of 2018 to 2021, and the names of 2023."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from voxplain.datasets.case import Case
from voxplain.errors import InputError
from voxplain.io.sequences import patient_folder_files, sequence_of

SEQUENCES = ("flair", "t1", "t1ce", "t2")
GRADES = ("HGG", "LGG")
# Cohorts of phantoms may hold the types of glioma of CPM-RadPath in the place of grades.
_IN_TABLES = (*GRADES, "G", "A", "O")

_LABEL_VALUES = {"necrotic": 1, "oedema": 2, "enhancing": 4}
_LABEL_VALUES_2023 = {"necrotic": 1, "oedema": 2, "enhancing": 3}

# The ids of each year; the group is the patient. Up to 2019 and from 2023 on a last number counts the scans.
_ID = re.compile(
    r"(brats1[789]_\w+_\w+)_\d+|(brats20_(?:training|validation)_\d+|brats2021_\d+)|(brats-[a-z]+-\d+)-\d+",
    re.IGNORECASE,
)
_NIFTI = re.compile(r".*\.nii(\.gz)?", re.IGNORECASE)
_NIFTI_2023 = re.compile(r".*-(t1n|t1c|t2w|t2f)\.nii(\.gz)?", re.IGNORECASE)


def cases(root: Path | str) -> list[Case]:
    """The patients of a BraTS folder, sorted by id; their images are not read.

    Patient folders lie in `root` or in its HGG and LGG folders, or `root` is itself one. Grades come from those two
    folders and from `name_mapping*.csv` in `root` or just above it. A patient who lacks a sequence is listed.

    Raises:
        InputError: no patients there, one id in two places, two grades for one patient, a sequence twice.
    """
    root = Path(root).expanduser().resolve()
    grades = _name_mapping(root)
    found: dict[str, Case] = {}
    for folder in _patient_folders(root):
        if folder.name in found:
            raise InputError(
                f"patient {folder.name} lies in {root} twice, in {folder} and elsewhere; keep one of the two"
            )
        found[folder.name] = _case(folder, grades)
    if not found:
        raise InputError(f"found no BraTS patient in {root}: {_what_lies_in(root)}; {_EXPECTED}")
    return [found[name] for name in sorted(found)]


def patient_of(name: str) -> str:
    """The patient to whom the case of this id belongs, which splits go by: the id without its count of scans.

    >>> patient_of("Brats18_2013_11_1"), patient_of("BraTS-GLI-00000-000"), patient_of("BraTS2021_00000")
    ('Brats18_2013_11', 'BraTS-GLI-00000', 'BraTS2021_00000')
    """
    match = _ID.fullmatch(name)
    return name if match is None else match.group(match.lastindex or 0)


_EXPECTED = (
    "expected one folder per patient, in it or in HGG/ and LGG/ below it, each with NAME_flair.nii.gz, NAME_t1.nii.gz, "
    "NAME_t1ce.nii.gz, NAME_t2.nii.gz and perhaps NAME_seg.nii.gz (2023: NAME-t2f, -t1n, -t1c, -t2w, -seg); "
    "give the folder that holds the patients"
)


def _patient_folders(root: Path) -> Iterator[Path]:
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; {_EXPECTED}")
    if _holds_sequences(root):
        yield root
        return
    for folder in _folders(root):
        if folder.name.upper() in GRADES:
            yield from filter(_is_patient, _folders(folder))
        elif _is_patient(folder):
            yield folder


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir())


def _is_patient(folder: Path) -> bool:
    # A BraTS id is enough: a folder that was unpacked empty is a patient without images, not nothing.
    return _ID.fullmatch(folder.name) is not None or _holds_sequences(folder)


def _holds_sequences(folder: Path) -> bool:
    return any(_NIFTI.fullmatch(path.name) and sequence_of(path.name) in SEQUENCES for path in folder.iterdir())


def _case(folder: Path, grades: dict[str, str]) -> Case:
    found = patient_folder_files(folder) if _holds_sequences(folder) else {}
    named_2023 = any(_NIFTI_2023.fullmatch(path.name) for path in found.values())
    grade = grades.get(folder.name)
    above = folder.parent.name.upper()
    if above in GRADES:
        if grade not in (None, above):
            raise InputError(
                f"patient {folder.name} lies in {folder.parent.name}/, but its name mapping says {grade}; correct one"
            )
        grade = above
    return Case(
        id=folder.name,
        patient=patient_of(folder.name),
        files={name: found[name] for name in SEQUENCES if name in found},
        segmentation=found.get("seg"),
        grade=grade,
        label_values=dict(_LABEL_VALUES_2023 if named_2023 else _LABEL_VALUES),
        missing=tuple(name for name in SEQUENCES if name not in found),
    )


def _name_mapping(root: Path) -> dict[str, str]:
    """The grade of each id, under whichever year's name, from the tables `name_mapping*.csv`."""
    grades: dict[str, str] = {}
    for table in sorted([*root.glob("name_mapping*.csv"), *root.parent.glob("name_mapping*.csv")]):
        with open(table, newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                grade = (row.pop("Grade", None) or "").strip().upper()
                if grade not in _IN_TABLES:
                    continue
                for name in {cell.strip() for cell in row.values() if isinstance(cell, str)} - {"", "NA"}:
                    if grades.setdefault(name, grade) != grade:
                        raise InputError(f"{table} gives {name} the grade {grade} and also {grades[name]}; correct one")
    return grades


def _what_lies_in(root: Path) -> str:
    inside = sorted(f"{path.name}/" if path.is_dir() else path.name for path in root.iterdir())
    return f"it holds {', '.join(inside[:3])}{', ...' if len(inside) > 3 else ''}" if inside else "it is empty"
