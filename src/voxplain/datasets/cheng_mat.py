"""The MATLAB files in which Cheng's slices are published: N.mat (v7.3, which is HDF5) and cvind.mat (v7.3 or v5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from scipy.io import loadmat

from voxplain.datasets.slices import Slice
from voxplain.errors import InputError

CLASSES = {1: "meningioma", 2: "glioma", 3: "pituitary"}

_GROUP = "cjdata"
_FOLDS = "cvind"


def slices(files: Sequence[Path]) -> list[Slice]:
    """The slices among some .mat files, by number; a cvind.mat among them gives the folds. Images are not read.

    Raises:
        InputError: a file is broken, lacks a field or holds an unknown label; two cvind.mat; a slice without fold.
    """
    numbered = sorted((path for path in files if path.stem.isascii() and path.stem.isdigit()), key=_number)
    tables = [path for path in files if path.stem.lower() == _FOLDS]
    if len(tables) > 1:
        raise InputError(f"found {_FOLDS}.mat twice, {tables[0]} and {tables[1]}; keep one of them")
    folds = _folds(tables[0]) if tables and numbered else None
    found = []
    for path in numbered:
        label, patient = _facts(path)
        fold = None
        if folds is not None:
            if not 1 <= _number(path) <= len(folds):
                raise InputError(
                    f"{tables[0]} has folds for slices 1 to {len(folds)}, none for {path}; fetch both again"
                )
            fold = int(folds[_number(path) - 1])
        found.append(
            Slice(f"{_number(path):04d}", patient, label, partial(_image, path), partial(_mask, path), fold=fold)
        )
    return found


def _number(path: Path) -> int:
    return int(path.stem)


def _facts(path: Path) -> tuple[str, str]:
    """The name of the class and the patient of a slice, once it is sure that its image and mask are there."""
    with _fields(path) as fields:
        label = _array(fields, "label", path)
        if label.size != 1 or label.item() not in CLASSES:
            known = ", ".join(f"{value} {name}" for value, name in CLASSES.items())
            raise InputError(f"{path}: the label is {label.ravel().tolist()[:5]}; expected one of {known}")
        codes = _array(fields, "PID", path)
        if not np.issubdtype(codes.dtype, np.integer):
            raise InputError(f"{path}: PID is {codes.dtype}; expected the patient's id as character codes")
        # MATLAB marks an empty text by numbers that are no characters: zeros.
        patient = "".join(chr(code) for code in codes.ravel() if 0 < code < 0x110000).strip()
        if not patient:
            raise InputError(f"{path}: PID is empty; a slice whose patient is not known cannot be split: leave it out")
        image, mask = (_field(fields, name, path).shape for name in ("image", "tumorMask"))
        if len(image) != 2 or mask != image:
            raise InputError(
                f"{path}: image and tumorMask are pictures of one size; got {image} and {mask}; fetch the file again"
            )
        return CLASSES[int(label.item())], patient


def _image(path: Path) -> np.ndarray:
    with _fields(path) as fields:
        # MATLAB counts along columns first, so that HDF5 holds every picture transposed.
        return np.ascontiguousarray(_array(fields, "image", path).T[None], dtype=np.float32)


def _mask(path: Path) -> np.ndarray:
    with _fields(path) as fields:
        values = _array(fields, "tumorMask", path)
        if not np.isin(values, (0, 1)).all():
            raise InputError(f"{path}: tumorMask holds other values than 0 and 1; fetch the file again")
        return np.ascontiguousarray(values.T != 0)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except InputError:
        raise
    # h5py raises any of these for damaged bytes, by where they stand.
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())[:100]
        raise InputError(
            f"cannot read {path}: truncated, or not a MATLAB file of version 7.3 ({why}); fetch it again"
        ) from error


@contextmanager
def _fields(path: Path) -> Iterator[h5py.Group]:
    with _opened(path) as file:
        group = file.get(_GROUP)
        if not isinstance(group, h5py.Group):
            raise InputError(f"{path} holds no struct {_GROUP}; expected a slice of this data set: take the file away")
        yield group


def _field(fields: h5py.Group, name: str, path: Path) -> h5py.Dataset:
    field = fields.get(name)
    if not isinstance(field, h5py.Dataset) or field.shape is None:
        raise InputError(f"{path} has no field {_GROUP}.{name}; fetch the file again")
    return field


def _array(fields: h5py.Group, name: str, path: Path) -> np.ndarray:
    values = np.asarray(_field(fields, name, path)[()])
    if not np.issubdtype(values.dtype, np.number) and values.dtype != bool:
        raise InputError(f"{path}: {_GROUP}.{name} holds {values.dtype}; expected numbers; fetch the file again")
    return values


def _folds(path: Path) -> np.ndarray:
    """The fold of each slice, (N,), slice 1 first."""
    if h5py.is_hdf5(path):
        with _opened(path) as file:
            found = file.get(_FOLDS)
            values = None if not isinstance(found, h5py.Dataset) else np.asarray(found[()])
    else:
        try:
            values = loadmat(path).get(_FOLDS)
        # scipy stumbles over damaged bytes with errors of any kind, an IndexError among them.
        except Exception as error:
            raise InputError(f"cannot read {path}: truncated or not a MATLAB file; fetch it again") from error
    if values is None or not np.issubdtype(values.dtype, np.number):
        raise InputError(f"{path} has no array of numbers named {_FOLDS}; expected the fold of each slice")
    folds = values.ravel()
    if folds.size == 0 or not np.isfinite(folds).all() or (folds != np.round(folds)).any() or folds.min() < 1:
        raise InputError(f"{path}: folds are whole numbers from 1; got {np.unique(folds)[:6].tolist()}; fetch it again")
    return folds.astype(int)
