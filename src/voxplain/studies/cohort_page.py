"""What a study shows of its cohort: a picture of every case, and one page with distributions, extremes and tables."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from voxplain import segment
from voxplain.explanation import Explanation
from voxplain.io.atomic import writing
from voxplain.metrics.network_free import NETWORK_FREE
from voxplain.report.cohort import CasePicture, Distribution, cohort_report
from voxplain.report.pictures import planes
from voxplain.report.places import places_of_parts
from voxplain.scan import Labels, Scan
from voxplain.studies.scoring import as_rows, table_titles

_WIDTH = 960


def write_picture(scan: Scan, explanation: Explanation, tumour: Labels, path: Path) -> None:
    """Write the map, its Otsu mask and the expert mask on three planes through the middle of the tumour, as WebP."""
    mask = segment.otsu(explanation, mask=Labels(scan.foreground(), scan.grid))
    place = places_of_parts(tumour).get(1)
    channel = "flair" if "flair" in scan.channels else None
    picture = planes(scan, explanation, mask, tumour, channel, at=place, width=_WIDTH)
    with writing(path) as temporary:
        Image.open(io.BytesIO(picture)).convert("RGB").save(temporary, format="WEBP", quality=80, method=4)


def sentences(summary: pd.DataFrame, row: str) -> list[str]:
    """What came out, each figure with its kind, interval and n."""
    found: list[str] = []
    line: Any
    best: Any
    top: Any
    network = summary[(summary["table"] == "classification") & (summary["row"] == "network")]
    for metric, words in (("auc", "AUC within folds"), ("balanced_accuracy", "balanced accuracy")):
        for line in network[network["metric"] == metric].itertuples():
            found.append(f"The network tells halves with tumour from clear ones with {words} {_words(line)}.")
    halves = summary[(summary["table"] == "halves") & (summary["metric"] == "dice")]
    for line in halves[halves["row"] == row].itertuples():
        found.append(f"Masks of {row} reach a mean Dice of {_words(line)} on the halves labelled as tumour.")
    free = halves[halves["row"].isin(NETWORK_FREE) & (halves["kind"] == "deployable")]
    gains = summary[(summary["table"] == "halves") & (summary["metric"] == "dice_gain")]
    if free.empty or gains.empty or free["value"].isna().all():
        return found
    best = next(free.loc[[free["value"].idxmax()]].itertuples())
    found.append(f"Of what needs no network, {best.row} is best, with {_words(best)}.")
    top = next(gains.loc[[gains["value"].idxmax()]].itertuples())
    verdict = "beats it" if top.low > 0 else "does not beat it" if top.high < 0 else "is not told apart from it"
    found.append(f"The best map row, {top.row}, {verdict}: mean paired gain {_words(top)}.")
    return found


def write_cohort_page(
    cases: pd.DataFrame,
    summary: pd.DataFrame,
    method: str,
    pictures: Mapping[str, Path],
    path: Path,
    *,
    provenance: Mapping[str, Any],
    title: str,
    note: str | None = None,
) -> Path:
    """Write the page of a hemisphere study, from its tables (see `voxplain.studies.scoring`).

    `method` is the row whose maps are pictured ("relevance-map/blank"); `pictures` are their files by case.
    """
    row = f"{method}/otsu"
    return cohort_report(
        path,
        title=title,
        summary=sentences(summary, row),
        figure="Dice on the halves labelled as tumour",
        distributions=_distributions(cases, summary),
        pictured=row,
        pictures=_pictures(cases, row, pictures),
        tables={words: as_rows(summary, table) for table, words in table_titles().items()},
        provenance=provenance,
        note=note,
    )


def _words(line: Any) -> str:
    return f"{line.value:.2f} [{line.low:.2f}, {line.high:.2f}] ({line.kind}, {line.n} patients)"


def _distributions(cases: pd.DataFrame, summary: pd.DataFrame) -> list[Distribution]:
    """One per row that makes a mask, in the order of the tables; single ranks are left to the tables."""
    chosen = summary[(summary["table"] == "halves") & (summary["metric"] == "dice")]
    chosen = chosen[~chosen["row"].str.contains(r"/(?:rank|top)-\d+$")]
    order = {"deployable": 0, "seen": 1, "validation-masks": 2, "oracle": 3}
    found = []
    lines: list[Any] = list(chosen.itertuples())
    for line in sorted(lines, key=lambda line: (order[line.kind], line.row in NETWORK_FREE)):
        of = cases[(cases["table"] == "halves") & (cases["metric"] == "dice") & (cases["row"] == line.row)]
        by_case = of[of["kind"] == line.kind].groupby("case")["value"].mean()
        values = {str(case): float(value) for case, value in by_case.items()}
        found.append(Distribution(line.row, line.kind, values, line.value, line.low, line.high, line.n))
    return found


def _pictures(cases: pd.DataFrame, row: str, pictures: Mapping[str, Path]) -> Sequence[CasePicture]:
    """The pictures with each case's Dice on the whole scan, beside that of thresholded FLAIR and the verdicts."""
    dice = cases[(cases["table"] == "scans") & (cases["metric"] == "dice")]
    ours, free = (dice[dice["row"] == name].set_index("case")["value"] for name in (row, "intensity/flair"))
    halves = cases[(cases["table"] == "classification") & (cases["metric"] == "probability")]
    found = []
    for case, file in pictures.items():
        if case not in ours.index:
            continue
        said: list[Any] = list(halves[halves["case"] == case].itertuples())
        words = [f"{line.region} p = {line.value:.2f}" for line in said]
        if case in free.index:
            words.append(f"intensity/flair {free[case]:.2f}")
        found.append(CasePicture(case, float(ours[case]), ", ".join(words), file.read_bytes()))
    return found
