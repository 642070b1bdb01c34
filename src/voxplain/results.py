"""What an explanation leaves on disk: map, mask, parts, rank table and provenance, each whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

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
