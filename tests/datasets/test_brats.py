import os
from pathlib import Path

import numpy as np
import pytest

from voxplain.datasets.brats import cases, patient_of
from voxplain.errors import InputError

OLD = ("_flair", "_t1", "_t1ce", "_t2", "_seg")
NEW = ("-t2f", "-t1n", "-t1c", "-t2w", "-seg")
DATA = Path(os.environ.get("VOXPLAIN_DATA", Path(__file__).parents[3] / "shared" / "data"))


def patient(folder: Path, endings: tuple[str, ...] = OLD, suffix: str = ".nii.gz") -> Path:
    """A patient folder of empty files: listing must not open them."""
    folder.mkdir(parents=True)
    for ending in endings:
        (folder / f"{folder.name}{ending}{suffix}").touch()
    return folder


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Brats17_2013_0_1", "Brats17_2013_0"),
        ("Brats18_2013_11_1", "Brats18_2013_11"),
        ("Brats18_2013_11", "Brats18_2013_11"),
        ("Brats18_CBICA_ALU_1", "Brats18_CBICA_ALU"),
        ("Brats18_TCIA01_378_1", "Brats18_TCIA01_378"),
        ("BraTS19_TMC_06290_1", "BraTS19_TMC_06290"),
        ("BraTS20_Training_001", "BraTS20_Training_001"),
        ("BraTS20_Validation_001", "BraTS20_Validation_001"),
        ("BraTS2021_00000", "BraTS2021_00000"),
        ("BraTS-GLI-00000-000", "BraTS-GLI-00000"),
        ("BraTS-GLI-00000-001", "BraTS-GLI-00000"),
        ("my_patient_1", "my_patient_1"),
    ],
)
def test_patient_of(name: str, expected: str) -> None:
    assert patient_of(name) == expected


def test_layout_of_2018_and_2019(tmp_path: Path) -> None:
    patient(tmp_path / "LGG" / "Brats18_TCIA10_628_1")
    patient(tmp_path / "HGG" / "Brats18_TCIA01_378_1")
    patient(tmp_path / "HGG" / "Brats18_2013_11_1")
    found = cases(tmp_path)
    assert [case.id for case in found] == ["Brats18_2013_11_1", "Brats18_TCIA01_378_1", "Brats18_TCIA10_628_1"]
    assert [case.grade for case in found] == ["HGG", "HGG", "LGG"]
    first = found[0]
    folder = tmp_path / "HGG" / "Brats18_2013_11_1"
    assert first.patient == "Brats18_2013_11"
    assert list(first.files) == ["flair", "t1", "t1ce", "t2"]
    assert first.files["t1ce"] == folder / "Brats18_2013_11_1_t1ce.nii.gz"
    assert first.segmentation == folder / "Brats18_2013_11_1_seg.nii.gz"
    assert first.label_values == {"necrotic": 1, "oedema": 2, "enhancing": 4}
    assert first.missing == ()
    # The HGG folder alone, with the table above it, gives the same cases.
    (tmp_path / "name_mapping.csv").write_text("Grade,BraTS_2018_subject_ID\nHGG,Brats18_2013_11_1\n")
    assert cases(tmp_path / "HGG") == found[:2]


def test_grades_from_the_table_of_2018(tmp_path: Path) -> None:
    patient(tmp_path / "Brats18_CBICA_ALU_1")
    patient(tmp_path / "Brats18_TCIA10_628_1")
    patient(tmp_path / "Brats18_CBICA_XXX_1")
    (tmp_path / "name_mapping.csv").write_text(
        "Grade,BraTS_2018_subject_ID\nHGG,Brats18_CBICA_ALU_1\nLGG,Brats18_TCIA10_628_1\n"
    )
    assert [case.grade for case in cases(tmp_path)] == ["HGG", None, "LGG"]


def test_layout_of_2020_with_its_odd_mask(tmp_path: Path) -> None:
    patient(tmp_path / "BraTS20_Training_001", suffix=".nii")
    odd = patient(tmp_path / "BraTS20_Training_355", OLD[:4], suffix=".nii")
    (odd / "W39_1998.09.19_Segm.nii").touch()
    (tmp_path / "survival_info.csv").write_text("Brats20ID,Age\nBraTS20_Training_001,60\n")
    (tmp_path / "name_mapping.csv").write_text(
        "\ufeffGrade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID,"
        "BraTS_2020_subject_ID\n"
        "HGG,Brats17_CBICA_AAB_1,Brats18_CBICA_AAB_1,NA,BraTS19_CBICA_AAB_1,BraTS20_Training_001\n"
        "LGG,NA,NA,NA,NA,BraTS20_Training_355\n",
        encoding="utf-8",
    )
    first, second = cases(tmp_path)
    assert (first.grade, second.grade) == ("HGG", "LGG")
    assert first.patient == "BraTS20_Training_001"
    assert first.files["flair"].name == "BraTS20_Training_001_flair.nii"
    assert second.segmentation == odd / "W39_1998.09.19_Segm.nii"


def test_layout_of_2021_without_masks(tmp_path: Path) -> None:
    patient(tmp_path / "BraTS2021_00002", OLD[:4])
    patient(tmp_path / "BraTS2021_00000", OLD[:4])
    (tmp_path / "notes").mkdir()
    found = cases(tmp_path)
    assert [case.id for case in found] == ["BraTS2021_00000", "BraTS2021_00002"]
    assert {case.segmentation for case in found} == {None}
    assert {case.grade for case in found} == {None}


def test_layout_of_2023(tmp_path: Path) -> None:
    for name in ("BraTS-GLI-00005-001", "BraTS-GLI-00005-000"):
        patient(tmp_path / name, NEW)
    first, second = cases(tmp_path)
    assert (first.id, second.id) == ("BraTS-GLI-00005-000", "BraTS-GLI-00005-001")
    assert first.patient == second.patient == "BraTS-GLI-00005"
    assert {name: path.name[-10:-7] for name, path in first.files.items()} == {
        "flair": "t2f",
        "t1": "t1n",
        "t1ce": "t1c",
        "t2": "t2w",
    }
    assert first.label_values["enhancing"] == 3
    assert first.segmentation is not None


def test_a_root_that_is_itself_a_patient(tmp_path: Path) -> None:
    folder = patient(tmp_path / "LGG" / "Brats18_TCIA10_628_1")
    (only,) = cases(str(folder))
    assert (only.id, only.grade) == ("Brats18_TCIA10_628_1", "LGG")
    assert [only] == cases(tmp_path)


def test_a_patient_who_lacks_sequences_is_listed(tmp_path: Path) -> None:
    patient(tmp_path / "BraTS2021_00000", ("_flair", "_t1", "_t2", "_seg"))
    patient(tmp_path / "BraTS2021_00001", ())
    some, none = cases(tmp_path)
    assert some.missing == ("t1ce",)
    assert none.missing == ("flair", "t1", "t1ce", "t2")
    with pytest.raises(InputError, match="case BraTS2021_00000 has no sequence t1ce"):
        some.scan()
    with pytest.raises(InputError, match="case BraTS2021_00001 has no sequence flair or t1 or t1ce or t2"):
        none.scan()


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*NAME_flair"):
        cases(tmp_path / "absent")
    with pytest.raises(InputError, match=r"no BraTS patient in .*it is empty; expected one folder per patient"):
        cases(tmp_path)
    patient(tmp_path / "unzipped" / "Training" / "BraTS2021_00000")
    with pytest.raises(InputError, match="it holds Training/; expected one folder per patient"):
        cases(tmp_path / "unzipped")


def test_one_id_in_two_places_is_refused(tmp_path: Path) -> None:
    patient(tmp_path / "HGG" / "Brats18_2013_11_1")
    patient(tmp_path / "LGG" / "Brats18_2013_11_1")
    with pytest.raises(InputError, match=r"patient Brats18_2013_11_1 lies in .* twice"):
        cases(tmp_path)


def test_two_grades_for_one_patient_are_refused(tmp_path: Path) -> None:
    patient(tmp_path / "HGG" / "Brats18_2013_11_1")
    table = tmp_path / "name_mapping.csv"
    table.write_text("Grade,BraTS_2018_subject_ID\nLGG,Brats18_2013_11_1\n")
    with pytest.raises(InputError, match="lies in HGG/, but its name mapping says LGG"):
        cases(tmp_path)
    table.write_text("Grade,BraTS_2018_subject_ID\nLGG,Brats18_2013_11_1\nHGG,Brats18_2013_11_1\n")
    with pytest.raises(InputError, match="the grade HGG and also LGG"):
        cases(tmp_path)


def test_a_doubled_sequence_is_refused(tmp_path: Path) -> None:
    folder = patient(tmp_path / "BraTS2021_00000")
    (folder / "BraTS2021_00000_flair.nii").touch()
    with pytest.raises(InputError, match="flair"):
        cases(tmp_path)


@pytest.mark.skipif(not (DATA / "glioma_2mm").is_dir(), reason=f"no real scans in {DATA} (set VOXPLAIN_DATA)")
def test_real_patients() -> None:
    found = cases(DATA / "glioma_2mm")
    assert len(found) == len({case.patient for case in found})
    assert {case.grade for case in found} == {"HGG", "LGG"}
    assert not any(case.missing for case in found)
    case = found[0]
    scan, labels, tumour = case.scan(), case.labels(), case.tumour()
    assert scan.channels == ("flair", "t1", "t1ce", "t2")
    assert set(np.unique(labels.data)) <= {0, *case.label_values.values()}
    assert np.array_equal(tumour.data == 1, labels.data > 0)
    assert tumour.grid.matches(scan.grid)
    assert 1 < tumour.volume < 400
