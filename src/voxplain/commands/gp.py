"""`voxplain train|evaluate|study gp`: networks that explain themselves, on slices (paper gp, 002)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voxplain.commands.options import (
    CardFile,
    Device,
    Memory,
    ModelName,
    Out,
    Quick,
    Seed,
    Threads,
    compute_of,
    out_console,
)
from voxplain.io.bundle import load_model

Network = Annotated[str, typer.Option(help="gp-unet, gp-reconresnet, gp-shuffleunet, inception-v3 or resnext50")]
Dataset = Annotated[
    str, typer.Option(help="cheng, brats-slices (tumour or not) or brats-grade-slices (tumour-free, LGG, HGG)")
]
SliceData = Annotated[Path, typer.Option(help="Cheng's folder (either layout), or patients in BraTS layout")]
Size = Annotated[
    str,
    typer.Option(
        "--preset", help="small (two CPU cores), small-paper-recipe, or paper (the paper's sizes and recipe, for a GPU)"
    ),
]


def train_gp(
    network: Network,
    dataset: Dataset,
    data: SliceData,
    out: Out,
    preset: Size = "small",
    fold: Annotated[int, typer.Option(min=0, help="which fold's training part to learn from")] = 0,
    final: Annotated[bool, typer.Option("--final", help="learn from all scans instead, without a test")] = False,
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Train a network on one label per slice: a model folder that explain, evaluate and report read; resumable."""
    from voxplain.studies import gp

    metrics = gp.train(
        dataset,
        data,
        out,
        network=network,
        size="quick" if quick else preset,
        fold=None if final else fold,
        seed=seed,
        compute=compute_of(device, memory, threads),
    )
    learnt = ", ".join(f"{count} {name}" for name, count in metrics["n_slices"].items())
    out_console.print(f"{metrics['parameters']:,} weights, epoch {metrics['epochs']} kept; learnt from {learnt}")
    out_console.print(f"model: {out}", highlight=False, soft_wrap=True)


def evaluate_gp(
    model: ModelName,
    dataset: Dataset,
    data: SliceData,
    out: Out,
    card: CardFile = None,
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Classification and localisation of a trained network, without training, on slices that it has not seen."""
    from voxplain.studies import gp

    gp.evaluate(
        load_model(model, card),
        dataset,
        data,
        out,
        quick=quick,
        seed=seed,
        compute=compute_of(device, memory, threads),
        console=out_console,
    )
    out_console.print((out / "tables.md").read_text(encoding="utf-8"), highlight=False, markup=False, soft_wrap=True)
    out_console.print(f"tables: {out / 'scores.tsv'}, {out / 'tables.md'}", highlight=False, soft_wrap=True)


def study_gp(
    dataset: Dataset,
    data: SliceData,
    out: Out,
    preset: Size = "small",
    network: Annotated[
        list[str] | None, typer.Option(help="a network of the study; may come several times; all five by default")
    ] = None,
    rotate: Annotated[
        list[str] | None, typer.Option(help="a network that learns every fold; gp-unet by default, all with paper")
    ] = None,
    fold: Annotated[
        list[int] | None, typer.Option(help="a fold of the rotated networks; may come several times; all by default")
    ] = None,
    ablation: Annotated[bool, typer.Option("--ablation", help="train variants of gp-unet as well")] = False,
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """The whole of paper gp: train, classify, explain, segment, compare, with the paper's figures beside; resumable."""
    from voxplain.studies import gp
    from voxplain.studies.gp_presets import NETWORKS

    networks = tuple(network or NETWORKS)
    by_default = networks if preset == "paper" else tuple(name for name in networks if name == "gp-unet")
    gp.study(
        dataset,
        data,
        out,
        size="quick" if quick else preset,
        networks=networks,
        turns=fold,
        ablation=ablation,
        rotated=() if quick else tuple(rotate or by_default),
        seed=seed,
        compute=compute_of(device, memory, threads),
        console=out_console,
    )
