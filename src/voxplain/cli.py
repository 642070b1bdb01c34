"""The command line: which commands there are; errors and warnings in one line each."""

from __future__ import annotations

import inspect
import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from voxplain.commands import (
    gp,
    grades,
    grading,
    hemispheres,
    instance,
    lesion_training,
    perturbation,
    phantom,
    relevance,
    tumour_segmentation,
)
from voxplain.commands.check import check_results
from voxplain.commands.diagnose import diagnose_scan
from voxplain.commands.explain import explain_command, known_explainers
from voxplain.commands.lesions import predict_scan
from voxplain.commands.options import Device, Memory, Out, Seed, Threads, compute_of, error_console, out_console
from voxplain.commands.preprocess import preprocess_scan
from voxplain.commands.report import report_results
from voxplain.commands.segment import segment_scan
from voxplain.errors import InputError

app = typer.Typer(
    help="Explain networks that read 3D medical images, and turn the explanations into segmentations.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


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
    kind: Annotated[
        str,
        typer.Option(
            help="scan (halves of a head, by relevance), slices (a 2D network that explains itself), lesions (one of a "
            "segmentation network) or grading (which type of tumour, and did the network look at it)"
        ),
    ] = "scan",
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Explain a made scan with the shipped weights: maps, masks, figures beside the known truth, and a report."""
    from voxplain.studies.demo import run_demo

    run_demo(out, kind=kind, seed=seed, compute=compute_of(device, memory, threads), console=out_console)


def _group(name: str, words: str) -> typer.Typer:
    group = typer.Typer(help=words, no_args_is_help=True)
    app.add_typer(group, name=name)
    return group


_explain = _group("explain", "Explain what a network says of a scan: one sub-command per method.")
for _name, _kind in known_explainers().items():
    _explain.command(_name)(explain_command(_kind))
app.command("diagnose")(diagnose_scan)
app.command("predict")(predict_scan)
app.command("check")(check_results)
app.command("preprocess")(preprocess_scan)
app.command("report")(report_results)
app.command("segment")(segment_scan)
_train = _group(
    "train", "Train a network: a classifier on labels of whole inputs, a fill against one, or a segmentation network."
)
_train.command("hemispheres")(hemispheres.train_hemispheres)
_train.command("grades")(grades.train_grades)
_train.command("grading")(grading.train_grading)
_train.command("segmentation")(tumour_segmentation.train_segmentation)
_train.command("gp")(gp.train_gp)
_train.command("lesions")(lesion_training.train_lesions)
_train.command("perturbation")(perturbation.train_perturbation)
_evaluate = _group("evaluate", "Score a model's maps against expert masks, without training.")
_evaluate.command("hemispheres")(hemispheres.evaluate_hemispheres)
_evaluate.command("gp")(gp.evaluate_gp)
_evaluate.command("instance")(instance.evaluate_instance)
_evaluate.command("relevance")(relevance.evaluate_relevance)
_study = _group("study", "Run a whole experiment: train, explain, score, tables.")
_study.command("hemispheres")(hemispheres.study_hemispheres)
_study.command("grading")(grading.study_grading)
_study.command("gp")(gp.study_gp)
_study.command("instance")(instance.study_instance)
_study.command("relevance")(relevance.study_relevance)
_study.command("refinement")(hemispheres.study_refinement)
_study.command("grade-phantoms")(grades.study_grade_phantoms)
_phantom = _group("phantom", "Make phantoms: brain scans with known lesions, to check software.")
_phantom.command("glioma")(phantom.phantom_glioma)
_phantom.command("ms")(phantom.phantom_ms)


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
