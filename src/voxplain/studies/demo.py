"""The demos: a made scan, a shipped network, what it looked at, and a page that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from voxplain import segment
from voxplain.compute import Compute
from voxplain.datasets.phantom import glioma, write_case
from voxplain.datasets.phantom_cohort import RECORD, SOFTWARE_CHECK
from voxplain.errors import InputError
from voxplain.explain import GradCAM, HeatMap, RelevanceMap
from voxplain.explain.explainer import Explainer
from voxplain.explanation import Explanation
from voxplain.io.atomic import write_json
from voxplain.io.bundle import load_model
from voxplain.model import Card
from voxplain.report.figures import scan_figures
from voxplain.report.page import report
from voxplain.results import print_ranks, read_results, write_results
from voxplain.scan import Labels
from voxplain.studies.demo_grading import run_grading_demo
from voxplain.studies.demo_lesions import run_lesion_demo
from voxplain.target import ClassScore

_NOTE = f"{SOFTWARE_CHECK}: this scan is made, and its tumour is known to the voxel"


@dataclass(frozen=True)
class _Demo:
    """Which model explains the made scan, by which methods, under which heading."""

    model: str
    methods: Mapping[str, Explainer]
    title: str


_KINDS = {
    # The signed fall of the raw score: where a network is sure, probabilities hardly move whatever is taken away.
    "scan": _Demo(
        "tumour-hemisphere",
        {
            "relevance-map": RelevanceMap(channel="flair", effect="signed", scale="logit"),
            "grad-cam": GradCAM(layer="act"),
        },
        "voxplain demo: which half holds tumour, and why?",
    ),
    "slices": _Demo("glioma-slices", {"heat-map": HeatMap()}, "voxplain demo: which slices hold tumour, and where?"),
}


def run_demo(
    out: Path, *, kind: str = "scan", model: str | None = None, seed: int, compute: Compute, console: Console
) -> None:
    """Make a scan with a tumour, explain it with a shipped network, and write maps, masks, figures and a page.

    `kind` is "scan" (the halves of the head), "slices" (one by one, by a 2D network that explains itself), "lesions" (a
    segmentation network, one lesion of multiple sclerosis) or "grading" (which type of glioma, and whether the network
    looked at it); `model` takes the place of the kind's shipped model.

    Raises:
        InputError: no such kind, or a model that does not fit it.
    """
    if kind == "lesions":
        run_lesion_demo(out, model=model, seed=seed, compute=compute, console=console)
        return
    if kind == "grading":
        run_grading_demo(out, model=model, seed=seed, compute=compute, console=console)
        return
    if kind not in _KINDS:
        raise InputError(f"kind is one of {', '.join(_KINDS)}, lesions, grading; got {kind!r}")
    chosen = _KINDS[kind]
    name_of_model = model or chosen.model
    network = load_model(name_of_model)
    phantom = glioma(seed, grade="HGG")
    case = write_case(phantom.scan, phantom.labels, out / "made-scan")
    write_json({"what": SOFTWARE_CHECK, "kind": "glioma", "seed": seed}, out / "made-scan" / RECORD)
    scan, truth = case.scan(), case.tumour()
    console.print(f"made scan with a tumour: {out / 'made-scan'}", highlight=False, soft_wrap=True)
    for name, explainer in chosen.methods.items():
        why = explainer(network, scan, target=_target(network.card), seed=seed, compute=compute)
        mask = segment.otsu(why, mask=Labels(scan.foreground(), scan.grid))
        write_results(why, mask, name, out, rule="otsu", sources=case.files, seen=False)
    # The page shows what lies on disk, as `voxplain report` would.
    results = {result.name: result for result in read_results(out) if result.name in chosen.methods}
    whys = {name: results[name].explanation for name in chosen.methods}
    masks = {name: results[name].mask for name in chosen.methods}
    _say(next(iter(whys.values())), network.card, truth, console)
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
        title=chosen.title,
        note=_NOTE,
        path=out / "report.html",
    )
    kinds_of_files = "maps, masks, ranks, provenance" if kind == "scan" else "maps, masks, provenance"
    console.print(f"{kinds_of_files}: {out}", highlight=False, soft_wrap=True)
    console.print(
        f"voxplain check {out} --model {name_of_model}  puts the maps to the test", highlight=False, soft_wrap=True
    )
    console.print(f"report: {page}  (open it in a browser)", highlight=False, soft_wrap=True)


def _target(card: Card) -> ClassScore | None:
    """The one class that says that something is there, so that every slice shows what speaks for it."""
    shown = [name for name in card.classes if name not in card.absent]
    return ClassScore(shown[0]) if len(shown) == 1 else None


def _say(why: Explanation, card: Card, truth: Labels, console: Console) -> None:
    """What the network sees, in a line per half, or in one for all slices."""
    if card.slices is not None:
        called = [region for region in why.regions if region.positive]
        right = sum(bool(truth.data[region.slices].any()) for region in called)
        there = sum(bool(truth.data[region.slices].any()) for region in why.regions)
        console.print(
            f"{len(called)} of {len(why.regions)} {card.slices} slices are called tumour; {right} of them hold some, "
            f"as do {there} in all",
            highlight=False,
            soft_wrap=True,
        )
        return
    for region in why.regions:
        console.print(f"{region.name} half: tumour with probability {region.probability:.3f}", highlight=False)
    print_ranks(why, console, count=5)
