import contextlib
import csv
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from voxplain.datasets.cheng import slices, splits
from voxplain.errors import InputError

# Seen from any side it is another picture, so that a turn or a mirror shows.
PICTURE = np.arange(6 * 4).reshape(6, 4).astype(np.int16) * 100
MASK = PICTURE > 1500
NAMES = {1: "meningioma", 2: "glioma", 3: "pituitary"}


def mat(path: Path, label: float = 2, patient: str = "100360", leave: str = "", **fields: np.ndarray) -> Path:
    """A slice as MATLAB writes it: version 7.3, a block of 512 bytes ahead, arrays column by column."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "image": PICTURE.T,
        "tumorMask": MASK.T.astype(np.uint8),
        "label": np.array([[float(label)]]),
        "PID": np.array([[ord(letter)] for letter in patient], dtype=np.uint16),
        "tumorBorder": np.zeros((1, 8)),
    } | fields
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in content.items():
            if name != leave:
                file.create_dataset(f"cjdata/{name}", data=values, compression="gzip" if values.size > 9 else None)
    return path


def authors(root: Path, folds: list[int] | None, patients: str = "abcdef", version: str = "7.3") -> Path:
    """One slice per patient in two folders, with the folds of cvind.mat or without."""
    for number, patient in enumerate(patients, start=1):
        mat(root / f"brainTumorDataPublic_{number % 2}" / f"{number}.mat", 1 + number % 3, patient)
    if folds is not None and version == "7.3":
        with h5py.File(root / "cvind.mat", "w", userblock_size=512) as file:
            file["cvind"] = np.array([folds], dtype=float)
    elif folds is not None:
        savemat(root / "cvind.mat", {"cvind": np.array(folds, dtype=float)[:, None]})
    return root


def repacked(root: Path, rows: list[tuple[object, ...]], columns: str = "id,label,class_name,fold") -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    for row in rows:
        picture = random.integers(0, 256, (512, 512), dtype=np.uint8)
        Image.fromarray(picture).save(root / "images" / f"{int(str(row[0])):04d}.jpg", quality=95)
        mask = np.zeros((512, 512), dtype=bool)
        mask[100:150, 300 : 320 + int(str(row[0]))] = True
        Image.fromarray(mask).save(root / "masks" / f"{int(str(row[0])):04d}.png")
    with open(root / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([columns.split(","), *rows])
    return root


ROWS: list[tuple[object, ...]] = [(2, 3, "pituitary", 4), (1, 1, "meningioma", 1), (10, 2, "glioma", 2)]


def test_a_slice_of_the_authors(tmp_path: Path) -> None:
    mat(tmp_path / "12.mat", 3, "MR040240B")
    mat(tmp_path / "2.mat", 1, "100360")
    first, second = slices(tmp_path)
    assert (first.id, first.group, first.label, first.fold) == ("0002", "100360", "meningioma", None)
    assert (second.id, second.group, second.label, second.fold) == ("0012", "MR040240B", "pituitary", None)
    image, mask = first.load(), first.mask()
    assert image.dtype == np.float32
    assert mask.dtype == bool
    np.testing.assert_array_equal(image, PICTURE[None])
    np.testing.assert_array_equal(mask, MASK)


@pytest.mark.parametrize("version", ["7.3", "5"])
def test_the_authors_folds_count_slices_by_number(tmp_path: Path, version: str) -> None:
    found = slices(authors(tmp_path, [3, 1, 2, 5, 4, 3], version=version))
    assert [(item.id, item.group, item.fold) for item in found] == [
        ("0001", "a", 3),
        ("0002", "b", 1),
        ("0003", "c", 2),
        ("0004", "d", 5),
        ("0005", "e", 4),
        ("0006", "f", 3),
    ]
    training, validation, test = splits(found, 0)
    assert [item.group for item in test] == ["b"]
    assert [item.group for item in validation] == ["c"]
    assert [item.group for item in training] == ["a", "d", "e", "f"]
    assert [item.group for item in splits(found, 2)[2]] == ["a", "f"]


def test_a_patient_in_two_folds_is_refused(tmp_path: Path) -> None:
    found = slices(authors(tmp_path, [1, 2, 3, 2], patients="abca"))
    with pytest.raises(InputError, match="patient a lies in folds 1 and 2"):
        splits(found, 0)


def test_patients_without_folds_are_dealt_by_kind(tmp_path: Path) -> None:
    found = slices(authors(tmp_path, None, patients="abcdefghijklmno" * 2))
    tested = Counter(item.group for index in range(5) for item in splits(found, index)[2])
    assert tested == dict.fromkeys("abcdefghijklmno", 2)
    for index in range(5):
        parts = splits(found, index)
        assert [len({item.group for item in part}) for part in parts] == [9, 3, 3]
        assert {item.label for item in parts[2]} == set(NAMES.values())
    with pytest.raises(InputError, match="0 to 4 here; got 5"):
        splits(found, 5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label": 4}, r"1\.mat: the label is \[4\.0\]; expected one of 1 meningioma, 2 glioma, 3 pituitary"),
        ({"label": np.nan}, r"1\.mat: the label is \[nan\]"),
        ({"patient": "  "}, r"1\.mat: PID is empty"),
        ({"PID": np.zeros(2, np.uint64)}, r"1\.mat: PID is empty"),
        ({"PID": np.array([[100360.0]])}, r"1\.mat: PID is float64"),
        ({"leave": "PID"}, r"1\.mat has no field cjdata\.PID"),
        ({"leave": "label"}, r"1\.mat has no field cjdata\.label"),
        ({"leave": "image"}, r"1\.mat has no field cjdata\.image"),
        ({"leave": "tumorMask"}, r"1\.mat has no field cjdata\.tumorMask"),
        ({"tumorMask": MASK.astype(np.uint8)}, r"1\.mat: image and tumorMask .* got \(4, 6\) and \(6, 4\)"),
        ({"image": np.zeros(3)}, r"1\.mat: image and tumorMask"),
    ],
)
def test_broken_slices_are_named(tmp_path: Path, options: dict, words: str) -> None:
    mat(tmp_path / "1.mat", **options)
    with pytest.raises(InputError, match=words):
        slices(tmp_path)


def test_a_field_without_values_is_missing(tmp_path: Path) -> None:
    with h5py.File(mat(tmp_path / "1.mat", leave="image"), "a") as file:
        file["cjdata/image"] = h5py.Empty("f")
    with pytest.raises(InputError, match=r"1\.mat has no field cjdata\.image"):
        slices(tmp_path)


def test_a_mask_of_other_values_is_refused(tmp_path: Path) -> None:
    mat(tmp_path / "1.mat", tumorMask=np.full((4, 6), 7, np.uint8))
    (only,) = slices(tmp_path)
    with pytest.raises(InputError, match=r"1\.mat: tumorMask holds other values"):
        only.mask()


def test_files_that_end_too_early_are_named(tmp_path: Path) -> None:
    whole = mat(tmp_path / "7.mat", image=np.random.default_rng(0).integers(0, 9, (64, 64)), leave="tumorMask")
    with h5py.File(whole, "a") as file:
        file["cjdata/tumorMask"] = np.zeros((64, 64), np.uint8)
    content = whole.read_bytes()
    for size in range(0, len(content), 97):
        whole.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"7\.mat: truncated, or not a MATLAB file of version 7\.3"):
            slices(tmp_path)[0].load()


def test_damaged_bytes_never_raise_another_error(tmp_path: Path) -> None:
    content = mat(tmp_path / "7.mat").read_bytes()
    random = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(content)
        for place in random.integers(0, len(content), 8):
            damaged[place] = random.integers(256)
        (tmp_path / "7.mat").write_bytes(bytes(damaged))
        with contextlib.suppress(InputError):
            (only,) = slices(tmp_path)
            only.load()
            only.mask()


def test_broken_folds_are_named(tmp_path: Path) -> None:
    root = authors(tmp_path, [1, 2, 3], patients="abc", version="5")
    whole = (root / "cvind.mat").read_bytes()
    for size in range(0, len(whole), 7):
        (root / "cvind.mat").write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cvind\.mat"):
            slices(root)
    savemat(root / "cvind.mat", {"cvind": np.array([1, 2])})
    with pytest.raises(InputError, match=r"folds for slices 1 to 2, none for .*3\.mat"):
        slices(root)
    savemat(root / "cvind.mat", {"cvind": np.array([1, 2, 0.5])})
    with pytest.raises(InputError, match=r"cvind\.mat: folds are whole numbers from 1; got \[0\.5, 1\.0, 2\.0\]"):
        slices(root)
    savemat(root / "cvind.mat", {"folds": np.array([1, 2, 3])})
    with pytest.raises(InputError, match=r"cvind\.mat has no array of numbers named cvind"):
        slices(root)
    savemat(root / "brainTumorDataPublic_0" / "cvind.mat", {"cvind": np.array([1, 2, 3])})
    with pytest.raises(InputError, match=r"found cvind\.mat twice"):
        slices(root)


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*absent; expected the authors' files"):
        slices(tmp_path / "absent")
    with pytest.raises(InputError, match=r"found no slices in .* expected the authors' files"):
        slices(tmp_path)
    authors(tmp_path / "twice", None)
    mat(tmp_path / "twice" / "1.mat")
    with pytest.raises(InputError, match="slice 0001 comes twice"):
        slices(tmp_path / "twice")
    repacked(tmp_path / "both", ROWS)
    mat(tmp_path / "both" / "1.mat")
    with pytest.raises(InputError, match=r"holds both metadata\.csv and 1\.mat"):
        slices(tmp_path / "both")
    with pytest.raises(InputError, match="no slices to split"):
        splits([], 0)


def test_the_repacked_layout(tmp_path: Path) -> None:
    found = slices(repacked(tmp_path, ROWS))
    assert [(item.id, item.group, item.label, item.fold) for item in found] == [
        ("0001", "fold 1", "meningioma", 1),
        ("0002", "fold 4", "pituitary", 4),
        ("0010", "fold 2", "glioma", 2),
    ]
    image, mask = found[2].load(), found[2].mask()
    assert image.shape == (1, 512, 512)
    assert image.dtype == np.float32
    assert image.max() > 200
    assert mask.dtype == bool
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (100, 149, 300, 329)
    assert [[item.id for item in part] for part in splits(found, 1)] == [["0001"], ["0002"], ["0010"]]
    with pytest.raises(InputError, match="these slices lie in 2"):
        splits(found[:2], 0)


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        ([(1, 1, "meningioma")], "id,label,class_name", r"metadata\.csv has no column fold; .*slices of one patient"),
        ([(1, 4, "glioma", 1)], None, "line 2: label 4 is not known; expected 1 meningioma"),
        ([(1, 1, "glioma", 1)], None, "line 2: label 1 is meningioma, but class_name says 'glioma'"),
        ([(1, 1, "meningioma", "")], None, "line 2: fold is a whole number; got ''"),
        ([(1, 1, "meningioma")], None, "line 2: fold is a whole number; got ''"),
        ([(1, "one", "meningioma", 1)], None, "line 2: label is a whole number; got 'one'"),
        ([ROWS[0], ROWS[0]], None, "slice 0002 comes twice"),
        ([], None, r"metadata\.csv lists no slice"),
    ],
)
def test_broken_tables(tmp_path: Path, rows: list, columns: str | None, words: str) -> None:
    root = repacked(tmp_path, rows, columns or "id,label,class_name,fold")
    with pytest.raises(InputError, match=words):
        slices(root)


def test_a_table_that_is_no_text(tmp_path: Path) -> None:
    root = repacked(tmp_path, ROWS)
    (root / "metadata.csv").write_bytes(b"id,label,class_name,fold\n\xff\xfe\x00,1\n")
    with pytest.raises(InputError, match=r"cannot read .*metadata\.csv"):
        slices(root)


@pytest.mark.parametrize(
    ("name", "mode", "size", "words"),
    [
        (
            "images/0001.jpg",
            "RGB",
            (512, 512),
            r"0001\.jpg is colour \(RGB\) of 512 x 512 .* expected 8-bit grey of 512",
        ),
        ("images/0001.jpg", "I;16", (512, 512), r"0001\.jpg is 16-bit or deeper grey \(I;16\)"),
        ("images/0001.jpg", "L", (256, 256), r"0001\.jpg is 8-bit grey \(L\) of 256 x 256 pixels"),
        ("masks/0001.png", "1", (256, 512), r"0001\.png is 1-bit \(1\) of 256 x 512 .* expected 1-bit or 8-bit grey"),
        ("masks/0001.png", "RGB", (512, 512), r"0001\.png is colour"),
    ],
)
def test_pictures_of_another_kind(tmp_path: Path, name: str, mode: str, size: tuple[int, int], words: str) -> None:
    root = repacked(tmp_path, ROWS)
    Image.new(mode, size).save(root / name, format="PNG")
    with pytest.raises(InputError, match=words):
        slices(root)


def test_missing_and_broken_pictures(tmp_path: Path) -> None:
    root = repacked(tmp_path, ROWS)
    mask = root / "masks" / "0001.png"
    Image.fromarray((np.arange(512 * 512).reshape(512, 512) % 5).astype(np.uint8)).save(mask)
    with pytest.raises(InputError, match=r"0001\.png holds shades of grey"):
        slices(root)[0].mask()
    mask.unlink()
    with pytest.raises(InputError, match=r"metadata\.csv lists slice 1, but there is no file .*0001\.png"):
        slices(root)
    image = root / "images" / "0001.jpg"
    content = image.read_bytes()
    Image.new("1", (512, 512)).save(mask)
    image.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cannot read .*0001\.jpg: truncated"):
        slices(root)[0].load()
    image.write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot read .*0001\.jpg: truncated or not a picture"):
        slices(root)
    image.unlink()
    with pytest.raises(InputError, match=r"there is no file .*0001\.jpg"):
        slices(root)


def test_real_slices(data_folder: Path) -> None:
    if not (data_folder / "cheng").is_dir():
        pytest.skip(f"no Cheng slices in {data_folder}")
    found = slices(data_folder / "cheng")
    assert len(found) == len({item.id for item in found}) == 2400
    assert Counter(item.fold for item in found) == {1: 570, 2: 655, 3: 562, 4: 613}
    assert Counter(item.label for item in found) == {"meningioma": 563, "glioma": 1079, "pituitary": 758}
    for index in range(4):
        parts = splits(found, index)
        assert [len({item.fold for item in part}) for part in parts] == [2, 1, 1]
        assert not {item.group for item in parts[0]} & {item.group for item in [*parts[1], *parts[2]]}
    for item in found[::97]:
        image, mask = item.load(), item.mask()
        assert image.shape == (1, 512, 512)
        assert mask.shape == (512, 512)
        assert 100 < image.max() <= 255
        assert mask.any()
