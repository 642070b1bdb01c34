"""Which of the expert's lesions a predicted one touches, line by line, so that dropping lesions is scored exactly."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from voxplain.errors import InputError
from voxplain.lesions import SMALLEST_MM3, Lesions, instances
from voxplain.metrics.lesion_filter import touching
from voxplain.scan import Labels

# `touches`: numbers of the expert's lesions with commas between, "-" for none; `experts` and `predicted`: how many
# lesions the expert marked and the network predicted in the case, on every line of it.
COLUMNS = ("touches", "experts", "predicted")
_NONE = "-"


def with_overlaps(
    table: pd.DataFrame,
    lesions: Lesions,
    reference: Labels,
    *,
    case: str,
    methods: Sequence[str],
    smallest: float = SMALLEST_MM3,
) -> pd.DataFrame:
    """The lines of one case with the columns of `COLUMNS`, and a line for each lesion that was not explained.

    The expert's lesions are those of at least `smallest` mm^3, as everywhere: a TP that touches none but a smaller
    speck is right by its kind, and touches nothing. Added lines hold NaN where a map would say something.

    Args:
        table: lines of explained lesions, with case, row (the method), kind and lesion; others are left as they are.
        lesions: all of the case, as `voxplain.lesions.find_lesions` gives them beside the reference.
        reference: the expert's mask, on the same grid.
        case: its name.
        methods: the values of `row` that each lesion gets a line for.
        smallest: volume in mm^3 below which a component of the reference is no lesion.

    Raises:
        InputError: lesions have no kinds or lie on another grid, or the table speaks of other lesions.
    """
    if difference := lesions.labels.grid.difference(reference.grid):
        raise InputError(f"lesions and reference lie on one grid; these differ: {difference}")
    if (lesions.table["kind"] == "").any():
        raise InputError("lesions without kinds were found without a reference; find them beside the expert's mask")
    if len(table) and set(table["case"]) != {case}:
        raise InputError(f"expected lines of {case} alone; got {', '.join(map(str, table['case'].unique()))}")
    expert = instances(reference, smallest=smallest).data
    touches = touching(lesions.predicted.data, expert)
    known = lesions.table.set_index("lesion")["kind"]
    blocks = [table]
    for method in methods:
        its = table[(table["row"] == method) & (table["kind"] != "TN")] if len(table) else table
        stated = dict(zip(its["lesion"].astype(int), its["kind"], strict=True)) if len(its) else {}
        if strange := [number for number, kind in stated.items() if known.get(number) != kind]:
            raise InputError(
                f"lesion {strange[0]} of {case} is {stated[strange[0]]} in the table and "
                f"{known.get(strange[0], 'none')} among the lesions: they are of different runs"
            )
        missing = lesions.table[~lesions.table["lesion"].isin(list(stated))]
        columns = ["lesion", "kind", "volume_mm3", "mean_probability", "max_probability"]
        blocks.append(missing[columns].assign(case=case, row=method))
    found = pd.concat([block for block in blocks if len(block)], ignore_index=True) if any(map(len, blocks)) else table
    right = found["kind"].isin(["TP", "FP"]) if len(found) else pd.Series([], dtype=bool)
    found = found.assign(
        touches=[
            (",".join(map(str, touches[int(number)])) or _NONE) if there else _NONE
            for number, there in zip(found["lesion"] if len(found) else [], right, strict=True)
        ],
        experts=int(expert.max(initial=0)),
        predicted=len(touches),
    )
    return found


def touches_of(lines: pd.DataFrame) -> list[tuple[int, ...]]:
    """The column `touches` as numbers, one tuple per line.

    Raises:
        InputError: there is no such column, or it holds something else.
    """
    if "touches" not in lines.columns:
        raise InputError("the table of lesions has no column touches; add it with lesion_overlaps.with_overlaps")
    try:
        return [
            () if str(value) == _NONE else tuple(int(float(number)) for number in str(value).split(","))
            for value in lines["touches"]
        ]
    except ValueError as error:
        raise InputError(f"touches are lesion numbers with commas between, or {_NONE}; got {error}") from error


def overlaps_of_case(lines: pd.DataFrame) -> tuple[list[tuple[int, ...]], int]:
    """What each predicted lesion (TP or FP, in order) of one case touches, and how many lesions the expert marked.

    Args:
        lines: all lines of one case and method, with the columns of `COLUMNS`; none is missing of TP and FP.

    Raises:
        InputError: no line, one is missing, or columns are.
    """
    if missing := [name for name in COLUMNS if name not in lines.columns]:
        raise InputError(f"the table of lesions has no column {', '.join(missing)}; add it with with_overlaps")
    its = lines[lines["kind"].isin(["TP", "FP"])]
    counts = lines[["experts", "predicted"]].drop_duplicates()
    if len(counts) != 1 or int(counts["predicted"].iloc[0]) != len(its):
        raise InputError(
            f"expected a line for each predicted lesion of one case; got {len(its)}, where predicted says "
            f"{', '.join(str(value) for value in counts['predicted']) or 'nothing'}: recall would be a guess"
        )
    return touches_of(its), int(counts["experts"].iloc[0])
