"""`voxplain train perturbation`."""

from __future__ import annotations

from typing import Annotated

import typer

from voxplain.commands.options import (
    CardFile,
    Data,
    Device,
    Memory,
    ModelName,
    Out,
    PresetName,
    Quick,
    Seed,
    Threads,
    cases_in,
    compute_of,
    out_console,
)
from voxplain.io.bundle import load_model


def train_perturbation(
    model: ModelName,
    data: Data,
    out: Out,
    preset: PresetName = "small",
    loss: Annotated[str, typer.Option(help="reciprocal (the papers'), logarithm or difference (ours)")] = "reciprocal",
    exclude: Annotated[
        list[str] | None, typer.Option(help="patient folder to hold out; may come several times")
    ] = None,
    held_out: Annotated[int | None, typer.Option(min=0, help="score so many held-out patients at most")] = None,
    card: CardFile = None,
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Train a network that fills supervoxels so that a classifier answers differently: --fill optimal:OUT.

    Six inputs, three that the classifier calls positive and three negative; no labels and no expert masks. Then it
    says of held-out patients how far the output moves, beside the blank fill. A training that was stopped goes on from
    its last epoch.
    """
    from voxplain.studies.perturbation import train_optimal

    table = train_optimal(
        load_model(model, card),
        cases_in(data),
        out,
        preset="quick" if quick else preset,
        loss=loss,
        exclude=exclude or (),
        held_out=held_out,
        seed=seed,
        compute=compute_of(device, memory, threads),
    )
    for line in table.to_dict(orient="records"):
        out_console.print(
            f"{line['row']} {line['metric']} {line['value']:.4g} [{line['low']:.4g}, {line['high']:.4g}] "
            f"(95 % over {line['n']} held-out patients)",
            highlight=False,
            soft_wrap=True,
        )
    gains = table[table["metric"] == "gain_over_blank"]
    if len(gains) and not bool((gains["low"] > 0).all()):
        out_console.print(
            "not shown to move the output further than blank does: train longer, or with --loss difference",
            highlight=False,
            soft_wrap=True,
        )
    out_console.print(f"perturbation network: {out}  (--fill optimal:{out})", highlight=False, soft_wrap=True)
