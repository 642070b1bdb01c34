"""Grey pictures: read upright, and refused in one line where they are anything else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import voxplain as vx

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)


@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "PNG"])
def test_rows_and_columns_become_y_and_x(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"picture.{ending}"
    Image.fromarray(PIXELS).save(path)
    scan = vx.read_image(path, name="mr", pixel_size=0.5)
    assert scan.channels == ("mr",)
    assert scan.grid.shape == (7, 5, 1)
    assert scan.grid.spacing == (0.5, 0.5, 0.5)
    assert scan.grid.orientation == "LPS"
    for row, column in ((0, 0), (4, 6), (1, 3)):
        assert scan.data[0, column, row, 0] == PIXELS[row, column]


def test_a_jpeg_is_read_as_its_decoder_has_it(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "picture.jpeg", quality=95)
    scan = vx.read_image(tmp_path / "picture.jpeg")
    assert scan.channels == ("image",)
    assert np.abs(scan.data[0, :, :, 0].T - PIXELS).mean() < 20


def colour(mode: str) -> Image.Image:
    return Image.fromarray(np.repeat(PIXELS[..., None], 3, axis=2)).convert(mode)


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (colour("RGB"), r"in colour \(RGB\): convert it to grey"),
        (colour("RGBA"), r"in colour \(RGBA\)"),
        (colour("P"), "in colours of a palette"),
        (colour("LA"), "grey with transparency"),
        (colour("1"), r"1 bit"),
        (Image.fromarray(PIXELS.astype(np.uint16) * 200), "more than 8 bits"),
    ],
    ids=["RGB", "RGBA", "P", "LA", "1", "16 bits"],
)
def test_other_pictures_are_refused(tmp_path: Path, picture: Image.Image, said: str) -> None:
    picture.save(tmp_path / "p.png")
    with pytest.raises(vx.InputError, match=said):
        vx.read_image(tmp_path / "p.png")


def test_several_pictures_in_one_file_are_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1].copy())]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "moving.png", save_all=True, append_images=pages[1:])
    for name in ("pages.tif", "moving.png"):
        with pytest.raises(vx.InputError, match="expected one picture"):
            vx.read_image(tmp_path / name)


def test_a_picture_that_is_stored_turned_is_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "turned.jpg", exif=exif)
    with pytest.raises(vx.InputError, match="stored turned"):
        vx.read_image(tmp_path / "turned.jpg")


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.tile(PIXELS, (40, 40))).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    Image.fromarray(PIXELS).save(tmp_path / "other.gif")
    contents = {
        "empty": b"", "text": b"hello", "cut": whole[: len(whole) // 2], "gif": (tmp_path / "other.gif").read_bytes(),
        "header": whole[:40], "flipped": whole[:60] + bytes(byte ^ 255 for byte in whole[60:90]) + whole[90:],
    }  # fmt: skip
    for name, content in contents.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(content)
        with pytest.raises(vx.InputError, match=f"cannot read {name}.png: broken or not a PNG") as caught:
            vx.read_image(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(vx.InputError, match="there is no file"):
        vx.read_image(tmp_path / "nothing.png")
    for size in (0, -1, float("nan"), float("inf")):
        with pytest.raises(vx.InputError, match="pixel_size is a length"):
            vx.read_image(tmp_path / "whole.png", pixel_size=size)
