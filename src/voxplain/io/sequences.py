"""Which MRI sequence a file name speaks of: channels are matched by name, never by position."""

from __future__ import annotations

import re
from pathlib import Path

from voxplain.errors import InputError

# Canonical name -> the words that data sets use for it in file names.
_WORDS = {
    "flair": ("flair", "t2f"),
    "t1": ("t1", "t1w", "t1n"),
    "t1ce": ("t1ce", "t1c", "t1gd", "t1post"),
    "t2": ("t2", "t2w"),
    "seg": ("seg", "segm"),
}
_CANONICAL = {word: name for name, words in _WORDS.items() for word in words}


def canonical(name: str) -> str:
    """The canonical name of a sequence ("t1c" is "t1ce"); names that are not known stay as they are."""
    return _CANONICAL.get(name.lower(), name.lower())


def without_suffix(path: Path) -> str:
    """A file's name without .nii or .nii.gz."""
    return re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def sequence_of(name: str) -> str | None:
    """The canonical sequence (or "seg") that a file name speaks of; None when it names none, or more than one."""
    words = re.split(r"[^a-z0-9]+", without_suffix(Path(name)).lower())
    found = {_CANONICAL[word] for word in words if word in _CANONICAL}
    return found.pop() if len(found) == 1 else None


def patient_folder_files(folder: Path) -> dict[str, Path]:
    """The NIfTI files of one patient folder by canonical sequence name, and "seg" where there are expert masks.

    Raises:
        InputError: the folder does not exist, holds no such file, or two files claim one sequence.
    """
    if not folder.is_dir():
        raise InputError(f"expected a patient folder; there is no folder {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not re.search(r"\.nii(\.gz)?$", path.name, flags=re.IGNORECASE) or path.name.startswith("."):
            continue
        sequence = sequence_of(path.name)
        if sequence is None:
            continue
        if sequence in found:
            raise InputError(
                f"sequence {sequence} comes twice in {folder}: {found[sequence].name} and {path.name}; keep one"
            )
        found[sequence] = path
    if not set(found) - {"seg"}:
        raise InputError(
            f"found no sequence in {folder}; expected files such as NAME_flair.nii.gz, NAME_t1.nii.gz, "
            "NAME_t1ce.nii.gz, NAME_t2.nii.gz (or -t2f, -t1n, -t1c, -t2w)"
        )
    return found
