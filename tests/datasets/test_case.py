from pathlib import Path

import numpy as np
import pytest

from voxplain.datasets.case import Case
from voxplain.errors import InputError
from voxplain.grid import Grid
from voxplain.io.nifti import save
from voxplain.scan import Labels, Scan

GRID = Grid((4, 5, 3), np.diag([-2.0, -2, 2, 1]))
VALUES = {"necrotic": 1, "oedema": 2, "enhancing": 4}


def labels(values: list[int], grid: Grid = GRID) -> Labels:
    data = np.zeros(grid.shape, dtype=int)
    data.flat[: len(values)] = values
    return Labels(data, grid)


def case(folder: Path, segmentation: Labels | None, label_values: dict[str, int] = VALUES) -> Case:
    files = {}
    for number, name in enumerate(("flair", "t1", "t1ce", "t2"), start=1):
        data = np.arange(60, dtype=np.float32).reshape(1, *GRID.shape) + number
        files[name] = folder / f"P_{name}.nii.gz"
        save(Scan(data, GRID, (name,)), files[name])
    if segmentation is not None:
        save(segmentation, folder / "P_seg.nii.gz")
    path = None if segmentation is None else folder / "P_seg.nii.gz"
    return Case("P", "P", files, path, "HGG", label_values)


def test_making_a_case_reads_nothing(tmp_path: Path) -> None:
    made = Case("P", "P", {"flair": tmp_path / "absent.nii"}, tmp_path / "absent_seg.nii", None, VALUES)
    assert made == Case("P", "P", {"flair": tmp_path / "absent.nii"}, tmp_path / "absent_seg.nii", None, VALUES)
    assert len({made, made}) == 1
    with pytest.raises(InputError, match=r"absent\.nii"):
        made.scan()


def test_scan_labels_and_tumour(tmp_path: Path) -> None:
    made = case(tmp_path, labels([1, 2, 4, 0, 4]))
    scan = made.scan()
    assert scan.channels == ("flair", "t1", "t1ce", "t2")
    assert scan.data[:, 0, 0, 0].tolist() == [1, 2, 3, 4]
    assert made.labels().data.flat[:6].tolist() == [1, 2, 4, 0, 4, 0]
    assert made.tumour().data.flat[:6].tolist() == [1, 1, 1, 0, 1, 0]
    assert made.tumour().grid.matches(scan.grid)


def test_single_sequences_come_in_the_order_asked_for(tmp_path: Path) -> None:
    assert case(tmp_path, None).scan(["t2", "flair"]).data[:, 0, 0, 0].tolist() == [4, 1]


def test_a_healthy_mask_is_a_mask(tmp_path: Path) -> None:
    assert case(tmp_path, labels([])).tumour().volume == 0


def test_a_missing_sequence_is_named_when_it_is_read(tmp_path: Path) -> None:
    full = case(tmp_path, labels([1]))
    files = {name: path for name, path in full.files.items() if name != "t1ce"}
    made = Case("P", "P", files, full.segmentation, None, VALUES, missing=("t1ce",))
    with pytest.raises(InputError, match="case P has no sequence t1ce; it has flair, t1, t2"):
        made.scan()
    assert made.scan(["flair"]).channels == ("flair",)
    assert made.tumour().count == 1
    with pytest.raises(InputError, match="no sequence pet"):
        made.scan(["pet"])


def test_a_case_without_any_sequence(tmp_path: Path) -> None:
    save(labels([1]), tmp_path / "P_seg.nii.gz")
    made = Case("P", "P", {}, tmp_path / "P_seg.nii.gz", None, VALUES, missing=("flair", "t1"))
    for read in (made.scan, made.tumour):
        with pytest.raises(InputError, match="no sequence flair or t1; it has none"):
            read()


def test_no_expert_mask(tmp_path: Path) -> None:
    for read in (case(tmp_path, None).labels, case(tmp_path, None).tumour):
        with pytest.raises(InputError, match="case P has no expert mask"):
            read()


@pytest.mark.parametrize(("enhancing", "value", "accepted"), [(4, 4, True), (4, 3, False), (3, 3, True), (3, 4, False)])
def test_only_known_values_are_tumour(tmp_path: Path, enhancing: int, value: int, accepted: bool) -> None:
    made = case(tmp_path, labels([1, value]), {**VALUES, "enhancing": enhancing})
    assert made.labels().data.max() == value
    if accepted:
        assert made.tumour().count == 1
    else:
        with pytest.raises(InputError, match=f"holds {value}; expected .* {enhancing} enhancing"):
            made.tumour()


def test_a_mask_on_another_grid_is_refused(tmp_path: Path) -> None:
    shifted = GRID.window((0, 0, 1), GRID.shape)
    with pytest.raises(InputError, match=r"expert mask of case P .* grid of its flair: .*apart in the world"):
        case(tmp_path, labels([1], shifted)).tumour()
