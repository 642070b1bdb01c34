"""NIfTI in and out: any orientation, any spacing, and the map under the very header of its scan."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from voxplain.errors import InputError
from voxplain.explanation import Explanation
from voxplain.grid import Grid
from voxplain.io.atomic import writing
from voxplain.io.sequences import canonical, patient_folder_files, sequence_of
from voxplain.scan import Labels, Scan

_NIBABEL_ERRORS = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    nib.spatialimages.ImageDataError,
)


def read(folder: str | Path | None = None, **sequences: str | Path) -> Scan:
    """Read a scan: a patient folder in BraTS layout, or one NIfTI file per sequence, by name.

    `read("Brats18_CBICA_APZ_1/")` or `read(flair="f.nii.gz", t1="t.nii.gz")`. Channels carry canonical names
    (flair, t1, t1ce, t2); other names stay as given.

    Raises:
        InputError: no such file, a sequence twice or under another's name, grids that differ, broken or 4D files.
    """
    if (folder is None) == (not sequences):
        raise InputError("give either a patient folder or one file per sequence, such as flair='f.nii.gz'")
    if folder is not None:
        files = patient_folder_files(Path(folder))
        files.pop("seg", None)
        return read_sequences(files)
    return read_sequences({name: Path(path) for name, path in sequences.items()})


def read_sequences(files: Mapping[str, Path]) -> Scan:
    """Read a scan from one file per sequence, {name: path}; see `read`."""
    named: dict[str, Path] = {}
    for name, path in files.items():
        channel = canonical(name)
        if channel in named:
            raise InputError(f"sequence {channel} is given twice: {named[channel]} and {path}")
        speaks_of = sequence_of(path.name)
        if speaks_of is not None and speaks_of != channel and channel in ("flair", "t1", "t1ce", "t2"):
            raise InputError(
                f"{path.name} is given as {channel}, but its name says {speaks_of}; "
                "give each file under its own sequence, or rename the file"
            )
        for other, there in named.items():
            if there.resolve() == path.resolve():
                raise InputError(f"one file is given for two sequences, {other} and {channel}: {path}")
        named[channel] = path
    volumes: dict[str, np.ndarray] = {}
    first: tuple[str, Grid] | None = None
    for channel, path in named.items():
        volume, grid = _read_volume(path)
        if first is None:
            first = channel, grid
        elif difference := first[1].difference(grid):
            raise InputError(
                f"all sequences of a scan lie on one grid; {first[0]} and {channel} differ: {difference}; "
                f"resample {path.name} to the grid of {first[0]}"
            )
        for other, earlier in volumes.items():
            if volume.any() and np.array_equal(earlier, volume):
                raise InputError(
                    f"sequences {other} and {channel} hold the same voxels ({named[other].name}, {path.name}); "
                    "one of them is doubled"
                )
        volumes[channel] = volume
    assert first is not None
    return Scan(np.stack(list(volumes.values())), first[1], tuple(volumes))


def read_stacked(path: str | Path, volumes: Mapping[str, int]) -> Scan:
    """Read a scan whose sequences lie one after the other in a 4D file, {name: its place, counted from 0}.

    Raises:
        InputError: no such file, a broken one, one that is not 4D, or with fewer volumes than asked for.
    """
    path = Path(path)
    data, grid = _read_array(path)
    if data.ndim != 4 or not data.shape[3] > max(volumes.values()):
        raise InputError(
            f"expected a 4D file with {max(volumes.values()) + 1} volumes or more, one for each of "
            f"{', '.join(volumes)}; {path.name} has shape {data.shape}"
        )
    stacked = np.stack([data[..., place] for place in volumes.values()])
    return Scan(stacked.astype(np.float32, copy=False), grid, tuple(map(canonical, volumes)))


def read_labels(path: str | Path) -> Labels:
    """Read labels or a mask (whole numbers, 0 is background) from a NIfTI file."""
    volume, grid = _read_volume(Path(path))
    return Labels(volume, grid)


def read_map(path: str | Path) -> tuple[np.ndarray, Grid]:
    """Read a map as `save` writes it: (K, X, Y, Z) float32 and its grid; a 4D file holds its K channels last.

    Raises:
        InputError: no such file, a broken one, or one of other than three or four dimensions.
    """
    path = Path(path)
    data, grid = _read_array(path)
    if data.ndim > 4:
        raise InputError(f"expected a map of three or four dimensions; {path.name} is {data.ndim}D")
    data = data[None] if data.ndim == 3 else np.moveaxis(data, -1, 0)
    return np.ascontiguousarray(data, dtype=np.float32), grid


def save(image: Scan | Labels | Explanation, path: str | Path) -> None:
    """Write a scan, labels or a map as .nii or .nii.gz under the affine, sform and qform of its grid.

    One map or channel is written as a 3D file, several as 4D with the channels last. Maps are float32, labels the
    smallest unsigned integers that hold them. The file appears whole or not at all.

    Raises:
        InputError: the name does not end in .nii or .nii.gz, or the folder cannot be written.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"a NIfTI file ends in .nii or .nii.gz; got {path.name}")
    if isinstance(image, Labels):
        data: np.ndarray = image.data.astype(np.min_scalar_type(int(image.data.max())))
    else:
        channels = image.map if isinstance(image, Explanation) else image.data
        data = channels[0] if len(channels) == 1 else np.moveaxis(channels, 0, -1)
    grid = image.grid
    nifti = nib.Nifti1Image(data, grid.affine)
    nifti.set_qform(grid.qform, grid.qform_code)
    # Without a qform the affine must be in the sform, else the file would not say where it lies.
    sform_code = grid.sform_code if grid.qform_code else grid.sform_code or 2
    nifti.set_sform(grid.affine if sform_code else None, sform_code)
    if not grid.qform_code:  # a qform brings its own voxel size, which need not be the sform's
        nifti.header.set_zooms((*grid.spacing, *(1.0,) * (data.ndim - 3)))
    nifti.header.set_xyzt_units("mm")
    with writing(path) as temporary:
        nib.save(nifti, temporary)


def _check_sum(path: Path) -> None:
    """Unpack a file to its end, where its checksum stands; nibabel stops at the last voxel."""
    with gzip.open(path) as packed:
        while packed.read(1 << 22):
            pass


def _read_volume(path: Path) -> tuple[np.ndarray, Grid]:
    """Voxels (X, Y, Z) float32, scaled as the header says, and their grid."""
    data, grid = _read_array(path)
    if data.ndim != 3:
        raise InputError(
            f"expected one 3D volume per sequence; {path.name} is {data.ndim}D with shape {data.shape}; "
            "split it into one file per sequence"
        )
    return data.astype(np.float32, copy=False), grid


def _read_array(path: Path) -> tuple[np.ndarray, Grid]:
    """Voxels of three or more dimensions, scaled as the header says, and the grid of the first three."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Pair):
            raise InputError(f"expected a NIfTI file (.nii or .nii.gz); {path} is {type(image).__name__}")
        if path.name.endswith(".gz"):
            _check_sum(path)
        data = np.asanyarray(image.dataobj)
    except (OSError, EOFError, zlib.error, ValueError, OverflowError, *_NIBABEL_ERRORS) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"cannot read {path.name}: truncated or not a NIfTI file ({' '.join(str(error).split())[:120]}); "
            "copy or convert it again"
        ) from error
    if data.dtype.names or not np.issubdtype(data.dtype, np.number) or np.iscomplexobj(data):
        raise InputError(f"expected plain numbers in {path.name}; its voxels are {data.dtype}")
    if data.ndim > 3 and data.shape[3:] == (1,) * (data.ndim - 3):
        data = data.reshape(data.shape[:3])
    if data.ndim == 2:
        data = data[:, :, None]
    if data.ndim < 3:
        raise InputError(f"expected a 3D volume; {path.name} is {data.ndim}D with shape {data.shape}")
    try:
        qform, qform_code = image.get_qform(coded=True)
        grid = Grid(data.shape[:3], image.affine, qform, int(qform_code), int(image.header["sform_code"]))
    except (InputError, *_NIBABEL_ERRORS) as error:
        raise InputError(f"the header of {path.name} does not say where its voxels lie: {error}") from error
    return data, grid
