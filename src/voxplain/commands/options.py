"""What several commands ask for, and where they print."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from voxplain.compute import Compute
from voxplain.datasets import brats
from voxplain.datasets.case import Case
from voxplain.errors import InputError
from voxplain.explain.fills import FORMS
from voxplain.io.sequences import canonical, patient_folder_files, without_suffix
from voxplain.model import Card

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


def scan_files(folder: Path | None, named: list[str]) -> dict[str, Path]:
    """The files of a patient folder by sequence, or those given as name=path."""
    given: dict[str, Path] = {}
    for text in named:
        name, separator, path = text.partition("=")
        if not separator or not name or not path:
            raise InputError(f"--sequence is name=file.nii.gz; got {text!r}")
        if name in given:
            raise InputError(f"sequence {name} is given twice: {given[name]} and {path}; give each one once")
        given[name] = Path(path)
    if (folder is None) == (not given):
        raise InputError(
            "give either --scan with a patient folder, or one file per sequence (--flair, --t1, --t1ce, --t2, "
            "--sequence name=file)"
        )
    if folder is None:
        return given
    found = patient_folder_files(folder)
    found.pop("seg", None)
    return found


def sources_of(files: Mapping[str, Path]) -> dict[str, Path]:
    """The files by the canonical names of their sequences."""
    return {canonical(name): path for name, path in files.items()}


def seen_by(card: Card, sources: Mapping[str, Path]) -> bool | None:
    """Whether a network was trained on the scan in these files; None where its card does not list what it was.

    Data sets name a case by its folder, and its files NAME_flair or NAME-t2f.
    """
    if not card.training_ids:
        return None
    known = {path.resolve().parent.name for path in sources.values()}
    known |= {re.sub(r"[_-][A-Za-z0-9]+$", "", without_suffix(path)) for path in sources.values()}
    return not known.isdisjoint(card.training_ids)
