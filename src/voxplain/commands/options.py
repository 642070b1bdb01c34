"""What several commands ask for, and where they print."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from voxplain.compute import Compute
from voxplain.datasets import brats
from voxplain.datasets.case import Case
from voxplain.errors import InputError
from voxplain.explain.fills import FORMS
from voxplain.io.image import is_image, read_image
from voxplain.io.nifti import read_sequences
from voxplain.io.sequences import canonical, patient_folder_files, without_suffix
from voxplain.model import Card
from voxplain.scan import Scan

out_console = Console()
error_console = Console(stderr=True)

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Memory = Annotated[str, typer.Option(help="limit for one batch of inputs and activations, such as 4GB")]
Threads = Annotated[int | None, typer.Option(help="CPU threads")]
Seed = Annotated[int, typer.Option(help="seed of everything random")]
Data = Annotated[Path, typer.Option(help="folder of patients in BraTS layout")]
Out = Annotated[Path, typer.Option(help="folder for the results")]
ModelName = Annotated[str, typer.Option(help="shipped name, folder, TorchScript file or python:pkg.mod:factory")]
CardFile = Annotated[Path | None, typer.Option(help="model card (JSON) for TorchScript files and Python factories")]
PresetName = Annotated[str, typer.Option(help="small (two CPU cores) or paper (the paper's sizes, for a GPU)")]
Folds = Annotated[int | None, typer.Option(min=2, help="folds by patient; five by default")]
Layers = Annotated[list[str] | None, typer.Option("--layer", help="layer for Grad-CAM rows; may come several times")]
Methods = Annotated[
    list[str] | None, typer.Option("--method", help="score only the maps of this method; may come several times")
]
Count = Annotated[int, typer.Option("--n", help="patients")]
Spacing = Annotated[float, typer.Option(help="voxel size in mm, 1 or 2")]
Quick = Annotated[bool, typer.Option("--quick", help="smoke run: every step in seconds, figures mean nothing")]
SequenceFile = Annotated[Path | None, typer.Option(help="file of this sequence")]
Fill = Annotated[str, typer.Option(help=f"fill of the relevance map: {FORMS}")]


def compute_of(device: str, memory: str, threads: int | None) -> Compute:
    """How to run, with progress shown."""
    return Compute(device=device, memory=memory, threads=threads, progress=True)


def cases_in(data: Path) -> list[Case]:
    """The patients of a folder in BraTS layout."""
    return brats.cases(data)


def scan_files(given_scan: Path | None, named: list[str], channels: Sequence[str] | None = None) -> dict[str, Path]:
    """The files of a patient folder by sequence, or those given as name=path.

    Where `channels` says what the network reads, the scan may also be one file, a picture or a NIfTI volume, which is
    the only one of them.
    """
    given: dict[str, Path] = {}
    for text in named:
        name, separator, path = text.partition("=")
        if not separator or not name or not path:
            raise InputError(f"--sequence is name=file.nii.gz; got {text!r}")
        if name in given:
            raise InputError(f"sequence {name} is given twice: {given[name]} and {path}; give each one once")
        given[name] = Path(path)
    if (given_scan is None) == (not given):
        raise InputError(
            "give either --scan with a patient folder, or one file per sequence (--flair, --t1, --t1ce, --t2, "
            "--sequence name=file)"
        )
    if given_scan is None:
        return given
    if given_scan.is_file() and channels is not None:
        return {_only(channels, given_scan): given_scan}
    found = patient_folder_files(given_scan)
    found.pop("seg", None)
    return found


def _only(channels: Sequence[str], path: Path) -> str:
    """The one sequence that a single file can be."""
    if len(channels) == 1:
        return channels[0]
    files = " ".join(f"--{name} FILE" if name in brats.SEQUENCES else f"--sequence {name}=FILE" for name in channels)
    raise InputError(
        f"the network reads {', '.join(channels)}, and {path.name} is one file: give --scan a patient folder, or one "
        f"file per sequence ({files})"
    )


def read_scan(files: Mapping[str, Path]) -> Scan:
    """The scan in these files, by sequence: one picture, or NIfTI volumes.

    Raises:
        InputError: a file that cannot be read, pictures beside other files, volumes that do not fit each other.
    """
    pictures = {name: path for name, path in files.items() if is_image(path)}
    if not pictures:
        return read_sequences(files)
    if len(files) > 1:
        raise InputError(
            f"a picture is a scan of its own; {next(iter(pictures.values())).name} is given beside other files: "
            "give it alone, with --scan"
        )
    ((name, path),) = pictures.items()
    return read_image(path, name=name)


def sources_of(files: Mapping[str, Path]) -> dict[str, Path]:
    """The files by the canonical names of their sequences; a picture's channel is called as the card calls it."""
    return {name if is_image(path) else canonical(name): path for name, path in files.items()}


def seen_by(card: Card, sources: Mapping[str, Path]) -> bool | None:
    """Whether a network was trained on the scan in these files; None where its card does not list what it was.

    Data sets name a case by its folder, and its files NAME_flair or NAME-t2f; a picture by its file.
    """
    if not card.training_ids:
        return None
    known = {path.stem for path in sources.values() if is_image(path)}
    volumes = [path for path in sources.values() if not is_image(path)]
    known |= {path.resolve().parent.name for path in volumes}
    known |= {re.sub(r"[_-][A-Za-z0-9]+$", "", without_suffix(path)) for path in volumes}
    if len(volumes) == 1:
        known.add(without_suffix(volumes[0]))
    return not known.isdisjoint(card.training_ids)
