"""Deletion and insertion: curves recomputed plainly, right orders that win, reversed ones that lose, empty cases."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from voxplain.errors import InputError
from voxplain.metrics.faithfulness import SHARES, Faithfulness, faithfulness
from voxplain.metrics.verdict import overall

Scores = Callable[[np.ndarray], np.ndarray]


def additive(evidence: np.ndarray) -> Scores:
    """A network whose probability is the evidence that is kept."""
    return lambda coalitions: coalitions @ evidence


def random_orders(count: int, draws: int = 20) -> list[tuple[str, np.ndarray]]:
    random = np.random.default_rng(5)
    return [("random-rank", random.random(count)) for _ in range(draws)]


def plainly(relevance: np.ndarray, volumes: np.ndarray, evidence: np.ndarray) -> tuple[float, float]:
    """Both areas as the definition reads: part after part, a trapezoid whenever the next share is held."""
    order = sorted(range(len(relevance)), key=lambda part: (-relevance[part], part))
    areas = []
    for inserting in (False, True):
        gone: set[int] = set()
        at, value, area = 0.0, sum(evidence) * (not inserting), 0.0
        waiting = [*SHARES, 1.0]
        for part in order:
            gone.add(part)
            share = sum(volumes[p] for p in gone) / sum(volumes)
            if share < waiting[0] - 1e-9:
                continue
            while waiting and waiting[0] <= share + 1e-9:
                waiting.pop(0)
            now = sum(evidence[p] for p in range(len(relevance)) if (p in gone) == inserting)
            area += (share - at) * (now + value) / 2
            at, value = share, now
            if not waiting:
                break
        areas.append(area)
    return areas[0], areas[1]


@pytest.mark.parametrize("count", [5, 9, 60])
def test_areas_are_those_of_a_plain_loop(count: int) -> None:
    random = np.random.default_rng(count)
    for _ in range(10):
        relevance, volumes = random.integers(0, 8, count).astype(float), random.integers(1, 90, count)
        evidence = random.random(count)
        evidence /= evidence.sum()
        found = faithfulness(relevance, volumes, additive(evidence))
        np.testing.assert_allclose(found.areas["map"][0], plainly(relevance, volumes, evidence), atol=1e-12)


def test_planted_evidence_wins_in_its_order_and_fails_reversed() -> None:
    evidence = np.array([0.5, 0.3, 0.2] + [0.0] * 27)
    scores, volumes, controls = additive(evidence), np.ones(30), random_orders(30)
    right = faithfulness(evidence, volumes, scores, controls=controls)
    assert right.against("random-rank").outcome == "passed"
    assert (right.full, right.empty) == (1.0, 0.0)
    assert right.areas["map"][0].deletion < 0.1
    assert right.areas["map"][0].insertion > 0.9
    reversed_ = faithfulness(-evidence, volumes, scores, controls=controls)
    verdict = reversed_.against("random-rank")
    assert verdict.outcome == "failed"
    assert verdict.reason == "random-rank does better in deletion and insertion"


def test_a_random_order_passes_in_few_cases_only() -> None:
    """The map is one of 21 random orders: the best in both curves in at most 1 of 21."""
    random = np.random.default_rng(0)
    evidence = random.dirichlet(np.ones(40))
    outcomes = []
    for _ in range(200):
        controls = [("random-rank", random.random(40)) for _ in range(20)]
        found = faithfulness(random.random(40), np.ones(40), additive(evidence), controls=controls)
        outcomes.append(found.against("random-rank").outcome)
    assert outcomes.count("passed") / 200 <= 1 / 21 + 2 * np.sqrt(1 / 21 / 200)


def test_a_control_of_one_order_must_be_beaten_and_not_only_met() -> None:
    evidence = np.linspace(0, 1, 10) / 5
    controls = [("edges", evidence), ("flair", -evidence)]
    found = faithfulness(evidence, np.ones(10), additive(evidence), controls=controls)
    assert found.against("edges").outcome == "failed"
    assert "as well or better" in found.against("edges").reason
    assert found.against("flair").outcome == "passed"
    assert found.against("nobody").outcome == "not tested"


@pytest.mark.parametrize(
    ("relevance", "evidence", "said"),
    [
        ([1.0], [1.0], "too few parts to tell a good order by: 1; expected at least 5"),
        ([4.0, 3, 2, 1], [0.25] * 4, "expected at least 5"),
        ([2.0] * 8, [0.1] * 8, "all parts are equally relevant"),
        (list(range(8)), [0.0] * 8, "a fall of less than 0.1"),
        (list(range(8)), [-0.1] * 8, "a fall of less than 0.1"),
    ],
)
def test_where_nothing_can_be_compared_nothing_more_is_run(
    relevance: list[float], evidence: list[float], said: str
) -> None:
    runs = []

    def scores(coalitions: np.ndarray) -> np.ndarray:
        runs.append(len(coalitions))
        return 0.2 + coalitions @ np.array(evidence)

    controls = random_orders(len(relevance), 3)
    found = faithfulness(np.array(relevance), np.ones(len(relevance)), scores, controls=controls)
    assert len(runs) == 1
    assert found.untested is not None
    assert said in found.untested
    assert found.against("random-rank").outcome == "not tested"
    assert set(found.areas) == {"map"}


def test_no_parts_run_nothing() -> None:
    def scores(coalitions: np.ndarray) -> np.ndarray:
        raise AssertionError("nothing to run")

    found = faithfulness(np.zeros(0), np.zeros(0), scores)
    assert found.untested == "no parts"
    assert np.isnan(found.areas["map"][0]).all()


def test_passes_are_those_of_the_shares() -> None:
    sizes = []

    def scores(coalitions: np.ndarray) -> np.ndarray:
        sizes.append(len(coalitions))
        return coalitions.mean(axis=1)

    faithfulness(np.arange(100.0), np.ones(100), scores, controls=random_orders(100, 2))
    assert sizes == [2 + 2 * len(SHARES), 2 * 2 * len(SHARES)]


@pytest.mark.parametrize(
    ("relevance", "volumes", "options", "said"),
    [
        ([1, 2], [1], {}, "one relevance and one volume per part"),
        ([1, np.nan], [1, 1], {}, "of map are NaN"),
        ([1, 2], [1, 0], {}, "a volume above 0"),
        ([1, 2], [1, np.nan], {}, "a volume above 0"),
        ([1, 2], [1, 1], {"controls": [("edges", np.ones(3))]}, r"got \(3,\) for edges"),
        ([1, 2], [1, 1], {"controls": [("edges", np.array([1, np.inf]))]}, "of edges are NaN or infinite"),
        ([1, 2], [1, 1], {"shares": (0.5, 0.2)}, "ascending numbers between 0 and 1"),
        ([1, 2], [1, 1], {"shares": (0.0, 0.2)}, "ascending numbers between 0 and 1"),
    ],
)
def test_what_is_refused(relevance: list, volumes: list, options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        faithfulness(np.array(relevance, float), np.array(volumes, float), additive(np.ones(2)), **options)


@given(
    arrays.arrays(np.float64, 12, elements=st.floats(0, 1)),
    arrays.arrays(np.int64, 12, elements=st.integers(1, 50)),
    arrays.arrays(np.float64, 12, elements=st.floats(-3, 3)),
)
def test_areas_are_probabilities_and_do_not_depend_on_units(
    evidence: np.ndarray, volumes: np.ndarray, relevance: np.ndarray
) -> None:
    def scores(coalitions: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-(coalitions @ evidence)))

    found: list[Faithfulness] = [
        faithfulness(relevance, volumes, scores),
        faithfulness(relevance * 4.0, volumes * 0.008, scores),
    ]
    for one in found:
        assert 0 <= one.areas["map"][0].deletion <= 1
        assert 0 <= one.areas["map"][0].insertion <= 1
        assert one.shares[0] == 0
        assert one.shares[-1] == 1
        assert (np.diff(one.shares) > 0).all()
    np.testing.assert_allclose(found[0].areas["map"], found[1].areas["map"], atol=1e-9)


def test_one_outcome_for_several_regions() -> None:
    assert overall(["passed", "failed", "not tested"]) == "failed"
    assert overall(["passed", "not tested"]) == "passed"
    assert overall([]) == "not tested"
