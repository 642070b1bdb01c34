"""Which expert lesions a predicted one touches, in a table that misses no lesion."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from voxplain.errors import InputError
from voxplain.grid import Grid
from voxplain.lesions import Lesions, find_lesions
from voxplain.scan import Labels
from voxplain.studies.lesion_overlaps import COLUMNS, overlaps_of_case, touches_of, with_overlaps

GRID = Grid((30, 12, 6), np.eye(4))
METHODS = ("one", "other")


def boxes(*ranges: tuple[int, int, int]) -> Labels:
    """Boxes from x = a to b and y below c."""
    data = np.zeros(GRID.shape, dtype=int)
    for a, b, c in ranges:
        data[a:b, :c, 1:4] = 1
    return Labels(data, GRID)


# The first predicted lesion spans two of the expert's, the second and third lie in one, the fourth is wrong; of the
# expert's the one of 27 voxels is missed.
PREDICTED = boxes((0, 9, 3), (10, 12, 2), (14, 16, 2), (26, 29, 4))
EXPERT = boxes((0, 3, 4), (6, 9, 2), (11, 15, 5), (20, 23, 3))


@pytest.fixture
def lesions() -> Lesions:
    return find_lesions(PREDICTED, probability=np.full(GRID.shape, 0.7, dtype=np.float32), reference=EXPERT)


def explained(lesions: Lesions, *numbers: int) -> pd.DataFrame:
    """Lines as of a study that explained some of the lesions by one method."""
    its = lesions.table[lesions.table["lesion"].isin(numbers)]
    columns = ["lesion", "kind", "volume_mm3", "mean_probability", "max_probability"]
    return its[columns].assign(case="p", row="one", flair_maximum=1.5)


def test_touches_are_those_of_the_volumes(lesions: Lesions) -> None:
    table = with_overlaps(explained(lesions, 1, 2), lesions, EXPERT, case="p", methods=METHODS)
    for method in METHODS:
        its = table[table["row"] == method].sort_values("lesion")
        assert its["lesion"].tolist() == list(lesions.numbers)
        touches, experts = overlaps_of_case(its)
        assert experts == 4
        predicted = its[its["kind"].isin(["TP", "FP"])]
        for number, kind, those in zip(predicted["lesion"], predicted["kind"], touches, strict=True):
            # Expert lesions number by size: 60, 36 (the first box), 27 and 18 voxels.
            expected = [e for e, box in enumerate(((11, 15, 5), (0, 3, 4), (20, 23, 3), (6, 9, 2)), start=1)
                        if (boxes(box).data[lesions.labels.data == number] > 0).any()]  # fmt: skip
            assert list(those) == expected
            assert (kind == "TP") == bool(expected)
        assert set(its.loc[its["kind"] == "FN", "touches"]) == {"-"}


def test_a_lesion_that_was_not_explained_has_a_line_without_a_map(lesions: Lesions) -> None:
    table = with_overlaps(explained(lesions, 1), lesions, EXPERT, case="p", methods=["one"])
    its = table.set_index("lesion")
    assert its.loc[1, "flair_maximum"] == 1.5
    assert its.loc[[2, 3, 4, 5], "flair_maximum"].isna().all()
    assert its["mean_probability"].notna().all()
    assert (its["case"] == "p").all()
    assert (its["predicted"] == 4).all()


def test_it_survives_a_file(lesions: Lesions) -> None:
    table = with_overlaps(explained(lesions, 1, 2, 3, 4), lesions, EXPERT, case="p", methods=METHODS)
    read = pd.read_csv(io.StringIO(table.to_csv(sep="\t", index=False)), sep="\t")
    assert touches_of(read) == touches_of(table)
    # Alone in its column a number comes back as a number.
    alone = table[table["touches"].str.len() == 1].query("touches != '-'")
    read = pd.read_csv(io.StringIO(alone.to_csv(sep="\t", index=False)), sep="\t")
    assert touches_of(read) == touches_of(alone)


def test_spheres_of_true_negatives_stay_as_they_are(lesions: Lesions) -> None:
    spheres = explained(lesions, 1).assign(kind="TN", volume_mm3=93.0)
    table = with_overlaps(spheres, lesions, EXPERT, case="p", methods=["one"])
    assert table["kind"].value_counts().to_dict() == {"TP": 3, "TN": 1, "FP": 1, "FN": 1}
    assert table.loc[table["kind"] == "TN", "touches"].tolist() == ["-"]


def test_nothing_predicted_and_nothing_explained() -> None:
    nothing = Labels(np.zeros(GRID.shape, dtype=int), GRID)
    missed = with_overlaps(pd.DataFrame(), find_lesions(nothing, reference=EXPERT), EXPERT, case="p", methods=["one"])
    assert overlaps_of_case(missed) == ([], 4)
    neither = with_overlaps(
        pd.DataFrame(), find_lesions(nothing, reference=nothing), nothing, case="p", methods=["one"]
    )
    assert neither.empty
    assert set(COLUMNS) <= set(neither.columns)


def test_what_is_refused(lesions: Lesions) -> None:
    table = explained(lesions, 1, 2)
    with pytest.raises(InputError, match="is FP in the table and TP among the lesions"):
        with_overlaps(table.assign(kind="FP"), lesions, EXPERT, case="p", methods=["one"])
    with pytest.raises(InputError, match="lines of q alone; got p"):
        with_overlaps(table, lesions, EXPERT, case="q", methods=["one"])
    with pytest.raises(InputError, match="found without a reference"):
        with_overlaps(table, find_lesions(PREDICTED), EXPERT, case="p", methods=["one"])
    other = Labels(np.zeros((2, 2, 2), dtype=int), Grid((2, 2, 2), np.eye(4)))
    with pytest.raises(InputError, match="lie on one grid"):
        with_overlaps(table, lesions, other, case="p", methods=["one"])
    whole = with_overlaps(table, lesions, EXPERT, case="p", methods=["one"])
    with pytest.raises(InputError, match="recall would be a guess"):
        overlaps_of_case(whole[whole["lesion"] != 3])
    with pytest.raises(InputError, match="no column touches"):
        overlaps_of_case(table)
    with pytest.raises(InputError, match="numbers with commas between"):
        touches_of(whole.assign(touches="a"))
