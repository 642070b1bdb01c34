"""The demo: a made scan, the shipped network, what it looked at, and a page that shows it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from voxplain import segment
from voxplain.compute import Compute
from voxplain.datasets.phantom import glioma, write_case
from voxplain.explain import GradCAM, RelevanceMap
from voxplain.explain.explainer import Explainer
from voxplain.explanation import Explanation
from voxplain.io.bundle import load_model
from voxplain.report.figures import scan_figures
from voxplain.report.page import report
from voxplain.results import print_ranks, write_results
from voxplain.scan import Labels

_NOTE = "phantom (software check): this scan is made, and its tumour is known to the voxel"
# The signed fall of the raw score: where a network is sure, probabilities hardly move whatever is taken away.
_METHODS: dict[str, Explainer] = {
    "relevance-map": RelevanceMap(channel="flair", effect="signed", scale="logit"),
    "grad-cam": GradCAM(layer="act"),
}


def run_demo(out: Path, *, seed: int, compute: Compute, console: Console) -> None:
    """Make a scan with a tumour, explain it with the shipped network, and write maps, masks, figures and a page."""
    phantom = glioma(seed, grade="HGG")
    case = write_case(phantom.scan, phantom.labels, out / "made-scan")
    scan, truth = case.scan(), case.tumour()
    console.print(f"made scan with a tumour: {out / 'made-scan'}", highlight=False, soft_wrap=True)
    model = load_model("tumour-hemisphere")
    whys: dict[str, Explanation] = {}
    masks: dict[str, Labels] = {}
    for name, explainer in _METHODS.items():
        whys[name] = explainer(model, scan, seed=seed, compute=compute)
        masks[name] = segment.otsu(whys[name], mask=Labels(scan.foreground(), scan.grid))
        write_results(whys[name], masks[name], name, out, rule="otsu", sources=case.files)
    for region in whys["relevance-map"].regions:
        console.print(f"{region.name} half: tumour with probability {region.probability:.3f}", highlight=False)
    print_ranks(whys["relevance-map"], console, count=5)
    console.print("phantom (software check), Dice against the known tumour:")
    for line in scan_figures(scan, whys, masks, truth, seed=seed).itertuples():
        console.print(f"  {line.row:42} {line.kind:10} {line.dice:.2f}", highlight=False)
    page = report(
        scan,
        list(whys.values()),
        masks=list(masks.values()),
        names=list(whys),
        truth=truth,
        title="voxplain demo: which half holds tumour, and why?",
        note=_NOTE,
        path=out / "report.html",
    )
    console.print(f"maps, masks, ranks, provenance: {out}", highlight=False, soft_wrap=True)
    console.print(f"report: {page}  (open it in a browser)", highlight=False, soft_wrap=True)
