"""The demo of grading: a made patient with one of three types of glioma, classed, segmented, and the two compared."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from voxplain.compute import Compute
from voxplain.datasets.cpm_radpath import CLASSES
from voxplain.datasets.phantom import TYPES, glioma, write_case
from voxplain.datasets.phantom_cohort import RECORD, SOFTWARE_CHECK
from voxplain.diagnosis import diagnose
from voxplain.io.atomic import write_json
from voxplain.io.bundle import load_model
from voxplain.metrics.overlap import dice
from voxplain.studies.diagnosis_files import write_diagnosis

_CLASSIFIER, _SEGMENTER = "phantom-grading", "phantom-tumour-parts"
_NOTE = f"{SOFTWARE_CHECK}: this scan is made, and both networks have learnt from made scans only."


def run_grading_demo(out: Path, *, model: str | None, seed: int, compute: Compute, console: Console) -> None:
    """Make a patient, diagnose it, and write masks, maps, pictures and the page."""
    type_of_it = TYPES[seed % len(TYPES)]
    # Far from the seeds of cohorts, of which the networks have learnt.
    phantom = glioma(10_000_000 + seed, spacing=2, grade=type_of_it)
    folder = out / "made-patient"
    case = write_case(phantom.scan, phantom.labels, folder)
    write_json({"what": SOFTWARE_CHECK, "kind": "glioma", "grade": type_of_it, "seed": seed}, folder / RECORD)
    scan, truth = case.scan(), case.tumour()
    console.print(f"made patient, {CLASSES[type_of_it]}: {folder}", highlight=False, soft_wrap=True)
    name = model or _CLASSIFIER
    found = diagnose(load_model(name), load_model(_SEGMENTER), scan, seed=seed, compute=compute)
    paths = write_diagnosis(
        found,
        scan,
        out,
        sources=case.files,
        seen={"classifier": False, "segmenter": False},
        truth=truth,
        note=_NOTE,
    )
    console.print(f"{SOFTWARE_CHECK}:", highlight=False)
    for class_name, value in sorted(found.probabilities.items(), key=lambda item: -item[1]):
        console.print(f"  {class_name:20} probability {value:.2f}", highlight=False)
    overlap = dice(found.regions["WT"].data > 0, truth.data > 0)
    console.print(f"  whole tumour         deployable  Dice {overlap:.2f} beside the known one", highlight=False)
    console.print(found.sentence, highlight=False)
    console.print("Research software: not for diagnosis.", highlight=False)
    console.print(f"masks, maps, agreement, pictures: {out}", highlight=False, soft_wrap=True)
    console.print(f"report: {paths['report']}  (open it in a browser)", highlight=False, soft_wrap=True)
