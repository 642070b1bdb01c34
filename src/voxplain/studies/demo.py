"""The demo: a made scan, the shipped network, and what it looked at."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from voxplain import segment
from voxplain.compute import Compute
from voxplain.datasets.phantom import glioma, write_case
from voxplain.explain import RelevanceMap
from voxplain.io.bundle import load_model
from voxplain.metrics.overlap import best_grouping, dice
from voxplain.results import print_ranks, write_results
from voxplain.scan import Labels


def run_demo(out: Path, *, seed: int, compute: Compute, console: Console) -> None:
    """Make a scan with a tumour, explain it with the shipped network, and print ranks, figures and paths."""
    phantom = glioma(seed, grade="HGG")
    scan, truth = phantom.scan, phantom.labels
    write_case(scan, truth, out / "made-scan")
    console.print(f"made scan with a tumour: {out / 'made-scan'} (a phantom: a software check, not evidence)")
    model = load_model("tumour-hemisphere")
    why = RelevanceMap(channel="flair")(model, scan, seed=seed, compute=compute)
    mask = segment.otsu(why, mask=Labels(scan.foreground(), scan.grid))
    paths = write_results(why, mask, "relevance-map", out, rule="otsu")
    for region in why.regions:
        console.print(f"{region.name} half: tumour with probability {region.probability:.3f}", highlight=False)
    print_ranks(why, console)
    reference = truth.data > 0
    console.print("phantom (software check):")
    console.print(f"  Dice of the mask, Otsu (deployable): {dice(mask.data > 0, reference):.2f}", highlight=False)
    assert why.parts is not None
    assert why.scores is not None
    best = best_grouping(why.parts.data, why.scores, reference)
    console.print(f"  Dice of the best grouping of {best.ranks} ranks (oracle): {best.dice:.2f}", highlight=False)
    for name, path in paths.items():
        console.print(f"{name}: {path}", highlight=False, soft_wrap=True)
