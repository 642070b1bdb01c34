"""The demo: a made scan, the shipped network, what it looked at, and a page that shows it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from voxplain import segment
from voxplain.compute import Compute
from voxplain.datasets.phantom import glioma, write_case
from voxplain.datasets.phantom_cohort import RECORD, SOFTWARE_CHECK
from voxplain.explain import GradCAM, RelevanceMap
from voxplain.explain.explainer import Explainer
from voxplain.io.atomic import write_json
from voxplain.io.bundle import load_model
from voxplain.report.figures import scan_figures
from voxplain.report.page import report
from voxplain.results import print_ranks, read_results, write_results
from voxplain.scan import Labels

_NOTE = f"{SOFTWARE_CHECK}: this scan is made, and its tumour is known to the voxel"
# The signed fall of the raw score: where a network is sure, probabilities hardly move whatever is taken away.
_METHODS: dict[str, Explainer] = {
    "relevance-map": RelevanceMap(channel="flair", effect="signed", scale="logit"),
    "grad-cam": GradCAM(layer="act"),
}


def run_demo(out: Path, *, seed: int, compute: Compute, console: Console) -> None:
    """Make a scan with a tumour, explain it with the shipped network, and write maps, masks, figures and a page."""
    phantom = glioma(seed, grade="HGG")
    case = write_case(phantom.scan, phantom.labels, out / "made-scan")
    write_json({"what": SOFTWARE_CHECK, "kind": "glioma", "seed": seed}, out / "made-scan" / RECORD)
    scan, truth = case.scan(), case.tumour()
    console.print(f"made scan with a tumour: {out / 'made-scan'}", highlight=False, soft_wrap=True)
    model = load_model("tumour-hemisphere")
    for name, explainer in _METHODS.items():
        why = explainer(model, scan, seed=seed, compute=compute)
        mask = segment.otsu(why, mask=Labels(scan.foreground(), scan.grid))
        write_results(why, mask, name, out, rule="otsu", sources=case.files, seen=False)
    # The page shows what lies on disk, as `voxplain report` would.
    results = {result.name: result for result in read_results(out) if result.name in _METHODS}
    whys = {name: results[name].explanation for name in _METHODS}
    masks = {name: results[name].mask for name in _METHODS}
    for region in whys["relevance-map"].regions:
        console.print(f"{region.name} half: tumour with probability {region.probability:.3f}", highlight=False)
    print_ranks(whys["relevance-map"], console, count=5)
    console.print(f"{SOFTWARE_CHECK}, Dice against the known tumour:")
    figures = scan_figures(scan, whys, masks, truth, seed=seed)
    for line in figures.itertuples():
        console.print(f"  {line.row:42} {line.kind:10} {line.dice:.2f}", highlight=False)
    page = report(
        scan,
        list(whys.values()),
        masks=list(masks.values()),
        names=list(whys),
        truth=truth,
        figures=figures,
        title="voxplain demo: which half holds tumour, and why?",
        note=_NOTE,
        path=out / "report.html",
    )
    console.print(f"maps, masks, ranks, provenance: {out}", highlight=False, soft_wrap=True)
    console.print(
        f"voxplain check {out} --model tumour-hemisphere  puts the maps to the test", highlight=False, soft_wrap=True
    )
    console.print(f"report: {page}  (open it in a browser)", highlight=False, soft_wrap=True)
