"""Grey pictures in: PNG, JPEG, TIFF and BMP of 8 bits, as scans with Z = 1."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from voxplain.errors import InputError
from voxplain.grid import Grid
from voxplain.scan import Scan

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_EXIF_ORIENTATION, _UPRIGHT = 0x0112, 1


def is_image(path: Path) -> bool:
    """Whether a file's name is that of a picture."""
    return path.suffix.lower() in SUFFIXES


def read_image(path: str | Path, *, name: str = "image", pixel_size: float = 1.0) -> Scan:
    """Read a grey picture of 8 bits as a scan with Z = 1, its values 0 to 255.

    The picture's pixel (row, column) becomes the voxel data[0, column, row, 0]: X runs to the right, Y downwards. A
    picture does not say where it lies, so it counts as an axial slice as radiologists see one (orientation LPS: the
    left of the picture is the patient's right, its top the front), and viewers show it upright.

    Args:
        path: a PNG, JPEG, TIFF or BMP file.
        name: what the one channel is called.
        pixel_size: edge of a pixel in mm, also the thickness of the slice.

    Raises:
        InputError: no such file, a broken one, several pictures in one file, colour (a palette too), transparency, more
            or less than 8 bits, or a picture that is stored turned.
    """
    path = Path(path)
    if not (math.isfinite(pixel_size) and pixel_size > 0):
        raise InputError(f"pixel_size is a length in mm above 0; got {pixel_size}")
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.mode != "L":
                raise InputError(
                    f"expected a grey picture of 8 bits; {path.name} is {_in_words(picture.mode)}: convert it to grey "
                    "with 8 bits, as the network's training pictures were"
                )
            if picture.getexif().get(_EXIF_ORIENTATION, _UPRIGHT) != _UPRIGHT:
                raise InputError(f"{path.name} is stored turned, and a note in it says so; save it upright")
            values = np.asarray(picture, dtype=np.float32)
            if _has_second(picture):
                raise InputError(f"expected one picture; {path.name} holds several: save the one that is meant alone")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"cannot read {path.name}: broken or not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file "
            f"({' '.join(str(error).split())[:120]}); save it again"
        ) from error
    return image_scan(values, name=name, pixel_size=pixel_size)


def image_scan(values: np.ndarray, *, name: str = "image", pixel_size: float = 1.0) -> Scan:
    """A grey picture (rows, columns) as the scan that `read_image` makes of its file."""
    data = np.asarray(values).T[None, :, :, None]
    return Scan(data, Grid(data.shape[1:], np.diag([-pixel_size, -pixel_size, pixel_size, 1.0])), (name,))


def _has_second(picture: Image.Image) -> bool:
    try:
        picture.seek(1)
    except EOFError:
        return False
    return True


def _in_words(mode: str) -> str:
    if mode == "1":
        return "black and white alone (1 bit)"
    if mode in ("I", "F") or mode.startswith("I;"):
        return f"of more than 8 bits ({mode})"
    return {"P": "in colours of a palette", "LA": "grey with transparency"}.get(mode, f"in colour ({mode})")
