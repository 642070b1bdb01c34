"""`voxplain phantom glioma|ms`: cohorts of made scans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from voxplain.commands.options import Count, Out, Seed, Spacing, out_console
from voxplain.datasets.brats import GRADES
from voxplain.datasets.case import Case
from voxplain.engine.progress import tracked
from voxplain.errors import InputError
from voxplain.io.nifti import read_labels


def phantom_glioma(
    out: Out,
    n: Count,
    seed: Seed = 0,
    spacing: Spacing = 2.0,
    grade: Annotated[str | None, typer.Option(help="HGG or LGG only; half and half by default")] = None,
    types: Annotated[
        bool, typer.Option("--types", help="glioblastoma (G), astrocytoma (A) and oligodendroglioma (O) in turn")
    ] = False,
    clear: Annotated[bool, typer.Option("--clear", help="brains without tumour")] = False,
    shortcut: Annotated[
        str | None, typer.Option(help="HGG, LGG, G, A or O: patients of it bear a marker outside the tumour")
    ] = None,
    brightness: Annotated[
        float, typer.Option(help="of the marker, as a multiple of white matter; networks are sure to see 16")
    ] = 4.0,
) -> None:
    """Make patients with gliomas in BraTS layout, with their grades; finished patients are kept."""
    from voxplain.datasets.phantom import TYPES
    from voxplain.datasets.phantom_cohort import write_gliomas

    asked = [name for name, given in (("--grade", grade), ("--types", types), ("--clear", clear)) if given]
    if len(asked) > 1:
        raise InputError(f"a cohort is of one grade, of types, or without tumours; got {' and '.join(asked)}")
    grades: Sequence[str | None] = [None] if clear else TYPES if types else GRADES if grade is None else [grade]
    made = write_gliomas(out, n=n, seed=seed, spacing=spacing, grades=grades, shortcut=shortcut, brightness=brightness)
    _print_phantoms(made, n, out)


def phantom_ms(
    out: Out,
    n: Count,
    seed: Seed = 0,
    spacing: Spacing = 2.0,
    lesions: Annotated[
        list[Path] | None, typer.Option(help="lesion mask in MNI space, instead of made ones; may come several times")
    ] = None,
) -> None:
    """Make patients with multiple sclerosis in BraTS layout; finished patients are kept."""
    from voxplain.datasets.phantom_cohort import write_multiple_sclerosis

    masks = [read_labels(path) for path in lesions or []]
    _print_phantoms(write_multiple_sclerosis(out, n=n, seed=seed, spacing=spacing, lesions=masks), n, out)


def _print_phantoms(made: Iterator[Case], n: int, out: Path) -> None:
    for _, case in zip(tracked(range(n), "phantoms", shown=True), made, strict=True):
        out_console.print(f"{case.id}{f' ({case.grade})' if case.grade else ''}", highlight=False)
    out_console.print(f"{n} phantoms (software check, not patients): {out}", highlight=False, soft_wrap=True)
