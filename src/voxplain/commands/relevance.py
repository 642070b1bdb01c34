"""`voxplain evaluate|study relevance`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voxplain.commands.options import (
    CardFile,
    Data,
    Device,
    Fill,
    Folds,
    Layers,
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

_Count = Annotated[int | None, typer.Option(min=0, help="of so many folds, from the first on; the preset's by default")]


def evaluate_relevance(
    model: ModelName,
    data: Data,
    out: Out,
    fill: Fill = "blank",
    grid: Annotated[
        bool, typer.Option(help="also run the grid of sequences, supervoxels and fills (an oracle here)")
    ] = True,
    layer: Layers = None,
    preset: PresetName = "small",
    card: CardFile = None,
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Score every row of the relevance study for a model as it is: no training, on any folder in BraTS layout.

    --fill optimal:DIR stands beside blank; its network must have been trained for this model. Each finished case and
    method is kept.
    """
    from voxplain.studies import relevance
    from voxplain.studies.relevance_presets import preset_of

    relevance.evaluate(
        load_model(model, card),
        cases_in(data),
        out,
        size=preset_of("quick" if quick else preset),
        fill=fill,
        grid=grid,
        layers=layer,
        seed=seed,
        compute=compute_of(device, memory, threads),
        console=out_console,
    )
    _print_paths(out)


def study_relevance(
    data: Data,
    out: Out,
    label: Annotated[
        str, typer.Option(help="hemisphere (which half holds tumour) or grade (high-grade or low-grade)")
    ] = "hemisphere",
    fill: Annotated[
        str,
        typer.Option(help="beside blank: optimal (trains one network a fold), blank for none, or another fill"),
    ] = "optimal",
    loss: Annotated[str, typer.Option(help="of the optimal fill, as in train perturbation")] = "reciprocal",
    layer: Layers = None,
    preset: PresetName = "small",
    folds: Folds = None,
    grid_folds: _Count = None,
    methods_folds: _Count = None,
    optimal_folds: _Count = None,
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Run the relevance papers' evaluations 1, 2, 3 and 5 on test patients, their figures beside ours; resumable.

    --grid-folds is for the grid on validation patients, --methods-folds for every method on test patients, and
    --optimal-folds for the perturbation networks. Folds that lie finished in OUT are used as they are.
    """
    from voxplain.studies import relevance
    from voxplain.studies.relevance_presets import preset_of

    size = preset_of(
        "quick" if quick else preset,
        folds=folds,
        grid_folds=grid_folds,
        methods_folds=methods_folds,
        optimal_folds=optimal_folds,
    )
    relevance.study(
        cases_in(data),
        out,
        label=label,
        size=size,
        fill=fill,
        loss=loss,
        layers=layer,
        seed=seed,
        compute=compute_of(device, memory, threads),
        console=out_console,
    )
    _print_paths(out / "relevance")


def _print_paths(out: Path) -> None:
    tables = ", ".join(str(out / name) for name in ("tables.md", "scores.tsv", "cases.tsv"))
    out_console.print(f"tables: {tables}", highlight=False, soft_wrap=True)
    out_console.print(f"report: {out / 'report.html'}  (open it in a browser)", highlight=False, soft_wrap=True)
