"""`voxplain segment`: outline a lesion with a classifier that was never shown an outline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voxplain import refine
from voxplain.commands.options import (
    CardFile,
    Device,
    Memory,
    ModelName,
    Out,
    Seed,
    SequenceFile,
    Threads,
    compute_of,
    error_console,
    out_console,
    scan_files,
    seen_by,
    sources_of,
)
from voxplain.errors import InputError
from voxplain.explain import GradCAM, RelevanceMap
from voxplain.io.atomic import output_folder
from voxplain.io.bundle import load_model
from voxplain.io.nifti import read_sequences
from voxplain.results import write_results

# The stem's activation of voxplain's own residual networks: the finest layer that study and page speak of.
_STEM = "act"
# What a lesion's border is drawn on, where the network reads it.
_BORDER = ("flair", "t2")


def segment_scan(
    model: ModelName,
    out: Out,
    scan: Annotated[Path | None, typer.Option(help="patient folder in BraTS layout")] = None,
    flair: SequenceFile = None,
    t1: SequenceFile = None,
    t1ce: SequenceFile = None,
    t2: SequenceFile = None,
    sequence: Annotated[list[str] | None, typer.Option(help="another sequence, name=file.nii.gz")] = None,
    layer: Annotated[str | None, typer.Option(help="early layer for Grad-CAM; act where the network has it")] = None,
    border: Annotated[
        list[str] | None, typer.Option(help="sequence on which the border is drawn; flair and t2 by default")
    ] = None,
    segments: Annotated[int, typer.Option(help="supervoxels to start with")] = 100,
    card: CardFile = None,
    seed: Seed = 0,
    device: Device = "auto",
    memory: Memory = "2GB",
    threads: Threads = None,
) -> None:
    """Outline the lesion that a classifier speaks of: relevance map and early Grad-CAM, finished on the intensities.

    The mask is that of `voxplain.refine.mixture` on both maps together; it follows the whole head, and is empty where
    no region is positive. Without a layer to watch, the relevance map alone says where.
    """
    given = {"flair": flair, "t1": t1, "t1ce": t1ce, "t2": t2}
    named = [f"{name}={path}" for name, path in given.items() if path is not None]
    files = scan_files(scan, [*named, *(sequence or [])])
    read = read_sequences(files)
    loaded = load_model(model, card)
    channels = tuple(border or [name for name in _BORDER if name in read.channels] or read.channels[:1])
    if missing := [name for name in channels if name not in read.channels]:
        raise InputError(f"--border {', '.join(missing)}: the scan has {', '.join(read.channels)}")
    if layer is None and loaded.differentiable_inside and _STEM in loaded.layers:
        layer = _STEM
    if layer is not None:
        loaded.layer(layer)  # refused before anything runs, not after the relevance map
    output_folder(out)
    compute = compute_of(device, memory, threads)
    cut = "flair" if "flair" in loaded.card.channels else None
    relevance = RelevanceMap(segments=segments, channel=cut, effect="signed", scale="logit")
    maps = {"relevance-map": relevance(loaded, read, seed=seed, compute=compute)}
    where = maps["relevance-map"]
    if layer is None:
        error_console.print(
            "no layer for Grad-CAM: the relevance map alone says where; name an early one with --layer", highlight=False
        )
    else:
        maps["grad-cam"] = GradCAM(layer=layer)(loaded, read, seed=seed, compute=compute)
        where = refine.fused(where, maps["grad-cam"], read)
    mask = refine.mixture(where, read, channels=channels)
    sources = sources_of(files)
    seen = seen_by(loaded.card, sources)
    rule = f"mixture of {', '.join(channels)} from {' and '.join(maps)}"
    for name, why in maps.items():
        paths = write_results(why, mask, name, out, rule=rule, sources=sources, seen=seen)
        out_console.print(f"{name}: {paths['map']}", highlight=False, soft_wrap=True)
    for region in where.regions:
        verdict = "positive" if region.positive else "negative"
        out_console.print(f"{region.name}: probability {region.probability:.3f}, {verdict}", highlight=False)
    out_console.print(f"lesion: {mask.volume:.1f} ml, {paths['mask']}", highlight=False, soft_wrap=True)
