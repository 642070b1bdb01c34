"""`voxplain report`: results on disk become one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from voxplain.commands.options import SequenceFile, out_console, read_scan, scan_files
from voxplain.errors import InputError
from voxplain.io.nifti import read_labels
from voxplain.prediction import TABLE, read_lesions
from voxplain.results import Result, lesion_of, read_result, read_results, result_names
from voxplain.scan import Labels, Scan

# So many lesions have their maps on a page, which would else be too large to open.
MOST_LESIONS = 40
_PHANTOM = "phantom (software check)"


def report_results(
    results: Annotated[list[Path], typer.Argument(help="folders that `voxplain explain` wrote")],
    scan: Annotated[Path | None, typer.Option(help="patient folder or single file, where it has moved")] = None,
    flair: SequenceFile = None,
    t1: SequenceFile = None,
    t1ce: SequenceFile = None,
    t2: SequenceFile = None,
    sequence: Annotated[list[str] | None, typer.Option(help="another sequence, name=file.nii.gz")] = None,
    truth: Annotated[Path | None, typer.Option(help="expert mask, NIfTI; anything above 0 is inside")] = None,
    title: Annotated[str | None, typer.Option(help="title of the page")] = None,
    note: Annotated[str | None, typer.Option(help="a banner; phantoms have one by themselves")] = None,
    out: Annotated[Path | None, typer.Option(help="the page; report.html in the first folder by default")] = None,
) -> None:
    """Show results in one HTML page that opens without a network: viewer, ranks, and how far to believe them."""
    from voxplain.report.page import report

    given = {"flair": flair, "t1": t1, "t1ce": t1ce, "t2": t2}
    named = [*(f"{name}={path}" for name, path in given.items() if path is not None), *(sequence or [])]
    page = out or results[0] / "report.html"
    expert = None if truth is None else _expert_mask(truth)
    if holds_lesions(results):
        report_lesions(results, page, scan=scan, named=named, truth=expert, title=title, note=note)
        out_console.print(f"report: {page}", highlight=False, soft_wrap=True)
        return
    found, names = results_in(results)
    whole, files = explained_scan(found, scan, named)
    path = report(
        whole,
        [result.explanation for result in found],
        masks=[result.mask for result in found],
        truth=expert,
        names=names,
        title=title,
        note=_PHANTOM if note is None and _is_phantom(files) else note,
        path=page,
    )
    out_console.print(f"report: {path}", highlight=False, soft_wrap=True)


def holds_lesions(folders: Sequence[Path]) -> bool:
    """Whether these are results of lesions, one by one.

    Raises:
        InputError: lesions beside other results, or no lesion was found.
    """
    names = [(folder, name) for folder in folders if folder.is_dir() for name in result_names(folder)]
    if not names and any((folder / TABLE).is_file() for folder in folders):
        raise InputError(f"no lesion was found or explained in {folders[0]}: there is no map to report")
    of = [lesion_of(folder, name) is not None for folder, name in names]
    if any(of) and not all(of):
        other = names[of.index(False)][1]
        raise InputError(f"{other} is no map of a lesion, and others are: a page of lesions holds nothing else")
    return any(of)


def report_lesions(
    folders: Sequence[Path],
    page: Path,
    *,
    scan: Path | None,
    named: list[str],
    truth: Labels | None,
    title: str | None,
    note: str | None,
) -> None:
    """Write the page of the lesions in these folders, of the largest of which it holds the maps."""
    from voxplain.report.lesion_maps import LesionMap
    from voxplain.report.lesion_page import lesion_report

    entries = []
    for folder in folders:
        for name in result_names(folder):
            lesion = lesion_of(folder, name)
            assert lesion is not None, "the caller asked"
            entries.append((folder, name, int(lesion["number"]), dict(lesion.get("peaks", {}))))
    first = read_result(*entries[0][:2])
    whole, files = explained_scan([first], scan, named)
    lesions = read_lesions(folders[0], whole.grid)
    for folder in folders[1:]:
        if read_lesions(folder, whole.grid).labels.fingerprint != lesions.labels.fingerprint:
            raise InputError(f"{folder} and {folders[0]} hold different lesions; report them one by one")
    for folder, name, number, _ in entries:
        if number not in lesions.numbers:
            raise InputError(
                f"{name} in {folder} explains another lesion than those of {TABLE}, where there is no {number}: "
                "explain it again, or remove its files"
            )
    largest = lesions.table.sort_values("volume_mm3", ascending=False, kind="stable")["lesion"]
    explained = {number for _, _, number, _ in entries}
    chosen = set([number for number in largest if number in explained][:MOST_LESIONS])
    maps: list[LesionMap] = []
    peaks: dict[str, dict[int, dict[str, float]]] = {}
    for folder, name, number, its_peaks in entries:
        method = name.removesuffix(f"-lesion-{number:03d}")
        peaks.setdefault(method, {})[number] = its_peaks
        if number not in chosen:
            continue
        result = read_result(folder, name)
        if result.explanation.provenance["scan"] != first.explanation.provenance["scan"]:
            raise InputError(f"{name} in {folder} explains another scan than {first.name}; report them one by one")
        # Cut at once: whole maps of all lesions would not fit into memory.
        maps.append(LesionMap.of(method, result.explanation, lesions))
    maps.sort(key=lambda one: (one.method, one.number))
    apart = len(explained) - len(chosen)
    lesion_report(
        whole,
        lesions,
        maps,
        path=page,
        truth=truth,
        peaks=peaks,
        elsewhere=f"Maps of {apart} more lie in {folders[0].name}, a file each." if apart else "",
        title=title,
        note=_PHANTOM if note is None and _is_phantom(files) else note,
    )


def results_in(folders: list[Path]) -> tuple[list[Result], list[str]]:
    """The results of all folders and their names; those that share a name are told apart by their folders."""
    whole = [folder.resolve() for folder in folders]
    if twice := [folder for folder, full in zip(folders, whole, strict=True) if whole.count(full) > 1]:
        raise InputError(f"the folder {twice[0]} is given twice; give each folder once")
    found = [(folder, result) for folder in whole for result in read_results(folder)]
    names = [result.name for _, result in found]
    told = [
        name if names.count(name) == 1 else f"{name} ({folder.name})"
        for (folder, _), name in zip(found, names, strict=True)
    ]
    return [result for _, result in found], told


def _expert_mask(path: Path) -> Labels:
    try:
        return read_labels(path)
    except InputError as error:
        raise InputError(
            f"--truth {path} is no expert mask: {error}; give one 3D file of whole numbers, 0 outside"
        ) from error


def _is_phantom(files: Mapping[str, Path]) -> bool:
    """Whether the scan lies in a folder that `voxplain phantom` made."""
    return any((path.resolve().parent / "phantom.json").is_file() for path in files.values())


def _noted_files(results: list[Result]) -> dict[str, Path]:
    """The scan's files by sequence, as `explain` noted them down."""
    noted = {name: Path(path) for r in results for name, path in r.explanation.provenance.get("sources", {}).items()}
    if lost := [path for path in noted.values() if not path.is_file()]:
        raise InputError(f"the scan is not where it was explained: there is no file {lost[0]}; give it with --scan")
    if not noted:
        raise InputError("these results do not say where their scan lies; give it with --scan")
    return noted


def explained_scan(results: list[Result], folder: Path | None, named: list[str]) -> tuple[Scan, Mapping[str, Path]]:
    """The scan that the results speak of, and its files: as given, or as `explain` noted them down."""
    channels = results[0].explanation.provenance["scan"]["channels"]
    files = scan_files(folder, named, channels) if folder is not None or named else _noted_files(results)
    whole = read_scan(files)
    for result in results:
        stated = result.explanation.provenance["scan"]
        where = ", ".join(path.name for path in files.values())
        if missing := [name for name in stated["channels"] if name not in whole.channels]:
            raise InputError(
                f"{result.name} explains a scan with {', '.join(stated['channels'])}; {', '.join(missing)} is missing "
                f"among {where}; give all of its files with --scan"
            )
        given = whole.select(stated["channels"]).fingerprint
        if given != stated["fingerprint"]:
            raise InputError(
                f"{result.name} explains another scan: its fingerprint is {stated['fingerprint']}, that of {where} is "
                f"{given}; give the scan that was explained with --scan, or explain this one"
            )
    return whole, files
