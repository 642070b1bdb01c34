"""The rows, kinds and intervals of the hemisphere study's tables, recomputed by hand on a made head of boxes."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage, stats
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import nn

import voxplain as vx
from voxplain.datasets.case import Case
from voxplain.datasets.phantom import write_case
from voxplain.engine.probe import Probe
from voxplain.explain.explainer import Relevance
from voxplain.metrics.statistics import bootstrap_interval
from voxplain.partition import cubes
from voxplain.studies import scoring
from voxplain.studies.scoring import CASE_COLUMNS, NETWORK_FREE, SCORE_COLUMNS, score_case, scores, write_tables

CPU = vx.Compute(device="cpu", threads=1)
SHAPE = (24, 20, 12)
# 5 mm voxels of 0.125 ml: a half is labelled as tumour from 17 voxels on, and as healthy below 2.
GRID = vx.Grid(SHAPE, np.diag([-5.0, -5, 5, 1]))
CARD = vx.Card(name="brightest", channels=("flair",), classes=("tumour",), region="half", orientation="LPS")


class Brightest(nn.Module):
    """The logit is how far the brightest voxel lies above 5."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.flatten(1).amax(dim=1, keepdim=True) - 5


@dataclass(frozen=True)
class Intensity(vx.Explainer):
    """A voxel-wise map: the image itself."""

    name, family, needs, cost = "intensity-itself", "stub", "calls", "1"

    def _relevance(self, probe: Probe) -> Relevance:
        return Relevance(unit="intensity", signed=False, map=probe.input)


@dataclass(frozen=True)
class PartMeans(vx.Explainer):
    """A map of parts: the mean of each cube."""

    name, family, needs, cost = "part-means", "stub", "calls", "1"

    def _relevance(self, probe: Probe) -> Relevance:
        parts = cubes(probe.prepared.input.grid, edge=15, mask=probe.prepared.foreground)
        means = ndimage.mean(probe.input[0], parts.data, np.arange(1, parts.data.max() + 1))
        return Relevance(unit="mean", signed=False, parts=parts, scores=means)


EXPLAINERS = {"voxels": Intensity(), "parts": PartMeans()}


def head(left: tuple[int, float] = (4, 8.0), right: tuple[int, float] = (0, 0.0), seed: int = 0):
    """A brain with, in each half, a cube of tumour of an edge in voxels and a brightness."""
    data = np.zeros(SHAPE)
    brain = np.zeros(SHAPE, dtype=bool)
    brain[2:22, 2:18, 1:11] = True
    data[brain] = np.random.default_rng(seed).uniform(1, 1.5, int(brain.sum()))
    labels = np.zeros(SHAPE, dtype=int)
    # x runs to the left: the patient's right half has the lower indices.
    for start, (edge, brightness) in ((4, right), (15, left)):
        box = (slice(start, start + edge), slice(6, 6 + edge), slice(4, 4 + edge))
        labels[box] = 2 * (edge > 0)
        data[box] = brightness
    others = [np.where(brain, number + 2, 0) for number in range(3)]
    return vx.Scan(np.stack([data, *others]), GRID, ("flair", "t1", "t1ce", "t2")), vx.Labels(labels, GRID)


def written(folder: Path, name: str = "Brats18_2013_1_1", **tumours: object) -> Case:
    return write_case(*head(**tumours), folder / name)


def scored(case: Case, explainers=EXPLAINERS, **card: object) -> pd.DataFrame:
    model = vx.Model(Brightest(), dataclasses.replace(CARD, **card))
    scan = case.scan()
    explanations = {name: explain(model, scan, compute=CPU) for name, explain in explainers.items()}
    return score_case(case, scan, case.tumour(), model, explanations, seed=0)


def value(table: pd.DataFrame, row: str, metric: str = "dice", *, of: str = "halves", **where: object) -> float:
    found = table[(table["row"] == row) & (table["metric"] == metric) & (table["table"] == of)]
    for column, wanted in where.items():
        found = found[found[column] == wanted]
    assert len(found) == 1, f"{row} {metric} {of} {where}: {len(found)} rows"
    return float(found["value"].iloc[0])


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    both = sum(1 for a, b in zip(one.ravel(), other.ravel(), strict=True) if a and b)
    return 2 * both / (int(one.sum()) + int(other.sum()))


def explained(case: Case, name: str, **card: object) -> vx.Explanation:
    model = vx.Model(Brightest(), dataclasses.replace(CARD, **card))
    return EXPLAINERS[name](model, case.scan(), compute=CPU)


LEFT = (slice(12, 24), slice(None), slice(None))


def test_deployable_dice_of_a_half(tmp_path: Path) -> None:
    case = written(tmp_path)
    table, truth, scan = scored(case), case.tumour().data > 0, case.scan()
    brain = vx.Labels(scan.foreground(), GRID)
    for row in ("voxels", "parts"):
        mask = vx.segment.otsu(explained(case, row), mask=brain).data > 0
        expected = overlap(mask[LEFT], truth[LEFT])
        assert expected > 0.1
        assert value(table, f"{row}/otsu", kind="deployable", region="left") == pytest.approx(expected)
        multi = vx.segment.multi_otsu(explained(case, row), mask=brain).data > 0
        assert value(table, f"{row}/multi-otsu") == pytest.approx(overlap(multi[LEFT], truth[LEFT]))
        error = (mask[LEFT].sum() - truth[LEFT].sum()) * 0.125
        assert value(table, f"{row}/otsu", "volume_error_ml") == pytest.approx(error)
    # The tumour stands out of the image by far, so that Otsu on the image itself is perfect.
    assert value(table, "voxels/otsu") == 1
    assert value(table, "voxels/otsu", "hd95_mm") == 0


def test_a_healthy_half_takes_no_part_in_the_table_of_halves(tmp_path: Path) -> None:
    table = scored(written(tmp_path))
    assert set(table.loc[table["table"] == "halves", "region"]) == {"left"}
    assert set(table.loc[table["table"] == "classification", "region"]) == {"left", "right"}
    assert not (table["table"] == "unlabelled").any()


def test_oracle_rows_by_trying_everything(tmp_path: Path) -> None:
    case = written(tmp_path)
    table, truth = scored(case), (case.tumour().data > 0)[LEFT]
    why = explained(case, "parts")
    assert why.parts is not None
    assert why.scores is not None
    parts = why.parts.data[LEFT]
    ranked = [label for label in why.ranks()["label"] if (parts == label).any()]
    groups = [overlap(np.isin(parts, ranked[:count]), truth) for count in range(1, len(ranked) + 1)]
    assert value(table, "parts/best-grouping", kind="oracle") == pytest.approx(max(groups))
    for rank in range(5):
        alone = overlap(parts == ranked[rank], truth)
        assert value(table, f"parts/rank-{rank + 1}", kind="deployable") == pytest.approx(alone)
        assert value(table, f"parts/top-{rank + 1}", kind="deployable") == pytest.approx(groups[rank])
    values = explained(case, "voxels").total[LEFT]
    tried = [overlap(values > threshold, truth) for threshold in np.unique(values)[:-1]]
    assert value(table, "voxels/best-threshold", kind="oracle") == pytest.approx(max(tried))
    # The ceiling of the partition: every union of parts that touch the tumour.
    touching = np.unique(parts[truth])
    unions = [
        overlap(np.isin(parts, [label for bit, label in enumerate(touching) if code >> bit & 1]), truth)
        for code in range(1, 2 ** len(touching))
    ]
    assert value(table, "supervoxel-ceiling", kind="oracle") == pytest.approx(max(unions))


def test_network_free_rows_by_hand(tmp_path: Path) -> None:
    case = written(tmp_path, left=(5, 3.0), right=(3, 8.0))
    table, truth, scan = scored(case), case.tumour().data > 0, case.scan()
    flair = scan.data[0].astype(np.float64)
    brain = flair != 0
    standard = np.where(brain, (flair - flair[brain].mean()) / flair[brain].std(), 0)
    above = (ndimage.gaussian_filter(standard, 2 / 5) > 1.2) & brain

    def largest(mask: np.ndarray) -> np.ndarray:
        pieces, count = ndimage.label(mask, np.ones((3, 3, 3)))
        sizes = [int((pieces == piece).sum()) for piece in range(1, count + 1)]
        return pieces == 1 + int(np.argmax(sizes))

    for region, box in (("left", LEFT), ("right", (slice(0, 12), slice(None), slice(None)))):
        expected = overlap(largest(above[box]), truth[box])
        assert value(table, "intensity/flair", region=region) == pytest.approx(expected)
        assert value(table, "whole-brain", region=region) == pytest.approx(overlap(brain[box], truth[box]))
        millilitres = largest(above)[box].sum() * 0.125
        found = value(table, "intensity/flair", "volume_ml", of="classification", region=region)
        assert found == pytest.approx(millilitres)
    assert value(table, "intensity/flair", of="scans") == pytest.approx(overlap(largest(above), truth))
    assert value(table, "whole-brain", of="scans") == pytest.approx(overlap(brain, truth))
    # Ranking the network's own parts by mean FLAIR is what the stub does, but for the threshold at predicted halves.
    mask = vx.segment.otsu(explained(case, "parts"), everywhere=True).data > 0
    for region, box in (("left", LEFT), ("right", (slice(0, 12), slice(None), slice(None)))):
        expected = overlap(mask[box], truth[box])
        assert value(table, "intensity/supervoxel-rank", region=region) == pytest.approx(expected)
        grouped = value(table, "intensity/supervoxel-rank/best-grouping", region=region, kind="oracle")
        assert grouped == pytest.approx(value(table, "parts/best-grouping", region=region))
    assert value(table, "intensity/supervoxel-rank", of="scans") == pytest.approx(overlap(mask, truth))


def test_every_table_of_masks_holds_the_network_free_rows(tmp_path: Path) -> None:
    table = scored(written(tmp_path, right=(2, 8.0)))
    for name in ("halves", "unlabelled", "scans"):
        rows = table[(table["table"] == name) & (table["metric"] == "dice")]
        assert set(NETWORK_FREE) <= set(rows["row"]), name
    assert "intensity/flair" in set(table.loc[table["table"] == "classification", "row"])


def test_random_ranks_are_the_mean_of_many_draws_and_differ_by_case(tmp_path: Path) -> None:
    first, second = (written(tmp_path, name) for name in ("Brats18_2013_1_1", "Brats18_2013_2_1"))
    table = scored(first)
    assert value(table, "random-rank") == value(scored(first), "random-rank")
    assert value(table, "random-rank") != value(scored(second), "random-rank")
    assert value(table, "random-rank") < value(table, "intensity/supervoxel-rank")


def test_a_half_predicted_negative_is_empty(tmp_path: Path) -> None:
    """Both halves hold tumour; the network sees the left one only (the right one stays below its 5)."""
    case = written(tmp_path, left=(4, 8.0), right=(4, 4.0))
    table, truth = scored(case), case.tumour().data > 0
    missed = {"table": "halves", "region": "right", "kind": "deployable", "metric": "dice"}
    rows = table[(table[list(missed)] == pd.Series(missed)).all(axis=1)]
    ours = rows[~rows["row"].isin(NETWORK_FREE)]
    assert len(ours) == 2 * 2 + 10
    assert (ours["value"] == 0).all()
    assert np.isnan(value(table, "voxels/otsu", "hd95_mm", region="right"))
    assert value(table, "voxels/otsu", "volume_error_ml", region="right") == pytest.approx(-64 * 0.125)
    # What the case's own mask chooses is asked of the map, whatever the network predicts; so is what needs no network.
    assert value(table, "voxels/best-threshold", region="right") == 1
    assert value(table, "intensity/flair", region="right") > 0
    only_left = truth.copy()
    only_left[:12] = False
    assert value(table, "voxels/otsu", of="scans") == pytest.approx(overlap(only_left, truth))


def test_a_healthy_half_predicted_positive_spoils_the_whole_scan(tmp_path: Path) -> None:
    """A bright spot of one voxel, too small for a label, is taken for tumour."""
    case = written(tmp_path, right=(1, 9.0))
    table = scored(case)
    assert value(table, "network", "predicted", of="classification", region="right") == 1
    assert value(table, "network", "label", of="classification", region="right") == 0
    labels = case.tumour().data > 0
    mask = vx.segment.otsu(explained(case, "parts"), mask=vx.Labels(case.scan().foreground(), GRID)).data > 0
    assert mask[:12].any()
    assert value(table, "parts/otsu", of="scans") == pytest.approx(overlap(mask, labels))


def test_halves_between_the_limits_have_no_label_and_their_own_table(tmp_path: Path) -> None:
    table = scored(written(tmp_path, right=(2, 8.0)))  # 8 voxels, 1 ml
    assert np.isnan(value(table, "network", "label", of="classification", region="right"))
    assert value(table, "voxels/otsu", of="unlabelled", region="right") == 1
    assert not ((table["table"] == "halves") & (table["region"] == "right")).any()
    figures = scores(table)
    n = figures[(figures["table"] == "classification") & (figures["row"] == "network")]["n"]
    assert (n == 1).all()


@pytest.mark.parametrize(
    ("name", "known", "seen"),
    [
        ("Brats18_2013_1_1", {"ids": ["Brats18_2013_1_1"]}, True),
        ("Brats18_2013_1_1", {"ids": ["Brats18_2013_11_1"], "validation_ids": []}, False),
        # What chose the epoch was looked at as well.
        ("Brats18_2013_1_1", {"ids": ["Brats18_2013_2_1"], "validation_ids": ["Brats18_2013_1_1"]}, True),
        # Another time point of a patient whom the network knows.
        ("BraTS-GLI-00001-001", {"ids": ["BraTS-GLI-00001-000"]}, True),
        ("BraTS-GLI-00001-001", {"ids": ["BraTS-GLI-00011-001"]}, False),
    ],
)
def test_kinds(tmp_path: Path, name: str, known: dict[str, list[str]], seen: bool) -> None:
    table = scored(written(tmp_path, name), training=known)
    measured = table[table["metric"].isin(["dice", "hd95_mm", "volume_error_ml"])]
    without = measured["row"].str.split("/best-").str[0].isin([*NETWORK_FREE, "supervoxel-ceiling"])
    chosen = measured["row"].str.contains("best-|ceiling")
    # No network, nothing that it can have seen.
    assert set(measured[without & chosen]["kind"]) == {"oracle"}
    assert set(measured[without & ~chosen]["kind"]) == {"deployable"}
    assert set(measured[~without & chosen]["kind"]) == {"seen" if seen else "oracle"}
    assert set(measured[~without & ~chosen]["kind"]) == {"seen" if seen else "deployable"}
    judged = table[table["table"] == "classification"]
    assert set(judged.loc[judged["row"] == "network", "kind"]) == {"seen" if seen else "plain"}
    assert set(judged.loc[judged["row"] == "intensity/flair", "kind"]) == {"plain"}


def test_gains_compare_no_row_that_the_cases_own_mask_chose(tmp_path: Path) -> None:
    names = [f"Brats18_2013_{number}_1" for number in range(1, 4)]
    for known in ([], names):
        cases = pd.concat([scored(written(tmp_path, name), training={"ids": known}) for name in names])
        figures = scores(cases)
        gains = figures[figures["metric"] == "dice_gain"]
        assert set(gains["kind"]) == {"seen" if known else "deployable"}
        rows = [f"{row}/{rule}" for row in ("voxels", "parts") for rule in ("otsu", "multi-otsu")]
        ranks = [f"parts/{sort}-{rank}" for sort in ("rank", "top") for rank in range(1, 6)]
        assert set(gains.loc[gains["table"] == "halves", "row"]) == {*rows, *ranks}


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.96])
def test_balanced_accuracy_is_that_of_the_cards_threshold(tmp_path: Path, threshold: float) -> None:
    """Probabilities 0.95 for a brightness of 8, 0.27 for 4, 0.03 for tissue."""
    names = [f"Brats18_2013_{number}_1" for number in range(1, 5)]
    brightness = (8.0, 4.0, 8.0, 4.0)
    made = [written(tmp_path, name, left=(4, light)) for name, light in zip(names, brightness, strict=True)]
    cases = pd.concat([scored(case, {"voxels": Intensity()}, threshold=threshold) for case in made])
    table = scores(cases)
    found = table[(table["row"] == "network") & (table["metric"] == "balanced_accuracy")]["value"].item()
    probabilities = np.array([1 / (1 + np.exp(5 - light)) for light in brightness] + [1 / (1 + np.exp(3.5))] * 4)
    assert found == pytest.approx(balanced_accuracy_score([1] * 4 + [0] * 4, probabilities >= threshold))


def made_cases(patients: int = 9, seed: int = 0) -> pd.DataFrame:
    """Rows as `score_case` writes them: every third patient has tumour in both halves."""
    rng = np.random.default_rng(seed)
    lines = []
    rows = {"intensity/flair": 0.5, "whole-brain": 0.3, "random-rank": 0.1, "map/otsu": 0.6, "map/top-1": 0.45}
    for number in range(patients):
        patient, fold = f"p{number}", number % 2
        key = (f"{patient}_1", patient, fold)
        for side in ("left", "right"):
            label = float(side == "left" or number % 3 == 0)
            ours = label + rng.normal(0, 1.2)
            flair = label + rng.normal(0, 1.0)
            lines += [
                (*key, side, "classification", "network", "probability", "plain", ours),
                (*key, side, "classification", "network", "predicted", "plain", float(ours > 0.5)),
                (*key, side, "classification", "network", "label", "plain", label),
                (*key, side, "classification", "intensity/flair", "volume_ml", "plain", flair),
            ]
            if label:
                lines += [
                    (*key, side, "halves", row, "dice", "deployable", float(np.clip(mean + rng.normal(0, 0.2), 0, 1)))
                    for row, mean in rows.items()
                ]
                lines.append((*key, side, "halves", "map/best-grouping", "dice", "oracle", 0.9))
    return pd.DataFrame(lines, columns=list(CASE_COLUMNS))


def figure(table: pd.DataFrame, row: str, metric: str) -> pd.Series:
    found = table[(table["row"] == row) & (table["metric"] == metric)]
    assert len(found) == 1
    return found.iloc[0]


def test_auc_is_that_within_each_fold() -> None:
    cases = made_cases()
    table = scores(cases)
    for row, metric in (("network", "probability"), ("intensity/flair", "volume_ml")):
        wide = cases[cases["table"] == "classification"].pivot_table(
            index=["patient", "region", "fold"], columns=["row", "metric"], values="value"
        )
        within = [
            roc_auc_score(group["network", "label"], group[row, metric]) for _, group in wide.groupby(level="fold")
        ]
        assert len(within) == 2
        found = figure(table, row, "auc")
        assert found["value"] == pytest.approx(np.mean(within))
        assert found["low"] < found["value"] < found["high"]
        assert found["n"] == 9
        # Networks of different folds speak on different scales: shifting one fold's scores changes nothing.
        shifted = cases.copy()
        moved = (cases["fold"] == 1) & cases["metric"].isin(["probability", "volume_ml"])
        shifted.loc[moved, "value"] += 100
        assert figure(scores(shifted), row, "auc")["value"] == pytest.approx(found["value"])
    predicted = wide["network", "probability"] > 0.5
    expected = balanced_accuracy_score(wide["network", "label"], predicted)
    assert figure(table, "network", "balanced_accuracy")["value"] == pytest.approx(expected)


def test_means_and_intervals_are_over_patients() -> None:
    cases = made_cases()
    found = figure(scores(cases), "map/otsu", "dice")
    ours = cases[cases["row"] == "map/otsu"]
    assert len(ours) == 12
    assert found["n"] == 9
    assert found["value"] == pytest.approx(ours["value"].mean())
    expected = bootstrap_interval(ours["value"].to_numpy(), groups=ours["patient"].to_numpy())
    assert (found["low"], found["high"]) == pytest.approx(expected)
    # Every half written down twice is not twice the evidence.
    twice = scores(pd.concat([cases, cases.assign(region="again " + cases["region"])]))
    again = figure(twice, "map/otsu", "dice")
    assert again[["value", "low", "high"]].to_list() == pytest.approx(found[["value", "low", "high"]].to_list())
    assert again["n"] == 9
    for metric in ("dice_gain", "p_holm"):
        assert figure(twice, "map/otsu", metric)["value"] == pytest.approx(
            figure(scores(cases), "map/otsu", metric)["value"]
        )


def test_gain_is_paired_over_patients_and_corrected_by_holm() -> None:
    cases = made_cases()
    table = scores(cases)
    mean = cases[cases["metric"] == "dice"].groupby(["row", "patient"])["value"].mean()
    free = {row: mean[row].mean() for row in NETWORK_FREE if row in mean.index.get_level_values(0)}
    best = max(free, key=lambda row: free[row])
    assert best == "intensity/flair"
    raw = {}
    for row in ("map/otsu", "map/top-1"):
        gain = mean[row] - mean[best]
        found = figure(table, row, "dice_gain")
        assert found["value"] == pytest.approx(gain.mean())
        assert found["n"] == 9
        assert found["low"] < found["value"] < found["high"]
        raw[row] = stats.wilcoxon(gain.to_numpy()).pvalue
    small, large = sorted(raw, key=lambda row: raw[row])
    assert figure(table, small, "p_holm")["value"] == pytest.approx(min(1, 2 * raw[small]))
    assert figure(table, large, "p_holm")["value"] == pytest.approx(min(1, max(2 * raw[small], raw[large])))
    assert set(table.loc[table["metric"] == "p_holm", "row"]) == {"map/otsu", "map/top-1"}


def test_a_case_that_has_no_distance_is_left_out_of_the_mean_and_of_n() -> None:
    cases = made_cases()
    distances = cases[cases["row"] == "map/otsu"].assign(metric="hd95_mm", value=4.0)
    distances.loc[distances["patient"] == "p0", "value"] = np.nan
    found = figure(scores(pd.concat([cases, distances])), "map/otsu", "hd95_mm")
    assert (found["value"], found["n"]) == (4.0, 8)


def test_tables_on_disk(tmp_path: Path) -> None:
    cases = pd.concat([scored(written(tmp_path, f"Brats18_2013_{number}_1")) for number in (1, 2)])
    summary = scores(cases)
    write_tables(cases, summary, tmp_path)
    back = pd.read_csv(tmp_path / "cases.tsv", sep="\t")
    assert tuple(back.columns) == CASE_COLUMNS
    assert " ".join(CASE_COLUMNS) == "case patient fold region table row metric kind value"
    assert len(back) == len(cases)
    np.testing.assert_allclose(back["value"], cases["value"], rtol=1e-5)
    assert not back.duplicated(["case", "region", "table", "row", "metric", "kind"]).any()
    figures = pd.read_csv(tmp_path / "scores.tsv", sep="\t")
    assert tuple(figures.columns) == SCORE_COLUMNS
    assert " ".join(SCORE_COLUMNS) == "table row metric kind value low high n"
    assert set(figures["kind"]) <= {"deployable", "oracle", "seen", "plain"}
    assert set(figures["table"]) == {"halves", "scans", "classification"}
    assert (figures["n"] == 2).all()


def test_every_printed_figure_names_its_kind() -> None:
    summary = scores(made_cases())
    for table in ("halves", "classification"):
        header, *lines = scoring.as_rows(summary, table)
        assert header[:2] == ("row", "kind")
        assert header[-1] == "n"
        assert lines
        assert all(line[1] in ("deployable", "oracle", "seen", "plain") for line in lines)
        assert all(len(line) == len(header) for line in lines)
    text = scoring.markdown(summary)
    assert "| map/best-grouping | oracle | 0.90 [0.90, 0.90] |" in text
