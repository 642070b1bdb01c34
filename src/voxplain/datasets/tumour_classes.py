"""Cases with the class of their tumour, from any data set that has one: what a classifier of paper grading learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from voxplain.datasets import brats, cpm_radpath
from voxplain.datasets.case import Case, check_complete
from voxplain.errors import InputError

DATASETS = ("cpm-radpath", "brats", "phantom")
_GRADES = {"HGG": "high-grade", "LGG": "low-grade"}
_DATA = {
    "cpm-radpath": "CPM-RadPath 2020 (MICCAI; Farahani 2020), gliomas classed by pathology",
    "brats": (
        "glioma scans in BraTS layout with a grade for each patient (BraTS: Menze 2015, 10.1109/TMI.2014.2377694; "
        "Bakas 2017, 10.1038/sdata.2017.117; Bakas 2018, arXiv 1811.02629)"
    ),
    "phantom": "glioma phantoms made by voxplain: phantom (software check), no patient's scan is among them",
}
TOO_FEW = "too few to mean anything"
# A class with fewer patients than this leaves one or two of them in each fold's test part.
_ENOUGH_PATIENTS = 10


@dataclass(frozen=True)
class Cohort:
    """Cases with a class.

    Attributes:
        cases: those with a class and all sequences.
        classes: their names, in the order of the outputs.
        labels: the place of each case's class, by id.
        data: where the scans come from, with citations.
        caution: why no figure of these cases means anything, or None; stands beside every figure.
    """

    cases: Sequence[Case] = field(hash=False)
    classes: tuple[str, ...]
    labels: dict[str, int] = field(hash=False)
    data: str
    caution: str | None = None


def cohort(dataset: str, root: Path | str) -> Cohort:
    """The cases of a data set that have a class, at least one of each.

    "cpm-radpath" and "phantom" (`voxplain phantom glioma --types`) have glioblastoma, astrocytoma and
    oligodendroglioma; "brats" has high-grade and low-grade. Cases without a class are left out. Where a class has
    fewer than ten patients, `caution` says so.

    Raises:
        InputError: no such data set, a folder that does not hold it, a class without a case, or a case that lacks a
            sequence.
    """
    if dataset not in DATASETS:
        raise InputError(f"--dataset is one of {', '.join(DATASETS)}; got {dataset!r}")
    names = _GRADES if dataset == "brats" else cpm_radpath.CLASSES
    found = cpm_radpath.cases(root) if dataset == "cpm-radpath" else brats.cases(root)
    classed = [case for case in found if case.grade in names]
    counts = {grade: len({case.patient for case in classed if case.grade == grade}) for grade in names}
    if empty := [names[grade] for grade, count in counts.items() if not count]:
        held = ", ".join(f"{count} {names[grade]}" for grade, count in counts.items())
        how = "; `voxplain phantom glioma --types` makes such patients" if dataset == "phantom" else ""
        raise InputError(
            f"no case of class {' or '.join(empty)} in {root} ({held}; {len(found) - len(classed)} cases have none of "
            f"these classes): give patients of every class{how}"
        )
    check_complete(classed)
    places = {grade: place for place, grade in enumerate(names)}
    return Cohort(
        cases=classed,
        classes=tuple(names.values()),
        labels={case.id: places[case.grade] for case in classed if case.grade is not None},
        data=_DATA[dataset],
        caution=too_few({names[grade]: count for grade, count in counts.items()}),
    )


def too_few(patients: Mapping[str, int]) -> str | None:
    """Why no figure means anything of classes with so many patients each, or None: one has fewer than ten.

    The text stands beside every figure that is printed or written: "too few to mean anything (LGG: 3 patients)".
    """
    short = [f"{name}: {count} patients" for name, count in patients.items() if count < _ENOUGH_PATIENTS]
    return f"{TOO_FEW} ({', '.join(short)})" if short else None
