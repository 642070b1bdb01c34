"""The cohort on which a network errs: brains of its own, lesions that are labelled, mimics that are not."""

from __future__ import annotations

import types
from pathlib import Path

import numpy as np
import pytest

from voxplain.compute import Compute
from voxplain.datasets import made_patients
from voxplain.datasets.made_patients import MIMICS_FILE, MadePatient, brain_seeds, made_patient, write_made_patients
from voxplain.datasets.multiple_sclerosis import cases
from voxplain.errors import InputError
from voxplain.grid import Grid
from voxplain.io.nifti import read_labels
from voxplain.scan import Labels, Scan
from voxplain.studies import lesion_training
from voxplain.studies.lesion_presets import preset

GRID = Grid((6, 6, 6), np.eye(4))


@pytest.fixture(scope="module")
def patient() -> MadePatient:
    return made_patient(brain_seeds(1, seed=7)[0], spacing=2)


@pytest.mark.parametrize("seed", [0, 1])
def test_no_brain_is_one_of_training(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    tiny = Scan(np.ones((2, *GRID.shape)), GRID, ("flair", "t1"))

    def glioma(brain: int, **_: object) -> types.SimpleNamespace:
        used.append(brain)
        return types.SimpleNamespace(scan=tiny)

    monkeypatch.setattr(lesion_training.phantom, "glioma", glioma)
    # Without its memory, which would keep what is made here.
    monkeypatch.setattr(lesion_training, "_made_brain", lesion_training._made_brain.__wrapped__)
    monkeypatch.setattr(lesion_training, "paint_lesions", lambda scan, lesions, **_: (scan, lesions))
    monkeypatch.setattr(lesion_training, "volume_of", lambda *_: None)
    monkeypatch.setattr(lesion_training, "read_labels", lambda _: Labels(np.ones(GRID.shape, dtype=int), GRID))
    small = preset("small")
    compute = Compute(device="cpu", progress=False)
    lesion_training.volumes_of([], [Path(f"{k}") for k in range(27)], small, seed=seed, compute=compute)
    assert len(used) == small.phantoms
    assert max(used) < 2**31 <= min(brain_seeds(200, seed=seed))
    assert not set(used) & set(brain_seeds(200, seed=seed))
    with pytest.raises(InputError, match="belong to training brains"):
        made_patient(used[0])


def test_seeds_are_patients() -> None:
    seeds = brain_seeds(50)
    assert len(set(seeds)) == 50
    assert brain_seeds(10) == seeds[:10]
    assert not set(brain_seeds(50, seed=1)) & set(seeds)
    for n, seed in ((0, 0), (1, -1)):
        with pytest.raises(InputError, match="at least 1 patient and a seed of at least 0"):
            brain_seeds(n, seed=seed)


def test_mimics_are_no_lesions(patient: MadePatient) -> None:
    assert patient.scan.channels == ("flair", "t1")
    assert patient.lesions.data.any()
    assert patient.mimics.data.any()
    assert not (patient.lesions.data.astype(bool) & (patient.mimics.data > 0)).any()
    flair, brain = patient.scan.channel("flair"), patient.scan.foreground()
    for mask in (patient.lesions.data > 0, patient.mimics.data > 0):
        assert np.median(flair[mask]) > np.median(flair[brain])


def test_folders_are_read_as_patients_and_kept(
    patient: MadePatient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def instead(brain: int, *, spacing: float) -> MadePatient:
        made.append(brain)
        return patient

    monkeypatch.setattr(made_patients, "made_patient", instead)
    first = list(write_made_patients(tmp_path / "cohort", n=1, seed=7, spacing=2))
    both = list(write_made_patients(tmp_path / "cohort", n=2, seed=7, spacing=2))
    assert made == brain_seeds(2, seed=7)
    assert [case.id for case in both] == ["made001", "made002"]
    assert [case.id for case in cases(tmp_path / "cohort")] == ["made001", "made002"]
    assert first[0].scan(["flair", "t1"]).fingerprint == patient.scan.fingerprint
    np.testing.assert_array_equal(both[0].tumour().data, patient.lesions.data)
    mimics = read_labels(tmp_path / "cohort" / "made001" / MIMICS_FILE)
    np.testing.assert_array_equal(mimics.data, patient.mimics.data)
    with pytest.raises(InputError, match="holds another cohort"):
        write_made_patients(tmp_path / "cohort", n=1, seed=8, spacing=2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="something other than a cohort"):
        write_made_patients(tmp_path / "other", n=1)
    assert not list((tmp_path / "cohort").glob(".writing-*"))
