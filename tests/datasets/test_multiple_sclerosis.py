"""Lesjak's layout: which folders are patients, and what lies in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import voxplain as vx
from voxplain.datasets.multiple_sclerosis import cases, lesion_shapes
from voxplain.scan import Labels, Scan

GRID = vx.Grid((3, 4, 5), np.diag([1.0, 1, 1, 1]))


def _write(folder: Path, *names: str) -> None:
    for name in names:
        channel = {"FLAIR": "flair", "T1": "t1", "T1POST": "t1ce", "T2": "t2"}.get(name)
        if channel is None:
            data = np.zeros(GRID.shape, dtype=int)
            data[1, 1, 1] = 1
            vx.save(Labels(data, GRID), folder / f"{name}.nii.gz")
        else:
            data = np.full((1, *GRID.shape), len(name))
            vx.save(Scan(data, GRID, (channel,)), folder / f"{name}.nii.gz")


def test_patients_their_sequences_and_masks(tmp_path: Path) -> None:
    _write(tmp_path / "patient19", "FLAIR", "T1")
    _write(tmp_path / "patient07", "FLAIR", "T1", "T1POST", "T2", "consensus_gt")
    _write(tmp_path / "lesion_masks", "patient01")
    first, second = cases(tmp_path)
    assert (first.id, second.id) == ("patient07", "patient19")
    assert tuple(first.files) == ("flair", "t1", "t1ce", "t2")
    assert first.segmentation is not None
    assert first.tumour().data.sum() == 1
    assert second.segmentation is None
    assert second.scan().channels == ("flair", "t1")
    assert [path.name for path in lesion_shapes(tmp_path)] == ["patient01.nii.gz"]
    assert [case.id for case in cases(tmp_path / "patient07")] == ["patient07"]
    assert lesion_shapes(tmp_path / "patient07") == []


def test_a_missing_sequence_is_named(tmp_path: Path) -> None:
    _write(tmp_path / "a", "FLAIR", "consensus_gt")
    (case,) = cases(tmp_path)
    assert case.missing == ("t1",)
    with pytest.raises(vx.InputError, match="case a has no sequence t1"):
        case.scan(["flair", "t1"])


def test_folders_without_patients_are_refused(tmp_path: Path) -> None:
    with pytest.raises(vx.InputError, match="there is no folder"):
        cases(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(vx.InputError, match="found no patient"):
        cases(tmp_path)
    _write(tmp_path / "p", "FLAIR")
    vx.save(Scan(np.ones((1, *GRID.shape)), GRID, ("flair",)), tmp_path / "p" / "p_flair.nii.gz")
    with pytest.raises(vx.InputError, match="flair comes twice"):
        cases(tmp_path)


def test_the_real_patients(data_folder: Path) -> None:
    found = cases(data_folder / "ms")
    assert [case.id for case in found] == ["patient07", "patient19"]
    assert len(lesion_shapes(data_folder / "ms")) == 27
