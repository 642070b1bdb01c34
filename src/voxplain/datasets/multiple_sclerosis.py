"""Patients with multiple sclerosis in the layout of Lesjak's data set (Lesjak 2018, 10.1007/s12021-017-9348-7)."""

from __future__ import annotations

from pathlib import Path

from voxplain.datasets.case import Case
from voxplain.errors import InputError
from voxplain.io.sequences import sequence_of

SEQUENCES = ("flair", "t1", "t1ce", "t2")
_MASKS = ("consensus_gt.nii.gz", "consensus_gt.nii")
# A folder of lesion masks alone, of patients whose scans are not there.
_SHAPES = "lesion_masks"
_EXPECTED = "expected folders such as patient07 with FLAIR.nii.gz, T1.nii.gz and consensus_gt.nii.gz"


def cases(root: Path | str) -> list[Case]:
    """The patients of a folder, sorted by id; their images are not read. `root` may be one patient's own folder.

    Each has FLAIR.nii.gz and T1.nii.gz, maybe T1POST and T2, and consensus_gt.nii.gz where experts marked lesions; a
    folder without a FLAIR is none. A patient who lacks a sequence is listed.

    Raises:
        InputError: no patients there, or a sequence twice.
    """
    root = Path(root).expanduser().resolve()
    if not root.is_dir():
        raise InputError(f"{_EXPECTED}; there is no folder {root}")
    found = [case for folder in (root, *sorted(root.iterdir())) if folder.is_dir() and (case := _case(folder))]
    if not found:
        raise InputError(f"found no patient in {root}; {_EXPECTED}")
    return found


def lesion_shapes(root: Path | str) -> list[Path]:
    """The lesion masks of other patients, `lesion_masks/*.nii.gz` below root, sorted; none where there is no folder."""
    folder = Path(root).expanduser().resolve() / _SHAPES
    return sorted(path for path in folder.glob("*.nii*") if not path.name.startswith("."))


def _case(folder: Path) -> Case | None:
    if folder.name == _SHAPES:
        return None
    files: dict[str, Path] = {}
    mask = next((folder / name for name in _MASKS if (folder / name).is_file()), None)
    for path in sorted(folder.glob("*.nii*")):
        sequence = sequence_of(path.name)
        if sequence is None or sequence == "seg" or path.name.startswith(".") or path == mask:
            continue
        if sequence in files:
            raise InputError(
                f"sequence {sequence} comes twice in {folder}: {files[sequence].name} and {path.name}; keep one"
            )
        files[sequence] = path
    if "flair" not in files:
        return None
    ordered = {name: files[name] for name in SEQUENCES if name in files}
    missing = tuple(name for name in ("flair", "t1") if name not in files)
    return Case(folder.name, folder.name, ordered, mask, None, {"lesion": 1}, missing)
