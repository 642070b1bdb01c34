"""Cases with marked parts of tumours, whatever a data set numbers them; windows of them to learn from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from voxplain.datasets.case import Case
from voxplain.datasets.tumour_masks import PARTS, Tumour, cohort, draw, tumour_of
from voxplain.errors import InputError
from voxplain.model import Card

CARD = Card(
    name="c", channels=("flair", "t1", "t1ce", "t2"), classes=("oedema", "non-enhancing", "enhancing"),
    normalisation="z-score", window=(8, 8, 8), fit="head",
)  # fmt: skip
# The expert's parts in our numbers: 1 oedema, 2 necrotic or non-enhancing, 3 enhancing.
OURS = np.zeros((16, 14, 12), dtype=np.int16)
OURS[4:10, 4:10, 4:10], OURS[5:9, 5:9, 5:9], OURS[6:8, 6:8, 6:8] = 1, 3, 2
BRATS = np.array([0, 2, 1, 4])[OURS]


def brats(root: Path, mask: np.ndarray = BRATS, name: str = "P1") -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    random, affine = np.random.default_rng(0), np.diag([1.0, 1, 1, 1])
    for sequence in ("flair", "t1", "t1ce", "t2"):
        data = random.uniform(1, 2, OURS.shape).astype(np.float32)
        data[:2] = 0
        nibabel.save(nibabel.Nifti1Image(data, affine), folder / f"{name}_{sequence}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), affine), folder / f"{name}_seg.nii.gz")
    return root


def decathlon(root: Path) -> Path:
    content = {
        "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
        "training": [{"image": "./imagesTr/B1.nii.gz", "label": "./labelsTr/B1.nii.gz"}],
    }
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True)
    (root / "dataset.json").write_text(json.dumps(content))
    images = np.random.default_rng(0).uniform(1, 2, (*OURS.shape, 4)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(images, np.eye(4)), root / "imagesTr/B1.nii.gz")
    nibabel.save(nibabel.Nifti1Image(OURS.astype(np.uint8), np.eye(4)), root / "labelsTr/B1.nii.gz")
    return root


def test_the_same_parts_come_out_of_both_conventions(tmp_path: Path) -> None:
    for dataset, root in (("brats", brats(tmp_path / "b")), ("msd", decathlon(tmp_path / "m"))):
        (case,) = cohort(dataset, root).cases
        np.testing.assert_array_equal(case.parts(PARTS).data, OURS)
        np.testing.assert_array_equal(
            case.parts(("enhancing", "oedema", "necrotic")).data, np.array([0, 2, 3, 1])[OURS]
        )
        np.testing.assert_array_equal(case.tumour().data, OURS > 0)


def test_a_convention_that_is_not_the_one_named_is_told_by_both_names(tmp_path: Path) -> None:
    (case,) = cohort("brats", brats(tmp_path, OURS)).cases
    with pytest.raises(InputError, match=r"holds 3; expected .* 4 enhancing.*BraTS numbers .*the Decathlon 1 oedema"):
        case.parts(PARTS)
    with pytest.raises(InputError, match="tells necrotic, oedema, enhancing apart; asked for lesion"):
        case.parts(["lesion"])


def test_a_head_is_cut_with_its_parts(tmp_path: Path) -> None:
    (case,) = cohort("brats", brats(tmp_path)).cases
    found = tumour_of(case, CARD)
    assert found.image.shape == (4, *found.parts.shape) == (4, 16, 14, 12)
    # Not smaller than the window, with nothing where the scan has ended.
    larger = tumour_of(case, replace(CARD, window=(8, 8, 32)))
    assert larger.image.shape == (4, 16, 14, 32)
    np.testing.assert_array_equal(larger.image[..., :12], found.image)
    assert not larger.image[..., 12:].any()
    assert not larger.parts[..., 12:].any()
    assert (np.bincount(found.parts.ravel()) == np.bincount(OURS.ravel()))[1:].all()
    where = np.argwhere(found.parts == 3)[0] - np.argwhere(OURS == 3)[0]
    whole = case.scan(CARD.channels).data
    outside = whole[0] == 0
    inside = whole[0][~outside]
    place = tuple(np.argwhere(OURS == 3)[0])
    expected = (whole[(0, *place)] - inside.mean()) / inside.std()
    assert found.image[(0, *(place + where))] == pytest.approx(expected, abs=2e-3)


def test_windows_hold_image_and_parts_of_the_same_place() -> None:
    parts = np.random.default_rng(1).integers(0, 4, (12, 11, 10)).astype(np.int8)
    smooth = np.zeros((12, 11, 10), dtype=np.int8)
    smooth[3:9, 3:9, 3:8] = 2
    random = np.random.default_rng(0)
    straight = 0
    for _ in range(20):
        image, found = draw([Tumour(parts[None].astype(np.float16), parts)], (8, 8, 8), random)
        assert image.shape == (1, 8, 8, 8)
        assert found.shape == (8, 8, 8)
        straight += bool((image[0] == found).all())
        image, found = draw([Tumour(smooth[None].astype(np.float16), smooth)], (8, 8, 8), random)
        assert set(np.unique(found)) <= {0, 2}
        # Turned linearly and by nearest neighbours: they agree but for the rim.
        assert np.abs(image[0] - found).mean() < 0.35
    assert 3 < straight < 17


def test_draws_follow_from_the_source_of_randomness() -> None:
    parts = np.random.default_rng(1).integers(0, 4, (12, 11, 10)).astype(np.int8)
    tumours = [Tumour(parts[None].astype(np.float16), parts)] * 2
    one, two = (
        [draw(tumours, (8, 8, 8), random)[0] for _ in range(6)] for random in map(np.random.default_rng, (5, 5))
    )
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--dataset is one of msd, brats, phantom; got 'ms'"):
        cohort("ms", tmp_path)
    root = brats(tmp_path / "b")
    (root / "P1" / "P1_t2.nii.gz").unlink()
    with pytest.raises(InputError, match=r"1 of 1 cases lack a sequence: P1 \(t2\)"):
        cohort("brats", root)
    (root / "P1" / "P1_seg.nii.gz").unlink()
    with pytest.raises(InputError, match=r"none of the 1 cases .* has an expert mask"):
        cohort("brats", root)


def test_cases_need_no_oedema_to_name_their_labels() -> None:
    case = Case("a", "a", {}, None, None, {"lesion": 1})
    with pytest.raises(InputError, match="tells lesion apart"):
        case.parts(PARTS)
