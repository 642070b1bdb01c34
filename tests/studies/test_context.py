"""How much of a lesion's surroundings is shown: against hiding it by hand and stitching all windows."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from monai.networks.nets import UNet
from scipy import ndimage
from torch import nn

import voxplain as vx
from voxplain.datasets.phantom import multiple_sclerosis
from voxplain.engine.windows import stitched_prediction
from voxplain.explain.explainer import in_evaluation
from voxplain.io.nifti import save
from voxplain.preparation import Prepared, prepare
from voxplain.studies import context
from voxplain.studies.region_scores import WHOLE, probability_within
from voxplain.target import probabilities

CPU = vx.Compute(device="cpu", threads=1)
SHAPE = (26, 20, 14)
GRID = vx.Grid(SHAPE, np.diag([1.0, 1.0, 2.0, 1.0]))
CARD = vx.Card(
    name="net",
    channels=("flair", "t1"),
    classes=("rest", "lesion"),
    absent=("rest",),
    activation="softmax",
    threshold=0.3,
    calibration=(1.3, 0.1),
    normalisation="min-max",
    window=(16, 12, 16),
    overlap=0.3,
)


def a_model(card: vx.Card = CARD) -> vx.Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = UNet(3, 2, 2, channels=(3, 5), strides=(2,), norm="batch")
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 2)
    return vx.Model(network.eval(), card)


def a_scan() -> vx.Scan:
    data = np.random.default_rng(1).normal(0, 1, (2, *SHAPE)).astype(np.float32)
    data[:, :2] = 0
    return vx.Scan(data, GRID, ("flair", "t1"))


def a_region() -> np.ndarray:
    region = np.zeros(SHAPE, dtype=bool)
    region[11:14, 8:12, 5:7] = True
    region[13, 12, 6] = True
    return region


def by_hand(model: vx.Model, prepared: Prepared, region: np.ndarray, distance: float) -> np.ndarray:
    """The whole stitched prediction of an input in which each voxel that is too far away is background."""
    lesion = np.argwhere(region) * prepared.input.grid.spacing
    data = prepared.input.data.copy()
    for place in itertools.product(*map(range, region.shape)):
        if np.linalg.norm(lesion - np.array(place) * prepared.input.grid.spacing, axis=1).min() > distance + 1e-6:
            data[(slice(None), *place)] = prepared.background
    masked = dataclasses.replace(prepared, input=vx.Scan(data, prepared.input.grid, prepared.input.channels))
    with in_evaluation(model.network, torch.device("cpu")):
        scores = torch.from_numpy(stitched_prediction(model, masked, CPU))[None]
    return probabilities(model.card.calibrated(scores), model.card)[0, 1].numpy()[region]


@pytest.mark.parametrize("window", [CARD.window, None], ids=["windows", "whole"])
def test_probabilities_are_those_of_the_whole_prediction_of_what_is_shown(window: tuple[int, int, int] | None) -> None:
    model, region = a_model(dataclasses.replace(CARD, window=window)), a_region()
    (prepared,) = prepare(a_scan(), model.card)
    assert min(prepared.background) > 0  # min-max: raw 0 is no 0 any more
    distances = (0.0, 1.0, 3.0, 4.5, WHOLE)
    found = probability_within(model, prepared, region, name="lesion", distances=distances, compute=CPU)
    for distance, values in zip(distances, found, strict=True):
        np.testing.assert_allclose(values, by_hand(model, prepared, region, distance), atol=1e-6)
    assert not np.allclose(found[0], found[-1], atol=1e-4)


def test_where_nothing_is_hidden_it_is_the_plain_prediction() -> None:
    model, region = a_model(), a_region()
    (prepared,) = prepare(a_scan(), model.card)
    plain = vx.prediction.predict(model, a_scan(), name="lesion", compute=CPU).probability[region]
    found = probability_within(model, prepared, region, name="lesion", distances=(60.0, WHOLE), compute=CPU)
    np.testing.assert_allclose(found, [plain, plain], atol=1e-6)
    lines = context.context_lines(model, prepared, region, name="lesion", distances=(0.0, 60.0), compute=CPU)
    assert [line["mm"] for line in lines] == [0.0, 60.0, WHOLE]
    assert lines[1]["mean_probability"] == pytest.approx(plain.mean(), abs=1e-6)
    assert lines[2]["max_probability"] == pytest.approx(plain.max(), abs=1e-6)
    assert all(line["detected"] == float(line["max_probability"] >= 0.3) for line in lines)


def test_a_region_must_be_there() -> None:
    model = a_model()
    (prepared,) = prepare(a_scan(), model.card)
    for region in (np.zeros(SHAPE, bool), np.ones((3, 3, 3), bool)):
        with pytest.raises(vx.InputError, match="at least one voxel on the input's grid"):
            probability_within(model, prepared, region, name="lesion", compute=CPU)


def lines_of(*lesions: tuple[list[float], list[bool]]) -> pd.DataFrame:
    """A set of lesions by their scores and detections at 0, 1, 2 ... mm and with everything."""
    rows = []
    for number, (scores, detected) in enumerate(lesions, start=1):
        distances = [*map(float, range(len(scores) - 1)), WHOLE]
        for mm, score, found in zip(distances, scores, detected, strict=True):
            rows.append(("a", "s", number, 100.0, mm, score, score, float(found)))
    return pd.DataFrame(rows, columns=list(context.COLUMNS))


def test_summaries_by_arithmetic() -> None:
    lines = lines_of(
        ([0.1, 0.4, 0.2, 0.5, 0.51, 0.6], [False, True, False, True, True, True]),
        ([0.1, 0.4, 0.6, 0.7, 0.7, 0.6], [False, False, True, True, True, True]),
        ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [False] * 6),
    )
    found = context.summed_up(lines)
    assert (found.n, found.found) == (3, 2)
    assert found.appear_all == found.appear_90 == 3  # the first one is lost again at 2 mm
    assert found.levels_off == 3  # means 0.0667, 0.267, 0.267, 0.4, 0.403
    curve = context.curve(lines[~np.isinf(lines["mm"])])
    assert curve["detected"].tolist() == [0, 1, 1, 2, 2]
    assert curve["n"].tolist() == [3] * 5
    assert curve["mean"].iloc[1] == pytest.approx(0.8 / 3)
    assert curve["sd"].iloc[1] == pytest.approx(np.std([0.4, 0.4, 0], ddof=1))


def test_ninety_of_a_hundred() -> None:
    lesions = [([0.5] * 4, [place < 9, True, True, True]) for place in range(10)]
    found = context.summed_up(lines_of(*lesions))
    assert (found.appear_90, found.appear_all, found.levels_off) == (0, 1, 0)


def test_a_set_without_lesions() -> None:
    found = context.summed_up(context.table_of([]))
    assert (found.n, found.found) == (0, 0)
    assert np.isnan([found.appear_90, found.appear_all, found.levels_off]).all()
    never = context.summed_up(lines_of(([0.1] * 4, [False] * 4)))
    assert (never.n, never.found) == (1, 0)
    assert np.isnan(never.appear_all)
    assert never.levels_off == 0


def test_made_lesions_are_of_the_size_and_lie_where_none_was(tmp_path) -> None:
    made = multiple_sclerosis(1)
    scan, known = made.scan.select(["flair", "t1"]), made.labels
    shapes = np.zeros(scan.grid.shape, dtype=np.int32)
    brain = ndimage.binary_erosion(scan.foreground() & (scan.channel("t1") > 300) & (known.data == 0), iterations=3)
    # Boxes of 2 x 2 x 3 voxels of 8 mm^3: 96 mm^3; and one that is too large.
    for place in np.argwhere(brain)[:: max(1, brain.sum() // 40)]:
        x, y, z = place
        shapes[x : x + 2, y : y + 2, z : z + 3] = 1
    path = tmp_path / "shape.nii.gz"
    save(vx.Labels(shapes, scan.grid), path)
    found = list(context.made_lesions(scan, known, [path], most=3, seed=0))
    assert 1 <= len(found) <= 3
    for lesion in found:
        count = int(lesion.region.data.sum())
        assert lesion.volume == pytest.approx(8 * count)
        assert 90 <= lesion.volume <= 120
        assert not (known.data[lesion.region.data > 0] > 0).any()
        inside = lesion.region.data > 0
        assert lesion.scan.channel("flair")[inside].mean() > scan.channel("flair")[inside].mean()
    assert list(context.made_lesions(scan, known, [], most=3, seed=0)) == []


def test_real_lesions_are_right_and_of_the_size() -> None:
    table = pd.DataFrame(
        {
            "lesion": range(1, 8),
            "kind": ["TP", "FP", "TP", "TP", "FN", "TP", "TP"],
            "volume_mm3": [400.0, 100, 300, 30, 100, 29, 100],
        }
    )
    assert context.real_lesions(table, most=9, seed=0) == [3, 4, 7]
    assert len(context.real_lesions(table, most=2, seed=0)) == 2
