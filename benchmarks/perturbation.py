"""voxplain's perturbation engine beside Captum, MONAI and its own full passes: `make bench`.

One process, same weights, same scan, same masks; contestants run in turn, at least five pairs; medians of ratios with
the smallest and the largest. Writes `performance.tsv`, `tables.md` and `growth.svg` into --out. Real scans of 1 mm are
read from $VOXPLAIN_DATA (default ../shared/data) where they are; else phantoms are made.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from captum.attr import FeatureAblation
from measuring import Paired, Run, timed
from monai.visualize import OcclusionSensitivity
from scipy.ndimage import find_objects
from scipy.stats import spearmanr
from subjects import Shape, Subject, head, real_scans, subject, trained
from tables import Row, draw_growth, write
from torch.fx.experimental.optimization import fuse

import voxplain as vx
from voxplain.compute import Compute
from voxplain.explain.fills import blank
from voxplain.explain.perturbation import Sample, scored, scores_without_each_part

# MONAI indexes with lists, of which torch warns at every window.
warnings.filterwarnings("ignore", message="Using a non-tuple sequence", category=UserWarning)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Section = Callable[["Sizes"], Iterator[Row]]


class Sizes:
    """How large everything is: the paper's sizes, or a smoke run's, whose figures mean nothing."""

    def __init__(self, quick: bool, pairs: int, compute: Compute) -> None:
        self.quick, self.pairs, self.compute = quick, pairs, compute
        self.data = None if quick else real_scans()
        self.whole: Shape = (48, 48, 48) if quick else (128, 128, 128)
        self.grading: Shape = (64, 64, 64) if quick else (120, 148, 120)
        self.extents = (40, 48) if quick else (64, 96, 128, 160)
        self.segments = (10, 20) if quick else (25, 50, 100, 200, 400)
        # SLIC falls into more connected parts than it starts with: 60 give about a hundred.
        self.about_a_hundred = 10 if quick else 60
        self.sampled = 4 if quick else 48
        # Contestants with full passes run so many parts per pair; ours runs all of them.
        self.per_pair = 3 if quick else 8
        self.edge, self.step = (12, 8) if quick else (16, 8)

    def resnet(self, scan: vx.Scan) -> Subject:
        """The relevance paper's ResNet-50 with a stem of stride 2; narrow in a smoke run."""
        return subject("resnet50", scan, width=8 if self.quick else 64)

    def head(self, shape: Shape, *, patient: int = 1, spacing: float = 1.0) -> vx.Scan:
        """A head of this shape; in a smoke run at a voxel size at which the brain is still in it."""
        return head(self.data, shape, patient=patient, spacing=160 / shape[0] if self.quick else spacing)


def _some(parts: vx.Labels, wanted: np.ndarray) -> vx.Labels:
    """Only some of the parts, renumbered."""
    lookup = np.zeros(int(parts.data.max()) + 1, dtype=np.int32)
    lookup[wanted] = np.arange(1, len(wanted) + 1)
    return vx.Labels(lookup[parts.data], parts.grid)


def _ours(its: Subject, parts: vx.Labels, compute: Compute) -> np.ndarray:
    """Probabilities without each part, everything from tracing the network on included."""
    return scores_without_each_part(its.probe(compute), parts, blank, "probability")


def _ablated(its: Subject, parts: vx.Labels, at_a_time: int) -> np.ndarray:
    """Probabilities without each part, by Captum."""
    network = its.model.network
    ablation = FeatureAblation(lambda inputs: torch.sigmoid(network(inputs))[:, 0])
    mask = torch.from_numpy(parts.data.astype(np.int64))[None, None]
    falls = ablation.attribute(its.input, baselines=0.0, feature_mask=mask, perturbations_per_eval=at_a_time)
    with torch.no_grad():
        clean = float(torch.sigmoid(network(its.input)))
    first = np.unique(parts.data, return_index=True)[1][1:]
    return clean - falls[0, 0].numpy().ravel()[first].astype(float)


def _ceiling(its: Subject, parts: vx.Labels, compute: Compute) -> float:
    boxes = [[(side.start, side.stop) for side in box] for box in find_objects(parts.data)]
    incremental = its.probe(replace(compute, engine="incremental")).incremental
    assert incremental is not None
    return incremental.arithmetic(boxes).ceiling


def captum(sizes: Sizes) -> Iterator[Row]:
    """Supervoxels: FeatureAblation at its best, our own full passes, ours recomputing only what changed."""
    incremental, full = (replace(sizes.compute, engine=engine) for engine in ("incremental", "full"))
    for name, shape in (("resnet50", sizes.whole), ("densenet169", sizes.grading)):
        scan = sizes.head(shape)
        its = sizes.resnet(scan) if name == "resnet50" else subject(name, scan, width=8 if sizes.quick else 64)
        parts = its.parts(sizes.about_a_hundred)
        count = int(parts.data.max())
        folds = np.array_split(np.random.default_rng(0).permutation(np.arange(1, count + 1)), sizes.pairs)
        folds = [fold[: sizes.per_pair] for fold in folds]
        few = _some(parts, folds[0][:4])
        # Captum adds a pass for the clean input, and one for all that lies in no part.
        trials = {n: timed(lambda n=n: _ablated(its, few, n)).seconds for n in (1, 2, 4)}  # noqa: B023
        best = min(trials, key=trials.__getitem__)
        beside_captum, beside_full, deviation = Paired(), Paired(), 0.0
        for fold in folds:
            some = _some(parts, fold)
            theirs = timed(lambda: _ablated(its, some, best))  # noqa: B023
            ours = timed(lambda: _ours(its, parts, incremental))  # noqa: B023
            plain = timed(lambda: _ours(its, some, full))  # noqa: B023
            beside_captum.add(theirs, len(fold) + 2, ours, count)
            beside_full.add(plain, len(fold) + 1, ours, count)
            deviation = max(deviation, float(np.abs(theirs.result - ours.result[fold - 1]).max()))
        ceiling = _ceiling(its, parts, sizes.compute)
        table = f"{name} {'x'.join(map(str, shape))}, {count} supervoxels"
        yield from _pairs(table, f"Captum FeatureAblation, {best} at a time", beside_captum)
        yield from _pairs(table, "voxplain, full passes", beside_full)
        compared = sum(map(len, folds))
        yield Row(table, "voxplain, incremental", "largest deviation in probability", deviation, n=compared)
        yield Row(table, "voxplain, incremental", "what exactness allows (times)", ceiling, n=count)
        reached = float(np.median(beside_full.ratios)) / ceiling
        yield Row(table, "voxplain, incremental", "reached of that, against full passes", reached, n=sizes.pairs)


def _pairs(table: str, peer: str, paired: Paired) -> Iterator[Row]:
    n = len(paired.ours)
    yield Row(table, peer, "s per pass", float(np.median(paired.theirs)), min(paired.theirs), max(paired.theirs), n)
    yield Row(table, peer, "peak memory in GB", paired.their_peak / 1e9, n=n)
    ours = "voxplain, incremental"
    seconds = float(np.median(paired.ours))
    yield Row(table, ours, f"s per pass, beside {peer}", seconds, min(paired.ours), max(paired.ours), n)
    yield Row(table, ours, f"peak memory in GB, beside {peer}", paired.our_peak / 1e9, n=n)
    yield Row(table, ours, f"times faster than {peer}", *paired.ratio(), n=n)


# Windows per crop that MONAI is timed on, along each axis.
_BLOCK = (3, 3, 2)


def _corners(its: Subject, count: int, edge: int, step: int) -> list[np.ndarray]:
    """First voxels of crops of `_BLOCK` windows, spread over the brain, on the lattice of windows."""
    middle = np.argwhere(its.scan.foreground()).mean(axis=0)
    rng, extent = np.random.default_rng(0), np.array(its.scan.grid.shape)
    spans = (np.array(_BLOCK) - 1) * step + edge
    corners = [middle + rng.uniform(-0.2, 0.2, 3) * extent - spans / 2 for _ in range(count)]
    return [np.clip(np.round(corner / step), 1, (extent - spans) // step - 1).astype(int) * step for corner in corners]


def _monai(its: Subject, corner: np.ndarray, edge: int, step: int, at_a_time: int) -> np.ndarray:
    """MONAI's mean probability per voxel in the middle of a crop."""
    margin = (edge - 1) // 2
    stop = corner + (np.array(_BLOCK) - 1) * step + edge
    box = [int(side) for pair in zip(corner + margin, stop - margin, strict=True) for side in pair]
    occlusion = OcclusionSensitivity(
        its.model.network, edge, at_a_time, verbose=False, mode=0.0, overlap=1 - step / edge, activate=torch.sigmoid
    )
    with torch.no_grad():
        found, _ = occlusion(its.input, b_box=box)
    return np.asarray(found[0, 0])


def _windows(its: Subject, corners: list[np.ndarray], edge: int, step: int, compute: Compute) -> list[np.ndarray]:
    """The same from voxplain, for several crops in one run."""
    places = np.stack(np.meshgrid(*map(np.arange, _BLOCK), indexing="ij"), -1).reshape(-1, 3) * step
    zeros = np.zeros((len(its.scan.channels), 1, 1, 1), dtype=np.float32)
    covered = np.zeros((edge,) * 3, dtype=bool)
    boxes = [[slice(int(a), int(a) + edge) for a in corner + place] for corner in corners for place in places]
    samples = [Sample((x, y, z), covered, zeros) for x, y, z in boxes]
    run = scored(its.probe(compute), samples, "probability", count=len(samples), what="windows")
    scores = np.array([score for _, score in run]).reshape(len(corners), -1)
    margin, maps = (edge - 1) // 2, []
    for row in scores:
        total, count = (np.zeros((np.array(_BLOCK) - 1) * step + edge) for _ in range(2))
        for place, score in zip(places, row, strict=True):
            window = tuple(slice(a, a + edge) for a in place)
            total[window] += score
            count[window] += 1
        maps.append((total / count)[tuple(slice(margin, n - margin) for n in total.shape)])
    return maps


def occlusion(sizes: Sizes) -> Iterator[Row]:
    """Dense occlusion: a sample of windows beside MONAI; then the whole map, all windows and coarse to fine."""
    edge, step = sizes.edge, sizes.step
    yield from _occluded(
        sizes, sizes.resnet(sizes.head(sizes.whole)), "random weights", edge, step, (0.3,) * sizes.quick
    )
    if not sizes.quick:
        yield from _occluded(sizes, trained(sizes.data), "trained", 8, 4, (0.1, 0.15, 0.2, 0.3))


def _occluded(sizes: Sizes, its: Subject, kind: str, edge: int, step: int, shares: tuple[float, ...]) -> Iterator[Row]:
    incremental = replace(sizes.compute, engine="incremental")
    shape = its.scan.grid.shape
    corners = _corners(its, sizes.pairs, edge, step)
    trials = {n: timed(lambda n=n: _monai(its, corners[0], edge, step, n)).seconds for n in (1, 2, 4, 8)}
    best = min(trials, key=trials.__getitem__)
    paired, deviation, block = Paired(), 0.0, int(np.prod(_BLOCK))
    for row, corner in enumerate(corners):
        theirs = timed(lambda: _monai(its, corner, edge, step, best))  # noqa: B023
        ours = timed(lambda: _windows(its, corners, edge, step, incremental))
        paired.add(theirs, block, ours, block * len(corners))
        deviation = max(deviation, float(np.abs(theirs.result - ours.result[row]).max()))
    name = f"{its.name} ({kind}), {'x'.join(map(str, shape))}, windows of {edge}^3 every {step}"
    peer = f"MONAI OcclusionSensitivity, {best} at a time"
    yield from _pairs(name, peer, paired)
    yield Row(name, "voxplain, incremental", "largest deviation in probability", deviation, n=block * len(corners))
    boxes = [[(int(a), int(a) + edge) for a in corner] for corner in corners]
    engine = its.probe(incremental).incremental
    assert engine is not None
    yield Row(name, "voxplain, incremental", "what exactness allows (times)", engine.arithmetic(boxes).ceiling)

    if not shares:
        return
    table = f"whole occlusion map of {name}"
    monai_seconds = float(np.median(paired.theirs)) * int(np.prod([(n - edge) // step + 1 for n in shape]))
    yield Row(table, f"{peer}, from the sample", "s", monai_seconds)
    method = vx.Occlusion(
        partition=f"cubes:{edge * its.scan.grid.spacing[0]:g}", stride=step * its.scan.grid.spacing[0]
    )

    def explained(passes: int | None) -> Run[vx.Explanation]:
        chosen = replace(method, passes=passes)
        return timed(lambda: chosen(its.model, its.scan, target=vx.ClassScore("tumour"), compute=incremental))

    every = explained(None)
    windows = every.result.provenance["facts"]["whole"]["windows_that_change"]
    yield Row(table, f"all {windows} windows that change anything", "s", every.seconds)
    yield Row(
        table, f"all {windows} windows that change anything", "times faster than MONAI", monai_seconds / every.seconds
    )
    brain, regions, exact = its.scan.foreground(), its.parts(sizes.about_a_hundred), every.result.map[0]
    for share in shares:
        some = explained(max(1, round(share * windows)))
        row, found = f"{max(1, round(share * windows))} windows, coarse to fine", some.result.map[0]
        yield Row(table, row, "s", some.seconds)
        yield Row(table, row, "times faster than MONAI", monai_seconds / some.seconds)
        yield Row(table, row, "Spearman in the brain", float(spearmanr(exact[brain], found[brain]).statistic))
        yield Row(table, row, "Spearman in the volume", float(spearmanr(exact.ravel(), found.ravel()).statistic))
        tops = [set(_top_regions(values, regions)) for values in (exact, found)]
        yield Row(table, row, "of the top three supervoxels, the same", float(len(tops[0] & tops[1])), n=3)


def _top_regions(values: np.ndarray, regions: vx.Labels) -> np.ndarray:
    """The three supervoxels with the highest means of a map."""
    size = np.bincount(regions.data.ravel())
    means = np.bincount(regions.data.ravel(), weights=values.ravel()) / np.maximum(size, 1)
    means[0] = -np.inf
    return np.argsort(-means)[:3]


def growth(sizes: Sizes) -> Iterator[Row]:
    """Seconds per pass over scan size (one field of view) and over the number of supervoxels."""
    most = sizes.extents[-1]
    for extent in sizes.extents:
        its = sizes.resnet(sizes.head((extent,) * 3, spacing=160 / extent))
        yield from _cost(f"scan {extent}, a hundred supervoxels", its, its.parts(sizes.about_a_hundred), sizes)
    its = sizes.resnet(sizes.head((min(most, 128),) * 3))
    for segments in sizes.segments:
        parts = its.parts(segments)
        yield from _cost(f"parts {parts.data.max()}, SLIC of {segments} at {min(most, 128)}^3", its, parts, sizes)


def _cost(row: str, its: Subject, parts: vx.Labels, sizes: Sizes) -> Iterator[Row]:
    count = int(parts.data.max())
    chosen = np.random.default_rng(0).permutation(np.arange(1, count + 1))[: sizes.sampled]
    some, few = _some(parts, chosen), _some(parts, chosen[:4])
    incremental, full = (replace(sizes.compute, engine=engine) for engine in ("incremental", "full"))
    table = "growth"
    plain = timed(lambda: _ours(its, few, full)).seconds / 5
    prepared = timed(lambda: its.probe(incremental).incremental)
    ours = timed(lambda: _ours(its, some, incremental))
    ceiling = _ceiling(its, some, sizes.compute)
    per_pass = max(ours.seconds - prepared.seconds, 0.0) / len(chosen)
    whole = prepared.seconds + per_pass * count
    yield Row(table, row, "s per full pass", plain, n=5)
    yield Row(table, row, "s to prepare", prepared.seconds)
    yield Row(table, row, "s per incremental pass", per_pass, n=len(chosen))
    yield Row(table, row, "times faster, preparation included", plain * count / whole, n=count)
    yield Row(table, row, "what exactness allows (times)", ceiling, n=len(chosen))
    yield Row(table, row, "peak memory in GB", ours.peak_bytes / 1e9)


def profile(sizes: Sizes) -> Iterator[Row]:
    """Where an incremental run's processor time goes, by torch's own operators."""
    its = sizes.resnet(sizes.head(sizes.whole))
    parts = its.parts(sizes.about_a_hundred)
    some = _some(parts, np.random.default_rng(0).permutation(np.arange(1, int(parts.data.max()) + 1))[: sizes.sampled])
    probe = its.probe(replace(sizes.compute, engine="incremental"))
    assert probe.incremental is not None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as watched:
        run = timed(lambda: scores_without_each_part(probe, some, blank, "probability"))
    spent = {event.key: event.self_cpu_time_total / 1e6 for event in watched.key_averages()}
    in_torch = sum(spent.values())
    for name, seconds in sorted(spent.items(), key=lambda item: -item[1])[:10]:
        yield Row("profile", name, "share of the run", seconds / run.seconds, n=some.count)
    yield Row("profile", "outside of torch's operators", "share of the run", 1 - in_torch / run.seconds, n=some.count)


def settings(sizes: Sizes) -> Iterator[Row]:
    """What each setting does to a full pass of the network (paired with the plain one), and to the engine."""
    its = sizes.resnet(sizes.head(sizes.whole))
    network, x = its.model.network, its.input
    last = x.contiguous(memory_format=torch.channels_last_3d)

    def plain() -> None:
        with torch.no_grad():
            network(x)

    def with_gradients() -> None:
        network(x)

    def inference_mode() -> None:
        with torch.inference_mode():
            network(x)

    def channels_last() -> None:
        with torch.no_grad():
            network(last)

    def bfloat16() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            network(last)

    def one_thread() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        plain()
        torch.set_num_threads(threads)

    folded = fuse(network)

    def norms_folded() -> None:
        with torch.no_grad():
            folded(last)

    for contestant in (with_gradients, inference_mode, channels_last, norms_folded, bfloat16, one_thread):
        paired = Paired()
        plain(), contestant()
        for _ in range(sizes.pairs):
            paired.add(timed(plain), 1, timed(contestant), 1)
        what = contestant.__name__.replace("_", " ")
        yield Row("settings", what, "times faster than a plain pass", *paired.ratio(), n=sizes.pairs)
        yield Row("settings", what, "s per pass", float(np.median(paired.ours)), n=sizes.pairs)


SECTIONS: dict[str, Section] = {section.__name__: section for section in (captum, occlusion, growth, profile, settings)}


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="folder for the results")] = Path("runs/bench"),
    only: Annotated[list[str] | None, typer.Option(help=f"sections: {', '.join(SECTIONS)}")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="paired runs")] = 5,
    threads: Annotated[int | None, typer.Option(help="CPU threads")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    memory: Annotated[str, typer.Option(help="memory limit of voxplain's runs")] = "4GB",
    quick: Annotated[bool, typer.Option("--quick", help="smoke run: tiny sizes, figures mean nothing")] = False,
) -> None:
    """Run the benchmarks side by side, and write their tables."""
    unknown = sorted(set(only or ()) - set(SECTIONS))
    if unknown:
        raise typer.BadParameter(f"no section {', '.join(unknown)}; sections: {', '.join(SECTIONS)}")
    if threads is not None:
        torch.set_num_threads(threads)
    sizes = Sizes(quick, 1 if quick else pairs, Compute(device=device, memory=memory, threads=threads))
    for name in only or SECTIONS:
        rows = []
        for row in SECTIONS[name](sizes):
            rows.append(row)
            typer.echo(f"{row.table} | {row.row} | {row.metric}: {row.text()}")
        write(rows, out, name)
        if name == growth.__name__:
            draw_growth(rows, out)
    typer.echo(f"tables: {out}")


if __name__ == "__main__":
    app()
