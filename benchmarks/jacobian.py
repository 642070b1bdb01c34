"""Instance SmoothGrad (004, Eq. 3) beside the published procedure, in one process, on the same noise.

The published procedure makes one backward pass over the whole scan for each voxel of a lesion and each noisy copy. A
few of these passes are timed, weights frozen, and multiplied; ours runs to its end. How far the maps differ is measured
on some of the voxels and copies, for which both run. With windows, their passes go back through the windows that hold
the lesion, once each, and not through all of the scan's. Weights are random unless `--model` names others; the scan is
patient07 of `ms` in VOXPLAIN_DATA, or else a phantom, cut or padded to 182 x 218 x 182 voxels.

Last, a large lesion is explained by all of its voxels and by a sample, on the same noise. Writes `jacobian.tsv`.
"""

from __future__ import annotations

import csv
import os
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import torch
import typer
from measuring import timed
from monai.networks.nets import UNet
from torch import nn

import voxplain as vx
from voxplain.datasets import phantom
from voxplain.engine.windows import Stitched
from voxplain.explain.explainer import in_evaluation
from voxplain.preparation import prepare

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
SHAPE, PADDED = (182, 218, 182), (192, 224, 192)
WINDOW, OVERLAP = (96, 96, 96), 0.25
SIGMA = 0.05
_METHOD = vx.InstanceSmoothGrad(sigma=SIGMA)


@dataclass(frozen=True)
class Clock:
    """Seconds on the wall, and of the processor, which other work on the machine hardly touches (with one thread)."""

    wall: float
    processor: float

    @classmethod
    def now(cls) -> Clock:
        """Both clocks."""
        return cls(time.perf_counter(), time.process_time())

    @classmethod
    def since(cls, started: Clock) -> Clock:
        """What has passed."""
        now = cls.now()
        return cls(now.wall - started.wall, now.processor - started.processor)

    @classmethod
    def middle(cls, found: list[Clock]) -> Clock:
        """The median of several."""
        return cls(median(each.wall for each in found), median(each.processor for each in found))


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, a scan, and voxels of a made lesion in the scan's white matter, as whole numbers (N, 3)."""

    model: vx.Model
    scan: vx.Scan

    def lesion(self, squared_radius: float) -> np.ndarray:
        """A ball: 93 voxels for a squared radius of 8."""
        centre = np.array(self.scan.grid.shape) // 2 + np.array((28, 10, 12))
        index = np.moveaxis(np.indices(self.scan.grid.shape), 0, -1)
        return np.argwhere(((index - centre) ** 2).sum(axis=-1) <= squared_radius)

    def target(self, voxels: np.ndarray) -> vx.RegionScore:
        """The class at the card's end in these voxels."""
        mask = np.zeros(self.scan.grid.shape, dtype=np.int32)
        mask[tuple(voxels.T)] = 1
        return vx.RegionScore(self.model.card.classes[-1], vx.Labels(mask, self.scan.grid))


def paper_network(seed: int = 0) -> nn.Module:
    """The paper's U-Net, 7,916,170 weights, random; norms with statistics as after a training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(3, 2, 2, channels=(32, 64, 128, 256, 512), strides=(2, 2, 2, 2), norm="batch")
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.3, 0.3)
            if isinstance(module, nn.PReLU):
                nn.init.uniform_(module.weight, 0.1, 0.4)
    return network.eval()


def a_scan() -> vx.Scan:
    """FLAIR and T1 of 1 mm."""
    folder = Path(os.environ.get("VOXPLAIN_DATA", "")) / "ms" / "patient07"
    if (folder / "FLAIR.nii.gz").is_file():
        return vx.read(flair=folder / "FLAIR.nii.gz", t1=folder / "T1.nii.gz")
    made = phantom.multiple_sclerosis(0, spacing=1.0).scan.select(["flair", "t1"])
    first = [(have - want) // 2 for have, want in zip(made.grid.shape, SHAPE, strict=True)]
    return made.on(made.grid.window(first, SHAPE))


def published(
    subject: Subject, voxels: np.ndarray, copies: int, seed: int
) -> tuple[np.ndarray, list[Clock], list[Clock]]:
    """Eq. 3 by one backward pass per voxel and copy: the map, seconds of each pass forward, and of each one back."""
    model, card = subject.model, subject.model.card
    (prepared,) = prepare(subject.scan, card)
    image = prepared.input.data
    (target,) = subject.target(voxels).on([prepared.input.grid])
    assert isinstance(target, vx.RegionScore)
    read = target.mask.data > 0
    # Noise of a copy comes from a stream of its own, whatever their number.
    streams = np.random.default_rng(seed).spawn(copies)
    deviation = (SIGMA * np.ptp(image.reshape(len(image), -1), axis=1)).astype(np.float32)
    total = np.zeros(image.shape)
    forward: list[Clock] = []
    backward: list[Clock] = []
    network: Callable[[torch.Tensor], torch.Tensor] = model.network
    if card.window is not None:
        network = Stitched(model.network, card, background=prepared.background, read=read)
    with in_evaluation(model.network, torch.device("cpu")):
        for stream in streams:
            noise = stream.standard_normal(image.shape, dtype=np.float32)
            inputs = torch.tensor((image + noise * deviation[:, None, None, None])[None], requires_grad=True)
            started = Clock.now()
            output = network(inputs)[0, -1]
            forward.append(Clock.since(started))
            best = np.zeros(image.shape, dtype=np.float32)
            for voxel in np.argwhere(read).tolist():
                started = Clock.now()
                (gradient,) = torch.autograd.grad(output[tuple(voxel)], inputs, retain_graph=True)
                backward.append(Clock.since(started))
                found = gradient[0].numpy()
                best = np.where(np.abs(found) > np.abs(best), found, best)
            total += best
    first = prepared.record.get("cut", {}).get("start", (0, 0, 0))
    part = tuple(slice(-start, size - start) for start, size in zip(first, subject.scan.grid.shape, strict=True))
    return total[(slice(None), *part)] / copies, forward, backward


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="folder for the table")] = Path("runs/bench"),
    model: Annotated[str | None, typer.Option(help="a model for flair and t1; the paper's network by default")] = None,
    copies: Annotated[int, typer.Option(min=1, help="noisy copies N")] = 50,
    passes: Annotated[int, typer.Option(min=1, help="of their backward passes, so many a copy are timed")] = 4,
    timed_copies: Annotated[int, typer.Option(min=1, help="on so many copies")] = 2,
    sample_copies: Annotated[int, typer.Option(min=0, help="copies for the sample's error; 0 leaves it out")] = 2,
    squared_radius: Annotated[float, typer.Option(help="of the large lesion, in voxels: 36 is 925 voxels")] = 36.0,
    most_voxels: Annotated[int, typer.Option(min=1, help="voxels in its sample")] = 512,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads, for both")] = 2,
    quick: Annotated[bool, typer.Option(help="a smoke run: a cut scan, a narrow network")] = False,
) -> None:
    """Print and write how many times faster ours is, and how far apart the maps are."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore", UserWarning)
    scan = a_scan()
    network = paper_network()
    window, padded = WINDOW, PADDED
    if quick:
        scan = scan.on(scan.grid.window((60, 70, 60), (64, 64, 64)))
        network, window, padded = _narrow(), (32, 32, 32), (64, 64, 64)
    card = vx.Card(
        name="instance",
        channels=("flair", "t1"),
        classes=("background", "lesion"),
        activation="softmax",
        normalisation="z-score",
    )
    given = vx.load_model(model) if model else vx.Model(network, card)
    cases = {
        "whole": replace(given.card, window=None, shape=padded),
        "windows": replace(given.card, window=window, overlap=OVERLAP),
    }
    out.mkdir(parents=True, exist_ok=True)
    compute = vx.Compute(device="cpu", threads=threads)
    with open(out / "jacobian.tsv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t")

        def say(case: str, metric: str, value: float, n: int) -> None:
            table.writerow([case, metric, f"{value:.6g}", n])
            file.flush()
            print(f"{case:12} {metric:58} {value:12.5g}   n = {n}", flush=True)

        table.writerow(["case", "metric", "value", "n"])
        say("machine", f"threads of {platform.processor() or platform.machine()}", threads, 1)
        for case, its_card in cases.items():
            _compare(Subject(vx.Model(given.network, its_card), scan), case, copies, passes, timed_copies, compute, say)
        if sample_copies:
            subject = Subject(vx.Model(given.network, cases["whole"]), scan)
            _sampled(subject, subject.lesion(squared_radius), most_voxels, sample_copies, compute, say)


def _compare(
    subject: Subject,
    case: str,
    copies: int,
    passes: int,
    timed_copies: int,
    compute: vx.Compute,
    say: Callable[[str, str, float, int], None],
) -> None:
    voxels = subject.lesion(8)
    some = voxels[np.linspace(0, len(voxels) - 1, passes).astype(int)]
    few = replace(_METHOD, copies=timed_copies)
    theirs, forward, backward = published(subject, some, timed_copies, 0)
    near = few(subject.model, subject.scan, target=subject.target(some), compute=compute)
    say(case, "voxels of the lesion", len(voxels), 1)
    say(case, "copies", copies, 1)
    back, there = Clock.middle(backward), Clock.middle(forward)
    say(case, "theirs, seconds of a backward pass", back.wall, len(backward))
    say(case, "theirs, seconds of a forward pass", there.wall, len(forward))
    their_seconds = copies * (there.wall + len(voxels) * back.wall)
    say(case, "theirs, seconds in all (extrapolated)", their_seconds, len(backward))
    peak = np.abs(theirs).max()
    say(case, "largest deviation of the map, of its peak", float(np.abs(near.map - theirs).max() / peak), 1)
    method, target = replace(_METHOD, copies=copies), subject.target(voxels)
    started = Clock.now()
    run = timed(lambda: method(subject.model, subject.scan, target=target, compute=compute))
    ours = Clock.since(started)
    say(case, "ours, seconds in all", run.seconds, 1)
    say(case, "ours, milliseconds of a voxel and copy", 1000 * run.seconds / (copies * len(voxels)), 1)
    say(case, "ours, peak memory in MB", run.peak_bytes / 1e6, 1)
    say(case, "times faster", their_seconds / run.seconds, 1)
    their_processor = copies * (there.processor + len(voxels) * back.processor)
    say(case, "times faster, by seconds of the processor", their_processor / ours.processor, 1)


def _sampled(
    subject: Subject,
    voxels: np.ndarray,
    most: int,
    copies: int,
    compute: vx.Compute,
    say: Callable[[str, str, float, int], None],
) -> None:
    method = replace(_METHOD, copies=copies, most_voxels=len(voxels))
    target = subject.target(voxels)
    whole = method(subject.model, subject.scan, target=target, compute=compute).map
    sample = replace(method, most_voxels=most)(subject.model, subject.scan, target=target, compute=compute).map
    say("sample", "voxels of the lesion", len(voxels), 1)
    say("sample", "voxels looked at", min(most, len(voxels)), 1)
    say("sample", "copies", copies, 1)
    for channel, name in enumerate(subject.model.card.channels):
        for what, extreme in (("maximum", np.max), ("minimum", np.min)):
            say(
                "sample",
                f"{name}: {what} over that of all voxels",
                extreme(sample[channel]) / extreme(whole[channel]),
                1,
            )
    away = np.abs(sample - whole)
    inside = np.abs(whole) > 0.01 * np.abs(whole).max()
    say("sample", "largest deviation of the map, of its peak", float(away.max() / np.abs(whole).max()), 1)
    say(
        "sample",
        "mean deviation where it is above 1 % of its peak, of it",
        float(away[inside].mean() / np.abs(whole).max()),
        1,
    )
    say("sample", "correlation there", float(np.corrcoef(sample[inside], whole[inside])[0, 1]), 1)


def _narrow() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet(3, 2, 2, channels=(4, 8, 16), strides=(2, 2), norm="batch").eval()


if __name__ == "__main__":
    app()
