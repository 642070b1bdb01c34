"""One training step of paper gp's networks at the paper's own sizes (002): seconds, and how many weights there are.

The paper states days of training on a GPU (table 1) and no seconds a step; a step here is forward, loss, backward and
optimiser on a batch of `--batch` slices, the median of three after one to warm up. Writes `slices.tsv` into --out.
"""

from __future__ import annotations

import csv
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from torch.nn.functional import cross_entropy

from voxplain.compute import Compute
from voxplain.studies.cross_validation import new_network
from voxplain.studies.gp_paper import SIZES
from voxplain.studies.gp_presets import NETWORKS, preset

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="folder for the table")],
    batch: Annotated[int, typer.Option(min=2, help="slices a step")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="steps that are timed")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Time one step of every network on both data sets' sizes."""
    out.mkdir(parents=True, exist_ok=True)
    where = Compute(device=device).torch_device
    with open(out / "slices.tsv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["dataset", "network", "weights", "paper_million", "input", "batch", "seconds", "device"])
        for dataset in ("cheng", "brats-grade-slices"):
            for name in NETWORKS:
                chosen = preset(name, dataset, "paper")
                network = new_network(chosen.card, 0).train().to(where)
                weights = sum(weight.numel() for weight in network.parameters())
                assert chosen.card.shape is not None
                size = (batch, len(chosen.card.channels), *chosen.card.shape[:2])
                found = round(_seconds(network, size, len(chosen.card.classes), repeats, where), 2)
                row = [dataset, name, weights, SIZES[name][0], "x".join(map(str, size[1:])), batch, found, str(where)]
                table.writerow(row)
                file.flush()
                print(*row, sep="  ", flush=True)


def _seconds(
    network: torch.nn.Module, size: tuple[int, ...], classes: int, repeats: int, device: torch.device
) -> float:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, generator=generator).to(device)
    labels = torch.randint(0, classes, size[:1], generator=generator).to(device)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3, weight_decay=5e-4)
    found = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            scores = network(images)
        cross_entropy(scores.float(), labels).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return median(found[1:])


if __name__ == "__main__":
    app()
