"""Tables of the slice study: figures by hand and by scikit-learn, and the paper's beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from voxplain.io.atomic import read_json
from voxplain.studies.gp_paper import published
from voxplain.studies.gp_presets import CARDS
from voxplain.studies.gp_results import (
    COLUMNS,
    classification_rows,
    confusion_rows,
    gain_rows,
    localisation_rows,
    markdown,
    summed_up,
    write_tables,
)

CARD = CARDS["brats-grade-slices"]
CLASSES, ABSENT = CARD.classes, CARD.absent


def table(rows: list) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(COLUMNS)).set_index(["row", "metric"])


@pytest.fixture
def slices() -> pd.DataFrame:
    random = np.random.default_rng(0)
    labels = random.choice(CLASSES, 90, p=(0.5, 0.2, 0.3))
    predicted = np.where(random.random(90) < 0.7, labels, random.choice(CLASSES, 90))
    return pd.DataFrame(
        {"network": "gp-unet", "kind": "deployable", "label": labels, "predicted": predicted,
         "group": [f"P{n // 9}" for n in range(90)], "stack": [f"P{n // 9}" for n in range(90)],
         "slice": [f"axial {n % 9:03d}" for n in range(90)]}
    )  # fmt: skip


@pytest.fixture
def lines() -> pd.DataFrame:
    """Two patients' slices: three with tumour, one without, a network's row and two rows without a network."""
    facts = [("A", "s0", "HGG"), ("A", "s1", "HGG"), ("B", "s0", "LGG"), ("B", "s1", "tumour-free")]
    dice = {
        ("gp-unet", "heat-map/otsu", "deployable"): [0.8, 0.0, 0.4, np.nan],
        ("", "intensity/flair", "plain"): [0.5, 0.3, 0.1, np.nan],
        ("", "centre-disc", "plain"): [0.2, 0.2, 0.2, np.nan],
        ("", "random-map", "plain"): [0.9, 0.9, 0.9, np.nan],
    }
    return pd.DataFrame(
        [
            {"network": network, "row": row, "kind": kind, "stack": stack, "group": stack, "slice": name,
             "label": label, "predicted": label, "dice": value, "area": 7.0}
            for (network, row, kind), values in dice.items()
            for (stack, name, label), value in zip(facts, values, strict=True)
        ]
    )  # fmt: skip


def test_classification_is_scikit_learns(slices: pd.DataFrame) -> None:
    theirs = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    found = table(classification_rows(slices, CLASSES, ABSENT, seed=0))
    figures = theirs.precision_recall_fscore_support(
        slices.label, slices.predicted, labels=list(CLASSES), average="weighted"
    )
    for metric, expected in zip(("precision", "recall", "F1"), figures, strict=False):
        assert found.loc[("gp-unet", metric), "value"] == pytest.approx(expected)
    assert found.loc[("gp-unet", "accuracy"), "value"] == pytest.approx(
        theirs.accuracy_score(slices.label, slices.predicted)
    )
    each = theirs.f1_score(slices.label, slices.predicted, labels=list(CLASSES), average=None)
    for name, expected in zip(CLASSES, each, strict=True):
        assert found.loc[("gp-unet", f"F1 {name}"), "value"] == pytest.approx(expected)
        assert found.loc[("gp-unet", f"F1 {name}"), "n"] == (slices.label == name).sum()
    for metric in ("precision", "recall", "F1", "accuracy"):
        low, value, high = found.loc[("gp-unet", metric), ["low", "value", "high"]]
        assert low < value < high


def test_accuracy_on_tumours_alone(slices: pd.DataFrame) -> None:
    found = table(classification_rows(slices, CLASSES, ABSENT, seed=0)).loc[("gp-unet", "accuracy, tumour slices")]
    tumour = slices[slices.label != "tumour-free"]
    assert found["value"] == pytest.approx((tumour.label == tumour.predicted).mean())
    assert found["n"] == len(tumour)


def test_confusion_counts_every_slice(slices: pd.DataFrame) -> None:
    found = table(confusion_rows(slices, CLASSES))
    assert found["value"].sum() == len(slices)
    for label in CLASSES:
        for predicted in CLASSES:
            count = ((slices.label == label) & (slices.predicted == predicted)).sum()
            assert found.loc[("gp-unet", f"{label} as {predicted}"), "value"] == count


def test_localisation_by_hand(lines: pd.DataFrame) -> None:
    found = table(localisation_rows(lines, CLASSES, ABSENT, seed=0))["value"]
    its = found.loc["gp-unet/heat-map/otsu"]
    assert its["median Dice"] == pytest.approx(0.4)  # the missed slice counts
    assert its["mean Dice"] == pytest.approx(0.4)
    assert its["Dice, 25th percentile"] == pytest.approx(0.2)
    assert its["Dice, 75th percentile"] == pytest.approx(0.6)
    assert its["median Dice, HGG"] == pytest.approx(0.4)
    assert its["median Dice, LGG"] == pytest.approx(0.4)
    assert its["false-positive area, mm2"] == 7
    assert "median Dice, tumour-free" not in its
    assert found[("intensity/flair", "median Dice")] == pytest.approx(0.3)


def test_the_gain_is_paired_and_over_the_best_plain_row(lines: pd.DataFrame) -> None:
    (row,) = gain_rows(lines.sample(frac=1, random_state=0), seed=0)
    # FLAIR has the highest mean (0.3); the random map does not count as a rival.
    assert row[:4] == ("gain", "gp-unet/heat-map/otsu - intensity/flair", "mean Dice", "deployable")
    assert row[4] == pytest.approx(np.mean([0.3, -0.3, 0.3]))
    assert row[7] == 3
    assert gain_rows(lines[lines.kind != "plain"], seed=0) == []


def test_a_network_without_maps_has_no_localisation(slices: pd.DataFrame, lines: pd.DataFrame) -> None:
    plain = lines[lines.network == ""]
    found = summed_up(slices, plain, CARD, seed=0)
    assert set(found["table"]) == {"classification", "confusion", "localisation"}


def test_the_papers_figures_stand_beside(slices: pd.DataFrame, lines: pd.DataFrame, tmp_path: Path) -> None:
    summary = summed_up(slices, lines, CARD, seed=0)
    text = markdown(summary, "brats-grade-slices")
    for metric, paper in (("accuracy", "0.93"), ("F1", "0.93"), ("accuracy, tumour slices", "0.98")):
        (line,) = [one for one in text.splitlines() if one.startswith(f"| gp-unet | {metric} | deployable | 0.")]
        assert line.endswith(f" | {paper} |")
    write_tables(summary, tmp_path, dataset="brats-grade-slices", facts={"seed": 0})
    back = pd.read_csv(tmp_path / "scores.tsv", sep="\t")
    assert tuple(back.columns) == COLUMNS
    assert len(back) == len(summary)
    assert (tmp_path / "tables.md").read_text() == text
    assert read_json(tmp_path / "facts.json") == {"seed": 0}


def test_what_the_paper_says() -> None:
    """002, tables 3 to 5 and the text beside them."""
    cheng, grades = published("cheng"), published("brats-grade-slices")
    assert cheng["classification", "gp-reconresnet", "accuracy"] == 0.95
    assert cheng["localisation", "gp-shuffleunet/heat-map/otsu", "median Dice"] == 0.04
    assert grades["localisation", "gp-unet/heat-map/multi-otsu-offset", "median Dice"] == 0.67
    assert grades["localisation", "gp-reconresnet/heat-map/fixed-0.5", "median Dice"] == 0.60
    # Tumour or not is another question: the paper has its Dice alone.
    assert {table for table, _, _ in published("brats-slices")} == {"localisation"}
