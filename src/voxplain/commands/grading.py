"""`voxplain train grading`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voxplain.commands.options import (
    Device,
    Folds,
    Memory,
    Out,
    PresetName,
    Quick,
    Seed,
    Threads,
    compute_of,
    out_console,
)


def train_grading(
    data: Annotated[Path, typer.Option(help="folder of the data set")],
    out: Out,
    dataset: Annotated[str, typer.Option(help="cpm-radpath, brats (grades), or phantom (made with --types)")],
    folds: Folds = None,
    preset: PresetName = "small",
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Train a 3D DenseNet to tell tumours apart, from one label per scan, and score it on patients it has not seen.

    One network per fold. Beside it stands what the mean intensity of each sequence over the brain tells. Finished folds
    are kept. Where a class has fewer than ten patients, every figure is marked "too few to mean anything".
    """
    from voxplain.datasets.tumour_classes import cohort
    from voxplain.studies import grading

    found = cohort(dataset, data)
    summary = grading.cross_validate(
        found,
        out,
        preset="quick" if quick else preset,
        folds=folds or (2 if quick else 5),
        seed=seed,
        compute=compute_of(device, memory, threads),
    )
    mark = "" if found.caution is None else f": {found.caution}"
    for line in summary[summary["table"] == grading.ALL].to_dict("records"):
        words = f"{line['row']}: {line['metric']} {line['value']:.3f} [{line['low']:.3f}, {line['high']:.3f}]"
        out_console.print(
            f"{words} (95 % over {line['n']} patients){mark}", highlight=False, soft_wrap=True, markup=False
        )
    out_console.print(f"folds: {out}, tables: {out / 'tables.md'}", highlight=False, soft_wrap=True)
