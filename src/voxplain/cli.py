"""The command line: argument parsing only."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import voxplain.explain
from voxplain import segment
from voxplain.compute import Compute
from voxplain.datasets.brats import SEQUENCES
from voxplain.errors import InputError
from voxplain.explain.explainer import Explainer
from voxplain.explanation import Explanation
from voxplain.io.atomic import output_folder
from voxplain.io.bundle import load_model
from voxplain.io.nifti import read, read_sequences
from voxplain.results import print_ranks, write_results
from voxplain.scan import Labels, Scan
from voxplain.target import ClassScore

app = typer.Typer(
    help="Explain networks that read 3D medical images, and turn the explanations into segmentations.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
explain_app = typer.Typer(
    help="Explain what a network says of a scan: one sub-command per method.", no_args_is_help=True
)
train_app = typer.Typer(help="Train a network on labels of whole inputs.", no_args_is_help=True)
evaluate_app = typer.Typer(help="Score a model's maps against expert masks, without training.", no_args_is_help=True)
study_app = typer.Typer(help="Run a whole experiment: train, explain, score, tables.", no_args_is_help=True)
for name, group in (("explain", explain_app), ("train", train_app), ("evaluate", evaluate_app), ("study", study_app)):
    app.add_typer(group, name=name)

out_console = Console()
error_console = Console(stderr=True)

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Memory = Annotated[str, typer.Option(help="limit for one batch of inputs and activations, such as 4GB")]
Threads = Annotated[int | None, typer.Option(help="CPU threads")]
Seed = Annotated[int, typer.Option(help="seed of everything random")]
Data = Annotated[Path, typer.Option(help="folder of patients in BraTS layout")]
Out = Annotated[Path, typer.Option(help="folder for the results")]
ModelName = Annotated[str, typer.Option(help="shipped name, folder, TorchScript file or python:pkg.mod:factory")]
CardFile = Annotated[Path | None, typer.Option(help="model card (JSON) for TorchScript files and Python factories")]
PresetName = Annotated[str, typer.Option(help="small (two CPU cores) or paper (the paper's sizes, for a GPU)")]
Folds = Annotated[int | None, typer.Option(min=2, help="folds by patient; five by default")]
Layers = Annotated[list[str] | None, typer.Option("--layer", help="layer for Grad-CAM rows; may come several times")]
Quick = Annotated[bool, typer.Option("--quick", help="smoke run: every step in seconds, figures mean nothing")]
Fill = Annotated[str, typer.Option(help="fill of the relevance map: blank, min or max")]


@app.command()
def methods() -> None:
    """List every explainer: family, what it needs of a model, cost in passes per region."""
    table = Table()
    for column in ("method", "family", "needs", "cost", "what it shows"):
        table.add_column(column, overflow="fold")
    for method in known_explainers().values():
        summary = (inspect.getdoc(method) or "").split("\n\n")[0].replace("\n", " ")
        table.add_row(method.name, method.family, method.needs, method.cost, summary)
    out_console.print(table)


@app.command()
def demo(
    out: Out = Path("demo"),
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Explain a made scan with the shipped weights: map, mask and rank table, beside the known truth."""
    from voxplain.studies.demo import run_demo

    run_demo(out, seed=seed, compute=_compute(device, memory, threads), console=out_console)


@train_app.command("hemispheres")
def train_hemispheres(
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
    """Train a 3D ResNet to tell which half of the head holds tumour, from one label per half.

    With --folds only the folds, with --final only the final network; with neither, five folds and then the final one.
    Finished parts are kept, and a training that was stopped goes on from its last epoch.
    """
    from voxplain.studies import hemispheres

    compute = _compute(device, memory, threads)
    cases = _cases(data)
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


@evaluate_app.command("hemispheres")
def evaluate_hemispheres(
    model: ModelName,
    data: Data,
    out: Out,
    layer: Layers = None,
    fill: Fill = "blank",
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
        [case for case in _cases(data) if case.segmentation is not None][: 2 if quick else None],
        out,
        explainers=evaluation.default_explainers(loaded, layer, fill=fill, segments=10 if quick else 100),
        seed=seed,
        compute=_compute(device, memory, threads),
        console=out_console,
    )
    out_console.print(f"tables: {out / 'scores.tsv'}, {out / 'cases.tsv'}", highlight=False, soft_wrap=True)


@study_app.command("hemispheres")
def study_hemispheres(
    data: Data,
    out: Out,
    folds: Folds = None,
    preset: PresetName = "small",
    quick: Quick = False,
    layer: Layers = None,
    fill: Fill = "blank",
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Cross-validate, then explain and score every patient with the network that has not seen them; resumable."""
    from voxplain.studies import hemispheres

    hemispheres.study(
        _cases(data),
        out,
        layers=layer,
        fill=fill,
        segments=10 if quick else 100,
        preset="quick" if quick else preset,
        folds=folds or (2 if quick else 5),
        seed=seed,
        compute=_compute(device, memory, threads),
        console=out_console,
    )
    out_console.print(f"tables: {out / 'scores.tsv'}, {out / 'cases.tsv'}", highlight=False, soft_wrap=True)


def known_explainers() -> dict[str, type[Explainer]]:
    """Every explainer of voxplain by its name on the command line."""
    kinds = [getattr(voxplain.explain, name) for name in voxplain.explain.__all__]
    return {kind.name: kind for kind in sorted(kinds, key=lambda kind: kind.name)}


def _compute(device: str, memory: str, threads: int | None) -> Compute:
    return Compute(device=device, memory=memory, threads=threads, progress=True)


def _cases(data: Path) -> list[Any]:
    from voxplain.datasets import brats

    return brats.cases(data)


def _scan(folder: Path | None, named: list[str]) -> Scan:
    """The scan of a patient folder, or of files given as name=path."""
    given: dict[str, Path] = {}
    for text in named:
        name, separator, path = text.partition("=")
        if not separator or not name or not path:
            raise InputError(f"--sequence is name=file.nii.gz; got {text!r}")
        if name in given:
            raise InputError(f"sequence {name} is given twice: {given[name]} and {path}; give each one once")
        given[name] = Path(path)
    if (folder is None) == (not given):
        raise InputError(
            "give either --scan with a patient folder, or one file per sequence (--flair, --t1, --t1ce, --t2, "
            "--sequence name=file)"
        )
    return read(folder) if folder is not None else read_sequences(given)


def _mask_rule(rule: str) -> Callable[..., Labels]:
    """What makes the mask: otsu, multi-otsu, top:N or fixed:VALUE; read before the work begins."""
    kind, _, argument = rule.partition(":")
    try:
        if rule == "otsu":
            return segment.otsu
        if rule == "multi-otsu":
            return segment.multi_otsu
        if kind == "top":
            return partial(segment.top_ranks, count=int(argument))
        if kind == "fixed":
            return partial(segment.fixed, threshold=float(argument))
    except ValueError:
        pass
    raise InputError(f"--mask is otsu, multi-otsu, top:N (ranks) or fixed:VALUE; got {rule!r}")


def _explain(kind: type[Explainer], options: dict[str, Any], run: dict[str, Any]) -> None:
    compute = Compute(
        device=run["device"],
        memory=run["memory"],
        threads=run["threads"],
        batch_size=run["batch_size"],
        progress=True,
    )
    explainer = kind(**options)
    output_folder(run["out"])
    make_mask = _mask_rule(run["mask_rule"])
    sequences = [f"{name}={path}" for name in SEQUENCES for path in run[name] or []]
    scan = _scan(run["scan"], [*sequences, *(run["sequence"] or [])])
    model = load_model(run["model"], run["card"])
    target = ClassScore(run["target"] or model.card.classes[0])
    explanation = explainer(model, scan, target=target, seed=run["seed"], compute=compute)
    mask = make_mask(
        explanation,
        smallest=run["smallest"],
        components=run["components"],
        mask=Labels(scan.foreground(), scan.grid),
    )
    paths = write_results(explanation, mask, kind.name, run["out"], rule=run["mask_rule"])
    _print_results(explanation, mask, paths)


def _print_results(explanation: Explanation, mask: Labels, paths: dict[str, Path]) -> None:
    for region in explanation.regions:
        verdict = "positive" if region.positive else "negative: its mask is left empty"
        out_console.print(f"{region.name}: probability {region.probability:.3f}, {verdict}", highlight=False)
    print_ranks(explanation, out_console)
    out_console.print(f"mask: {mask.volume:.1f} ml", highlight=False)
    for name, path in paths.items():
        out_console.print(f"{name}: {path}", highlight=False, soft_wrap=True)


def _command(kind: type[Explainer]) -> Callable[..., None]:
    """A sub-command whose flags are the explainer's own fields, followed by what every explanation needs."""

    def option(name: str, annotation: Any, default: Any, *declaration: str, **settings: Any) -> inspect.Parameter:
        info = typer.Option(*declaration, **settings)
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, info]
        )

    required = inspect.Parameter.empty
    fields = dataclasses.fields(kind)
    types = {"str": str, "int": int, "float": float, "bool": bool, "str | None": str | None}
    parameters = [
        option("model", str, required, help="shipped name, folder, TorchScript file or python:pkg.mod:factory"),
        option("out", Path, required, help="folder for the results"),
        option("scan", Path | None, None, help="patient folder in BraTS layout"),
        *(option(name, list[Path] | None, None, help=f"{name} file") for name in SEQUENCES),
        option("sequence", list[str] | None, None, help="another sequence, name=file.nii.gz; may come several times"),
        *(option(f.name, types[str(f.type)], f.default, help=f.metadata["help"]) for f in fields if f.name != "mask"),
        *(
            option("parts_mask", str, f.default, "--parts-mask", help=f.metadata["help"])
            for f in fields
            if f.name == "mask"
        ),
        option("target", str | None, None, help="class to explain; the card's first by default"),
        option("mask_rule", str, "otsu", "--mask", help="otsu, multi-otsu, top:N (ranks) or fixed:VALUE"),
        option("smallest", float, 0.0, help="drop components of the mask below this volume in mm^3"),
        option("components", int | None, None, help="keep this many of the mask's largest components per region"),
        option("card", Path | None, None, help="model card (JSON) for TorchScript files and Python factories"),
        option("seed", int, 0, help="seed of everything random"),
        option("device", str, "auto", help="auto, cpu, cuda or cuda:N"),
        option("memory", str, "2GB", help="limit for one batch of inputs and activations, such as 4GB"),
        option("batch_size", int | None, None, help="inputs at a time; follows from --memory by default"),
        option("threads", int | None, None, help="CPU threads"),
    ]

    def command(**given: Any) -> None:
        options = {f.name: given["parts_mask" if f.name == "mask" else f.name] for f in fields}
        _explain(kind, options, given)

    command.__doc__ = inspect.getdoc(kind)
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


for _name, _kind in known_explainers().items():
    explain_app.command(_name)(_command(_kind))


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        error_console.print(f"warning: {message}", highlight=False, soft_wrap=True, markup=False)


def main() -> None:
    """Run the command line: bad input is one line on standard error and exit code 2; Ctrl-C is 130."""
    warnings.showwarning = _show_warning
    # nibabel logs what it finds in a header before it raises; the error says it once.
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    try:
        app(standalone_mode=True)
    except InputError as error:
        error_console.print(f"error: {error}", highlight=False, soft_wrap=True, markup=False)
        sys.exit(2)
    except SystemExit as error:
        if error.code == 130:  # how typer passes Ctrl-C on
            error_console.print("stopped; what is finished is kept, nothing is half-written", highlight=False)
        raise


if __name__ == "__main__":
    main()
