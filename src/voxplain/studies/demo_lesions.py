"""The demo of lesions: a made patient, the shipped segmentation network, and what the score of one lesion hangs on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from voxplain.compute import Compute
from voxplain.datasets.phantom import multiple_sclerosis, write_case
from voxplain.datasets.phantom_cohort import RECORD, SOFTWARE_CHECK
from voxplain.explain import InstanceGradCAMPlusPlus, InstanceSmoothGrad
from voxplain.explain.explainer import Explainer
from voxplain.io.atomic import write_json
from voxplain.io.bundle import load_model
from voxplain.lesions import SMALLEST_MM3, find_lesions, instances
from voxplain.metrics.lesionwise import lesion_f1
from voxplain.metrics.network_free import flair_outliers
from voxplain.metrics.overlap import dice
from voxplain.prediction import LABELS, predict, with_peaks, write_prediction, write_table
from voxplain.report.lesion_maps import LesionMap
from voxplain.report.lesion_page import lesion_report
from voxplain.results import lesion_name, read_result, write_results
from voxplain.scan import Labels
from voxplain.target import RegionScore

_MODEL = "ms-lesions"
_NOTE = f"{SOFTWARE_CHECK}: this scan is made, and its lesions are known to the voxel"
# 004, 2.5: the mean volume of a lesion there. The one that is nearest to it is explained.
_USUAL_MM3 = 93.0
# Five noisy copies for the paper's fifty: the demo is to be quick.
_METHODS: Sequence[Explainer] = (InstanceSmoothGrad(copies=5), InstanceGradCAMPlusPlus())


def run_lesion_demo(out: Path, *, model: str | None, seed: int, compute: Compute, console: Console) -> None:
    """Make a patient with lesions, segment it, explain one lesion, and write maps, table and a page."""
    name_of_model = model or _MODEL
    network = load_model(name_of_model)
    phantom = multiple_sclerosis(seed, spacing=1)
    case = write_case(phantom.scan.select(network.card.channels), phantom.labels, out / "made-patient")
    write_json({"what": SOFTWARE_CHECK, "kind": "ms", "seed": seed}, out / "made-patient" / RECORD)
    scan, truth = case.scan(network.card.channels), case.labels()
    console.print(f"made patient with lesions: {out / 'made-patient'}", highlight=False, soft_wrap=True)
    prediction = predict(network, scan, compute=compute)
    mask = prediction.mask(network.card.threshold)
    lesions = find_lesions(mask, probability=prediction.probability, reference=truth)
    facts = {"threshold": network.card.threshold, "smallest_mm3": SMALLEST_MM3, "seen": False}
    paths = write_prediction(prediction, lesions, out, facts=facts)
    console.print(f"{SOFTWARE_CHECK}, beside the known lesions:")
    for row, found in (("unet", mask), ("intensity/flair-outliers", Labels(flair_outliers(scan), scan.grid))):
        overlap = dice(found.data > 0, truth.data > 0)
        f1 = lesion_f1(instances(found).data, instances(truth).data)
        console.print(f"  {row:26} deployable  Dice {overlap:.2f}, lesion F1 {f1:.2f}", highlight=False)
    predicted = lesions.table[lesions.table["kind"] != "FN"]
    if predicted.empty:
        console.print("no lesion was found: nothing to explain", highlight=False)
        return
    number = _usual(predicted)
    line = predicted.set_index("lesion").loc[number]
    console.print(
        f"lesion {number} of {len(predicted)}: {line['volume_mm3']:.0f} mm^3, mean probability "
        f"{line['mean_probability']:.2f}, {line['kind']}",
        highlight=False,
    )
    target = RegionScore(prediction.name, lesions.labels, number)
    maps = []
    table = lesions.table
    for explainer in _METHODS:
        why = explainer(network, scan, target=target, seed=seed, compute=compute)
        kept = {"number": number, "labels": LABELS, "peaks": why.peaks}
        name = lesion_name(explainer.name, number)
        write_results(
            *(why, target.mask, name, out),
            rule="lesion",
            sources=case.files,
            seen=False,
            lesion=kept,
        )
        # The page shows what lies on disk, as `voxplain report` would.
        maps.append(LesionMap.of(explainer.name, read_result(out, name).explanation, lesions))
        table = with_peaks(table, {number: why.peaks})
        said = ", ".join(f"{channel} {value:+.3g}" for channel, value in why.peaks.items())
        console.print(f"  {explainer.name}: peak {said} ({why.unit})", highlight=False, soft_wrap=True)
    write_table(table, paths["table"])
    page = lesion_report(
        scan,
        lesions,
        maps,
        truth=truth,
        path=out / "report.html",
        title="voxplain demo: what does the score of one lesion hang on?",
        note=_NOTE,
    )
    console.print(f"probability, lesions, table, maps, provenance: {out}", highlight=False, soft_wrap=True)
    console.print(
        f"voxplain explain instance-smoothgrad --model {name_of_model} --scan {out / 'made-patient'} --lesion all "
        f"--out {out}  explains the others",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"report: {page}  (open it in a browser)", highlight=False, soft_wrap=True)


def _usual(predicted: pd.DataFrame) -> int:
    """The lesion whose volume is nearest to the paper's mean, right ones first."""
    right = predicted[predicted["kind"] == "TP"]
    among = predicted if right.empty else right
    return int(among["lesion"].iloc[int((among["volume_mm3"] - _USUAL_MM3).abs().to_numpy().argmin())])
