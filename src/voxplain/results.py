"""What an explanation leaves on disk: map, mask, parts, rank table and provenance, each whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from voxplain.explanation import Explanation
from voxplain.io.atomic import output_folder, write_json, writing
from voxplain.io.nifti import save
from voxplain.scan import Labels


def write_results(
    explanation: Explanation, mask: Labels, name: str, folder: str | Path, *, rule: str
) -> dict[str, Path]:
    """Write the map `NAME.nii.gz`, `NAME-mask.nii.gz` and the provenance `NAME.json`.

    Maps of parts also leave `NAME-parts.nii.gz` and `NAME-ranks.tsv`. `name` is the method's, so that several methods
    share a folder; `rule` is how the mask was made, which the provenance keeps.

    Returns:
        The paths, by what they hold.
    """
    folder = output_folder(folder)
    paths = {"map": folder / f"{name}.nii.gz", "mask": folder / f"{name}-mask.nii.gz"}
    save(explanation, paths["map"])
    save(mask, paths["mask"])
    if explanation.parts is not None:
        paths |= {"parts": folder / f"{name}-parts.nii.gz", "ranks": folder / f"{name}-ranks.tsv"}
        save(explanation.parts, paths["parts"])
        with writing(paths["ranks"]) as temporary:
            explanation.ranks().to_csv(temporary, sep="\t", index=False, float_format="%.6g")
    paths["provenance"] = folder / f"{name}.json"
    content = {**explanation.provenance, "unit": explanation.unit, "signed": explanation.signed}
    content["mask"] = {"rule": rule, "volume_ml": round(mask.volume, 3)}
    write_json(json.loads(json.dumps(content, default=str)), paths["provenance"])
    return paths


def print_ranks(explanation: Explanation, console: Console, *, count: int = 10) -> None:
    """Print the most relevant parts of a map of parts; maps without parts print nothing."""
    if explanation.parts is None:
        return
    ranks = explanation.ranks()
    table = Table(title=f"The {min(count, len(ranks))} most relevant of {len(ranks)} parts ({explanation.unit})")
    for column in ranks.columns:
        table.add_column(column, justify="right")
    for line in ranks.head(count).itertuples(index=False):
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in line))
    console.print(table)
