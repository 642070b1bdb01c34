"""The score of errors: its arithmetic, its missing values, and that it comes back from disk as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from voxplain.errors import InputError
from voxplain.lesion_errors import (
    PLAIN,
    feature_sets,
    feature_values,
    fit_error_score,
    map_features,
    read_error_score,
)

MAPS = (
    *("flair_maximum", "flair_minimum", "flair_positive", "flair_negative"),
    *("t1_maximum", "t1_minimum", "t1_positive", "t1_negative"),
    *("flair_share", "fades_mm"),
)


def made_table(n: int = 60, seed: int = 0) -> pd.DataFrame:
    """Lesions of which about a third are wrong; both probability and map know something of it."""
    random = np.random.default_rng(seed)
    wrong = random.random(n) < 0.35
    table = pd.DataFrame({name: random.normal(0, 1, n) for name in MAPS})
    table["flair_maximum"] -= 1.5 * wrong
    table["mean_probability"] = np.clip(random.normal(0.8, 0.1, n) - 0.1 * wrong, 0.3, 1)
    table["max_probability"] = np.clip(table["mean_probability"] + 0.1, 0, 1)
    table["volume_mm3"] = random.lognormal(4, 1, n)
    table.insert(0, "case", [f"case{index // 12}" for index in range(n)])
    table.insert(1, "lesion", [index % 12 + 1 for index in range(n)])
    table.insert(2, "kind", np.where(wrong, "FP", "TP"))
    return table


@pytest.fixture
def table() -> pd.DataFrame:
    return made_table()


def test_the_regression_is_the_one_that_its_loss_says(table: pd.DataFrame) -> None:
    score = fit_error_score(table, ["mean_probability", "log_volume", "flair_maximum"])
    values = np.stack([table["mean_probability"], np.log(table["volume_mm3"]), table["flair_maximum"]], axis=1)
    standard = (values - values.mean(axis=0)) / values.std(axis=0)
    sign = np.where(table["kind"] == "FP", 1, -1)

    def loss(weights: np.ndarray) -> float:
        margins = sign * (standard @ weights[:3] + weights[3])
        return float(np.logaddexp(0, -margins).sum() + 0.5 * (weights[:3] ** 2).sum())

    weights = minimize(loss, np.zeros(4), tol=1e-12).x
    np.testing.assert_allclose([*score.coefficients, score.intercept], weights, atol=2e-4)
    expected = 1 / (1 + np.exp(-(standard @ weights[:3] + weights[3])))
    np.testing.assert_allclose(score.predict(table), expected, atol=2e-4)
    assert (score.true, score.false) == tuple((table["kind"] == kind).sum() for kind in ("TP", "FP"))
    # Unweighted classes and a free intercept: as many errors are expected as there were.
    assert score.predict(table).sum() == pytest.approx(score.false, abs=1e-3)


def test_it_comes_back_from_disk_as_it_was(table: pd.DataFrame, tmp_path: Path) -> None:
    table.loc[3, "t1_negative"] = np.nan
    score = fit_error_score(table, feature_sets(table)["plain+maps"])
    score.write(tmp_path / "score.json")
    again = read_error_score(tmp_path / "score.json")
    assert again == score
    np.testing.assert_array_equal(again.predict(table), score.predict(table))


def test_damaged_files_are_refused(table: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        read_error_score(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        read_error_score(tmp_path / "broken.json")
    fit_error_score(table, PLAIN).write(tmp_path / "score.json")
    content = json.loads((tmp_path / "score.json").read_text())
    for change, message in (
        ({"means": [1.0]}, "does not give a mean"),
        ({"intercept": "much"}, "holds no error score"),
        ({"further": 1}, "holds no error score"),
    ):
        (tmp_path / "other.json").write_text(json.dumps(content | change))
        with pytest.raises(InputError, match=message):
            read_error_score(tmp_path / "other.json")


def test_a_missing_value_is_the_mean_and_its_absence_a_feature(table: pd.DataFrame) -> None:
    table.loc[table["kind"] == "FP", "flair_negative"] = np.nan
    score = fit_error_score(table, ["flair_maximum", "flair_negative"])
    assert score.absent == ("flair_negative",)
    assert score.coefficients[2] > 0
    with_mean = table.assign(flair_negative=table["flair_negative"].fillna(score.means[1]))
    logit = [np.log(p / (1 - p)) for p in (score.predict(table), score.predict(with_mean))]
    gone = table["flair_negative"].isna().to_numpy(dtype=float)
    np.testing.assert_allclose(logit[0] - logit[1], score.coefficients[2] * gone, atol=1e-9)
    # Missing where it never was in training: the mean, and no more.
    full = fit_error_score(made_table(), ["flair_maximum", "flair_negative"])
    assert full.absent == ()
    lacking = made_table().assign(flair_negative=np.nan)
    at_mean = made_table().assign(flair_negative=full.means[1])
    np.testing.assert_allclose(full.predict(lacking), full.predict(at_mean))


def test_a_lesion_without_a_map_has_no_score(table: pd.DataFrame) -> None:
    table.loc[5, list(MAPS)] = np.nan
    for name, features in feature_sets(table).items():
        score = fit_error_score(table, features)
        assert np.flatnonzero(np.isnan(score.predict(table))).tolist() == ([5] if "maps" in name else [])
    table.loc[5, "max_probability"] = np.nan
    assert np.isnan(fit_error_score(table, PLAIN).predict(table)[5])


def test_a_feature_that_does_not_vary_says_nothing(table: pd.DataFrame) -> None:
    constant = fit_error_score(table.assign(fades_mm=0.1), ["flair_maximum", "fades_mm"])
    alone = fit_error_score(table, ["flair_maximum"])
    assert constant.coefficients[1] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(constant.predict(table.assign(fades_mm=0.1)), alone.predict(table), atol=1e-5)


def test_sets_hold_what_they_say(table: pd.DataFrame) -> None:
    sets = feature_sets(table.assign(voxels_used=1, passes=2))
    assert list(sets) == ["mean probability", "maximum probability", "log volume", "plain", "maps", "plain+maps"]
    assert sets["maps"] == map_features(table) == MAPS
    assert sets["plain+maps"] == (*sets["plain"], *MAPS)
    assert {name for features in list(sets.values())[:3] for name in features} == set(sets["plain"])
    np.testing.assert_allclose(feature_values(table, ["log_volume"])[:, 0], np.log(table["volume_mm3"]))


def test_lines_of_other_kinds_take_no_part(table: pd.DataFrame) -> None:
    others = table.head(12).assign(kind=["FN", "TN"] * 6, lesion=range(101, 113))
    assert fit_error_score(pd.concat([table, others]), PLAIN) == fit_error_score(table, PLAIN)


def test_what_is_refused(table: pd.DataFrame) -> None:
    with pytest.raises(InputError, match=r"fitted on true and on false positives; got \d+ and 0"):
        fit_error_score(table[table["kind"] == "TP"], PLAIN)
    with pytest.raises(InputError, match="has no column max_probability"):
        fit_error_score(table.drop(columns="max_probability"), PLAIN)
    with pytest.raises(InputError, match="comes again: choose the lines of one method"):
        fit_error_score(pd.concat([table, table]), PLAIN)
    with pytest.raises(InputError, match="volumes are above 0"):
        feature_values(table.assign(volume_mm3=0.0), PLAIN)
    with pytest.raises(InputError, match="infinite somewhere: fades_mm"):
        feature_values(table.assign(fades_mm=np.inf), MAPS)
    with pytest.raises(InputError, match="no column t1_negative"):
        map_features(table.drop(columns="t1_negative"))
    with pytest.raises(InputError, match="no column SEQUENCE_maximum"):
        map_features(table[["case", "fades_mm"]])
    with pytest.raises(InputError, match="needs features and a strength above 0"):
        fit_error_score(table, [])
