"""`voxplain train segmentation`."""

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


def train_segmentation(
    data: Annotated[Path, typer.Option(help="folder of the data set")],
    out: Out,
    dataset: Annotated[str, typer.Option(help="msd (Task01 of the Decathlon), brats, or phantom")],
    folds: Folds = None,
    preset: PresetName = "small",
    outputs: Annotated[
        str, typer.Option(help="parts: oedema, non-enhancing, enhancing; regions: ET, TC, WT")
    ] = "parts",
    final: Annotated[bool, typer.Option(help="train a network on all patients, too")] = True,
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Train a network to segment the parts of gliomas, and score it on patients it has not seen.

    SegResNet, with a variational branch that rebuilds the image during training. One network per fold, then one on all
    patients. Finished folds are kept. Preset `unet` is a U-Net without such a branch, which learns faster; `phantom`
    is half as wide, for phantoms.
    """
    from voxplain.datasets.tumour_masks import cohort
    from voxplain.studies import tumour_segmentation

    tumour_segmentation.cross_validate(
        cohort(dataset, data),
        out,
        preset="quick" if quick else preset,
        outputs=outputs,
        folds=folds or (2 if quick else 5),
        final=final,
        seed=seed,
        compute=compute_of(device, memory, threads),
    )
    out_console.print((out / "tables.md").read_text(encoding="utf-8"), highlight=False, soft_wrap=True, markup=False)
    out_console.print(f"folds: {out}, tables: {out / 'tables.md'}", highlight=False, soft_wrap=True)
    if final:
        out_console.print(f"model: {out / 'final'}", highlight=False, soft_wrap=True)
