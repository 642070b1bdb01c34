"""Cheng's brain tumours: T1ce slices of three kinds of tumour (figshare 10.6084/m9.figshare.1512427), in two layouts.

The authors' folder holds 1.mat to 3064.mat with the patient of each slice, and their five folds in cvind.mat; see
`voxplain.datasets.cheng_mat`. The repacked folder holds metadata.csv (id, label, class_name, fold), images/0001.jpg
and masks/0001.png; it does not say which slices are of one patient, so that only whole folds can be held apart.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from voxplain.datasets import cheng_mat
from voxplain.datasets.slices import Parts, Slice, deal, rotate, unique
from voxplain.errors import InputError

CLASSES = cheng_mat.CLASSES

_COLUMNS = ("id", "label", "class_name", "fold")
_SIZE = (512, 512)
_KINDS = {"1": "1-bit", "L": "8-bit grey"}
# As many folds as the authors made, where patients are known and cvind.mat is not there.
_FOLDS = 5
_EXPECTED = (
    "expected the authors' files (1.mat, 2.mat, ..., cvind.mat) in it or in folders below it, or metadata.csv with "
    "images/ and masks/; give the folder that holds them"
)


def slices(root: Path | str) -> list[Slice]:
    """The slices of either layout, in the order of their numbers; images and masks are not read.

    `id` is the number, "0001"; `label` one of `CLASSES`. Authors' layout: `group` is the patient, `load` gives the
    raw int16 intensities at the size of the file (512 x 512, or 256 x 256 for a few). Repacked layout: `group` is the
    fold, `load` gives 0 to 255, 512 x 512. Pictures are one channel: (1, H, W).

    Raises:
        InputError: no slices there, a number twice, labels that are not known or disagree, a file that is missing,
            broken, in colour, not of 8 bits or of another size than expected.
    """
    root = Path(root).expanduser().resolve()
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; {_EXPECTED}")
    files = [path for path in sorted(root.rglob("*.mat")) if path.is_file()]
    table = root / "metadata.csv"
    if table.is_file() and files:
        raise InputError(
            f"{root} holds both metadata.csv and {files[0].name}, one data set twice; keep the two in folders apart"
        )
    if not table.is_file():
        found = cheng_mat.slices(files)
        if not found:
            raise InputError(f"found no slices in {root}; {_EXPECTED}")
        return unique(found)
    return unique(_repacked(root, table))


def splits(slices: Sequence[Slice], index: int, seed: int = 0) -> Parts:
    """Training, validation and test slices: one fold tests, the next validates, the others train; `index` rotates.

    The folds are the authors' own, counted over those that are present. Where none is given, patients are dealt into
    five folds, evenly for each kind of tumour, by `seed`.

    Raises:
        InputError: no slices, fewer than three folds, no fold of that index, folds for some slices only, or a
            patient who lies in two folds.
    """
    if not slices:
        raise InputError("there are no slices to split; read them with voxplain.datasets.cheng.slices")
    without = [item.id for item in slices if item.fold is None]
    if len(without) == len(slices):
        kinds: dict[str, set[str]] = {}
        for item in slices:
            kinds.setdefault(item.group, set()).add(item.label)
        strata = {group: "+".join(sorted(labels)) for group, labels in kinds.items()}
        return rotate(slices, deal(strata, _FOLDS, seed), index)
    if without:
        raise InputError(f"slice {without[0]} has no fold, and others have one; give all a fold, or none")
    fold_of: dict[str, int] = {}
    for item in slices:
        assert item.fold is not None
        if fold_of.setdefault(item.group, item.fold) != item.fold:
            raise InputError(
                f"patient {item.group} lies in folds {fold_of[item.group]} and {item.fold}; a patient belongs to one "
                "side of a split: correct the folds, or read the data without them"
            )
    return rotate(slices, fold_of, index)


def _repacked(root: Path, table: Path) -> list[Slice]:
    found = []
    for line, row in enumerate(_rows(table), start=2):
        number, label, fold = (_whole(row, column, table, line) for column in ("id", "label", "fold"))
        name = (row["class_name"] or "").strip()
        if label not in CLASSES:
            known = ", ".join(f"{value} {title}" for value, title in CLASSES.items())
            raise InputError(f"{table}, line {line}: label {label} is not known; expected {known}")
        if name != CLASSES[label]:
            raise InputError(
                f"{table}, line {line}: label {label} is {CLASSES[label]}, but class_name says {name!r}; correct one"
            )
        image, mask = root / "images" / f"{number:04d}.jpg", root / "masks" / f"{number:04d}.png"
        for path, modes in ((image, ("L",)), (mask, ("1", "L"))):
            _check_header(path, modes, f"{table.name} lists slice {number}")
        found.append(
            Slice(f"{number:04d}", f"fold {fold}", name, partial(_image, image), partial(_mask, mask), fold=fold)
        )
    if not found:
        raise InputError(f"{table} lists no slice; expected one line for each")
    return sorted(found, key=lambda item: int(item.id))


def _rows(table: Path) -> list[dict[str, str]]:
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise InputError(
                    f"{table} has no column {', '.join(missing)}; expected {', '.join(_COLUMNS)}: without folds, "
                    "slices of one patient could train and test"
                )
            return list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {table} as a table of text ({error}); copy it again") from error


def _whole(row: dict[str, str], column: str, table: Path, line: int) -> int:
    value = (row[column] or "").strip()
    if not (value.isascii() and value.isdigit()):
        raise InputError(f"{table}, line {line}: {column} is a whole number; got {value!r}; correct the line")
    return int(value)


def _check_header(path: Path, modes: tuple[str, ...], why: str) -> None:
    """Refuse a picture that is not there, or that its header says is not what the data set holds."""
    if not path.is_file():
        raise InputError(f"{why}, but there is no file {path}; copy it again, or take the slice out of the table")
    try:
        with Image.open(path) as picture:
            mode, size = picture.mode, picture.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _broken(path, error) from error
    if mode not in modes or size != _SIZE:
        kind = _KINDS.get(mode, "16-bit or deeper grey" if mode[0] in "IF" else "colour")
        expected = f"{' or '.join(_KINDS[name] for name in modes)} of {_SIZE[0]} x {_SIZE[1]}"
        raise InputError(
            f"{path} is {kind} ({mode}) of {size[0]} x {size[1]} pixels; expected {expected}; "
            "take the file from the data set, unconverted"
        )


def _image(path: Path) -> np.ndarray:
    return _pixels(path)[None].astype(np.float32)


def _mask(path: Path) -> np.ndarray:
    values = _pixels(path)
    if len(np.unique(values[values > 0])) > 1:
        raise InputError(f"{path} holds shades of grey; a mask has one value inside and 0 outside; copy it again")
    return values > 0


def _pixels(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.array(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> InputError:
    return InputError(f"cannot read {path}: truncated or not a picture ({str(error)[:80]}); copy it again")
