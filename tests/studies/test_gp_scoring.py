"""The figures of slices, against arithmetic by hand on a network whose heat map is known to the pixel."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import voxplain as vx
from voxplain.networks.self_explaining import SelfExplaining
from voxplain.scan import Labels
from voxplain.studies.gp_data import Stack, read_slices
from voxplain.studies.gp_scoring import (
    OFFSET_ROW,
    OFFSETS,
    localisation,
    plain_localisation,
    predictions,
    with_chosen_offsets,
)

CPU = vx.Compute(device="cpu", threads=1)


class AboveTwo(SelfExplaining):
    """The heat map of tumour is the image less 2, and the score its maximum; the other class scores 0."""

    def __init__(self) -> None:
        super().__init__(1, 2, spatial_dims=2, pooling="max")
        with torch.no_grad():
            self.head.weight[:] = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
            assert self.head.bias is not None
            self.head.bias[:] = torch.tensor([0.0, -2.0])

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return x


def model(thickness: float = 1.0) -> vx.Model:
    card = vx.Card(
        name="above-two", channels=("flair",), classes=("tumour-free", "tumour"), absent=("tumour-free",),
        activation="softmax", spatial_dims=2, slices="axial", spacing=(2, 3, thickness),
    )  # fmt: skip
    return vx.Model(AboveTwo().eval(), card)


def stack(repeated: int = 1, name: str = "P1") -> Stack:
    """Four slices of 80 pixels of 2 x 3 mm: a tumour too faint, one of two brightnesses, none, and nothing at all."""
    data, truth = np.zeros((12, 10, 4)), np.zeros((12, 10, 4), dtype=int)
    data[1:11, 1:9, :3] = 1
    data[3:6, 2:6, 0] = 1.5
    truth[3:6, 2:6, 0] = 1
    data[2:5, 2:6, 1] = 6
    data[5:8, 2:6, 1] = 4
    truth[2:8, 2:6, 1] = 1
    data[2:4, 6:8, 2] = 5
    grid = vx.Grid((12, 10, 4 * repeated), np.diag([-2.0, -3, 1, 1]))
    scan = vx.Scan(np.repeat(data, repeated, axis=2)[None], grid, ("flair",))
    return Stack(name, name, lambda: scan, lambda: Labels(np.repeat(truth, repeated, axis=2), grid), grade="HGG")


def value(lines: pd.DataFrame, row: str, height: int, column: str = "dice") -> float:
    (found,) = lines[(lines.row == row) & (lines["slice"] == f"axial {height:03d}")][column]
    return float(found)


@pytest.fixture(scope="module")
def lines() -> pd.DataFrame:
    return localisation(model(), [stack()], kind="deployable", compute=CPU)


def test_dice_of_every_rule_by_hand(lines: pd.DataFrame) -> None:
    # Of 80 pixels 12 are at 4 logits and 12 at 2, all in the tumour: Otsu takes both, the top class of three the first.
    assert value(lines, "heat-map/otsu", 1) == 1
    assert value(lines, "heat-map/multi-otsu", 1) == pytest.approx(2 * 12 / (12 + 24))
    assert value(lines, "heat-map/fixed-0.5", 1) == 1
    assert value(lines, f"{OFFSET_ROW}=0", 1) == pytest.approx(2 * 12 / (12 + 24))
    for offset in OFFSETS[1:]:
        assert value(lines, f"{OFFSET_ROW}={offset:g}", 1) == 1
    # One feature pooled by its maximum contributes at one pixel.
    assert value(lines, "contributions/otsu", 1) == pytest.approx(2 * 1 / (1 + 24))


def test_a_missed_slice_counts_0_and_marks_nothing(lines: pd.DataFrame) -> None:
    missed = lines[lines["slice"] == "axial 000"]
    assert set(missed.predicted) == {"tumour-free"}
    assert set(missed.label) == {"tumour"}
    assert (missed[missed.row != "heat-map/otsu, neighbours"][["dice", "area"]] == 0).all(axis=None)


def test_a_slice_without_tumour_has_an_area_and_no_dice(lines: pd.DataFrame) -> None:
    free = lines[lines["slice"] == "axial 002"]
    assert free.dice.isna().all()
    assert set(free.label) == {"tumour-free"}
    assert set(free.predicted) == {"tumour"}
    assert value(lines, "heat-map/otsu", 2, "area") == 4 * 2 * 3


def test_every_slice_that_holds_something_has_every_row(lines: pd.DataFrame) -> None:
    assert set(lines["slice"]) == {"axial 000", "axial 001", "axial 002"}
    assert set(lines.groupby("slice").size()) == {len(set(lines.row))}
    few = localisation(model(), [stack()], kind="seen", offsets_only=True, compute=CPU)
    assert set(few.row) == {f"{OFFSET_ROW}={offset:g}" for offset in OFFSETS}
    assert set(few.kind) == {"seen"}


def test_an_area_is_that_of_one_slice_where_one_stands_for_two() -> None:
    found = localisation(model(2), [stack(repeated=2)], kind="deployable", compute=CPU)
    assert value(found, "heat-map/otsu", 4, "area") == 4 * 2 * 3
    assert value(found, "heat-map/otsu", 2) == 1
    plain = plain_localisation([stack(repeated=2)], model(2).card, compute=CPU)
    assert value(plain, "intensity/otsu", 4, "area") == 4 * 2 * 3


def test_rows_without_a_network_by_hand() -> None:
    found = plain_localisation([stack()], model().card, compute=CPU)
    assert set(found.kind) == {"plain"}
    assert set(found["slice"]) == {"axial 000", "axial 001", "axial 002"}
    # All that is bright, and nothing else, is tumour.
    assert value(found, "intensity/otsu", 1) == 1
    assert value(found, "intensity/multi-otsu", 1) == pytest.approx(2 / 3)
    assert value(found, "intensity/otsu", 2, "area") == 4 * 2 * 3


def test_what_is_predicted_alone_and_with_neighbours() -> None:
    slices = read_slices([stack(), stack(name="P2")], model().card, CPU)
    found = predictions(model(), slices, kind="deployable", compute=CPU)
    alone = found[found.reading == "alone"]
    assert alone["stack"].tolist() == ["P1"] * 3 + ["P2"] * 3
    assert alone.label.tolist() == ["tumour", "tumour", "tumour-free"] * 2
    assert alone.predicted.tolist() == ["tumour-free", "tumour", "tumour"] * 2
    logits = np.array([-0.5, 4, 3] * 2)
    np.testing.assert_allclose(alone.probability, 1 / (1 + np.exp(-np.abs(logits))), rtol=1e-5)
    # Bright neighbours carry the faint slice along.
    near = found[found.reading == "neighbours"]
    assert near.predicted.tolist() == ["tumour"] * 6
    np.testing.assert_allclose(near.probability.to_numpy()[:3], near.probability.to_numpy()[3:], rtol=1e-6)


def offsets(dice: dict[float, list[float]], kind: str = "deployable") -> pd.DataFrame:
    """Lines of slices whose Dice at each offset is given; 0.1 at all others."""
    found = []
    count = len(next(iter(dice.values())))
    for number in range(count):
        facts = {"stack": "P", "group": "P", "slice": f"s{number}", "label": "HGG", "predicted": "HGG", "area": 1.0}
        for offset in OFFSETS:
            value = dice.get(offset, [0.1] * count)[number]
            found.append(facts | {"row": f"{OFFSET_ROW}={offset:g}", "kind": kind, "dice": value})
        found.append(facts | {"row": "heat-map/otsu", "kind": kind, "dice": 0.3})
    return pd.DataFrame(found)


def test_the_offset_is_chosen_on_validation_slices_alone() -> None:
    test = offsets({0.3: [0.5, 0.6, 0.7], 1.6: [0.8, 0.9, 1.0]})
    validation = offsets({0.3: [0.9, 0.8, 0.0], 1.6: [1.0, 0.2, 0.3]})  # medians 0.8 and 0.3; means 0.57 and 0.5
    found = with_chosen_offsets(test, validation)
    assert set(found.row) == {"heat-map/otsu", OFFSET_ROW}
    by_kind = {kind: its for kind, its in found[found.row == OFFSET_ROW].groupby("kind")}
    assert set(by_kind) == {"validation-masks", "oracle"}
    assert by_kind["validation-masks"].dice.tolist() == [0.5, 0.6, 0.7]
    assert set(by_kind["validation-masks"].offset) == {0.3}
    assert by_kind["oracle"].dice.tolist() == [0.8, 0.9, 1.0]
    # Whatever the test slices say, the choice on the validation slices stays.
    other = with_chosen_offsets(offsets({2.0: [1, 1, 1]}), validation)
    assert set(other[other.kind == "validation-masks"].offset) == {0.3}
    assert set(other[other.kind == "oracle"].offset) == {2.0}


def test_of_equal_offsets_the_smallest_is_taken_and_without_validation_none() -> None:
    test = offsets({0.2: [0.5], 3.0: [0.5]})
    found = with_chosen_offsets(test, test.iloc[:0])
    assert set(found[found.row == OFFSET_ROW].kind) == {"oracle"}
    assert set(found[found.row == OFFSET_ROW].offset) == {0.2}
    nothing = test.assign(dice=np.nan)
    assert set(with_chosen_offsets(nothing, nothing).row) == {"heat-map/otsu"}


def test_what_was_seen_stays_seen() -> None:
    found = with_chosen_offsets(offsets({0.2: [0.5]}, kind="seen"), pd.DataFrame())
    assert set(found.kind) == {"seen"}
