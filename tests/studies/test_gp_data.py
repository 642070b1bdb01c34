"""Slices for paper gp: labelled by mask and grade, read as a card declares, and no patient on two sides of a split."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest

import voxplain as vx
from voxplain.datasets.phantom import glioma, write_case
from voxplain.scan import Labels
from voxplain.studies.gp_data import Stack, check_card, check_classes, folds, read_slices, stacks
from voxplain.studies.gp_presets import CARDS, preset

CPU = vx.Compute(device="cpu", threads=1)


def unread(
    number: int, group: str, grade: str | None = None, fold: int | None = None, label: str | None = None
) -> Stack:
    def nothing() -> vx.Scan:
        raise AssertionError("splits read no image")

    return Stack(f"S{number}", group, nothing, nothing, label, grade, fold)  # type: ignore[arg-type]


def many_patients() -> list[Stack]:
    """Forty patients, every third of whom has two scans."""
    found = []
    for patient in range(40):
        for scan in range(1 + (patient % 3 == 0)):
            found.append(unread(100 * scan + patient, f"P{patient}", "LGG" if patient % 4 == 0 else "HGG"))
    return found


def many_slices() -> list[Stack]:
    kinds = CARDS["cheng"].classes
    return [unread(n, f"P{n % 30}", fold=1 + (n % 30) % 5, label=kinds[n % 30 % 3]) for n in range(120)]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("dataset", "every"), [("brats-grade-slices", many_patients()), ("cheng", many_slices())])
def test_no_patient_is_on_two_sides(dataset: str, every: list[Stack], seed: int) -> None:
    found = folds(dataset, every, seed)
    tested = []
    for parts in found:
        groups = [{one.group for one in part} for part in parts]
        assert all(groups)
        assert sum(map(len, groups)) == len(set().union(*groups))
        assert sum(len(part) for part in parts) == len(every)
        if dataset == "cheng":
            authors = [{one.fold for one in part} for part in parts]
            assert [len(one) for one in authors] == [3, 1, 1]
            assert sum(map(len, authors)) == len(set().union(*authors))
        else:
            assert all({one.grade for one in part} == {"LGG", "HGG"} for part in parts)
        tested += [one.id for one in parts[2]]
    # Every scan is tested once.
    assert sorted(tested) == sorted(one.id for one in every)


def test_folds_follow_the_seed_and_few_patients_have_fewer_folds() -> None:
    ids = [[one.id for one in folds("brats-slices", many_patients(), seed)[0][2]] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    four = [unread(number, f"P{number}", label="glioma") for number in range(4)]
    assert len(folds("cheng", four, 0)) == 4
    with pytest.raises(vx.InputError, match="at least three"):
        folds("cheng", four[:2], 0)
    with pytest.raises(vx.InputError, match="at least three patients; got 2"):
        folds("brats-slices", four[:2], 0)
    with pytest.raises(vx.InputError, match="has no fold, and others have one"):
        folds("cheng", [*four, unread(9, "P9", label="glioma", fold=3)], 0)


def test_a_slice_is_labelled_by_its_mask_and_the_grade() -> None:
    something, nothing = np.ones((2, 2), dtype=bool), np.zeros((2, 2), dtype=bool)
    patient = unread(0, "P", grade="LGG")
    assert patient.label_of(something, CARDS["brats-grade-slices"].classes) == "LGG"
    assert patient.label_of(something, CARDS["brats-slices"].classes) == "tumour"
    assert patient.label_of(nothing, CARDS["brats-slices"].classes) == "tumour-free"
    assert unread(0, "P", label="glioma").label_of(nothing, CARDS["cheng"].classes) == "glioma"


def test_slices_of_a_patient(made_patients: Path) -> None:
    one = stacks("brats-grade-slices", made_patients)[0]
    card = CARDS["brats-grade-slices"]
    found = read_slices([one], card, CPU)
    truth = one.mask().data > 0
    heights = [int(each.name.removeprefix("axial ")) for each in found]
    assert heights == sorted(set(heights))
    for each, height in zip(found, heights, strict=True):
        assert each.image.shape == (4, 80, 96)
        assert each.image.dtype == np.float16
        assert card.classes[each.label] == (one.grade if truth[..., height].any() else "tumour-free")
    assert {each.label for each in found} == {0, card.classes.index(str(one.grade))}
    assert found[0].example.load().dtype == np.float32
    with pytest.raises(vx.InputError, match=r"the test part has no slice of class (LGG|HGG) \(it has"):
        check_classes(found, card, "test")


def test_an_image_of_cheng(made_cheng: Path) -> None:
    every = stacks("cheng", made_cheng)
    assert [one.label for one in every[:3]] == ["meningioma", "glioma", "pituitary"]
    assert [one.fold for one in every] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    (found,) = read_slices(every[:1], CARDS["cheng"], CPU)
    assert found.image.shape == (1, 128, 128)
    # Normalised by tissue: the air around it is one value below, and the blob far above what is around it.
    assert len(np.unique(found.image[:, [0, -1]])) == 1
    assert float(found.image[0, 0, 0]) == float(found.image.min()) < -1
    assert float(found.image.max()) > 2
    assert every[0].mask().grid.matches(every[0].scan().grid)


def test_small_images_of_cheng_show_the_same_field_of_view(tmp_path: Path) -> None:
    """The authors' files hold a few images of 256 x 256 pixels beside those of 512 x 512."""
    down, right = np.indices((512, 512))
    whole = np.exp(-((down - 200) ** 2 + (right - 300) ** 2) / 5000) * 1000
    found = []
    for number, image in enumerate((whole, whole[::2, ::2]), start=1):
        path = tmp_path / f"{number}.mat"
        with h5py.File(path, "w", userblock_size=512) as file:
            file["cjdata/image"] = image.T.astype(np.int16)
            file["cjdata/tumorMask"] = (image.T > 500).astype(np.uint8)
            file["cjdata/label"] = np.array([[2.0]])
            file["cjdata/PID"] = np.array([[65 + number]], dtype=np.uint16)
    every = stacks("cheng", tmp_path)
    large, small = read_slices(every, CARDS["cheng"], CPU)
    found = [one.image.astype(float) for one in (large, small)]
    assert found[0].shape == found[1].shape == (1, 128, 128)
    assert np.corrcoef(found[0].ravel(), found[1].ravel())[0, 1] > 0.995
    areas = [one.mask().volume / one.scan().grid.spacing[2] for one in every]
    assert areas[0] == pytest.approx(areas[1], rel=0.02)


def test_patients_without_mask_or_grade_are_left_out_and_named(tmp_path: Path) -> None:
    made = glioma(0)
    for name in ("Brats18_A_1_1", "Brats18_B_1_1"):
        write_case(made.scan.select(["flair"]), made.labels, tmp_path / "HGG" / name)
    write_case(made.scan.select(["flair"]), made.labels, tmp_path / "Brats18_C_1_1")
    (tmp_path / "HGG" / "Brats18_B_1_1" / "Brats18_B_1_1_seg.nii.gz").unlink()
    with pytest.warns(UserWarning, match=r"1 of 3 patients lack an expert mask and are left out: Brats18_B_1_1"):
        assert len(stacks("brats-slices", tmp_path)) == 2
    with pytest.warns(UserWarning, match=r"2 of 3 patients lack an expert mask or a grade and are left out"):
        assert [one.id for one in stacks("brats-grade-slices", tmp_path)] == ["Brats18_A_1_1"]
    with pytest.raises(vx.InputError, match=r"no patient in .* has an expert mask and a grade, .*name_mapping"):
        stacks("brats-grade-slices", tmp_path / "Brats18_C_1_1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stacks("brats-slices", tmp_path / "Brats18_C_1_1")


def test_what_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(vx.InputError, match="dataset is one of cheng, brats-slices, brats-grade-slices; got 'mnist'"):
        stacks("mnist", tmp_path)
    for dataset in CARDS:
        with pytest.raises(vx.InputError, match="found no"):
            stacks(dataset, tmp_path)


def test_a_scan_that_cannot_be_read_is_named() -> None:
    grid = vx.Grid((8, 8, 1), np.diag([1.0, 1, 1, 1]))
    scan, mask = vx.Scan(np.ones((1, 8, 8, 1)), grid, ("t2",)), Labels(np.zeros((8, 8, 1)), grid)
    strange = Stack("0007", "g", lambda: scan, lambda: mask, "glioma")
    with pytest.raises(vx.InputError, match="0007: the model reads t1ce; the scan has t2"):
        read_slices([strange], CARDS["cheng"], CPU)


def test_networks_of_other_slices_are_refused(half_card) -> None:
    for dataset in CARDS:
        for size in ("small", "quick", "paper"):
            check_card(preset("gp-unet", dataset, size).card, dataset)
    check_card(CARDS["brats-slices"], "brats-grade-slices")
    coronal = dataclasses.replace(CARDS["brats-slices"], slices="coronal", orientation=None)
    for card, dataset, words in (
        (half_card(), "brats-slices", "brats-slices is judged slice by slice, and .* reads volumes; give a 2D network"),
        (CARDS["cheng"], "brats-slices", "slices that are no part of a volume; .* card says slices: axial"),
        (coronal, "brats-slices", "reads slices that are coronal"),
        (CARDS["brats-grade-slices"], "brats-slices", "are tumour-free, tumour; .* tells apart tumour-free, LGG, HGG"),
        (CARDS["brats-slices"], "cheng", "the slices of cheng are meningioma, glioma, pituitary"),
    ):
        with pytest.raises(vx.InputError, match=words):
            check_card(card, dataset)
