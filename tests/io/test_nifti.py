"""NIfTI in and out: headers as they come, honest about space, and bad files refused in one line."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxplain.errors import InputError
from voxplain.explanation import Explanation, Region
from voxplain.grid import Grid
from voxplain.io.nifti import read, read_labels, save
from voxplain.scan import Labels, Scan

ORIENTATIONS = ("RAS", "LPS", "PIR", "SLA", "IRP", "ALS")


def affine_of(orientation: str, spacing: tuple[float, ...] = (1, 1, 1)) -> np.ndarray:
    affine = np.zeros((4, 4))
    for axis, (code, size) in enumerate(zip(orientation, spacing, strict=True)):
        world = next(i for i, pair in enumerate(("LR", "PA", "IS")) if code in pair)
        affine[world, axis] = size if code in "RAS" else -size
    affine[:, 3] = [-31.5, 12.25, 7.0, 1]
    return affine


def volume(shape: tuple[int, ...] = (6, 7, 5), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 900, shape).astype(np.float32)


def write(path: Path, data: np.ndarray, affine: np.ndarray | None = None, **header: Any) -> Path:
    image = nib.Nifti1Image(data, affine_of("RAS") if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def explanation(grid: Grid, channels: tuple[str, ...] = ("all",)) -> Explanation:
    box = tuple((0, n) for n in grid.shape)
    values = np.random.default_rng(1).normal(size=(len(channels), *grid.shape)).astype(np.float32)
    return Explanation(values, channels, grid, True, "logit", (Region("whole", box, 0.9, 2.0, True),))  # type: ignore[arg-type]


def one_line(caught: pytest.ExceptionInfo[InputError]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_any_orientation_and_anisotropic_spacing(tmp_path: Path, orientation: str, suffix: str) -> None:
    affine, data = affine_of(orientation, (0.9375, 1.2, 5)), volume()
    scan = read(t2=write(tmp_path / f"a{suffix}", data, affine))
    np.testing.assert_array_equal(scan.data[0], data)
    np.testing.assert_array_equal(scan.grid.affine, affine.astype(np.float32))
    assert scan.grid.orientation == orientation
    assert scan.grid.spacing == pytest.approx((0.9375, 1.2, 5))
    assert scan.channels == ("t2",)
    path = tmp_path / f"map{suffix}"
    made = explanation(scan.grid)
    save(made, path)
    back = nib.load(path)
    np.testing.assert_array_equal(np.asarray(back.dataobj), made.map[0])
    np.testing.assert_array_equal(back.affine, nib.load(tmp_path / f"a{suffix}").affine)
    assert back.get_data_dtype() == np.float32
    assert back.header.get_zooms() == pytest.approx((0.9375, 1.2, 5))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_int16_is_scaled_as_the_header_says(tmp_path: Path, suffix: str) -> None:
    raw = np.random.default_rng(0).integers(-300, 3000, (6, 7, 5)).astype(np.int16)
    path = tmp_path / f"a{suffix}"
    image = nib.Nifti1Image(raw, affine_of("LPS"))
    image.header.set_slope_inter(0.25, -12.5)
    nib.save(image, path)
    # nibabel stores what it is given; write the raw integers under that very header.
    content = (gzip.decompress(path.read_bytes()) if suffix == ".nii.gz" else path.read_bytes())[:352]
    header = nib.Nifti1Header(content[:348], check=False)
    header["scl_slope"], header["scl_inter"] = 0.25, -12.5
    content = header.binaryblock + b"\0" * 4 + raw.tobytes(order="F")
    path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    np.testing.assert_allclose(read(flair=path).data[0], raw * 0.25 - 12.5)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_plain_kind_of_number(tmp_path: Path, kind: type, order: str) -> None:
    data = volume().astype(kind)
    image = nib.Nifti1Image(data, affine_of("RAS"))
    nib.save(nib.Nifti1Image(data, None, image.header.as_byteswapped(order)), tmp_path / "a.nii")
    np.testing.assert_array_equal(read(t1=tmp_path / "a.nii").data[0], data.astype(np.float32))


@pytest.mark.parametrize("sform_code", [0, 1, 4])
@pytest.mark.parametrize("qform_code", [0, 1, 2])
@pytest.mark.parametrize("apart", [False, True])
def test_a_saved_map_has_the_header_of_its_scan(tmp_path: Path, sform_code: int, qform_code: int, apart: bool) -> None:
    image = nib.Nifti1Image(volume(), None)
    sform = affine_of("LPS", (1, 1.5, 3))
    qform = affine_of("RAS", (2, 2, 2)) if apart else sform
    image.header.set_qform(qform, qform_code)
    image.header.set_sform(sform, sform_code)
    nib.save(nib.Nifti1Image(image.dataobj, None, image.header), tmp_path / "a.nii.gz")
    original = nib.load(tmp_path / "a.nii.gz")
    scan = read(t2=tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(scan.grid.affine, original.affine)
    for name, thing in (
        ("map", explanation(scan.grid)),
        ("scan", scan),
        ("mask", Labels(scan.data[0] > 400, scan.grid)),
    ):
        save(thing, tmp_path / f"{name}.nii.gz")
        saved = nib.load(tmp_path / f"{name}.nii.gz")
        np.testing.assert_allclose(saved.affine, original.affine, atol=1e-5)
        codes = int(saved.header["sform_code"]), int(saved.header["qform_code"])
        # A header that says nothing of space cannot be told from a broken one: the affine goes into the sform then.
        assert codes == ((sform_code, qform_code) if sform_code or qform_code else (2, 0))
        if qform_code:
            np.testing.assert_allclose(saved.get_qform(), original.get_qform(), atol=1e-5)
        if sform_code:
            np.testing.assert_array_equal(saved.get_sform(), original.get_sform())
        assert saved.header.get_xyzt_units()[0] == "mm"
        assert scan.grid.difference(read(t2=tmp_path / "a.nii.gz").grid) is None


@given(angle=st.floats(-3, 3), spacing=st.tuples(*[st.floats(0.4, 6)] * 3), code=st.sampled_from([0, 1]))
def test_oblique_headers_survive(
    tmp_path_factory: pytest.TempPathFactory, angle: float, spacing: tuple[float, ...], code: int
) -> None:
    folder = tmp_path_factory.mktemp("oblique")
    turn = np.eye(4)
    turn[:3, :3] = nib.eulerangles.euler2mat(angle, angle / 2, -angle / 3)
    affine = turn @ np.diag([*spacing, 1])
    image = nib.Nifti1Image(volume((3, 4, 2)), None)
    image.header.set_qform(affine, 1)
    image.header.set_sform(affine, code)
    nib.save(nib.Nifti1Image(image.dataobj, None, image.header), folder / "a.nii")
    scan = read(t1=folder / "a.nii")
    save(scan, folder / "b.nii")
    one, two = nib.load(folder / "a.nii"), nib.load(folder / "b.nii")
    np.testing.assert_allclose(two.affine, one.affine, atol=1e-4)
    np.testing.assert_allclose(two.get_qform(), one.get_qform(), atol=1e-4)
    assert read(t1=folder / "b.nii").grid.matches(scan.grid)


def test_several_channels_are_saved_with_the_channels_last(tmp_path: Path) -> None:
    grid = Grid((4, 5, 6), affine_of("LPS", (1, 2, 3)))
    made = explanation(grid, ("flair", "t1"))
    save(made, tmp_path / "m.nii.gz")
    back = nib.load(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.moveaxis(made.map, 0, -1))
    np.testing.assert_array_equal(back.affine, grid.affine)


@pytest.mark.parametrize(("highest", "kind"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (70000, np.uint32)])
def test_labels_take_the_smallest_integers(tmp_path: Path, highest: int, kind: type) -> None:
    data = np.zeros((3, 4, 5), int)
    data[0, 0, 0] = highest
    labels = Labels(data, Grid((3, 4, 5), affine_of("RAS")))
    save(labels, tmp_path / "l.nii.gz")
    assert nib.load(tmp_path / "l.nii.gz").get_data_dtype() == kind
    np.testing.assert_array_equal(read_labels(tmp_path / "l.nii.gz").data, data)


def test_a_2d_file_is_a_scan_with_one_slice(tmp_path: Path) -> None:
    assert read(t1=write(tmp_path / "a.nii", volume((6, 7)))).data.shape == (1, 6, 7, 1)
    assert read(t1=write(tmp_path / "b.nii", volume((6, 7, 5, 1)))).data.shape == (1, 6, 7, 5)


@pytest.mark.parametrize("keep", [0, 10, 200, 600, -100, -4])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", volume((12, 12, 12)))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="truncated or not a NIfTI file") as caught:
        read(flair=path)
    assert one_line(caught).startswith(f"cannot read a{suffix}")


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_text("this is not an image")
    with pytest.raises(InputError, match="truncated or not a NIfTI file"):
        read(flair=tmp_path / "a.nii.gz")
    (tmp_path / "a.nii").write_text("this is not an image" * 100)
    with pytest.raises(InputError, match="truncated or not a NIfTI file"):
        read(flair=tmp_path / "a.nii")
    nib.save(nib.MGHImage(volume(), np.eye(4)), tmp_path / "b.mgz")
    with pytest.raises(InputError, match="expected a NIfTI file"):
        read(flair=tmp_path / "b.mgz")
    with pytest.raises(InputError, match="there is no file"):
        read(flair=tmp_path / "nothing.nii.gz")
    with pytest.raises(InputError, match="there is no file"):
        read(flair=tmp_path)


def test_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", volume((12, 12, 12)))
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"cannot read a.nii.gz.*CRC"):
        read(flair=path)


@given(where=st.integers(0, 347), value=st.integers(0, 255))
def test_a_damaged_header_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, where: int, value: int) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.nii"
    content = bytearray(write(path, volume((3, 4, 2)).astype(np.int16)).read_bytes())
    content[where] = value
    path.write_bytes(bytes(content))
    said = ""
    try:
        assert np.isfinite(read(flair=path).data).all()
    except InputError as error:  # and nothing else
        said = str(error)
    assert "\n" not in said


@pytest.mark.parametrize(("field", "value"), [("datatype", 9999), ("datatype", 0), ("dim", [9, 3, 4, 2, 1, 1, 1, 1])])
def test_a_header_of_nonsense_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    content = write(tmp_path / "a.nii", volume((3, 4, 2))).read_bytes()
    header = nib.Nifti1Header(content[:348], check=False)
    header[field] = value
    (tmp_path / "a.nii").write_bytes(header.binaryblock + content[348:])
    with pytest.raises(InputError, match=r"cannot read a.nii") as caught:
        read(flair=tmp_path / "a.nii")
    one_line(caught)


def test_a_file_whose_affine_cannot_be_inverted_is_named(tmp_path: Path) -> None:
    image = nib.Nifti1Image(volume(), np.eye(4))
    image.header["srow_x"] = 0
    nib.save(nib.Nifti1Image(image.dataobj, None, image.header), tmp_path / "odd.nii")
    with pytest.raises(InputError, match=r"odd\.nii.*invertible") as caught:
        read(flair=tmp_path / "odd.nii")
    one_line(caught)


@pytest.mark.parametrize("shape", [(4, 5, 6, 2), (4, 5, 6, 1, 3)])
def test_more_than_three_dimensions_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=f"expected one 3D volume per sequence; a.nii is {len(shape)}D") as caught:
        read(flair=write(tmp_path / "a.nii", volume(shape)))
    assert "split it" in one_line(caught)


def test_colours_and_complex_numbers_are_refused(tmp_path: Path) -> None:
    colours = np.zeros((3, 3, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    for name, data in (("rgb", colours), ("complex", np.ones((3, 3, 3), np.complex64))):
        with pytest.raises(InputError, match=f"expected plain numbers in {name}.nii"):
            read(flair=write(tmp_path / f"{name}.nii", data))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_counted(tmp_path: Path, value: float) -> None:
    data = volume()
    data[1, 2, 3] = data[0, 0, 0] = value
    good = write(tmp_path / "good.nii", volume(seed=1))
    with pytest.raises(InputError, match="sequence t1ce holds 2 voxels that are NaN or infinite") as caught:
        read(t1=good, t1ce=write(tmp_path / "bad.nii", data))
    one_line(caught)


def test_different_grids_are_refused_with_the_difference(tmp_path: Path) -> None:
    first = write(tmp_path / "a.nii", volume())
    moved = affine_of("RAS")
    moved[2, 3] += 4
    for name, data, affine, said in (
        ("shape", volume((6, 7, 4), 1), affine_of("RAS"), r"shape \(6, 7, 5\) against \(6, 7, 4\)"),
        ("orientation", volume(seed=1), affine_of("LPS"), "orientation RAS against LPS"),
        ("spacing", volume(seed=1), affine_of("RAS", (1, 1, 3)), "1 x 1 x 1 mm against 1 x 1 x 3 mm"),
        ("origin", volume(seed=1), moved, "up to 4 mm apart"),
    ):
        with pytest.raises(InputError, match=f"flair and t2 differ: .*{said}") as caught:
            read(flair=first, t2=write(tmp_path / f"{name}.nii", data, affine))
        assert f"{name}.nii" in one_line(caught)


def test_doubled_and_misplaced_sequences_are_refused_by_name(tmp_path: Path) -> None:
    flair = write(tmp_path / "p_flair.nii.gz", volume())
    copy = write(tmp_path / "copy.nii.gz", volume())
    other = write(tmp_path / "x.nii.gz", volume(seed=2))
    with pytest.raises(InputError, match=r"p_flair.nii.gz is given as t1, but its name says flair"):
        read(t1=flair)
    with pytest.raises(InputError, match="one file is given for two sequences, t1 and t2"):
        read(t1=other, t2=other)
    (tmp_path / "link.nii.gz").symlink_to(other)
    with pytest.raises(InputError, match="one file is given for two sequences, t1 and t2"):
        read(t1=other, t2=tmp_path / "link.nii.gz")
    with pytest.raises(
        InputError, match=r"sequences flair and t2 hold the same voxels \(p_flair.nii.gz, copy.nii.gz\)"
    ):
        read(flair=flair, t2=copy)
    with pytest.raises(InputError, match="sequence t1ce is given twice"):
        read(t1c=other, t1ce=flair)
    write(tmp_path / "p_seg.nii.gz", volume(seed=5))
    with pytest.raises(InputError, match="its name says seg"):
        read(t1=tmp_path / "p_seg.nii.gz")
    with pytest.raises(InputError, match="either a patient folder or one file per sequence"):
        read()
    with pytest.raises(InputError, match="either a patient folder or one file per sequence"):
        read(tmp_path, t1=other)


def test_channels_go_by_name_not_by_position(tmp_path: Path) -> None:
    paths = {name: write(tmp_path / f"{i}.nii", volume(seed=i)) for i, name in enumerate(("t2w", "t1n", "t1c", "t2f"))}
    scan = read(**paths)
    assert scan.channels == ("t2", "t1", "t1ce", "flair")
    for index, name in enumerate(scan.channels):
        np.testing.assert_array_equal(scan.channel(name), volume(seed=index))
    assert read(adc=paths["t2w"]).channels == ("adc",)


def test_a_patient_folder(tmp_path: Path) -> None:
    folder = tmp_path / "P"
    folder.mkdir()
    for index, name in enumerate(("t2", "flair", "t1ce", "t1", "seg")):
        write(folder / f"P_{name}.nii.gz", volume(seed=index))
    scan = read(folder)
    assert set(scan.channels) == {"flair", "t1", "t1ce", "t2"}
    np.testing.assert_array_equal(scan.channel("flair"), volume(seed=1))


def test_labels_that_are_not_whole_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="labels are whole numbers"):
        read_labels(write(tmp_path / "a.nii", volume() + 0.5))


@pytest.mark.parametrize("name", ["map.img", "map", "map.nii.bz2", "map.mgz"])
def test_other_endings_are_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"ends in .nii or .nii.gz"):
        save(explanation(Grid((3, 3, 3), np.eye(4))), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = Scan(volume()[None], Grid((6, 7, 5), affine_of("RAS")), ("t2",))
    path = tmp_path / "a.nii.gz"
    save(scan, path)
    before = path.read_bytes()

    def fail(image: Any, target: Path) -> None:
        Path(target).write_bytes(b"half of an image")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", fail)
    with pytest.raises(InputError, match=r"cannot write .*a\.nii\.gz \(No space left on device\)"):
        save(scan, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_reading_real_scans(data_folder: Path, tmp_path: Path) -> None:
    folder = data_folder / "glioma_2mm" / "Brats18_CBICA_APZ_1"
    scan = read(folder)
    assert scan.grid.shape == (120, 120, 77)
    save(scan.select(["t1ce"]), tmp_path / "copy.nii.gz")
    one, two = nib.load(folder / f"{folder.name}_t1ce.nii.gz"), nib.load(tmp_path / "copy.nii.gz")
    np.testing.assert_array_equal(np.asarray(two.dataobj), one.get_fdata(dtype=np.float32))
    np.testing.assert_array_equal(one.affine, two.affine)
    for code in ("sform_code", "qform_code"):
        assert int(one.header[code]) == int(two.header[code])
