import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from voxplain.calibration import platt_scaling, temperature_scaling


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.floats(-20, 20), st.integers(2, 30), st.integers(2, 60))
def test_against_logistic_regression_of_scikit_learn(seed, spread, centre, positive, negative):
    rng = np.random.default_rng(seed)
    labels = np.repeat([1, 0], [positive, negative])
    logits = centre + spread * (rng.standard_normal(labels.size) + 1.5 * labels)
    scale, shift = platt_scaling(logits, labels)
    # Soft targets are each score twice, with label 1 and with label 0, weighted.
    targets = np.where(labels == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))
    weights = np.where(labels == 1, 0.5 / positive, 0.5 / negative)
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(
        np.tile((logits - centre) / spread, 2)[:, None],
        np.repeat([1, 0], labels.size),
        np.concatenate([targets * weights, (1 - targets) * weights]),
    )
    if oracle.coef_[0, 0] <= 1e-6:
        return
    expected = oracle.predict_proba((logits - centre)[:, None] / spread)[:, 1]
    np.testing.assert_allclose(1 / (1 + np.exp(-(scale * logits + shift))), expected, atol=1e-3)


def test_separated_scores_stay_finite_and_half_lies_between():
    logits, labels = np.array([-3.0, -2.5, -2.0, 1.0]), np.array([0, 0, 0, 1])
    scale, shift = platt_scaling(logits, labels)
    probabilities = 1 / (1 + np.exp(-(scale * logits + shift)))
    assert np.isfinite([scale, shift]).all()
    assert probabilities[2] < 0.5 < probabilities[3] < 1


def test_scores_that_run_the_wrong_way_or_do_not_differ_are_left_alone():
    assert platt_scaling(np.array([1.0, 2.0, -1.0, -2.0]), np.array([0, 0, 1, 1])) == (1.0, 0.0)
    scale, shift = platt_scaling(np.full(4, 7.0), np.array([0, 0, 1, 1]))
    assert np.isfinite([scale, shift]).all()
    assert 1 / (1 + np.exp(-(scale * 7 + shift))) == pytest.approx(0.5) or (scale, shift) == (1.0, 0.0)


def test_one_label_is_refused():
    with pytest.raises(ValueError, match="label 0 and of label 1"):
        platt_scaling(np.array([1.0, 2.0]), np.array([1, 1]))


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(1, 40), st.floats(0.05, 20))
def test_a_temperature_is_the_most_likely_one(seed: int, classes: int, count: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    logits = spread * (rng.standard_normal((count, classes)) + np.eye(classes)[labels])
    scale = temperature_scaling(logits, labels)
    targets = (count * np.eye(classes)[labels] + 1) / (count + classes)

    def loss(value: float) -> float:
        odds = value * logits
        return float(-(targets * (odds - np.logaddexp.reduce(odds, axis=1, keepdims=True))).sum())

    assert loss(scale) <= min(loss(value) for value in np.geomspace(0.01, 100, 400)) * (1 + 1e-6) + 1e-9
    np.testing.assert_array_equal((scale * logits).argmax(axis=1), logits.argmax(axis=1))


def test_a_temperature_of_scores_that_separate_stays_finite_and_of_none_is_1() -> None:
    assert 0.05 < temperature_scaling(np.eye(3)[[0, 1, 2, 0]] * 10, np.array([0, 1, 2, 0])) < 1
    assert temperature_scaling(np.zeros((0, 3)), np.zeros(0, dtype=int)) == 1
