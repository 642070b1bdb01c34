"""`voxplain explain METHOD`: one sub-command per explainer, its flags the explainer's own fields."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import voxplain.explain
from voxplain import segment
from voxplain.commands.every_layer import ALL, explain_every_layer
from voxplain.commands.lesions import Question, explain_lesions
from voxplain.commands.options import out_console, read_scan, scan_files, seen_by, sources_of
from voxplain.compute import Compute
from voxplain.datasets.brats import SEQUENCES
from voxplain.errors import InputError
from voxplain.explain.cam import ClassActivationMap
from voxplain.explain.explainer import Explainer
from voxplain.explanation import Explanation
from voxplain.io.atomic import output_folder, writing
from voxplain.io.bundle import load_model
from voxplain.io.image import is_image
from voxplain.model import Card, Model
from voxplain.report.heat_map import heat_map_picture
from voxplain.results import print_ranks, write_results
from voxplain.scan import Labels
from voxplain.target import ClassScore, PredictedClass, RegionScore, Target, default_target


def known_explainers() -> dict[str, type[Explainer]]:
    """Every explainer of voxplain by its name on the command line."""
    kinds = [getattr(voxplain.explain, name) for name in voxplain.explain.__all__]
    return {kind.name: kind for kind in sorted(kinds, key=lambda kind: kind.name)}


def explain_command(kind: type[Explainer]) -> Callable[..., None]:
    """A sub-command whose flags are the explainer's own fields, followed by what every explanation needs."""

    def option(name: str, annotation: Any, default: Any, *declaration: str, **settings: Any) -> inspect.Parameter:
        info = typer.Option(*declaration, **settings)
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, info]
        )

    required = inspect.Parameter.empty
    fields = dataclasses.fields(kind)
    types: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": bool}
    types |= {"str | None": str | None, "int | None": int | None, "float | None": float | None}
    parameters = [
        option("model", str, required, help="shipped name, folder, TorchScript file or python:pkg.mod:factory"),
        option("out", Path, required, help="folder for the results"),
        option(
            "scan",
            Path | None,
            None,
            help="patient folder in BraTS layout, or one file (picture or NIfTI) for networks that read one sequence",
        ),
        *(option(name, list[Path] | None, None, help=f"{name} file") for name in SEQUENCES),
        option("sequence", list[str] | None, None, help="another sequence, name=file.nii.gz; may come several times"),
        *(option(f.name, types[str(f.type)], f.default, help=f.metadata["help"]) for f in fields if f.name != "mask"),
        *(
            option("parts_mask", str, f.default, "--parts-mask", help=f.metadata["help"])
            for f in fields
            if f.name == "mask"
        ),
        option(
            "target",
            str | None,
            None,
            help="class to explain, or 'predicted': the highest of each region, the default of a softmax over classes",
        ),
        option(
            "lesion",
            str | None,
            None,
            help="of a segmentation network: the number of the lesion to explain, as voxplain predict has it, or all",
        ),
        option("reference", Path | None, None, help="expert mask: says which lesions are right, and adds missed ones"),
        option("threshold", float | None, None, help="probability from which a voxel is lesion; the card's by default"),
        option(
            "mask_rule",
            str | None,
            None,
            "--mask",
            help="otsu (the default; of a lesion's map the lesion itself), multi-otsu, top:N (ranks) or fixed:VALUE",
        ),
        option(
            "smallest",
            float | None,
            None,
            help="drop components of the mask below this volume in mm^3; with --lesion, lesions (5 by default)",
        ),
        option("components", int | None, None, help="keep this many of the mask's largest components per region"),
        option("card", Path | None, None, help="model card (JSON) for TorchScript files and Python factories"),
        option("seed", int, 0, help="seed of everything random"),
        option("device", str, "auto", help="auto, cpu, cuda or cuda:N"),
        option(
            "memory", str, "2GB", help="limit for perturbed inputs, activations and what the engine keeps, such as 4GB"
        ),
        option(
            "engine", str, "auto", help="incremental: only what a perturbation can change runs again; full; or auto"
        ),
        option("dtype", str, "float32", help="float32, or bfloat16: faster on some devices, two to three digits"),
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


def _explain(kind: type[Explainer], options: dict[str, Any], run: dict[str, Any]) -> None:
    compute = Compute(
        device=run["device"],
        memory=run["memory"],
        threads=run["threads"],
        batch_size=run["batch_size"],
        engine=run["engine"],
        dtype=run["dtype"],
        progress=True,
    )
    explainer = kind(**options)
    output_folder(run["out"])
    rule = run["mask_rule"] or "otsu"
    make_mask = _mask_rule(rule)
    sequences = [f"{name}={path}" for name in SEQUENCES for path in run[name] or []]
    # What a single file shows follows from the card; all other scans are read, and refused, before the model is loaded.
    single = run["scan"] is not None and run["scan"].is_file()
    model = load_model(run["model"], run["card"]) if single else None
    channels = None if model is None else model.card.channels
    files = scan_files(run["scan"], [*sequences, *(run["sequence"] or [])], channels)
    scan = read_scan(files)
    model = model or load_model(run["model"], run["card"])
    lesion = run["lesion"] or ("all" if kind.takes == (RegionScore,) else None)
    if lesion is not None:
        foreground = Labels(scan.foreground(), scan.grid)
        explain_lesions(
            explainer,
            model,
            scan,
            files,
            lesion=lesion,
            question=Question(run["target"], run["threshold"], run["smallest"], run["reference"]),
            out=run["out"],
            seed=run["seed"],
            compute=compute,
            mask_rule=run["mask_rule"],
            make_mask=partial(make_mask, components=run["components"], mask=foreground),
        )
        return
    _check_needs_no_lesion(kind, model, run)
    target = _target(run["target"], model.card)
    if isinstance(explainer, ClassActivationMap) and explainer.layer == ALL:
        foreground = Labels(scan.foreground(), scan.grid)
        explain_every_layer(
            explainer,
            model,
            scan,
            files,
            target=target,
            out=run["out"],
            rule=rule,
            make_mask=partial(
                make_mask, smallest=run["smallest"] or 0.0, components=run["components"], mask=foreground
            ),
            seed=run["seed"],
            compute=compute,
        )
        return
    explanation = explainer(model, scan, target=target, seed=run["seed"], compute=compute)
    mask = make_mask(
        explanation,
        smallest=run["smallest"] or 0.0,
        components=run["components"],
        mask=Labels(scan.foreground(), scan.grid),
    )
    sources = sources_of(files)
    seen = seen_by(model.card, sources)
    paths = write_results(explanation, mask, kind.name, run["out"], rule=rule, sources=sources, seen=seen)
    if is_image(next(iter(files.values()))):
        paths["picture"] = run["out"] / f"{kind.name}.png"
        with writing(paths["picture"]) as temporary:
            temporary.write_bytes(heat_map_picture(scan, explanation, mask))
    _print_results(explanation, mask, paths)


def _check_needs_no_lesion(kind: type[Explainer], model: Model, run: dict[str, Any]) -> None:
    """Raise InputError where options of lesions are given without --lesion, or the network needs it."""
    if model.card.window is not None:
        raise InputError(
            f"{model.card.name} segments, and {kind.name} explains one lesion of it at a time: add --lesion N, or "
            "--lesion all (voxplain predict lists them)"
        )
    if given := [f"--{name}" for name in ("reference", "threshold") if run[name] is not None]:
        raise InputError(f"{' and '.join(given)} speaks of lesions: add --lesion N, or --lesion all")


def _target(name: str | None, card: Card) -> Target:
    """What `--target` names; a class that is itself called "predicted" is that class."""
    if name is None:
        return default_target(card)
    return PredictedClass() if name == "predicted" and name not in card.classes else ClassScore(name)


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


def _print_results(explanation: Explanation, mask: Labels, paths: dict[str, Path]) -> None:
    for region in explanation.regions:
        verdict = "positive" if region.positive else "negative: its mask is left empty"
        of = f" of {region.target}" if explanation.provenance["target"]["kind"] == "PredictedClass" else ""
        out_console.print(f"{region.name}: probability{of} {region.probability:.3f}, {verdict}", highlight=False)
    print_ranks(explanation, out_console)
    out_console.print(f"mask: {mask.volume:.1f} ml", highlight=False)
    for name, path in paths.items():
        out_console.print(f"{name}: {path}", highlight=False, soft_wrap=True)
