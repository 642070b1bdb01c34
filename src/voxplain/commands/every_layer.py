"""`voxplain explain METHOD --layer all`: one map per block, and all of them on one sheet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from voxplain.commands.options import out_console, seen_by, sources_of
from voxplain.compute import Compute
from voxplain.engine.progress import console
from voxplain.errors import InputError
from voxplain.explain.cam import ClassActivationMap
from voxplain.explain.every_layer import every_layer
from voxplain.explanation import Explanation
from voxplain.io.atomic import writing
from voxplain.model import Model
from voxplain.results import write_results
from voxplain.scan import Labels, Scan
from voxplain.target import Target

ALL = "all"
SHEET = "layers.png"


def explain_every_layer(
    explainer: ClassActivationMap,
    model: Model,
    scan: Scan,
    files: Mapping[str, Path],
    *,
    target: Target,
    out: Path,
    rule: str,
    make_mask: Callable[[Explanation], Labels],
    seed: int,
    compute: Compute,
) -> None:
    """Explain every block, write each as METHOD-LAYER, and the contact sheet `layers.png` of volumes."""
    from voxplain.report.depths import contact_sheet

    sources = sources_of(files)
    seen = seen_by(model.card, sources)
    maps: dict[str, Explanation] = {}
    for layer, why in every_layer(explainer, model, scan, target=target, seed=seed, compute=compute):
        maps[layer] = why
        name = f"{explainer.name}-{layer}"
        write_results(why, make_mask(why), name, out, rule=rule, sources=sources, seen=seen)
        facts = next(iter(why.provenance["facts"].values()))
        cells, size = (" x ".join(f"{value:g}" for value in facts[key]) for key in ("layer_shape", "layer_grid_mm"))
        console.print(f"{layer}: {cells} cells of {size} mm", highlight=False)
    if not maps:
        raise InputError(f"no block of {model.card.name} has a grid of more than one cell: nothing to localise")
    if scan.grid.shape[scan.grid.axis("SI")] > 1:
        with writing(out / SHEET) as temporary:
            temporary.write_bytes(contact_sheet(scan, maps))
        out_console.print(f"sheet: {out / SHEET}", highlight=False, soft_wrap=True)
    out_console.print(f"maps: {out}/{explainer.name}-LAYER.nii.gz, {len(maps)} layers", highlight=False, soft_wrap=True)
