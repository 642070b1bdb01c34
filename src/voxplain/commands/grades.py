"""`voxplain train grades`, `voxplain study grade-phantoms`."""

from __future__ import annotations

from typing import Annotated

import typer

from voxplain.commands.options import (
    Data,
    Device,
    Folds,
    Memory,
    Out,
    PresetName,
    Quick,
    Seed,
    Threads,
    cases_in,
    compute_of,
    out_console,
)


def train_grades(
    data: Data,
    out: Out,
    folds: Folds = None,
    final: Annotated[
        bool, typer.Option("--final", help="train on all patients, for the folds' median best epoch")
    ] = False,
    preset: PresetName = "small",
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Train a 3D ResNet to tell gliomas of high grade from those of low grade, from one label per scan.

    With --folds only the folds, with --final only the final network; with neither, five folds and then the final one.
    Patients without a grade are left out. Where a grade has fewer than ten patients, every figure is marked "too few to
    mean anything".
    """
    from voxplain.studies import grades

    compute = compute_of(device, memory, threads)
    cases = cases_in(data)
    preset = "quick" if quick else preset
    if folds is not None or not final:
        count = folds or (2 if quick else 5)
        summary = grades.cross_validate(cases, out, preset=preset, folds=count, seed=seed, compute=compute)
        mark = f": {summary['caution']}" if "caution" in summary else ""
        for name in ("auc", "balanced_accuracy"):
            low, high = summary[f"{name}_interval"]
            words = f"{name} {summary[name]:.3f} [{low:.3f}, {high:.3f}] (95 % over {summary['n_patients']} patients)"
            out_console.print(words + mark, highlight=False, soft_wrap=True, markup=False)
        out_console.print(f"folds and figures: {out}", highlight=False, soft_wrap=True)
    if final or folds is None:
        grades.train_final(cases, out, preset=preset, seed=seed, compute=compute)
        out_console.print(f"model: {out / 'final'}", highlight=False, soft_wrap=True)


def study_grade_phantoms(
    out: Out,
    n: Annotated[int, typer.Option("--n", help="patients of each cohort, half of high and half of low grade")] = 60,
    preset: Annotated[str, typer.Option(help="phantoms (seconds a fold, 4 mm), small or paper")] = "phantoms",
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Check the grade task on phantoms: maps must show the tumour, or a shortcut where one was planted; resumable.

    Makes two cohorts of the same patients, without and with a marker outside the tumour that all patients of high grade
    bear; trains on both, and looks at which supervoxel of each unseen patient is the most relevant.
    """
    from voxplain.studies import grade_phantoms

    grade_phantoms.study(
        out,
        n=min(n, 6) if quick else n,
        preset="quick" if quick else preset,
        seed=seed,
        compute=compute_of(device, memory, threads),
        console=out_console,
    )
    out_console.print(f"tables: {out / 'scores.tsv'}, {out / 'tables.md'}", highlight=False, soft_wrap=True)
