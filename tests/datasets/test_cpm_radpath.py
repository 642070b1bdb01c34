from pathlib import Path

import pytest

from voxplain.datasets.cpm_radpath import cases
from voxplain.errors import InputError

HEADER = "CPM_RadPath_2019_ID,class,age_in_days"


def challenge(root: Path, lines: tuple[str, ...], folders: tuple[str, ...]) -> Path:
    """The layout of the challenge with empty files: listing must not open them."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "training_data_classification_labels.csv").write_text("\n".join((HEADER, *lines)) + "\n")
    for name in folders:
        (root / "Radiology" / name).mkdir(parents=True)
        for sequence in ("flair", "t1", "t1ce", "t2"):
            (root / "Radiology" / name / f"{name}_{sequence}.nii.gz").touch()
    return root


def test_the_layout_of_the_challenge(tmp_path: Path) -> None:
    root = challenge(tmp_path, ("P2,A,20000", "P1,G,10000", "P3,O,15000"), ("P1", "P2", "P3"))
    (root / "Radiology" / "P2" / "P2_t1ce.nii.gz").unlink()
    found = cases(root)
    assert [(case.id, case.grade) for case in found] == [("P1", "G"), ("P2", "A"), ("P3", "O")]
    assert list(found[0].files) == ["flair", "t1", "t1ce", "t2"]
    assert found[0].segmentation is None
    assert found[1].missing == ("t1ce",)


def test_what_has_no_partner_is_left_out(tmp_path: Path) -> None:
    root = challenge(tmp_path, ("P1,G,1", "P9,A,1"), ("P1", "P2"))
    assert [case.id for case in cases(root)] == ["P1"]


def test_ids_that_match_no_folder_are_listed_five_of_each(tmp_path: Path) -> None:
    root = challenge(tmp_path, tuple(f"A{k},G,1" for k in range(7)), tuple(f"B{k}" for k in range(5)))
    with pytest.raises(InputError, match=r"table has A0, A1, A2, A3, A4, \.\.\.; there are B0, B1, B2, B3, B4;"):
        cases(root)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("P1,X,1",), "gives P1 the class 'X'; expected G, A or O"),
        (("P1,,1",), "gives P1 the class 'nothing'"),
        (("P1,G,1", "P1,A,1"), "gives P1 the class A and also G"),
        ((), "no table of classes"),
    ],
)
def test_a_broken_table_is_refused(tmp_path: Path, lines: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        cases(challenge(tmp_path, lines, ("P1",)))


def test_no_table_two_tables_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        cases(tmp_path / "gone")
    with pytest.raises(InputError, match="no table of classes"):
        cases(tmp_path)
    root = challenge(tmp_path / "two", ("P1,G,1",), ("P1",))
    (root / "again.csv").write_text(f"{HEADER}\nP1,G,1\n")
    with pytest.raises(InputError, match=r"two tables with a column class"):
        cases(root)
