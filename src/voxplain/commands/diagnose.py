"""`voxplain diagnose`: which tumour, where it is, and whether the classifier looked there (paper grading, 003)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from voxplain.commands.options import (
    Device,
    Memory,
    Out,
    Seed,
    SequenceFile,
    Threads,
    compute_of,
    out_console,
    read_scan,
    scan_files,
    seen_by,
    sources_of,
)
from voxplain.engine.progress import console

_MODEL = "shipped name, folder, TorchScript file or python:pkg.mod:factory"


def diagnose_scan(
    classifier: Annotated[str, typer.Option(help=f"says the class of a whole scan: {_MODEL}")],
    segmenter: Annotated[str, typer.Option(help=f"segments the parts of the tumour: {_MODEL}")],
    out: Out,
    scan: Annotated[Path | None, typer.Option(help="patient folder")] = None,
    flair: SequenceFile = None,
    t1: SequenceFile = None,
    t1ce: SequenceFile = None,
    t2: SequenceFile = None,
    method: Annotated[
        str, typer.Option(help="grad-cam, grad-cam++, hires-cam, layer-cam or score-cam, at every block")
    ] = "grad-cam",
    reference: Annotated[Path | None, typer.Option(help="expert mask, with which maps are compared instead")] = None,
    colours: Annotated[
        str, typer.Option(help="of the pictures: uniform (perceptually), or paper (dark blue to dark red)")
    ] = "uniform",
    depths: Annotated[int, typer.Option(min=1, help="axial slices in the picture, spread over the tumour")] = 3,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Classify a tumour, segment it, show what the classifier looked at, layer by layer, and measure if they agree.

    Writes the class with its probabilities, the masks of whole tumour, core and enhancing tumour, the map of every
    block on the scan's grid, and a page. Research software: not for diagnosis.
    """
    from voxplain.diagnosis import diagnose
    from voxplain.io.bundle import load_model
    from voxplain.io.nifti import read_labels
    from voxplain.report.diagnosis_page import agreement_rows
    from voxplain.studies.diagnosis_files import cam_named, write_diagnosis

    explainer = cam_named(method, colours)
    given = {"flair": flair, "t1": t1, "t1ce": t1ce, "t2": t2}
    files = scan_files(scan, [f"{name}={path}" for name, path in given.items() if path is not None])
    image = read_scan(files)
    truth = None if reference is None else read_labels(reference)
    models = {"classifier": load_model(classifier), "segmenter": load_model(segmenter)}
    found = diagnose(
        models["classifier"],
        models["segmenter"],
        image,
        explainer=explainer,
        tumour=truth,
        seed=seed,
        compute=compute_of(device, memory, threads),
        progress=lambda words: console.print(words, highlight=False),
    )
    sources = sources_of(files)
    seen = {name: seen_by(model.card, sources) for name, model in models.items()}
    paths = write_diagnosis(found, image, out, sources=sources, seen=seen, truth=truth, colours=colours, depths=depths)
    for name, value in sorted(found.probabilities.items(), key=lambda item: -item[1]):
        out_console.print(f"{name}: probability {value:.3f}", highlight=False)
    for name, mask in found.regions.items():
        out_console.print(f"{name}: {mask.volume:.1f} ml", highlight=False)
    # Names this short fit into 80 columns.
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("map", "cell, mm", "mass in", "peak in", "Dice", "mm away", "evidence"):
        table.add_column(column, overflow="fold")
    for row in agreement_rows(found.agreement):
        cells = ("short", "cell_mm", "mass", "pointing", "dice", "peak", "place")
        table.add_row(*(str(row[cell]) for cell in cells))
    out_console.print(table)
    out_console.print(found.sentence, highlight=False)
    out_console.print("Research software: not for diagnosis.", highlight=False)
    for name, path in paths.items():
        out_console.print(f"{name}: {path}", highlight=False, soft_wrap=True)
