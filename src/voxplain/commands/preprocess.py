"""`voxplain preprocess`: sequences brought onto one grid, and their bias taken out."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from voxplain.commands.options import Out, Seed, SequenceFile, out_console
from voxplain.errors import InputError
from voxplain.io.atomic import output_folder, write_json
from voxplain.io.nifti import read, save
from voxplain.scan import Scan


def preprocess_scan(
    out: Out,
    flair: SequenceFile = None,
    t1: SequenceFile = None,
    t1ce: SequenceFile = None,
    t2: SequenceFile = None,
    onto: Annotated[
        str, typer.Option("--register", help="bring all sequences onto this one by a rigid transform, such as t1")
    ] = "",
    n4: Annotated[bool, typer.Option("--n4", help="N4 bias correction of every sequence, after registration")] = False,
    seed: Seed = 0,
) -> None:
    """Register the sequences of a head rigidly, take their bias out, or both; what was done is in preprocessing.json.

    Intensities are not normalised here: a model's card says how, and each command does it on the way in.
    """
    from voxplain.preprocessing import correct_bias, register

    given = {name: path for name, path in (("flair", flair), ("t1", t1), ("t1ce", t1ce), ("t2", t2)) if path}
    if not given:
        raise InputError("give at least one sequence: --flair FILE, --t1 FILE, --t1ce FILE, --t2 FILE")
    if not onto and not n4:
        raise InputError("nothing to do: give --register t1 (the sequence that stays), --n4, or both")
    if onto and onto not in given:
        raise InputError(f"--register names the sequence that stays, one of {', '.join(given)}; got {onto!r}")
    scans: dict[str, Scan] = {name: read(**{name: path}) for name, path in given.items()}
    record: dict[str, dict[str, Any]] = {name: {"source": path.name} for name, path in given.items()}
    for name, scan in list(scans.items()):
        if onto and name != onto:
            out_console.print(f"{name}: registering to {onto}", highlight=False)
            scans[name], done = register(scan, scans[onto], seed=seed)
            record[name] |= done
    for name, scan in list(scans.items()):
        if n4:
            out_console.print(f"{name}: N4", highlight=False)
            scans[name], done = correct_bias(scan)
            record[name] |= {"bias_correction": done["bias_correction"], "field_5_to_95_percent": done[name]}
    folder = output_folder(out)
    for name, scan in scans.items():
        save(scan, folder / f"{name}.nii.gz")
        out_console.print(f"{name}: {folder / name}.nii.gz", highlight=False, soft_wrap=True)
    write_json(record, folder / "preprocessing.json")
