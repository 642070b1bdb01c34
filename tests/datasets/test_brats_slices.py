from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

import voxplain as vx
from voxplain.datasets import brats, brats_slices
from voxplain.datasets.brats_slices import axial, slices, splits
from voxplain.datasets.case import Case
from voxplain.datasets.slices import Slice
from voxplain.errors import InputError
from voxplain.io.nifti import save
from voxplain.scan import Labels

# The tumour lies in these slices of a made head in LPS, the lowest one with a single voxel.
LOWEST, LOW, HIGH = 17, 18, 22


def tumour() -> np.ndarray:
    mask = np.zeros((40, 48, 40), dtype=np.uint8)
    mask[12:16, 30:36, LOW:HIGH] = 4
    mask[12:14, 30:33, LOW:HIGH] = 1
    mask[15, 30, LOWEST] = 2
    return mask


@pytest.fixture
def patient(tmp_path, make_head, write_patient):
    """Write a made head as a BraTS patient, stored in any orientation, and list it as a case."""

    def write(name: str = "Brats18_2013_2_1", orientation: str = "LPS", grade: str = "HGG", seed: int = 0) -> Case:
        head = make_head(seed=seed)
        folder = tmp_path / grade / name
        folder.mkdir(parents=True)
        write_patient(head.scan(orientation), folder)
        image = nib.Nifti1Image(tumour(), head.affine)
        turn = ornt_transform(io_orientation(head.affine), axcodes2ornt(tuple(orientation)))
        nib.save(image.as_reoriented(turn), folder / f"{name}_seg.nii.gz")
        (found,) = brats.cases(folder)
        return found

    return write


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "SLP", "AIR"])
def test_slices_lie_alike_however_the_scan_is_stored(patient, make_head, orientation):
    found = slices([patient(orientation=orientation)])
    head = make_head()
    expected = np.zeros_like(head.volumes)
    for channel, volume in enumerate(head.volumes):
        inside = volume[volume != 0].astype(np.float64)
        expected[channel] = np.where(volume != 0, (volume - inside.mean()) / inside.std(), 0)
    heights = [height for height in range(40) if (head.volumes[0, :, :, height] != 0).mean() >= 0.01]
    assert [item.id for item in found] == [f"Brats18_2013_2_1_z{height:03d}" for height in heights]
    assert {item.group for item in found} == {"Brats18_2013_2"}
    for item, height in zip(found, heights, strict=True):
        image, mask = item.load(), item.mask()
        # Rows run from front to back (P), columns from the patient's right to left (L).
        np.testing.assert_allclose(image, expected[:, :, :, height].transpose(0, 2, 1), atol=1e-5)
        np.testing.assert_array_equal(mask, tumour()[:, :, height].T > 0)
        assert image.dtype == np.float32
        assert mask.dtype == bool
        assert item.label == ("tumour" if LOWEST <= height < HIGH else "tumour-free")
        assert item.spacing == pytest.approx((4, 4))


def test_spacing_is_that_of_rows_and_columns(tmp_path, make_head, write_patient):
    head = make_head()
    step = np.diag([1.0, 0.75, 1, 1])
    scan = vx.Scan(head.volumes, vx.Grid(head.volumes.shape[1:], head.affine @ step), head.channels)
    folder = tmp_path / "Brats18_2013_2_1"
    folder.mkdir()
    write_patient(scan, folder)
    save(Labels(tumour(), scan.grid), folder / "Brats18_2013_2_1_seg.nii.gz")
    found = slices(brats.cases(folder), smallest=5 * 12)
    assert found[0].spacing == pytest.approx((3, 4))
    assert found[0].load().shape == (4, 48, 40)


def test_small_tumours_are_left_out_where_a_size_is_asked_for(patient):
    case = patient()
    everything = {item.id: item.label for item in slices([case])}
    larger = {item.id: item.label for item in slices([case], smallest=24 * 16)}
    assert set(everything) - set(larger) == {f"Brats18_2013_2_1_z{LOWEST:03d}"}
    assert all(everything[name] == label for name, label in larger.items())
    none = slices([case], smallest=24 * 16 + 1)
    assert {item.label for item in none} == {"tumour-free"}
    assert len(none) == len(everything) - (HIGH - LOWEST)


def test_every_second_slice_and_grades(patient):
    high, low = patient(), patient("Brats18_TCIA10_628_1", grade="LGG", seed=1)
    found = slices([high, low], classes="grade", every=2)
    assert {int(item.id[-3:]) % 2 for item in found} == {0}
    assert {item.label for item in found if item.group == "Brats18_2013_2"} == {"tumour-free", "HGG"}
    assert {item.label for item in found if item.group == "Brats18_TCIA10_628"} == {"tumour-free", "LGG"}
    assert brats_slices.CLASSES["grade"] == ("tumour-free", "LGG", "HGG")


def test_a_case_is_read_once_while_its_slices_come_in_order(patient, monkeypatch):
    cases = [patient(), patient("Brats18_2013_3_1", seed=1), patient("Brats18_2013_4_1", seed=2)]
    found = slices(cases)
    brats_slices._stack.cache_clear()
    read = []
    scan = Case.scan
    monkeypatch.setattr(
        Case, "scan", lambda case, *names: (read.append((case.id, len(names[0]))), scan(case, *names))[1]
    )
    for item in found:
        item.load()
        item.mask()
    assert [name for name, count in read if count == 4] == [case.id for case in cases]


def test_what_is_loaded_may_be_changed(patient):
    item = slices([patient()])[10]
    item.load()[:] = 7
    item.mask()[:] = True
    assert item.load().max() != 7
    assert not item.mask().all()


def test_a_mask_on_the_scans_grid_is_cut_as_the_slices_are(patient):
    case = patient(orientation="AIR")
    cut = axial(case.tumour())
    for item in slices([case]):
        np.testing.assert_array_equal(cut[int(item.id[-3:])], item.mask())


def test_what_is_refused(patient, tmp_path):
    case = patient()
    with pytest.raises(InputError, match="tumour or grade; got 'size'"):
        slices([case], classes="size")
    for options in ({"every": 0}, {"smallest": -1.0}, {"smallest": np.nan}):
        with pytest.raises(InputError, match="every is at least 1 and smallest at least 0"):
            slices([case], **options)
    with pytest.raises(InputError, match="no cases to slice"):
        slices([])
    with pytest.raises(InputError, match=r"slice Brats18_2013_2_1_z.* comes twice"):
        slices([case, case])
    files = {name: path for name, path in case.files.items() if name != "t2"}
    unknown = Case("Q", "Q", case.files, case.segmentation, None, case.label_values)
    with pytest.raises(InputError, match="case Q has grade None; expected HGG or LGG"):
        slices([unknown], classes="grade")
    with pytest.raises(InputError, match="case Q has no sequence t2"):
        slices([Case("Q", "Q", files, case.segmentation, None, case.label_values, ("t2",))])
    with pytest.raises(InputError, match="case Q has no expert mask"):
        slices([Case("Q", "Q", case.files, None, None, case.label_values)])
    with pytest.raises(InputError, match="no slices to split"):
        splits([], 0)


def made(group: str, labels: list[str]) -> list[Slice]:
    empty = np.zeros((2, 2), dtype=bool)
    return [Slice(f"{group}{n}", group, label, lambda: empty[None], lambda: empty) for n, label in enumerate(labels)]


def test_patients_are_spread_by_grade():
    grades = {f"p{number:02d}": "LGG" if number < 6 else "HGG" for number in range(30)}
    found = [item for group, grade in grades.items() for item in made(group, ["tumour-free", grade])]
    for index in range(3):
        for scheme in ("partition", "subsampling"):
            training, validation, test = splits(found, index, seed=4, scheme=scheme)
            held = [sum(item.label == "LGG" for item in part) for part in (training, validation, test)]
            assert held[0] >= 3
            assert held[1] <= 2
            assert held[2] == 2 if scheme == "partition" else 1 <= held[2] <= 2
            assert not {item.group for item in training} & {item.group for item in [*validation, *test]}


def test_patients_are_spread_by_their_number_of_tumour_slices():
    sizes = {f"p{number:02d}": number for number in range(30)}
    found = [item for group, size in sizes.items() for item in made(group, ["tumour"] * size + ["tumour-free"] * 3)]
    for index in range(3):
        _, validation, test = splits(found, index)
        thirds = [sum(sizes[group] // 10 == third for group in {item.group for item in test}) for third in range(3)]
        assert sorted(thirds) in ([3, 3, 4], [2, 4, 4], [3, 3, 4])
        assert len({sizes[item.group] // 10 for item in validation}) == 3


def test_real_slices(data_folder: Path) -> None:
    cases = brats.cases(data_folder / "glioma_2mm")[:6]
    found = slices(cases, every=7)
    assert {item.label for item in found} == {"tumour", "tumour-free"}
    for item in found[::5]:
        assert item.load().shape == (4, 120, 120)
        assert item.mask().any() == (item.label == "tumour")
        assert item.spacing == pytest.approx((2, 2))
    parts = [splits(found, index) for index in range(3)]
    assert sorted(item.id for _, _, test in parts for item in test) == sorted(item.id for item in found)
