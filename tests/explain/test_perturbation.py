"""The one core of perturbation methods."""

import numpy as np
import pytest
import torch
from torch import nn

import voxplain as vx
from voxplain.engine.probe import Probe
from voxplain.explain.fills import blank, region_minimum
from voxplain.explain.perturbation import scores_without_each_part
from voxplain.preparation import prepare

SHAPE = (6, 5, 4)
GRID = vx.Grid(SHAPE, np.eye(4))
CARD = vx.Card(name="sum", channels=("a", "b"), classes=("c",))


class Recorder(nn.Module):
    """The logit is the sum of the input; every batch is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[np.ndarray] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.batches.append(inputs.numpy().copy())
        return inputs.sum(dim=(1, 2, 3, 4))[:, None]


def probe(data: np.ndarray, **compute: object) -> tuple[Probe, Recorder]:
    network = Recorder().eval()
    model = vx.Model(network, CARD)
    (prepared,) = prepare(vx.Scan(data, GRID, ("a", "b")), CARD)
    return Probe(model, prepared, vx.ClassScore("c"), 0, vx.Compute("cpu", **compute)), network


def stripes() -> vx.Labels:
    """Five parts along y; x = 0 belongs to none."""
    labels = np.broadcast_to(np.arange(1, 6)[None, :, None], SHAPE).copy()
    labels[0] = 0
    return vx.Labels(labels, GRID)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
def test_scores_in_the_order_of_the_labels(batch_size: int) -> None:
    data = np.random.default_rng(0).normal(0, 1, (2, *SHAPE)).astype(np.float32)
    at_work, network = probe(data, batch_size=batch_size)
    parts = stripes()
    found = scores_without_each_part(at_work, parts, blank, "logit")
    expected = [data.sum() - data[:, parts.data == label].sum() for label in range(1, 6)]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert [len(batch) for batch in network.batches[2:]] == [min(batch_size, 5 - i) for i in range(0, 5, batch_size)]


def test_only_the_part_changes_in_all_channels_at_once() -> None:
    data = np.random.default_rng(1).normal(0, 1, (2, *SHAPE)).astype(np.float32)
    at_work, network = probe(data, batch_size=2)
    parts = stripes()
    scores_without_each_part(at_work, parts, region_minimum, "logit")
    for label, image in enumerate(np.concatenate(network.batches[2:]), start=1):
        inside = parts.data == label
        np.testing.assert_array_equal(image[:, ~inside], data[:, ~inside])
        for channel in range(2):
            np.testing.assert_array_equal(image[channel][inside], data[channel][inside].min())
    np.testing.assert_array_equal(at_work.input, data)


def test_parts_may_interlock() -> None:
    """The box around a part holds voxels of others, which stay."""
    data = np.random.default_rng(2).normal(0, 1, (2, *SHAPE)).astype(np.float32)
    board = np.indices(SHAPE).sum(axis=0) % 2 + 1
    at_work, network = probe(data)
    scores_without_each_part(at_work, vx.Labels(board, GRID), blank, "logit")
    for label, image in enumerate(np.concatenate(network.batches[2:]), start=1):
        np.testing.assert_array_equal(image, np.where(board == label, 0, data))


def test_a_part_that_does_not_change_keeps_the_clean_score_and_costs_nothing() -> None:
    data = np.ones((2, *SHAPE), dtype=np.float32)
    data[:, :, 1:3] = 0
    at_work, network = probe(data)
    found = scores_without_each_part(at_work, stripes(), blank, "logit")
    assert [found[label - 1] == at_work.logit for label in range(1, 6)] == [False, True, True, False, False]
    assert at_work.forwards == 1 + 3
    assert sum(map(len, network.batches)) == 5


def test_a_part_that_changes_in_one_channel_only_is_run() -> None:
    data = np.zeros((2, *SHAPE), dtype=np.float32)
    data[1, 3, 3, 3] = 2
    data[0, 0] = 1  # 20 voxels of no part
    at_work, _ = probe(data)
    found = scores_without_each_part(at_work, stripes(), blank, "logit")
    np.testing.assert_array_equal(found, [22, 22, 22, 20, 22])
    assert at_work.forwards == 2


def test_no_parts_no_passes() -> None:
    at_work, _ = probe(np.ones((2, *SHAPE), dtype=np.float32))
    assert len(scores_without_each_part(at_work, vx.Labels(np.zeros(SHAPE), GRID), blank, "logit")) == 0
    assert at_work.forwards == 1


def test_probability_is_the_sigmoid_of_the_logit() -> None:
    data = np.random.default_rng(4).normal(0, 0.1, (2, *SHAPE)).astype(np.float32)
    at_work, _ = probe(data)
    logits = scores_without_each_part(at_work, stripes(), blank, "logit")
    probabilities = scores_without_each_part(at_work, stripes(), blank, "probability")
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), rtol=1e-12)
