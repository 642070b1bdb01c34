"""Which sequence carries the evidence: the table of parts by sequences and the shares of a map per sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import voxplain as vx
from voxplain.explanation import Explanation
from voxplain.report.sequences import sequence_evidence
from voxplain.scan import Scan


@pytest.fixture
def scan(make_head: Any) -> Scan:
    return make_head((20, 24, 20), 8.0).scan()


def per_sequence(why: Explanation, values: np.ndarray) -> Explanation:
    """A map (K, X, Y, Z) of the parts of another, from values (K, N)."""
    assert why.parts is not None
    painted = np.concatenate([np.zeros((len(values), 1)), values], axis=1)[:, why.parts.data]
    return replace(why, map=painted, channels=("flair", "t1")[: len(values)], scores=values.sum(axis=0))


def test_rows_are_the_highest_parts_and_shares_add_up(
    scan: Scan, parts_map: Callable[..., Explanation], tmp_path: Path
) -> None:
    joint = parts_map(scan)
    assert joint.scores is not None
    why = per_sequence(joint, np.stack([0.75 * joint.scores, 0.25 * joint.scores]))
    (found,) = sequence_evidence(["each"], [why])
    assert found.tables[0].columns == ("flair", "t1")
    assert len(found.tables[0].rows) == 10
    ranks = why.ranks()
    for (name, cells), line in zip(found.tables[0].rows, ranks.head(10).itertuples(), strict=True):
        assert name == f"{line.rank}: part {line.label}, {line.region} half"
        assert float(cells[0].words) == pytest.approx(line.score_flair, abs=1e-4)
        assert float(cells[1].words) == pytest.approx(line.score_t1, abs=1e-4)
    assert found.tables[0].rows[0][1][0].shade == 1.0
    assert [(name, [cell.words for cell in cells]) for name, cells in found.tables[1].rows] == [
        ("left half", ["75%", "25%"]),
        ("right half", ["75%", "25%"]),
    ]
    assert found.said == (
        "left half: flair carries 75% of the relevance.",
        "right half: flair carries 75% of the relevance.",
    )
    text = vx.report(scan, [joint, why], names=["joint", "each"], path=tmp_path / "a.html").read_text(encoding="utf-8")
    assert "Which sequence carries the evidence?" in text
    assert text.count("flair carries 75% of the relevance.") == 2
    assert "<h3>each</h3>" in text


def test_signed_maps_count_by_size_and_show_their_sign(scan: Scan, parts_map: Callable[..., Explanation]) -> None:
    why = parts_map(scan, signed=True)
    assert why.scores is not None
    (found,) = sequence_evidence(["a"], [per_sequence(why, np.stack([-3 * why.scores, why.scores]))])
    assert [cell.words for cell in found.tables[1].rows[0][1]] == ["75%", "25%"]
    assert found.tables[0].rows[0][1][1].negative
    assert found.tables[0].rows[0][1][1].words.startswith("−")


def test_a_map_of_zeros_has_no_shares(scan: Scan, parts_map: Callable[..., Explanation]) -> None:
    why = parts_map(scan)
    assert why.scores is not None
    (found,) = sequence_evidence(["a"], [per_sequence(why, np.zeros((2, len(why.scores))))])
    assert found.said == (
        "left half: no sequence of any part moves the score.",
        "right half: no sequence of any part moves the score.",
    )
    assert found.tables == ()


def test_a_region_where_nothing_moves_has_dashes(scan: Scan, parts_map: Callable[..., Explanation]) -> None:
    why = parts_map(scan, probabilities=(0.1, 0.9))
    assert why.scores is not None
    values = np.zeros((2, len(why.scores)))
    # These cubes may lie in both halves.
    values[1, np.setdiff1d(*(why.labels_in(region) for region in why.regions)) - 1] = 0.5
    (found,) = sequence_evidence(["a"], [per_sequence(why, values)])
    assert [(name, [cell.words for cell in cells]) for name, cells in found.tables[1].rows] == [
        ("right half", ["–", "–"]),
        ("left half", ["0%", "100%"]),
    ]


def test_labels_without_voxels_and_maps_without_regions(scan: Scan, parts_map: Callable[..., Explanation]) -> None:
    why = parts_map(scan)
    assert why.parts is not None
    assert why.scores is not None
    values = np.stack([why.scores, why.scores])
    gone = np.where(why.parts.data == 1, 0, why.parts.data)
    holed = replace(why, parts=vx.Labels(gone, why.grid), regions=())
    (found,) = sequence_evidence(["a"], [per_sequence(holed, values)])
    assert found.tables[1].rows[0][0] == "all parts"
    assert [cell.words for cell in found.tables[1].rows[0][1]] == ["50%", "50%"]
    assert not any("part 1," in name or name.endswith("part 1") for name, _ in found.tables[0].rows)


def test_maps_of_voxels_and_joint_maps_have_no_table(
    scan: Scan, parts_map: Callable[..., Explanation], voxel_map: Callable[..., Explanation]
) -> None:
    assert sequence_evidence(["a", "b"], [parts_map(scan), voxel_map(scan, channels=3)]) == []
