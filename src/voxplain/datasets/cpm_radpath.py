"""CPM-RadPath 2020: gliomas in four sequences, with the class that pathology gave them in a table."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from voxplain.datasets.brats import SEQUENCES
from voxplain.datasets.case import Case
from voxplain.errors import InputError
from voxplain.io.sequences import patient_folder_files

# Glioblastoma or diffuse astrocytic glioma with its molecular features; astrocytoma, IDH-mutant; oligodendroglioma.
CLASSES = {"G": "glioblastoma", "A": "astrocytoma", "O": "oligodendroglioma"}
_SHOWN = 5
_EXPECTED = (
    "expected Radiology/CPM19_.../CPM19_..._flair.nii.gz, _t1, _t1ce, _t2 and a table (CSV) with the columns "
    "CPM_RadPath_2019_ID and class (G, A or O)"
)


def cases(root: Path | str) -> list[Case]:
    """The patients of a CPM-RadPath folder who have a class, sorted by id; their images are not read.

    Folders lie in `root/Radiology` or in `root`, the table in `root`. Folders without a line, and lines without a
    folder, are left out as long as some match. A patient who lacks a sequence is listed.

    Raises:
        InputError: no table, more than one, a class that is not G, A or O, two classes for one id, or no id of the
            table that is a folder's name.
    """
    root = Path(root).expanduser().resolve()
    classes = _classes(root)
    scans = root / "Radiology" if (root / "Radiology").is_dir() else root
    folders = {path.name: path for path in sorted(scans.iterdir()) if path.is_dir()}
    both = [name for name in folders if name in classes]
    if not both:
        raise InputError(
            f"no id of the table is the name of a folder in {scans}: the table has {_some(classes)}; "
            f"there are {_some(folders)}; {_EXPECTED}"
        )
    found = []
    for name in both:
        files = patient_folder_files(folders[name])
        found.append(
            Case(
                id=name,
                patient=name,
                files={sequence: files[sequence] for sequence in SEQUENCES if sequence in files},
                segmentation=files.get("seg"),
                grade=classes[name],
                label_values={},
                missing=tuple(sequence for sequence in SEQUENCES if sequence not in files),
            )
        )
    return found


def _classes(root: Path) -> dict[str, str]:
    """The class of each id; the first column is the id, as in the table of the challenge."""
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; {_EXPECTED}")
    found: dict[str, str] = {}
    tables = []
    for path in sorted(root.glob("*.csv")):
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            if "class" not in (lines.fieldnames or ()):
                continue
            tables.append(path.name)
            if len(tables) > 1:
                raise InputError(f"{root} holds two tables with a column class, {' and '.join(tables)}; keep one")
            for line in lines:
                name = str(line[(lines.fieldnames or [""])[0]]).strip()
                value = str(line["class"] or "").strip().upper()
                if value not in CLASSES:
                    raise InputError(f"{path.name} gives {name} the class {value or 'nothing'!r}; expected G, A or O")
                if found.setdefault(name, value) != value:
                    raise InputError(f"{path.name} gives {name} the class {value} and also {found[name]}; correct one")
    if not found:
        raise InputError(f"found no table of classes in {root}; {_EXPECTED}")
    return found


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return f"{', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}" if names else "none"
