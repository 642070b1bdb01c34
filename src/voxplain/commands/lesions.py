"""`voxplain predict`, and `voxplain explain METHOD --lesion`: one lesion at a time of a segmentation network."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from voxplain.commands.options import (
    CardFile,
    Device,
    Memory,
    ModelName,
    Out,
    SequenceFile,
    Threads,
    compute_of,
    out_console,
    read_scan,
    scan_files,
    seen_by,
    sources_of,
)
from voxplain.compute import Compute
from voxplain.engine.progress import console
from voxplain.errors import InputError
from voxplain.explain.explainer import Explainer
from voxplain.explanation import Explanation
from voxplain.io.atomic import output_folder, read_json
from voxplain.io.bundle import load_model
from voxplain.io.nifti import read_labels
from voxplain.lesions import SMALLEST_MM3, Lesions, find_lesions
from voxplain.model import Model
from voxplain.prediction import (
    LABELS,
    Prediction,
    predict,
    read_prediction,
    segmented_class,
    with_peaks,
    write_prediction,
    write_table,
)
from voxplain.results import lesion_name, write_results
from voxplain.scan import Labels, Scan
from voxplain.target import RegionScore

_SHOWN = 10


@dataclass(frozen=True)
class Question:
    """Which lesions there are: the class, from what probability, the smallest volume in mm^3, beside what reference."""

    target: str | None = None
    threshold: float | None = None
    smallest: float | None = None
    reference: Path | None = None


def predict_scan(
    model: ModelName,
    out: Out,
    scan: Annotated[
        Path | None, typer.Option(help="patient folder, or one file for networks that read one sequence")
    ] = None,
    flair: SequenceFile = None,
    t1: SequenceFile = None,
    t1ce: SequenceFile = None,
    t2: SequenceFile = None,
    sequence: Annotated[list[str] | None, typer.Option(help="another sequence, name=file.nii.gz")] = None,
    target: Annotated[str | None, typer.Option(help="class to segment; by default the only one not in absent")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="probability from which a voxel is lesion; the card's by default")
    ] = None,
    smallest: Annotated[float, typer.Option(help="volume in mm^3 below which a component is no lesion")] = SMALLEST_MM3,
    reference: Annotated[
        Path | None, typer.Option(help="expert mask on the scan's grid: says which lesions are TP, FP and FN")
    ] = None,
    card: CardFile = None,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Segment a scan: probability, lesion instances and their table, on the scan's own grid.

    A lesion is a connected component with 18 neighbours; the largest has number 1. Lesions of the reference that were
    missed come after the predicted ones.
    """
    output_folder(out)
    given = {"flair": flair, "t1": t1, "t1ce": t1ce, "t2": t2}
    named = [*(f"{name}={path}" for name, path in given.items() if path is not None), *(sequence or [])]
    single = scan is not None and scan.is_file()
    loaded = load_model(model, card) if single else None
    files = scan_files(scan, named, None if loaded is None else loaded.card.channels)
    read = read_scan(files)
    loaded = loaded or load_model(model, card)
    question = Question(target, threshold, smallest, reference)
    _, lesions, paths = lesions_of(loaded, read, files, out, question, compute_of(device, memory, threads))
    _print_lesions(lesions)
    for name, path in paths.items():
        out_console.print(f"{name}: {path}", highlight=False, soft_wrap=True)


def lesions_of(
    model: Model, scan: Scan, files: Mapping[str, Path], out: Path, question: Question, compute: Compute
) -> tuple[Prediction, Lesions, dict[str, Path]]:
    """Predict, unless the folder holds this very prediction, and write down which lesions there are."""
    name = segmented_class(model.card, question.target)
    threshold = model.card.threshold if question.threshold is None else question.threshold
    smallest = SMALLEST_MM3 if question.smallest is None else question.smallest
    reference = None if question.reference is None else _reference(question.reference, scan)
    prediction = read_prediction(out, model, scan, name)
    if prediction is not None:
        out_console.print(f"the prediction in {out} is of this model and scan: taken", highlight=False, soft_wrap=True)
    prediction = prediction or predict(model, scan, name=name, compute=compute)
    mask = prediction.mask(threshold)
    lesions = find_lesions(mask, probability=prediction.probability, reference=reference, smallest=smallest)
    sources = sources_of(files)
    facts = {
        "threshold": threshold,
        "smallest_mm3": smallest,
        "reference": None if question.reference is None else str(question.reference.resolve()),
        "seen": seen_by(model.card, sources),
        "sources": {sequence: str(path.resolve()) for sequence, path in sources.items()},
        "lesions": {kind or "predicted": int(count) for kind, count in lesions.table["kind"].value_counts().items()},
    }
    return prediction, lesions, write_prediction(prediction, lesions, out, facts=facts)


def _reference(path: Path, scan: Scan) -> Labels:
    try:
        reference = read_labels(path)
    except InputError as error:
        raise InputError(
            f"--reference {path} is no expert mask: {error}; give one 3D file of whole numbers, 0 outside"
        ) from error
    if difference := scan.grid.difference(reference.grid):
        raise InputError(
            f"--reference {path} lies on another grid than the scan: {difference}; resample it to the scan's grid"
        )
    return Labels(reference.data, scan.grid)


def explain_lesions(
    explainer: Explainer,
    model: Model,
    scan: Scan,
    files: Mapping[str, Path],
    *,
    lesion: str,
    question: Question,
    out: Path,
    seed: int,
    compute: Compute,
    mask_rule: str | None,
    make_mask: Callable[[Explanation], Labels],
) -> None:
    """Explain one lesion, or all: results beside the lesions' table, one after the other; finished ones are kept.

    Without a `mask_rule` the mask of a map is the lesion itself.

    Raises:
        InputError: `lesion` is no number and not "all", or there is no lesion of that number.
    """
    if lesion != "all" and not lesion.isdecimal():
        raise InputError(f"--lesion is the number of a lesion, or all; got {lesion!r}")
    prediction, lesions, paths = lesions_of(model, scan, files, out, question, compute)
    if not lesions.numbers:
        out_console.print(f"no lesion was found: nothing to explain, and the table in {out} is empty", highlight=False)
        return
    numbers = lesions.numbers
    if lesion != "all":
        lesions.check(int(lesion))
        numbers = (int(lesion),)
    _print_lesions(lesions)
    rule, sources = mask_rule or "lesion", sources_of(files)
    seen = seen_by(model.card, sources)
    stated = _identity(explainer, model, scan, seed=seed, rule=rule)

    def target(number: int) -> RegionScore:
        return RegionScore(prediction.name, lesions.labels, number)

    # Those of earlier runs stand in the table, too, asked for or not.
    peaks = {
        number: known
        for number in lesions.numbers
        if (known := _peaks_known(out, lesion_name(explainer.name, number), stated, partial(target, number)))
        is not None
    }
    waiting = [number for number in numbers if number not in peaks]
    if kept := len(numbers) - len(waiting):
        out_console.print(f"{kept} of {len(numbers)} lesions are explained already, and kept", highlight=False)
    started = time.monotonic()
    # Lesions that lie near each other may share passes, and then come together.
    each = explainer.each(model, scan, lesions.labels, name=prediction.name, labels=waiting, seed=seed, compute=compute)
    for done, (number, why) in enumerate(each, start=1):
        mask = target(number).mask if mask_rule is None else make_mask(why)
        peaks[number] = why.peaks
        kept_facts = {"number": number, "labels": LABELS, "peaks": peaks[number]}
        name = lesion_name(explainer.name, number)
        write_results(why, mask, name, out, rule=rule, sources=sources, seen=seen, lesion=kept_facts)
        write_table(with_peaks(lesions.table, peaks), paths["table"])
        if len(waiting) > 1:
            left = (time.monotonic() - started) / done * (len(waiting) - done)
            console.print(f"lesion {number}: {done} of {len(waiting)}, about {left:.0f} s to go", highlight=False)
    write_table(with_peaks(lesions.table, peaks), paths["table"])
    if len(numbers) == 1:
        paths["map"] = out / f"{lesion_name(explainer.name, numbers[0])}.nii.gz"
        said = ", ".join(f"{channel} {value:.3g}" for channel, value in peaks[numbers[0]].items())
        out_console.print(f"lesion {numbers[0]}: peak {said}", highlight=False)
    else:
        out_console.print(f"{len(numbers)} lesions explained", highlight=False)
    for what, path in paths.items():
        out_console.print(f"{what}: {path}", highlight=False, soft_wrap=True)


def _identity(explainer: Explainer, model: Model, scan: Scan, *, seed: int, rule: str) -> dict[str, Any]:
    """What a finished result must state, beside its target, to be taken for the one that is asked for."""
    kind = type(explainer)
    stated = {
        "explainer": f"{kind.__module__}:{kind.__qualname__}",
        "options": dataclasses.asdict(explainer),
        "seed": seed,
        "model": model.fingerprint,
        "scan": scan.fingerprint,
        "rule": rule,
    }
    return dict(json.loads(json.dumps(stated)))


def _peaks_known(
    folder: Path, name: str, asked: Mapping[str, Any], target: Callable[[], RegionScore]
) -> dict[str, float] | None:
    """The peaks of a finished result that is the one asked for; None where there is none, or it is another."""
    # The provenance is written last: where it stands, the map does.
    files = [folder / f"{name}{ending}" for ending in (".json", ".nii.gz", "-mask.nii.gz")]
    if not all(path.is_file() for path in files):
        return None
    try:
        content = read_json(files[0]) or {}
        stated = {key: content[key] for key in ("explainer", "options", "seed")}
        stated |= {key: content[key]["fingerprint"] for key in ("model", "scan")}
        stated["rule"] = content["mask"]["rule"]
        peaks = {str(channel): float(value) for channel, value in content["lesion"]["peaks"].items()}
    except (KeyError, TypeError, ValueError):
        return None
    return peaks if stated == asked and content["target"] == target().record() else None


def _print_lesions(lesions: Lesions) -> None:
    table = lesions.table
    if table.empty:
        out_console.print("no lesion was found", highlight=False)
        return
    missed = int((table["kind"] == "FN").sum())
    predicted = table[table["kind"] != "FN"]
    said = f"{len(predicted)} lesions, {predicted['volume_mm3'].sum() / 1000:.2f} ml"
    if (table["kind"] != "").any():
        right = int((table["kind"] == "TP").sum())
        said += f": {right} true, {len(predicted) - right} false positives; {missed} of the reference missed"
    out_console.print(said, highlight=False)
    # Names in two lines and no rules between columns, so that all of it fits into 80 characters.
    shown = Table(title=f"The {min(_SHOWN, len(table))} first of {len(table)}", box=box.SIMPLE_HEAD, padding=0)
    for column in table.columns:
        shown.add_column(str(column).replace("_", "\n", 1), justify="right", vertical="bottom")
    for line in table.head(_SHOWN).itertuples(index=False):
        cells = zip(table.columns, line, strict=True)
        shown.add_row(*(_digits(name, value) if isinstance(value, float) else str(value) for name, value in cells))
    out_console.print(shown)


def _digits(name: str, value: float) -> str:
    """A figure as short as it can be read: places to 0.1 mm, probabilities to 0.01."""
    return f"{value:.1f}" if name.endswith("_mm") else f"{value:.2f}" if "probability" in name else f"{value:.3g}"
