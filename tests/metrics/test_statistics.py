import time
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from voxplain.errors import InputError
from voxplain.metrics.classification import auc
from voxplain.metrics.statistics import bootstrap_interval, holm, paired_wilcoxon


def scores(n: int = 34, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(n)


# Bootstrap


def test_interval_against_scipy() -> None:
    values = scores(60)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=1).confidence_interval
    assert bootstrap_interval(values, resamples=5000) == pytest.approx(tuple(theirs), abs=0.01)


def test_interval_of_two_patients_by_hand() -> None:
    # Means of two draws from {0, 1}: 0, 0.5 and 1 with 1/4, 1/2 and 1/4.
    assert bootstrap_interval(np.array([0.0, 1.0])) == (0.0, 1.0)
    assert bootstrap_interval(np.array([0.0, 1.0]), level=0.4) == (0.5, 0.5)


def test_rows_of_a_patient_move_together() -> None:
    values, groups = np.array([0.0, 1.0, 4.0, 4.0, 4.0]), np.array(["a", "a", "b", "b", "b"])
    seen: set[tuple[float, ...]] = set()

    def spy(rows: np.ndarray) -> float:
        seen.add(tuple(sorted(rows.tolist())))
        return float(rows.mean())

    interval = bootstrap_interval(values, statistic=spy, groups=groups, resamples=200)
    patients = {"a": (0.0, 1.0), "b": (4.0, 4.0, 4.0)}
    assert seen == {tuple(sorted(patients[first] + patients[second])) for first, second in product("ab", "ab")}
    assert interval == bootstrap_interval(values, groups=groups, resamples=200)


def test_means_at_once_are_the_means_one_by_one() -> None:
    values, groups = scores(50), np.random.default_rng(1).integers(12, size=50)
    at_once = bootstrap_interval(values, groups=groups)
    one_by_one = bootstrap_interval(values, groups=groups, statistic=lambda rows: float(rows.mean()))
    assert at_once == pytest.approx(one_by_one)


def test_order_of_rows_and_repeated_patients_change_nothing() -> None:
    values, groups = scores(20), np.arange(20) // 2
    order = np.random.default_rng(2).permutation(20)
    shuffled = bootstrap_interval(values[order], groups=groups[order])
    assert bootstrap_interval(values, groups=groups) == pytest.approx(shuffled)
    doubled = bootstrap_interval(np.repeat(values, 2), groups=np.repeat(np.arange(20), 2))
    assert doubled == pytest.approx(bootstrap_interval(values))


def test_a_statistic_of_several_arrays_stays_aligned() -> None:
    labels, values = np.array([0, 0, 0, 1, 1, 1]), np.array([0.1, 0.2, 0.4, 0.3, 0.8, 0.9])
    low, high = bootstrap_interval((labels, values), statistic=auc, resamples=200)
    assert 0 <= low <= auc(labels, values) <= high == 1


def test_nan_rows_are_left_out_of_every_array() -> None:
    a, b = scores(10, 1), scores(10, 2)
    with_nan = np.append(a, [np.nan, 0.5]), np.append(b, [0.5, np.nan])

    def gain(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean(x - y))

    assert bootstrap_interval(with_nan, statistic=gain) == bootstrap_interval((a, b), statistic=gain)


def test_resamples_without_a_number_are_left_out() -> None:
    low, high = bootstrap_interval((np.array([0, 1]), np.array([0.1, 0.9])), statistic=auc, resamples=50)
    assert low == high == 1


@pytest.mark.parametrize("values", [[], [0.3], [np.nan, np.nan], [np.nan, 0.3]])
def test_fewer_than_two_patients_have_no_interval(values: list[float]) -> None:
    assert np.isnan(bootstrap_interval(np.array(values))).all()
    rows = np.array([0.1, 0.2, 0.3])
    assert np.isnan(bootstrap_interval(rows, groups=np.zeros(3))).all()


def test_no_resample_with_a_number_has_no_interval() -> None:
    labels = np.ones(5, dtype=int)
    assert np.isnan(bootstrap_interval((labels, scores(5)), statistic=auc, resamples=5)).all()


@given(st.floats(0.05, 0.98))
@settings(max_examples=10, deadline=None)
def test_wider_levels_give_wider_intervals(level: float) -> None:
    inner, outer = bootstrap_interval(scores(), level=level), bootstrap_interval(scores(), level=0.99)
    assert outer[0] <= inner[0] <= inner[1] <= outer[1]


def test_the_seed_alone_decides() -> None:
    np.random.seed(0)  # noqa: NPY002
    first = bootstrap_interval(scores(), seed=3)
    np.random.seed(1)  # noqa: NPY002
    assert first == bootstrap_interval(scores(), seed=3) != bootstrap_interval(scores(), seed=4)


def test_a_cohort_takes_milliseconds() -> None:
    start = time.perf_counter()
    bootstrap_interval(scores(34))
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        (np.zeros((3, 2)), {}, "one length"),
        (np.float64(1), {}, "one length"),
        ((np.zeros(3), np.zeros(4)), {}, "one length"),
        (np.zeros(3), {"groups": np.zeros(4)}, "one length"),
        (np.zeros(3), {"level": 95}, "level"),
        (np.zeros(3), {"resamples": 0}, "resamples"),
    ],
)
def test_bad_bootstraps_are_refused(values: np.ndarray, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        bootstrap_interval(values, **options)


# Wilcoxon


def test_wilcoxon_against_every_sign() -> None:
    differences = np.array([0.3, -0.1, 0.5, 0.7, -0.2, 0.9])
    ranks = stats.rankdata(np.abs(differences))
    found = min(ranks[differences > 0].sum(), ranks[differences < 0].sum())
    sums = [ranks[np.array(signs, dtype=bool)].sum() for signs in product([0, 1], repeat=6)]
    expected = min(1.0, 2 * np.mean(np.array(sums) <= found))
    assert paired_wilcoxon(differences, np.zeros(6)) == pytest.approx(expected)
    assert paired_wilcoxon(np.zeros(6), differences) == pytest.approx(expected)


def test_wilcoxon_of_no_difference_no_pairs_and_nan() -> None:
    values = scores()
    assert paired_wilcoxon(values, values) == 1
    assert np.isnan(paired_wilcoxon(np.array([]), np.array([])))
    assert np.isnan(paired_wilcoxon(np.array([np.nan]), np.array([1.0])))
    other = scores(34, 5)
    with_nan = paired_wilcoxon(np.append(values, np.nan), np.append(other, 0.2))
    assert with_nan == paired_wilcoxon(values, other)


def test_wilcoxon_refuses_arrays_that_do_not_pair() -> None:
    with pytest.raises(InputError, match="one length"):
        paired_wilcoxon(np.zeros(3), np.zeros(4))


# Holm


def test_holm_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04; the last may not fall below 0.06.
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.9])) == pytest.approx([1, 1])


def test_holm_leaves_nan_out_of_the_count() -> None:
    assert holm(np.array([0.02, np.nan, 0.5])) == pytest.approx([0.04, np.nan, 0.5], nan_ok=True)
    assert np.isnan(holm(np.array([np.nan]))).all()
    assert holm(np.array([])).shape == (0,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_holm_rejects_what_the_step_down_rule_rejects(p_values: list[float]) -> None:
    adjusted = holm(np.array(p_values))
    assert (adjusted >= p_values).all()
    assert (adjusted <= 1).all()
    order = np.argsort(p_values, kind="stable")
    for level in (0.01, 0.05, 0.2):
        rejected = np.zeros(len(p_values), dtype=bool)
        for step, index in enumerate(order):
            if p_values[index] * (len(p_values) - step) > level:
                break
            rejected[index] = True
        assert np.array_equal(adjusted <= level, rejected)


@pytest.mark.parametrize("p_values", [[-0.1], [1.1], [[0.1]]])
def test_holm_refuses_what_is_no_p_value(p_values: list) -> None:
    with pytest.raises(InputError, match="0 to 1"):
        holm(np.array(p_values))
