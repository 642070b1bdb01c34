"""`voxplain train|evaluate|study hemispheres`."""

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
    Methods,
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

HemispherePreset = Annotated[
    str,
    typer.Option(
        help="small (two CPU cores), gp (as small, a network that explains itself) or paper (its sizes, for a GPU)"
    ),
]


def train_hemispheres(
    data: Data,
    out: Out,
    folds: Folds = None,
    final: Annotated[
        bool, typer.Option("--final", help="train on all patients, for the folds' median best epoch")
    ] = False,
    preset: HemispherePreset = "small",
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Train a 3D network to tell which half of the head holds tumour, from one label per half.

    A ResNet, or with `--preset gp` a U-Net that explains itself (paper gp).

    With --folds only the folds, with --final only the final network; with neither, five folds and then the final one.
    Finished parts are kept, and a training that was stopped goes on from its last epoch.
    """
    from voxplain.studies import hemispheres

    compute = compute_of(device, memory, threads)
    cases = cases_in(data)
    preset = "quick" if quick else preset
    if folds is not None or not final:
        count = folds or (2 if quick else 5)
        summary = hemispheres.cross_validate(cases, out, preset=preset, folds=count, seed=seed, compute=compute)
        for name in ("auc", "balanced_accuracy"):
            low, high = summary[f"{name}_interval"]
            out_console.print(
                f"{name} {summary[name]:.3f} [{low:.3f}, {high:.3f}] (95 % over {summary['n_patients']} patients)",
                highlight=False,
            )
        out_console.print(f"folds and figures: {out}", highlight=False, soft_wrap=True)
    if final or folds is None:
        hemispheres.train_final(cases, out, preset=preset, seed=seed, compute=compute)
        out_console.print(f"model: {out / 'final'}", highlight=False, soft_wrap=True)


def evaluate_hemispheres(
    model: ModelName,
    data: Data,
    out: Out,
    layer: Layers = None,
    fill: Fill = "blank",
    method: Methods = None,
    card: CardFile = None,
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Score a hemisphere model's maps on any folder in BraTS layout: tables, scores.tsv and cases.tsv."""
    from voxplain.studies import evaluation

    loaded = load_model(model, card)
    evaluation.evaluate(
        loaded,
        [case for case in cases_in(data) if case.segmentation is not None][: 2 if quick else None],
        out,
        explainers=evaluation.default_explainers(
            loaded, layer, fill=fill, segments=10 if quick else 100, methods=method
        ),
        seed=seed,
        compute=compute_of(device, memory, threads),
        console=out_console,
    )
    _print_paths(out)


def study_hemispheres(
    data: Data,
    out: Out,
    folds: Folds = None,
    preset: HemispherePreset = "small",
    quick: Quick = False,
    layer: Layers = None,
    fill: Fill = "blank",
    method: Methods = None,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Cross-validate, then explain and score every patient with the network that has not seen them; resumable."""
    from voxplain.studies import hemispheres

    hemispheres.study(
        cases_in(data),
        out,
        layers=layer,
        fill=fill,
        segments=10 if quick else 100,
        methods=method,
        preset="quick" if quick else preset,
        folds=folds or (2 if quick else 5),
        seed=seed,
        compute=compute_of(device, memory, threads),
        console=out_console,
    )
    _print_paths(out)


def study_refinement(
    data: Data,
    out: Out,
    folds: Folds = None,
    preset: PresetName = "small",
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Finish maps on the scan's intensities, beside the same finishes of random maps and what needs no network.

    The folds are those of `voxplain study hemispheres`; finished ones in OUT are kept.
    """
    from voxplain.studies import refinement

    summary = refinement.study(
        cases_in(data),
        out,
        preset="quick" if quick else preset,
        folds=folds or (2 if quick else 5),
        segments=10 if quick else 100,
        draws=1 if quick else refinement.DRAWS,
        seed=seed,
        compute=compute_of(device, memory, threads),
        console=out_console,
    )
    for line in refinement.summary_lines(summary):
        out_console.print(line, highlight=False, soft_wrap=True)
    _print_paths(out / "refinement", report=False)


def _print_paths(out: Path, *, report: bool = True) -> None:
    out_console.print(f"tables: {out / 'scores.tsv'}, {out / 'cases.tsv'}", highlight=False, soft_wrap=True)
    if report:
        out_console.print(f"report: {out / 'report.html'}  (open it in a browser)", highlight=False, soft_wrap=True)
