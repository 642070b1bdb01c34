"""Paper instance (004) as one study: what maps of single lesions tell, on real patients and on made ones; resumable."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from voxplain.compute import Compute
from voxplain.datasets import multiple_sclerosis
from voxplain.datasets.case import Case
from voxplain.datasets.made_patients import write_made_patients
from voxplain.engine.progress import tracked
from voxplain.errors import InputError
from voxplain.explain.explainer import versions
from voxplain.io.atomic import output_folder, write_json, write_text
from voxplain.io.bundle import load_model
from voxplain.metrics.lesion_filter import LesionFigures, figures_of_kept
from voxplain.model import Model
from voxplain.prediction import write_table
from voxplain.studies import context, instance_lesions, instance_statistics
from voxplain.studies.instance_experiments import in_context, placed
from voxplain.studies.instance_lesions import explained, lesion_lines, side_lines
from voxplain.studies.instance_page import write_page
from voxplain.studies.instance_patients import check_readable, read_patient, without_spheres
from voxplain.studies.instance_plan import Settings, Task, announce, asked, notes_of
from voxplain.studies.instance_presets import InstancePreset, preset
from voxplain.studies.instance_tables import markdown
from voxplain.studies.lesion_overlaps import overlaps_of_case, with_overlaps
from voxplain.studies.lesion_reality import LesionReality, is_lesion_real
from voxplain.studies.lesion_reality_page import markdown as reality_markdown
from voxplain.studies.lesion_reality_page import sentences, write_lesion_reality

_PLACED = ("case", "lesion", "volume_mm3", "place", "mean_probability", "max_probability", "detected")


@dataclass(frozen=True, eq=False)
class Found:
    """What is known of one patient at the end.

    `overlaps` are the lines of the paper's method, one for each lesion, explained or not, with what it touches.
    """

    kind: str
    counts: Mapping[str, int]
    lines: pd.DataFrame
    sides: pd.DataFrame
    overlaps: pd.DataFrame
    detection: LesionFigures
    context: pd.DataFrame
    placed: Sequence[Mapping[str, Any]]


def evaluate(
    model: Model,
    data: Path,
    out: Path,
    *,
    size: str = "small",
    seed: int = 0,
    keep_maps: bool = False,
    compute: Compute,
    console: Console,
) -> pd.DataFrame:
    """Detection and statistics of the maps of a network on patients in Lesjak's layout, without training; resumable.

    Of each patient `out/ID/lesions.tsv`, with one line per lesion, TN spheres among them; of all of them `lesions.tsv`,
    `scores.tsv`, `tables.md`, `facts.json`, `violins.png` and `report.html`. `out/maps/` holds what is known of single
    lesions.

    Returns:
        The figures, with the columns of `scores.tsv`.

    Raises:
        InputError: no patient with a mask, no such preset, or a model that segments no volumes.
    """
    check_readable(model.card)
    cases, left_out = readable_cases(data, model.card.channels)
    settings = Settings(size, preset(size), output_folder(out), seed, compute, console, keep_maps)
    tasks = [Task(case, model, made=False, whole=False) for case in cases]
    return _run(tasks, settings, shapes=(), left_out=left_out)


def study(
    model: Model,
    data: Path,
    out: Path,
    *,
    networks: Path | None = None,
    size: str = "small",
    seed: int = 0,
    keep_maps: bool = False,
    compute: Compute,
    console: Console,
) -> pd.DataFrame:
    """The experiments of paper instance (004), and a score that says whether a lesion is real; resumable.

    Beside what `evaluate` writes: `context.tsv`, `placements.tsv` and `context.png`, and of the score of errors, which
    is learnt from phantoms ("phantom (software check)") that `model` explains, the files of `write_lesion_reality`.

    Args:
        model: explains phantoms, and everyone where there are no `networks`.
        data: patients in Lesjak's layout; `lesion_masks/` of others are the shapes of made lesions.
        out: where to.
        networks: a folder of `voxplain train lesions`: each patient ID is then explained by `without-ID/`.
        size: preset.
        seed: of everything random.
        keep_maps: whether maps are kept beside their statistics, in `out/maps/`.
        compute: how to run.
        console: where to say what came out.

    Returns:
        The figures, with the columns of `scores.tsv`.

    Raises:
        InputError: no patient with a mask, no such preset, a model that segments no volumes, or a patient without a
            network of its own.
    """
    wanted = preset(size)
    check_readable(model.card)
    cases, left_out = readable_cases(data, model.card.channels)
    settings = Settings(size, wanted, output_folder(out), seed, compute, console, keep_maps)
    tasks = [
        Task(case, model if networks is None else network_without(case, networks), made=False, whole=True)
        for case in cases
    ]
    if wanted.phantoms:
        made = write_made_patients(out / "phantoms", n=wanted.phantoms, seed=seed, spacing=wanted.spacing)
        made = tracked(made, "made patients", shown=compute.progress, total=wanted.phantoms)
        tasks += [Task(case, model, made=True, whole=False) for case in made]
    return _run(tasks, settings, shapes=multiple_sclerosis.lesion_shapes(data), left_out=left_out)


def readable_cases(data: Path, channels: Sequence[str]) -> tuple[list[Case], dict[str, str]]:
    """The patients with a mask and all sequences, and why each of the others is left out.

    Raises:
        InputError: there is no patient, or all are left out.
    """
    left_out: dict[str, str] = {}
    found = []
    for case in multiple_sclerosis.cases(data):
        missing = [name for name in channels if name not in case.files]
        if case.segmentation is None:
            left_out[case.id] = "no expert mask (consensus_gt.nii.gz)"
        elif missing:
            left_out[case.id] = f"no {' or '.join(missing)}"
        else:
            found.append(case)
    if not found:
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise InputError(f"the experiments need a patient with FLAIR, T1 and an expert mask; in {data}: {why}")
    return found, left_out


def network_without(case: Case, networks: Path) -> Model:
    """The network that was trained without a patient.

    Raises:
        InputError: there is none, or it has seen the patient.
    """
    folder = networks / f"without-{case.id}"
    if not (folder / "model.json").is_file():
        raise InputError(
            f"there is no finished network {folder}; run `voxplain train lesions --data ... --out {networks} "
            f"--leave-out {case.id}`, or leave --networks out"
        )
    model = load_model(folder)
    check_readable(model.card)
    if case.id in model.card.training_ids:
        raise InputError(f"the network in {folder} has seen {case.id}; give a folder of `voxplain train lesions`")
    return model


def _run(
    tasks: Sequence[Task], settings: Settings, *, shapes: Sequence[Path], left_out: Mapping[str, str]
) -> pd.DataFrame:
    for name, why in left_out.items():
        settings.console.print(f"{name} is left out: {why}", highlight=False, markup=False)
    moved = [task.case.id for task in tasks if task.whole][: settings.preset.placed]
    announce(tasks, settings, shapes, moved)
    found = {task.case.id: _of(task, settings, shapes, task.case.id in moved) for task in tasks}
    channels = tasks[0].model.card.channels
    made = [task.case.id for task in tasks if task.made]
    whole = any(task.whole for task in tasks)
    kinds = {name: its.kind for name, its in found.items()}
    groups = instance_statistics.groups_of(kinds, made)
    lines = pd.concat([its.lines for its in found.values()], ignore_index=True)
    shown = pd.concat([its.context for its in found.values()], ignore_index=True)
    placed_lines = pd.DataFrame([line for its in found.values() for line in its.placed])
    rows = instance_statistics.statistics_of(
        lines,
        pd.concat([its.sides for its in found.values()], ignore_index=True),
        groups=groups,
        counts={name: its.counts for name, its in found.items()},
        detection={name: its.detection for name, its in found.items()},
        channels=channels,
        row=settings.preset.explainer.name,
        methods=whole,
    )
    if whole:
        real = [group for group in groups if not set(group.cases) & set(made)]
        channel = "flair" if "flair" in channels else channels[0]
        rows += instance_statistics.placement_rows(placed_lines, kinds, channel)
        rows += instance_statistics.context_rows(shown, real)
    summary = pd.DataFrame(rows, columns=list(instance_statistics.COLUMNS))
    reality = _reality(found, kinds, made, settings) if made else None
    if reality is not None:
        summary = pd.concat([summary, reality.summary], ignore_index=True)
    write_table(lines, settings.out / "lesions.tsv")
    write_table(summary, settings.out / "scores.tsv")
    if whole:
        write_table(shown, settings.out / "context.tsv")
        write_table(placed_lines if len(placed_lines) else pd.DataFrame(columns=list(_PLACED)), _placed_path(settings))
    notes = notes_of(tasks, settings, kinds, left_out, shapes)
    # Every phantom by itself is in the files; a reader wants them together.
    together = groups if len(made) < 2 else [group for group in groups if not set(group.cases) < set(made)]
    printed = instance_statistics.of_groups(summary, groups, together)
    said = markdown(printed, notes)
    answer, calibration = [], None
    if reality is not None:
        paths = write_lesion_reality(reality, settings.out)
        said += "\n" + reality_markdown(reality)
        answer, calibration = sentences(reality), paths["curve"].read_bytes()
    write_text(said, settings.out / "tables.md")
    facts = {
        "preset": settings.size,
        "settings": _plain(settings.preset),
        "seed": settings.seed,
        "patients": {
            task.case.id: {"model": task.model.fingerprint, "kind": kinds[task.case.id], "made": task.made}
            for task in tasks
        },
        "left_out": dict(left_out),
        "versions": versions(),
    }
    write_json(facts, settings.out / "facts.json")
    main = lines[lines["row"] == settings.preset.explainer.name]
    write_page(
        *(settings.out, main, shown, printed, together),
        notes=notes,
        facts=facts,
        threshold=_threshold(tasks),
        answer=answer,
        calibration=calibration,
    )
    return summary


def _of(task: Task, settings: Settings, shapes: Sequence[Path], is_moved: bool) -> Found:
    """Everything on one patient; what the cache knows is taken from there."""
    wanted, seed = settings.preset, settings.seed
    patient = read_patient(task.case, task.model, settings.out, made=task.made, seed=seed, compute=settings.compute)
    lines, sides = [], pd.DataFrame()
    for explainer, numbers in asked(task, patient, settings):
        found = explained(
            *(patient, explainer, numbers, settings.cache),
            seed=seed,
            compute=settings.quiet,
            keep_maps=settings.keep_maps,
            say=settings.say,
        )
        lines.append(lesion_lines(patient, explainer, found, task.model.card.channels))
        if explainer == wanted.explainer:
            sides = pd.DataFrame(list(side_lines(patient, found)), columns=list(instance_lesions.SIDES))
    table = _joined(lines)
    write_table(table, settings.out / patient.id / "lesions.tsv")
    moved: list[dict[str, Any]] = []
    if is_moved:
        moved = placed(
            *(patient, wanted.explainer, settings.cache),
            seed=seed,
            compute=settings.quiet,
            keep_maps=settings.keep_maps,
            say=settings.say,
        )
    overlaps = with_overlaps(
        table[(table["row"] == wanted.explainer.name) & (table["kind"] != "TN")],
        without_spheres(patient.lesions),
        patient.reference,
        case=patient.id,
        methods=[wanted.explainer.name],
    )
    shown = context.table_of([])
    if task.whole:
        shown = in_context(
            *(patient, shapes, settings.cache),
            most=wanted.context,
            distances=wanted.distances,
            seed=seed,
            compute=settings.quiet,
            say=settings.say,
        )
    touches, experts = overlaps_of_case(overlaps) if len(overlaps) else ([], 0)
    detection = figures_of_kept(touches, np.ones(len(touches), dtype=bool), experts=experts)
    return Found(patient.kind, patient.counts, table, sides, overlaps, detection, shown, moved)


def _reality(
    found: Mapping[str, Found], kinds: Mapping[str, str], made: Sequence[str], settings: Settings
) -> LesionReality:
    """The score of errors, learnt from made patients and applied to the real ones."""
    phantoms, patients = (
        pd.concat([its.overlaps for name, its in found.items() if (name in made) is wanted], ignore_index=True)
        for wanted in (True, False)
    )
    seen = [name for name, kind in kinds.items() if kind == "seen"]
    method = settings.preset.explainer.name
    return is_lesion_real(phantoms, patients, method=method, seed=settings.seed, seen=seen)


def _joined(lines: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Lines of several methods; columns of methods with one map for all sequences come before what maps have not."""
    whole = pd.concat(lines, ignore_index=True)
    tail = [name for name in instance_lesions.REST if name in whole.columns]
    return whole[[name for name in whole.columns if name not in tail] + tail]


def _threshold(tasks: Sequence[Task]) -> float:
    return tasks[0].model.card.threshold


def _placed_path(settings: Settings) -> Path:
    return settings.out / "placements.tsv"


def _plain(wanted: InstancePreset) -> dict[str, Any]:
    """The preset, with methods by name."""
    found = dataclasses.asdict(wanted)
    for name in ("cheap", "costly"):
        found[name] = [{"name": one.name, **dataclasses.asdict(one)} for one in getattr(wanted, name)]
    return found
