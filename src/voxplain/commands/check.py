"""`voxplain check`: maps on disk are put to the test, and keep what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voxplain.commands.options import (
    CardFile,
    Device,
    Memory,
    ModelName,
    Quick,
    Seed,
    SequenceFile,
    Threads,
    out_console,
)
from voxplain.commands.report import explained_scan, results_in
from voxplain.compute import Compute
from voxplain.io.bundle import load_model
from voxplain.prediction import read_lesions
from voxplain.results import Result, lesion_of, write_checks
from voxplain.scan import Scan
from voxplain.target import RegionScore


def check_results(
    results: Annotated[list[Path], typer.Argument(help="folders that `voxplain explain` wrote")],
    model: ModelName,
    card: CardFile = None,
    shuffled: Annotated[
        str | None, typer.Option(help="the same network trained on shuffled labels, for label randomisation")
    ] = None,
    scan: Annotated[Path | None, typer.Option(help="patient folder or single file, where it has moved")] = None,
    flair: SequenceFile = None,
    t1: SequenceFile = None,
    t1ce: SequenceFile = None,
    t2: SequenceFile = None,
    sequence: Annotated[list[str] | None, typer.Option(help="another sequence, name=file.nii.gz")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    engine: Annotated[
        str, typer.Option(help="incremental: only what a perturbation can change runs again; full; or auto")
    ] = "auto",
    threads: Threads = None,
    quick: Quick = False,
) -> None:
    """Put maps to the test: does the score hang on what they show, and do they speak of what the network learnt?"""
    from voxplain.checks.check import check

    found, names = results_in(results)
    given = {"flair": flair, "t1": t1, "t1ce": t1ce, "t2": t2}
    named = [*(f"{name}={path}" for name, path in given.items() if path is not None), *(sequence or [])]
    whole, _ = explained_scan(found, scan, named)
    trained = load_model(model, card)
    untrained = None if shuffled is None else load_model(shuffled, card)
    compute = Compute(device=device, memory=memory, engine=engine, threads=threads, progress=True)
    for result, name in zip(found, names, strict=True):
        its_scan = whole.select(result.explanation.provenance["scan"]["channels"])
        checked = check(
            result.explanation,
            trained,
            its_scan,
            target=_lesion(result, whole),
            shuffled=untrained,
            quick=quick,
            seed=seed,
            compute=compute,
        )
        checks = checked.provenance["checks"]
        path = write_checks(result, checks)
        out_console.print(f"{name}:", highlight=False)
        for line, content in checks["lines"].items():
            out_console.print(f"  {line}: {content['verdict']} ({content['said']})", highlight=False, soft_wrap=True)
        run = checks["run"]
        out_console.print(f"  {run['passes']} passes, {run['seconds']:.0f} s: {path}", highlight=False, soft_wrap=True)


def _lesion(result: Result, scan: Scan) -> RegionScore | None:
    """The lesion that was explained, from the labels beside the map; None where it was something else."""
    if lesion_of(result.folder, result.name) is None:
        return None
    stated = result.explanation.provenance["target"]
    lesions = read_lesions(result.folder, scan.grid)
    lesions.check(int(stated["label"]))
    return RegionScore(str(stated["name"]), lesions.labels, int(stated["label"]))
