"""`voxplain train lesions`: a segmentation network for lesions of multiple sclerosis (paper instance, 004)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voxplain.commands.options import Device, Memory, Out, PresetName, Quick, Seed, Threads, compute_of, out_console


def train_lesions(
    data: Annotated[
        Path, typer.Option(help="patients in Lesjak's layout, and lesion_masks/ of others as shapes of made lesions")
    ],
    out: Out,
    preset: PresetName = "small",
    leave_out: Annotated[str | None, typer.Option(help="train and score without this patient alone")] = None,
    final: Annotated[bool, typer.Option(help="train the network on all patients, too")] = True,
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Train a 3D U-Net on FLAIR and T1, leaving each patient out once, then on all of them; resumable."""
    from voxplain.studies import lesions

    lesions.train(
        data,
        out,
        size="quick" if quick else preset,
        leave_out=leave_out,
        final=final,
        seed=seed,
        compute=compute_of(device, memory, threads),
        console=out_console,
    )
    out_console.print((out / "tables.md").read_text(encoding="utf-8"), highlight=False, soft_wrap=True, markup=False)
