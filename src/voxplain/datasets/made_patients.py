"""A cohort of made patients on whom a lesion network errs: made lesions, and mimics that no label names.

Figures on them are "phantom (software check)". Folders are in the layout that `voxplain.datasets.multiple_sclerosis`
reads: FLAIR.nii.gz, T1.nii.gz and consensus_gt.nii.gz, with mimics.nii.gz and phantom.json beside them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxplain.datasets import phantom
from voxplain.datasets.case import Case
from voxplain.datasets.lesion_mimics import MIMICS, paint_mimics
from voxplain.datasets.made_lesions import paint_lesions
from voxplain.datasets.multiple_sclerosis import cases
from voxplain.datasets.phantom_cohort import RECORD, SOFTWARE_CHECK
from voxplain.errors import InputError
from voxplain.io.atomic import output_folder, read_json, write_json
from voxplain.io.nifti import save
from voxplain.scan import Labels, Scan

MIMICS_FILE = "mimics.nii.gz"
# Brains of training are drawn from below 2^31 (see `studies.lesion_training`); those of a cohort lie above.
_FIRST_SEED = 2**31


@dataclass(frozen=True, eq=False)
class MadePatient:
    """A made patient: scan with flair and t1, lesions (1) and mimics (by `MIMICS`) on its grid, the brain's seed."""

    scan: Scan
    lesions: Labels
    mimics: Labels
    brain: int


def brain_seeds(n: int, *, seed: int = 0) -> list[int]:
    """The seeds of the brains of a cohort's first n patients, all at least 2^31: no training brain has one of them.

    Raises:
        InputError: fewer than one patient, or a negative seed.
    """
    if n < 1 or seed < 0:
        raise InputError(f"a cohort has at least 1 patient and a seed of at least 0; got {n} and {seed}")
    states = (np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] for number in range(n))
    return [_FIRST_SEED + int(state) % 2**40 for state in states]


def made_patient(brain: int, *, spacing: float = 1.0) -> MadePatient:
    """A healthy made brain with painted lesions and mimics.

    One seed is one brain with one set of lesions at any spacing; their look, and where mimics lie, differ with it.
    Lesions lie where `phantom.multiple_sclerosis` puts those of the same brain (10 to 45, around the ventricles mostly)
    and look as `paint_lesions` paints them: some are faint. None has the shape of a lesion of a training patient.

    Args:
        brain: the seed of the brain, of `brain_seeds`.
        spacing: voxel size in mm, 1 or 2.

    Raises:
        InputError: another spacing, or a seed that training brains may have (below 2^31).
    """
    if brain < _FIRST_SEED:
        raise InputError(f"seeds below {_FIRST_SEED} belong to training brains; got {brain}: take one of brain_seeds")
    shapes = phantom.multiple_sclerosis(brain, spacing=spacing).labels
    healthy = phantom.glioma(brain, spacing=spacing, grade=None).scan.select(["flair", "t1"])
    lesion_seed, mimic_seed = (int(value) for value in np.random.SeedSequence((brain, 1)).generate_state(2))
    painted, lesions = paint_lesions(healthy, shapes, seed=lesion_seed)
    scan, mimics = paint_mimics(painted, seed=mimic_seed, known=lesions)
    return MadePatient(scan, lesions, mimics, brain)


def write_made_patients(out: Path | str, *, n: int, seed: int = 0, spacing: float = 1.0) -> Iterator[Case]:
    """Write the patients made001 and so on, and yield each one as it is there; finished ones are kept.

    Args:
        out: the cohort's folder.
        n: patients.
        seed: the cohort.
        spacing: voxel size in mm, 1 or 2.

    Raises:
        InputError: bad options, or a folder that holds another cohort or something else.
    """
    seeds = brain_seeds(n, seed=seed)
    out = Path(out).expanduser().resolve()
    record = {"what": SOFTWARE_CHECK, "kind": "ms with mimics", "seed": seed, "spacing_mm": float(spacing)}
    before = read_json(out / RECORD)
    if before is not None and before != record:
        raise InputError(f"{out} holds another cohort of phantoms; give the same seed and spacing, or another folder")
    if before is None and out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} holds something other than a cohort of phantoms; give a new or empty folder")
    return _written(out, record, seeds, spacing)


def _written(out: Path, record: dict[str, object], seeds: Sequence[int], spacing: float) -> Iterator[Case]:
    output_folder(out)
    write_json(record, out / RECORD)
    for number, brain in enumerate(seeds, start=1):
        name = f"made{number:03d}"
        if not (out / name).is_dir():
            patient = made_patient(brain, spacing=spacing)
            with tempfile.TemporaryDirectory(prefix=".writing-", dir=out) as workplace:
                folder = Path(workplace) / name
                for sequence, file in (("flair", "FLAIR.nii.gz"), ("t1", "T1.nii.gz")):
                    save(patient.scan.select([sequence]), folder / file)
                save(patient.lesions, folder / "consensus_gt.nii.gz")
                save(patient.mimics, folder / MIMICS_FILE)
                write_json({**record, "seed": brain, "mimics": MIMICS}, folder / RECORD)
                os.replace(folder, out / name)
        yield cases(out / name)[0]
