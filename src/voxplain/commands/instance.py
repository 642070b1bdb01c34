"""`voxplain evaluate instance` and `voxplain study instance`: what lesion maps tell (paper instance, 004)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voxplain.commands.options import (
    CardFile,
    Device,
    Memory,
    ModelName,
    Out,
    PresetName,
    Quick,
    Seed,
    Threads,
    compute_of,
    out_console,
)
from voxplain.io.bundle import load_model

Patients = Annotated[
    Path, typer.Option(help="patients in Lesjak's layout: patientNN/FLAIR.nii.gz, T1.nii.gz, consensus_gt.nii.gz")
]
KeepMaps = Annotated[bool, typer.Option("--keep-maps", help="keep the maps themselves, in OUT/maps/")]


def evaluate_instance(
    model: ModelName,
    data: Patients,
    out: Out,
    preset: PresetName = "small",
    card: CardFile = None,
    keep_maps: KeepMaps = False,
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Which lesions a network finds, and what its maps of TP, FP, FN and TN say; no training; resumable."""
    from voxplain.studies import instance

    instance.evaluate(
        load_model(model, card),
        data,
        out,
        size="quick" if quick else preset,
        seed=seed,
        keep_maps=keep_maps,
        compute=compute_of(device, memory, threads),
        console=out_console,
    )
    _show(out)


def study_instance(
    data: Patients,
    out: Out,
    preset: PresetName = "small",
    networks: Annotated[
        Path | None,
        typer.Option(help="folder of `voxplain train lesions`: without-ID/ explains patient ID, whom it has not seen"),
    ] = None,
    model: Annotated[
        str, typer.Option(help="shipped name or folder: explains phantoms, and without --networks everyone")
    ] = "ms-lesions",
    card: CardFile = None,
    keep_maps: KeepMaps = False,
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """The experiments of paper instance: sequences, classes, placements, context, other methods; resumable."""
    from voxplain.studies import instance

    instance.study(
        load_model(model, card),
        data,
        out,
        networks=networks,
        size="quick" if quick else preset,
        seed=seed,
        keep_maps=keep_maps,
        compute=compute_of(device, memory, threads),
        console=out_console,
    )
    _show(out)


def _show(out: Path) -> None:
    out_console.print((out / "tables.md").read_text(encoding="utf-8"), highlight=False, markup=False, soft_wrap=True)
    written = ", ".join(str(out / name) for name in ("lesions.tsv", "scores.tsv", "tables.md", "report.html"))
    out_console.print(f"tables: {written}", highlight=False, soft_wrap=True)
