import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from voxplain.datasets.medical_decathlon import cases
from voxplain.errors import InputError

LISTED = {
    "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
    "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
}
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def task(root: Path, ids: tuple[str, ...] = ("BRATS_002", "BRATS_001"), **other: object) -> Path:
    """The layout of Task01 with images of 4 x 5 x 6 voxels: volume k holds k + 1, and the labels 0 to 3."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    entries = []
    for name in ids:
        image = np.broadcast_to(np.arange(1.0, 5.0), (4, 5, 6, 4)) * np.arange(1.0, 5.0)[:, None, None, None]
        nib.save(nib.Nifti1Image(image.astype(np.float32), AFFINE), root / "imagesTr" / f"{name}.nii.gz")
        labels = np.zeros((4, 5, 6), dtype=np.uint8)
        labels[0, 0, :4] = range(4)
        nib.save(nib.Nifti1Image(labels, AFFINE), root / "labelsTr" / f"{name}.nii.gz")
        entries.append({"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"})
    (root / "dataset.json").write_text(json.dumps({**LISTED, "training": entries, **other}))
    return root


def test_a_task_as_it_is_unpacked(tmp_path: Path) -> None:
    found = cases(task(tmp_path))
    assert [case.id for case in found] == ["BRATS_001", "BRATS_002"]
    first = found[0]
    assert first.patient == "BRATS_001"
    assert first.grade is None
    assert first.label_values == {"oedema": 1, "necrotic": 2, "enhancing": 3}
    scan = first.scan()
    assert scan.channels == ("flair", "t1", "t1ce", "t2")
    assert [channel[0, 0, 0] for channel in scan.data] == [1, 2, 3, 4]
    np.testing.assert_array_equal(scan.grid.affine, AFFINE)
    assert first.scan(["t2", "flair"]).data[:, 0, 0, 0].tolist() == [4, 1]
    assert first.tumour().data.sum() == 3


def test_the_order_of_sequences_is_that_of_the_table(tmp_path: Path) -> None:
    (case, _) = cases(task(tmp_path, modality={"0": "T1w", "1": "FLAIR", "2": "T2w", "3": "t1gd"}))
    assert case.scan().channels == ("flair", "t1", "t1ce", "t2")
    assert case.scan().data[:, 0, 0, 0].tolist() == [2, 1, 4, 3]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"labels": {"0": "background", "1": "liver", "2": "cancer"}}, "labels 0 background, 1 liver, 2 cancer"),
        ({"labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor"}}, "expected the unpacked Task01"),
        ({"modality": {"0": "MRI"}}, "modalities MRI"),
        ({"modality": ["FLAIR"]}, "no table 'modality'"),
        ({"training": []}, "lists no training patient"),
        ({"training": [{"image": "imagesTr/gone.nii.gz", "label": "labelsTr/gone.nii.gz"}]}, "gone.nii.gz, which is"),
    ],
)
def test_another_table_is_refused(tmp_path: Path, other: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        cases(task(tmp_path, **other))


def test_what_is_no_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no .*dataset\.json"):
        cases(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        cases(tmp_path)
    with pytest.raises(InputError, match="lists BRATS_001 twice"):
        cases(task(tmp_path / "twice", ("BRATS_001", "BRATS_001")))


def test_an_image_with_too_few_volumes_says_whose_it_is(tmp_path: Path) -> None:
    (case, _) = cases(task(tmp_path))
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 2), dtype=np.float32), AFFINE), case.files["flair"])
    with pytest.raises(InputError, match=r"case BRATS_001: expected a 4D file with 4 volumes or more"):
        case.scan()
