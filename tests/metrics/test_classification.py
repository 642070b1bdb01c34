import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    precision_recall_fscore_support,
)

from voxplain.errors import InputError
from voxplain.metrics import classification


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.2, 0.2, 0.7, 1.0])), max_size=12))
@settings(max_examples=40, deadline=None)
def test_auc_is_the_share_of_pairs_in_the_right_order(cases: list[tuple[bool, float]]) -> None:
    labels, scores = np.array([c[0] for c in cases], dtype=bool), np.array([c[1] for c in cases])
    pairs = [1.0 if high > low else 0.5 if high == low else 0.0 for high in scores[labels] for low in scores[~labels]]
    found = classification.auc(labels, scores)
    assert found == pytest.approx(np.mean(pairs)) if pairs else np.isnan(found)


def test_auc_does_not_change_when_probabilities_become_logits() -> None:
    labels, scores = np.array([0, 1, 0, 1, 1]), np.array([0.2, 0.3, 0.4, 0.8, 0.9])
    assert classification.auc(labels, scores) == classification.auc(labels, np.log(scores / (1 - scores)))


@pytest.mark.parametrize("classes", [2, 3])
def test_balanced_accuracy_against_scikit_learn(classes: int) -> None:
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(classes, size=(2, 50))
    found = classification.balanced_accuracy(labels, predictions, classes=classes)
    assert found == pytest.approx(balanced_accuracy_score(labels, predictions))


def test_balanced_accuracy_by_hand() -> None:
    found = classification.balanced_accuracy(np.array([1, 1, 1, 0]), np.array([1, 0, 1, 0]))
    assert found == pytest.approx((2 / 3 + 1) / 2)
    booleans = np.array([True, True, False])
    assert classification.balanced_accuracy(booleans, booleans) == 1


def test_an_absent_class_gives_nan() -> None:
    ones, nothing = np.ones(4, dtype=int), np.array([], dtype=int)
    assert np.isnan(classification.balanced_accuracy(ones, ones))
    assert np.isnan(classification.balanced_accuracy(np.array([0, 1]), np.array([0, 1]), classes=3))
    assert np.isnan(classification.balanced_accuracy(nothing, nothing))
    assert np.isnan(classification.auc(ones, np.arange(4)))
    assert np.isnan(classification.auc(nothing, nothing))


@pytest.mark.parametrize(
    ("labels", "scores", "words"),
    [
        ([0, 1], [0.1, np.nan], "finite"),
        ([0, 2], [0.1, 0.2], "0 to 1; got 0, 2"),
        ([0, 1, 1], [0.1, 0.2], r"\(3,\) and \(2,\)"),
        ([[0, 1]], [[0.1, 0.2]], "one label"),
    ],
)
def test_auc_refuses_what_it_cannot_score(labels: list, scores: list, words: str) -> None:
    with pytest.raises(InputError, match=words):
        classification.auc(np.array(labels), np.array(scores))


def test_balanced_accuracy_refuses_scores_and_unknown_classes() -> None:
    with pytest.raises(InputError, match="not scores"):
        classification.balanced_accuracy(np.array([0, 1]), np.array([0.2, 0.8]))
    with pytest.raises(InputError, match="0 to 1; got 0, 2"):
        classification.balanced_accuracy(np.array([0, 2]), np.array([0, 1]))


@given(st.integers(2, 4), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
def test_confusion_precision_recall_and_f1_against_scikit_learn(classes: int, cases: list[tuple[int, int]]) -> None:
    labels, predictions = (np.array([case[side] % classes for case in cases]) for side in (0, 1))
    names = range(classes)
    np.testing.assert_array_equal(
        classification.confusion_matrix(labels, predictions, classes=classes),
        confusion_matrix(labels, predictions, labels=names),
    )
    assert classification.accuracy(labels, predictions, classes=classes) == accuracy_score(labels, predictions)
    kappa = classification.cohens_kappa(labels, predictions, classes=classes)
    if len({*labels.tolist(), *predictions.tolist()}) == 1:
        assert np.isnan(kappa)
    else:
        assert kappa == pytest.approx(cohen_kappa_score(labels, predictions))
    weighted = classification.precision_recall_f1(labels, predictions, classes=classes)
    expected = precision_recall_fscore_support(labels, predictions, labels=names, average="weighted", zero_division=0)
    assert weighted == pytest.approx(expected[:3])
    each = classification.precision_recall_f1(labels, predictions, classes=classes, average="none")
    precision, recall, f1, cases_of = precision_recall_fscore_support(
        labels, predictions, labels=names, zero_division=0
    )
    np.testing.assert_allclose(each.precision, precision)
    np.testing.assert_allclose(each.recall, np.where(cases_of > 0, recall, np.nan))
    absent = [name not in labels and name not in predictions for name in names]
    np.testing.assert_allclose(each.f1, np.where(absent, np.nan, f1))


def test_precision_recall_and_f1_by_hand() -> None:
    labels, predictions = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 1])
    each = classification.precision_recall_f1(labels, predictions, classes=4, average="none")
    np.testing.assert_allclose(each.precision, [2 / 3, 1 / 3, 0, 0])
    np.testing.assert_allclose(each.recall, [2 / 3, 1 / 2, 0, np.nan])
    np.testing.assert_allclose(each.f1, [2 / 3, 2 / 5, 0, np.nan])
    weighted = classification.precision_recall_f1(labels, predictions, classes=4)
    assert weighted.f1 == pytest.approx((3 * 2 / 3 + 2 * 2 / 5) / 6)
    matrix = classification.confusion_matrix(labels, predictions, classes=4)
    np.testing.assert_array_equal(matrix, [[2, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    assert classification.accuracy(labels, predictions, classes=4) == 0.5


def test_figures_without_any_case() -> None:
    assert np.isnan(classification.cohens_kappa(np.array([], dtype=int), np.array([], dtype=int), classes=2))
    nothing = np.array([], dtype=int)
    assert np.isnan(classification.accuracy(nothing, nothing, classes=3))
    assert np.isnan(classification.precision_recall_f1(nothing, nothing, classes=3)).all()
    assert not classification.confusion_matrix(nothing, nothing, classes=3).any()


def test_figures_of_classes_refuse_scores_and_other_averages() -> None:
    labels, scores = np.array([0, 1]), np.array([0.2, 0.8])
    for figure in (classification.accuracy, classification.confusion_matrix, classification.precision_recall_f1):
        with pytest.raises(InputError, match="classes 0 to 1, not scores"):
            figure(labels, scores, classes=2)
    with pytest.raises(InputError, match="weighted or none; got 'macro'"):
        classification.precision_recall_f1(labels, labels, classes=2, average="macro")
