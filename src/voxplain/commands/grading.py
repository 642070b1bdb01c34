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
    final: Annotated[bool, typer.Option(help="train a network on all patients but a few, too")] = True,
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Train a 3D DenseNet to tell tumours apart, from one label per scan, and score it on patients it has not seen.

    One network per fold, then one for use. Beside it stands what the mean intensity of each sequence over the brain
    tells. Finished folds are kept. Where a class has fewer than ten patients, every figure is marked "too few to mean
    anything".
    """
    from voxplain.datasets.tumour_classes import cohort
    from voxplain.studies import grading

    found = cohort(dataset, data)
    summary = grading.cross_validate(
        found,
        out,
        preset="quick" if quick else preset,
        folds=folds or (2 if quick else 5),
        final=final,
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
    if final:
        out_console.print(f"model: {out / 'final'}", highlight=False, soft_wrap=True)


def study_grading(
    data: Annotated[Path, typer.Option(help="folder of the data set, with expert masks")],
    out: Out,
    dataset: Annotated[str, typer.Option(help="brats (grades), or phantom (made with --types)")] = "phantom",
    networks: Annotated[
        Path | None, typer.Option(help="folder of a `voxplain train grading` run on these cases; else they are trained")
    ] = None,
    shortcut: Annotated[
        Path | None, typer.Option(help="phantoms of which one class bears the marker (--types --shortcut G)")
    ] = None,
    segmenter: Annotated[str | None, typer.Option(help="segmenter of the example that is diagnosed")] = None,
    folds: Folds = None,
    preset: PresetName = "small",
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Whether types are told apart, and whether the maps show the tumour: every CAM at every block, beside controls.

    With `--shortcut` a network learns phantoms of which one class bears a marker, and its maps must point at that.
    Resumable.
    """
    from voxplain.datasets.tumour_classes import cohort
    from voxplain.studies import grading_study

    grading_study.run(
        cohort(dataset, data),
        out,
        preset="quick" if quick else preset,
        folds=folds or (2 if quick else 5),
        networks=networks,
        shortcut=None if shortcut is None else cohort("phantom", shortcut),
        segmenter=segmenter,
        seed=seed,
        compute=compute_of(device, memory, threads),
        console=out_console,
    )
    out_console.print((out / "tables.md").read_text(encoding="utf-8"), highlight=False, soft_wrap=True, markup=False)
    out_console.print(f"tables: {out / 'tables.md'}, page: {out / 'report.html'}", highlight=False, soft_wrap=True)
