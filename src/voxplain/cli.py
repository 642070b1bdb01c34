"""The command line: argument parsing only."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import voxplain.explain
from voxplain import segment
from voxplain.compute import Compute
from voxplain.datasets.brats import GRADES, SEQUENCES
from voxplain.datasets.case import Case
from voxplain.engine.probe import tracked
from voxplain.errors import InputError
from voxplain.explain.explainer import Explainer
from voxplain.explanation import Explanation
from voxplain.io.atomic import output_folder
from voxplain.io.bundle import load_model
from voxplain.io.nifti import read_labels, read_sequences
from voxplain.io.sequences import canonical, patient_folder_files, without_suffix
from voxplain.results import Result, print_ranks, read_results, write_results
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
phantom_app = typer.Typer(
    help="Make phantoms: brain scans with known lesions, to check software.", no_args_is_help=True
)
for name, group in (
    ("explain", explain_app),
    ("train", train_app),
    ("evaluate", evaluate_app),
    ("study", study_app),
    ("phantom", phantom_app),
):
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
Count = Annotated[int, typer.Option("--n", help="patients")]
Spacing = Annotated[float, typer.Option(help="voxel size in mm, 1 or 2")]
Quick = Annotated[bool, typer.Option("--quick", help="smoke run: every step in seconds, figures mean nothing")]
SequenceFile = Annotated[Path | None, typer.Option(help="file of this sequence")]
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


@app.command("report")
def report_results(
    results: Annotated[list[Path], typer.Argument(help="folders that `voxplain explain` wrote")],
    scan: Annotated[Path | None, typer.Option(help="patient folder, where its files have moved")] = None,
    flair: SequenceFile = None,
    t1: SequenceFile = None,
    t1ce: SequenceFile = None,
    t2: SequenceFile = None,
    sequence: Annotated[list[str] | None, typer.Option(help="another sequence, name=file.nii.gz")] = None,
    truth: Annotated[Path | None, typer.Option(help="expert mask, NIfTI; anything above 0 is inside")] = None,
    title: Annotated[str | None, typer.Option(help="title of the page")] = None,
    note: Annotated[str | None, typer.Option(help="a banner, such as 'phantom (software check)'")] = None,
    out: Annotated[Path | None, typer.Option(help="the page; report.html in the first folder by default")] = None,
) -> None:
    """Show results in one HTML page that opens without a network: viewer, ranks, and how far to believe them."""
    from voxplain.report.page import report

    found = [result for folder in results for result in read_results(folder)]
    given = {"flair": flair, "t1": t1, "t1ce": t1ce, "t2": t2}
    named = [*(f"{name}={path}" for name, path in given.items() if path is not None), *(sequence or [])]
    files = _scan_files(scan, named) if scan is not None or named else None
    path = report(
        _explained_scan(found, files),
        [result.explanation for result in found],
        masks=[result.mask for result in found],
        truth=None if truth is None else read_labels(truth),
        names=[result.name for result in found],
        title=title,
        note=note,
        path=out or results[0] / "report.html",
    )
    out_console.print(f"report: {path}", highlight=False, soft_wrap=True)


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


@phantom_app.command("glioma")
def phantom_glioma(
    out: Out,
    n: Count,
    seed: Seed = 0,
    spacing: Spacing = 2.0,
    grade: Annotated[str | None, typer.Option(help="HGG or LGG only; half and half by default")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="brains without tumour")] = False,
    shortcut: Annotated[
        str | None, typer.Option(help="HGG or LGG: patients of this grade bear a marker outside the tumour")
    ] = None,
) -> None:
    """Make patients with gliomas in BraTS layout, with their grades; finished patients are kept."""
    from voxplain.datasets.phantom_cohort import write_gliomas

    if clear and grade is not None:
        raise InputError(f"--clear makes brains without tumour, which have no grade; got --grade {grade} too")
    grades: Sequence[str | None] = [None] if clear else GRADES if grade is None else [grade]
    made = write_gliomas(out, n=n, seed=seed, spacing=spacing, grades=grades, shortcut=shortcut)
    _print_phantoms(made, n, out)


@phantom_app.command("ms")
def phantom_ms(
    out: Out,
    n: Count,
    seed: Seed = 0,
    spacing: Spacing = 2.0,
    lesions: Annotated[
        list[Path] | None, typer.Option(help="lesion mask in MNI space, instead of made ones; may come several times")
    ] = None,
) -> None:
    """Make patients with multiple sclerosis in BraTS layout; finished patients are kept."""
    from voxplain.datasets.phantom_cohort import write_multiple_sclerosis

    masks = [read_labels(path) for path in lesions or []]
    _print_phantoms(write_multiple_sclerosis(out, n=n, seed=seed, spacing=spacing, lesions=masks), n, out)


def known_explainers() -> dict[str, type[Explainer]]:
    """Every explainer of voxplain by its name on the command line."""
    kinds = [getattr(voxplain.explain, name) for name in voxplain.explain.__all__]
    return {kind.name: kind for kind in sorted(kinds, key=lambda kind: kind.name)}


def _print_phantoms(made: Iterator[Case], n: int, out: Path) -> None:
    for _, case in zip(tracked(range(n), "phantoms", shown=True), made, strict=True):
        out_console.print(f"{case.id}{f' ({case.grade})' if case.grade else ''}", highlight=False)
    out_console.print(f"{n} phantoms (software check, not patients): {out}", highlight=False, soft_wrap=True)


def _compute(device: str, memory: str, threads: int | None) -> Compute:
    return Compute(device=device, memory=memory, threads=threads, progress=True)


def _cases(data: Path) -> list[Any]:
    from voxplain.datasets import brats

    return brats.cases(data)


def _scan_files(folder: Path | None, named: list[str]) -> dict[str, Path]:
    """The files of a patient folder by sequence, or those given as name=path."""
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
    if folder is None:
        return given
    found = patient_folder_files(folder)
    found.pop("seg", None)
    return found


def _explained_scan(results: list[Result], files: dict[str, Path] | None) -> Scan:
    """The scan that the results speak of, from the files given, or from those that `explain` noted down."""
    noted = {name: Path(path) for r in results for name, path in r.explanation.provenance.get("sources", {}).items()}
    if files is None:
        if lost := [path for path in noted.values() if not path.is_file()]:
            raise InputError(f"the scan is not where it was explained: there is no file {lost[0]}; give it with --scan")
        if not noted:
            raise InputError("these results do not say where their scan lies; give it with --scan")
    whole = read_sequences(files or noted)
    for result in results:
        stated = result.explanation.provenance["scan"]
        where = ", ".join(path.name for path in (files or noted).values())
        if missing := [name for name in stated["channels"] if name not in whole.channels]:
            raise InputError(
                f"{result.name} explains a scan with {', '.join(stated['channels'])}; {', '.join(missing)} is missing "
                f"among {where}; give all of its files with --scan"
            )
        given = whole.select(stated["channels"]).fingerprint
        if given != stated["fingerprint"]:
            raise InputError(
                f"{result.name} explains another scan: its fingerprint is {stated['fingerprint']}, that of {where} is "
                f"{given}; give the scan that was explained with --scan, or explain this one"
            )
    return whole


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
    files = _scan_files(run["scan"], [*sequences, *(run["sequence"] or [])])
    scan = read_sequences(files)
    model = load_model(run["model"], run["card"])
    target = ClassScore(run["target"] or model.card.classes[0])
    explanation = explainer(model, scan, target=target, seed=run["seed"], compute=compute)
    mask = make_mask(
        explanation,
        smallest=run["smallest"],
        components=run["components"],
        mask=Labels(scan.foreground(), scan.grid),
    )
    sources = {canonical(name): path for name, path in files.items()}
    # Data sets name a case by its folder, and its files NAME_flair or NAME-t2f.
    known = {path.resolve().parent.name for path in sources.values()}
    known |= {re.sub(r"[_-][A-Za-z0-9]+$", "", without_suffix(path)) for path in sources.values()}
    seen = not known.isdisjoint(model.card.training_ids)
    paths = write_results(explanation, mask, kind.name, run["out"], rule=run["mask_rule"], sources=sources, seen=seen)
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
