"""Cohorts of phantoms on disk, in BraTS layout: resumable, one patient at a time, each whole or not there."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from voxplain.datasets.brats import GRADES, cases
from voxplain.datasets.case import Case
from voxplain.datasets.phantom import (
    SHORTCUT_BRIGHTNESS,
    SHORTCUT_CENTRE_MM,
    SHORTCUT_RADIUS_MM,
    SHORTCUT_SEQUENCE,
    TYPES,
    Phantom,
    glioma,
    multiple_sclerosis,
    write_case,
)
from voxplain.errors import InputError
from voxplain.io.atomic import output_folder, read_json, write_json, write_text
from voxplain.scan import Labels

# What figures on phantoms are called, and the file that says of a folder that its scans are made.
SOFTWARE_CHECK = "phantom (software check)"
RECORD = "phantom.json"


@dataclass(frozen=True)
class _Planned:
    """One patient to be made: the folder's name, what is recorded of it, and how it is made."""

    name: str
    record: dict[str, Any]
    make: Callable[[], Phantom]


def write_gliomas(
    out: Path | str,
    *,
    n: int,
    seed: int = 0,
    spacing: float = 2.0,
    grades: Sequence[str | None] = GRADES,
    shortcut: str | None = None,
    brightness: float = SHORTCUT_BRIGHTNESS,
) -> Iterator[Case]:
    """Write patients with gliomas, `Phantom_glioma_0001` and so on, and yield each one as it is there.

    Beside them `name_mapping.csv` holds the grades, as `voxplain.datasets.brats.cases` reads them, and `phantom.json`
    version, seed and options; each patient's folder has a `phantom.json` of its own. Finished patients are kept. Sides
    are random. Patient number i of a seed is always the same brain, with another tumour if its grade differs.

    Args:
        out: the cohort's folder.
        n: patients.
        seed: the cohort; patients get seeds of their own from it.
        spacing: voxel size in mm, 1 or 2.
        grades: dealt to the patients in turn: half "HGG" and half "LGG" by default; None is a brain without tumour;
            or types, `voxplain.datasets.phantom.TYPES`.
        shortcut: one of the grades: every patient of it, and no other, bears the marker (see `glioma`).
        brightness: the marker's signal, as a multiple of white matter's.

    Raises:
        InputError: bad options, or a folder that holds something else or the same patients made otherwise.
    """
    strange = [grade for grade in grades if grade is not None and grade not in (*GRADES, *TYPES)]
    if strange or not grades:
        known = ", ".join((*GRADES, *TYPES))
        raise InputError(f"the grades of a cohort are {known} or None (no tumour); got {list(grades)}")
    if shortcut is not None and shortcut not in grades:
        dealt = ", ".join(str(grade) for grade in grades)
        raise InputError(f"the shortcut marks one of the cohort's grades ({dealt}); got {shortcut!r}")

    # Left out where it is the usual one, so that cohorts made before there was a choice are still known.
    brighter = {} if brightness == SHORTCUT_BRIGHTNESS or shortcut is None else {"brightness": brightness}

    def planned(number: int, own_seed: int) -> tuple[dict[str, Any], Callable[[], Phantom]]:
        grade = grades[number % len(grades)]
        marked = shortcut is not None and grade == shortcut
        marker = {
            "sequence": SHORTCUT_SEQUENCE,
            "centre_mm": list(SHORTCUT_CENTRE_MM),
            "radius_mm": SHORTCUT_RADIUS_MM,
            **brighter,
        }
        return (
            {"grade": grade, "shortcut": marker if marked else None},
            lambda: glioma(own_seed, spacing=spacing, grade=grade, shortcut=marked, brightness=brightness),
        )

    options = {"grades": list(grades), "shortcut": shortcut, **brighter}
    return _cohort(Path(out), "glioma", n=n, seed=seed, spacing=spacing, options=options, planned=planned)


def write_multiple_sclerosis(
    out: Path | str, *, n: int, seed: int = 0, spacing: float = 2.0, lesions: Sequence[Labels] = ()
) -> Iterator[Case]:
    """Write patients with multiple sclerosis, `Phantom_ms_0001` and so on, and yield each one as it is there.

    Files, resuming and errors as of `write_gliomas`, without grades. Where `lesions` (masks in MNI space) are given,
    patients get them in turn; else lesions are made. The expert mask holds 1 for lesion.
    """
    prints = [
        hashlib.sha256(np.packbits(mask.data > 0).tobytes() + mask.grid.fingerprint.encode()).hexdigest()[:16]
        for mask in lesions
    ]

    def planned(number: int, own_seed: int) -> tuple[dict[str, Any], Callable[[], Phantom]]:
        chosen = number % len(lesions) if lesions else None
        return (
            {"lesions": "made" if chosen is None else prints[chosen]},
            lambda: multiple_sclerosis(own_seed, spacing=spacing, lesions=None if chosen is None else lesions[chosen]),
        )

    options = {"lesions": prints or "made"}
    return _cohort(Path(out), "ms", n=n, seed=seed, spacing=spacing, options=options, planned=planned)


def _cohort(
    out: Path,
    kind: str,
    *,
    n: int,
    seed: int,
    spacing: float,
    options: dict[str, Any],
    planned: Callable[[int, int], tuple[dict[str, Any], Callable[[], Phantom]]],
) -> Iterator[Case]:
    """Check and plan at once; the patients are made as they are asked for."""
    if n < 1:
        raise InputError(f"a cohort has at least 1 patient; got {n}")
    if seed < 0:
        raise InputError(f"the seed of a cohort is a whole number of at least 0; got {seed}")
    if spacing not in (1, 2):
        raise InputError(f"a phantom has a spacing of 1 or 2 mm; got {spacing}; resample one with Scan.on")
    out = out.expanduser().resolve()
    same = {
        "what": SOFTWARE_CHECK,
        "voxplain": version("voxplain"),
        "kind": kind,
        "seed": seed,
        "spacing_mm": float(spacing),
    }
    same |= options
    before = read_json(out / RECORD) or {}
    if before and (
        differing := sorted(key for key in same | before if key != "n" and same.get(key) != before.get(key))
    ):
        raise InputError(
            f"{out} holds a cohort made with another {', '.join(differing)}; give the same options, or another folder"
        )
    if not before and out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} holds something other than a cohort of phantoms; give a new or empty folder")
    count = max(n, int(before.get("n", 0)))
    plans = []
    for number in range(count):
        own_seed = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
        record, make = planned(number, own_seed)
        record = {"what": SOFTWARE_CHECK, "voxplain": same["voxplain"], "kind": kind, "seed": own_seed} | record
        plans.append(_Planned(f"Phantom_{kind}_{number + 1:04d}", record | {"spacing_mm": float(spacing)}, make))
    return _written(out, same | {"n": count}, plans, n)


def _written(out: Path, record: dict[str, Any], plans: Sequence[_Planned], n: int) -> Iterator[Case]:
    output_folder(out)
    # First, so that a folder in which making was stopped is known for what it is.
    write_json(record, out / RECORD)
    graded = [(plan.record["grade"], plan.name) for plan in plans if plan.record.get("grade")]
    if graded:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("Grade", "Phantom_subject_ID"), *graded])
        write_text(text.getvalue(), out / "name_mapping.csv")
    for plan in plans[:n]:
        if not (out / plan.name).is_dir():
            _write_patient(out, plan)
        yield cases(out / plan.name)[0]


def _write_patient(out: Path, plan: _Planned) -> None:
    """Write a patient beside the others and rename the whole folder: it is there whole or not at all."""
    phantom = plan.make()
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=out) as workplace:
        folder = Path(workplace) / plan.name
        write_case(phantom.scan, phantom.labels, folder)
        write_json(plan.record | ({"side": phantom.side} if phantom.side else {}), folder / RECORD)
        try:
            os.replace(folder, out / plan.name)
        except OSError as error:
            raise InputError(f"cannot write {out / plan.name} ({error.strerror}); choose another folder") from error
