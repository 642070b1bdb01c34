"""Brains without their tumours: what is left, where it lies, and which patients are of no use."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import voxplain as vx
from voxplain.datasets import brats
from voxplain.datasets.case import Case
from voxplain.datasets.tumour_free import tumour_free

SHAPE = (50, 60, 44)
AFFINE = np.array([[-2.0, 0, 0, 0], [0, -2.0, 0, 118], [0, 0, 2.0, 0], [0, 0, 0, 1]])


def patient(root: Path, *, tumour: float = 6.0, mask: bool = True) -> Case:
    """A ball of 40 mm as brain, a smaller one as tumour, 2 mm, axes as BraTS has them."""
    folder = root / "Brats18_TEST_1"
    folder.mkdir(parents=True)
    index = np.indices(SHAPE, dtype=float) * 2
    brain = np.linalg.norm(index - np.array([52, 60, 40])[:, None, None, None], axis=0) <= 40
    tumours = np.linalg.norm(index - np.array([40, 60, 40])[:, None, None, None], axis=0) <= tumour
    # Brightness says where along the last axis a voxel was.
    image = np.where(brain, 100 + index[2], 0)
    for times, name in enumerate(("flair", "t1", "t1ce", "t2"), start=1):
        nib.save(nib.Nifti1Image((times * image).astype(np.float32), AFFINE), folder / f"{folder.name}_{name}.nii.gz")
    if mask:
        nib.save(nib.Nifti1Image((4 * tumours).astype(np.uint8), AFFINE), folder / f"{folder.name}_seg.nii.gz")
    (case,) = brats.cases(root)
    return case


def test_what_is_left_lies_far_from_the_tumour_at_one_millimetre_in_the_middle_of_mni_space(tmp_path: Path) -> None:
    scan = tumour_free(patient(tmp_path))
    assert scan.channels == ("flair", "t1")
    np.testing.assert_allclose(scan.grid.spacing, 1)
    assert scan.grid.orientation == "LPS"
    there = scan.foreground()
    where = scan.grid.world(np.argwhere(there))
    # The brain's middle is at 0, -20, 7; the tumour's 12 mm to the left of it in voxels, to the right in world.
    distance = np.linalg.norm(where - np.array([12.0, -20, 7]), axis=1)
    assert distance.min() > 6 + 15 - 2.5
    reach = np.linalg.norm(where - np.array([0.0, -20, 7]), axis=1)
    assert 36 < reach.max() <= 40.5
    # Nothing is interpolated with background: all that is left is as bright as its place says.
    expected = 100 + (where[:, 2] - 7 + 40)
    np.testing.assert_allclose(scan.data[0][there], expected, atol=0.6)
    whole = 4 / 3 * np.pi * 40**3
    assert 0.5 < there.sum() / whole < 0.95


def test_patients_of_no_use_are_refused(tmp_path: Path) -> None:
    with pytest.raises(vx.InputError, match="no expert mask"):
        tumour_free(patient(tmp_path / "none", mask=False))
    with pytest.raises(vx.InputError, match="no part of the brain lies 15 mm from the tumour"):
        tumour_free(patient(tmp_path / "all", tumour=60))
    with pytest.raises(vx.InputError, match="has no sequence dwi"):
        tumour_free(patient(tmp_path / "dwi"), ("dwi",))
