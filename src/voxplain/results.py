"""What an explanation leaves on disk: map, mask, parts, rank table and provenance, each whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from voxplain.errors import InputError
from voxplain.explanation import Explanation, Region
from voxplain.io.atomic import output_folder, write_json, writing
from voxplain.io.nifti import read_labels, read_map, save
from voxplain.scan import Labels

# Ranks are written with six digits and maps in 32 bits.
_SAME_SCORE = 1e-5


@dataclass(frozen=True, eq=False)
class Result:
    """One method's explanation and mask as they lie in a `folder`; `name` is what its files begin with."""

    name: str
    explanation: Explanation
    mask: Labels
    folder: Path


def write_results(
    explanation: Explanation,
    mask: Labels,
    name: str,
    folder: str | Path,
    *,
    rule: str,
    sources: Mapping[str, Path] | None = None,
    seen: bool | None = None,
    lesion: Mapping[str, Any] | None = None,
) -> dict[str, Path]:
    """Write the map `NAME.nii.gz`, `NAME-mask.nii.gz` and the provenance `NAME.json`.

    Maps of parts also leave `NAME-parts.nii.gz` and `NAME-ranks.tsv`. `name` is the method's, so that several methods
    share a folder. The provenance keeps `rule`, how the mask was made; `sources`, the scan's files by sequence, by
    which `voxplain report` finds the scan again; and `seen`, whether the network was trained on this scan, None where
    nobody knows. `lesion` says which lesion it explains: its `number`, the file of `labels` in the same folder, and the
    `peaks` of the maps. Fingerprints of map and mask tell whether the files are still those of this run.

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
    content["channels"] = list(explanation.channels)
    content["mask"] = {"rule": rule, "volume_ml": round(mask.volume, 3)}
    content["fingerprints"] = {"map": _fingerprint(explanation.map), "mask": _fingerprint(mask.data)}
    content["seen"] = seen
    if lesion is not None:
        content["lesion"] = dict(lesion)
    if sources is not None:
        content["sources"] = {sequence: str(path.resolve()) for sequence, path in sources.items()}
    write_json(json.loads(json.dumps(content, default=str)), paths["provenance"])
    return paths


def write_checks(result: Result, checks: Mapping[str, Any]) -> Path:
    """Keep what `voxplain.check` found with the map that it speaks of, in its NAME.json.

    The file is read again, so that nothing else in it changes; making the map anew drops the checks.

    Raises:
        InputError: the file holds another map by now, or none.
    """
    path = result.folder / f"{result.name}.json"
    content = _json_of(path)
    known = result.explanation.provenance.get("fingerprints")
    if content is None or content.get("fingerprints") != known:
        raise InputError(
            f"{path} changed while its map was checked; run `voxplain check {result.folder}` on the new map"
        )
    write_json(json.loads(json.dumps(content | {"checks": checks}, default=str)), path)
    return path


def read_results(folder: str | Path) -> list[Result]:
    """Read back every method that `write_results` left in a folder, by name.

    The explanations' provenance is the content of NAME.json, with the mask's rule and the scan's files.

    Raises:
        InputError: no such folder, nothing in it, a file that is missing or damaged, or files that do not belong to
            each other (another grid, ranks of another map, a mask of another volume).
    """
    folder = Path(folder)
    if not folder.is_dir():
        wrong = f"{folder} is a file" if folder.is_file() else f"there is no folder {folder}"
        raise InputError(f"expected a folder of results; {wrong}")
    names = result_names(folder)
    if not names:
        raise InputError(
            f"found no results in {folder}; expected NAME.nii.gz, NAME-mask.nii.gz and NAME.json, as "
            "`voxplain explain METHOD ... --out FOLDER` writes them: run it first, or name the folder that it wrote"
        )
    return [read_result(folder, name) for name in names]


def lesion_name(method: str, number: int) -> str:
    """What the files of one lesion's explanation begin with."""
    return f"{method}-lesion-{number:03d}"


def _fingerprint(values: np.ndarray) -> str:
    """A hash of the values of a map or mask; -0 and 0 are one number to it."""
    return hashlib.sha256((values + values.dtype.type(0)).tobytes()).hexdigest()[:16]


def result_names(folder: Path) -> list[str]:
    """What the files of each method begin with, half-finished ones too; other files in the folder do not count."""
    found = set()
    for path in folder.iterdir():
        for ending in ("-mask.nii.gz", "-parts.nii.gz", "-ranks.tsv"):
            if path.name.endswith(ending) and not path.name.startswith("."):
                found.add(path.name.removesuffix(ending))
        if path.suffix == ".json" and (
            (folder / f"{path.stem}.nii.gz").is_file() or "explainer" in (_json_of(path) or {})
        ):
            found.add(path.stem)
    return sorted(found)


def _json_of(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file, None when it is damaged or holds something else than an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def lesion_of(folder: Path, name: str) -> dict[str, Any] | None:
    """What a method's provenance says of the lesion that it explains; None where it explains something else."""
    found = (_json_of(folder / f"{name}.json") or {}).get("lesion")
    return found if isinstance(found, dict) and isinstance(found.get("number"), int) else None


def read_result(folder: Path, name: str) -> Result:
    """Read back one method by name, as `read_results` does."""
    again = f"run `voxplain explain {name} ... --out {folder}` again"
    content = _json_of(folder / f"{name}.json") if (folder / f"{name}.json").is_file() else {}
    if content is None:
        raise InputError(f"{name}.json in {folder} is damaged; {again}")
    try:
        has_parts = (folder / f"{name}-parts.nii.gz").exists() or (folder / f"{name}-ranks.tsv").exists()
        wanted = [f"{name}.nii.gz", f"{name}-mask.nii.gz", f"{name}.json"]
        wanted += [f"{name}-parts.nii.gz", f"{name}-ranks.tsv"] if has_parts else []
        if missing := [file for file in wanted if not (folder / file).is_file()]:
            raise InputError(f"{', '.join(missing)} is missing: the run was stopped, or files were moved")
        values, grid = read_map(folder / f"{name}.nii.gz")
        mask = read_labels(folder / f"{name}-mask.nii.gz")
        if difference := grid.difference(mask.grid):
            raise InputError(f"map and mask lie on different grids: {difference}")
        if not np.isfinite(values).all():
            raise InputError("the map is NaN or infinite somewhere")
        if not abs(mask.volume - content["mask"]["volume_ml"]) <= 0.001:
            raise InputError(
                f"the mask holds {mask.volume:.3f} ml, but {name}.json says {content['mask']['volume_ml']:.3f} ml: "
                "they are of different runs"
            )
        # Older results name no fingerprints.
        known = content.get("fingerprints", {})
        for what, found in (("map", values), ("mask", mask.data)):
            if known.get(what) not in (None, _fingerprint(found)):
                raise InputError(f"the {what} is not the one that {name}.json speaks of: they are of different runs")
        if wrong := [key for key in ("model", "options", "target") if not isinstance(content.get(key, {}), dict)]:
            raise TypeError(f"{wrong[0]} is no table of names and values")
        if not isinstance(content["scan"]["fingerprint"], str) or not isinstance(content["scan"]["channels"], list):
            raise TypeError("it does not name its scan")
        for line in content.get("checks", {"lines": {}})["lines"].values():
            if line["verdict"] not in ("passed", "failed", "not tested") or not isinstance(line["said"], str):
                raise ValueError("a check without a verdict")
        parts, scores = _read_parts(folder, name, values) if has_parts else (None, None)
        explanation = Explanation(
            map=values,
            channels=tuple(content.get("channels", [f"map {index + 1}" for index in range(len(values))])),
            grid=grid,
            signed=bool(content["signed"]),
            unit=str(content["unit"]),
            regions=tuple(_region(region) for region in content["regions"]),
            parts=parts,
            scores=scores,
            provenance=content,
        )
    except InputError as error:
        raise InputError(f"the results of {name} in {folder} cannot be used: {error}; {again}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{name}.json in {folder} is not what voxplain writes ({error}); {again}") from error
    return Result(name, explanation, mask, folder)


def _region(content: dict[str, Any]) -> Region:
    (x0, x1), (y0, y1), (z0, z1) = content["box"]
    return Region(
        name=str(content["name"]),
        box=((int(x0), int(x1)), (int(y0), int(y1)), (int(z0), int(z1))),
        probability=_probability(content["probability"]),
        logit=float(content["logit"]),
        positive=bool(content["positive"]),
        target=str(content.get("target", "")),  # older results do not say
    )


def _probability(value: Any) -> float:
    if not 0 <= float(value) <= 1:
        raise ValueError(f"a probability of {value}")
    return float(value)


def _read_parts(folder: Path, name: str, values: np.ndarray) -> tuple[Labels, np.ndarray]:
    """Parts and their scores; refused where they are not those of the map (K, X, Y, Z)."""
    parts = read_labels(folder / f"{name}-parts.nii.gz")
    try:
        ranks = pd.read_csv(folder / f"{name}-ranks.tsv", sep="\t").sort_values("label")
        labels, scores = ranks["label"].to_numpy(), ranks["score"].to_numpy(dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{name}-ranks.tsv is damaged ({' '.join(str(error).split())[:80]})") from error
    count = int(parts.data.max())
    if not np.array_equal(labels, np.arange(1, count + 1)) or not np.isfinite(scores).all():
        raise InputError(f"{name}-ranks.tsv does not give one score to each of the parts 1 to {count}")
    painted = np.concatenate([[0.0], scores])[parts.data]
    if parts.data.shape == values.shape[1:]:
        peak = float(np.abs(values).max(initial=0))
        if np.abs(painted - values.sum(axis=0)).max() > _SAME_SCORE * peak + 1e-12:
            raise InputError(f"the scores of {name}-ranks.tsv are not those of the map: they are of different runs")
    return parts, scores


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
