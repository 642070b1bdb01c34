"""`voxplain report`: results on disk become one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voxplain.commands.options import SequenceFile, out_console, scan_files
from voxplain.errors import InputError
from voxplain.io.nifti import read_labels, read_sequences
from voxplain.results import Result, read_results
from voxplain.scan import Scan


def report_results(
    results: Annotated[list[Path], typer.Argument(help="folders that `voxplain explain` wrote")],
    scan: Annotated[Path | None, typer.Option(help="patient folder, where its files have moved")] = None,
    flair: SequenceFile = None,
    t1: SequenceFile = None,
    t1ce: SequenceFile = None,
    t2: SequenceFile = None,
    sequence: Annotated[list[str] | None, typer.Option(help="another sequence, name=file.nii.gz")] = None,
    truth: Annotated[Path | None, typer.Option(help="expert mask, NIfTI; anything above 0 is inside")] = None,
    title: Annotated[str | None, typer.Option(help="title of the page")] = None,
    note: Annotated[str | None, typer.Option(help="a banner, such as 'phantom (software check)'")] = None,
    out: Annotated[Path | None, typer.Option(help="the page; report.html in the first folder by default")] = None,
) -> None:
    """Show results in one HTML page that opens without a network: viewer, ranks, and how far to believe them."""
    from voxplain.report.page import report

    found = [result for folder in results for result in read_results(folder)]
    given = {"flair": flair, "t1": t1, "t1ce": t1ce, "t2": t2}
    named = [*(f"{name}={path}" for name, path in given.items() if path is not None), *(sequence or [])]
    files = scan_files(scan, named) if scan is not None or named else None
    path = report(
        _explained_scan(found, files),
        [result.explanation for result in found],
        masks=[result.mask for result in found],
        truth=None if truth is None else read_labels(truth),
        names=[result.name for result in found],
        title=title,
        note=note,
        path=out or results[0] / "report.html",
    )
    out_console.print(f"report: {path}", highlight=False, soft_wrap=True)


def _explained_scan(results: list[Result], files: dict[str, Path] | None) -> Scan:
    """The scan that the results speak of, from the files given, or from those that `explain` noted down."""
    noted = {name: Path(path) for r in results for name, path in r.explanation.provenance.get("sources", {}).items()}
    if files is None:
        if lost := [path for path in noted.values() if not path.is_file()]:
            raise InputError(f"the scan is not where it was explained: there is no file {lost[0]}; give it with --scan")
        if not noted:
            raise InputError("these results do not say where their scan lies; give it with --scan")
    whole = read_sequences(files or noted)
    for result in results:
        stated = result.explanation.provenance["scan"]
        where = ", ".join(path.name for path in (files or noted).values())
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
    return whole
