"""What every training shares, against arithmetic."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from voxplain.optimisation import average, copied_weights, learning_rate_at, optimiser_of, to_device


def test_one_cycle_rises_and_falls() -> None:
    def rate(progress: float) -> float:
        place = {"epoch": 1 + int(progress), "done": progress - int(progress)}
        return learning_rate_at("one-cycle", 0.5, epochs=10, **place)

    assert rate(0) == pytest.approx(0.5 * 0.04)
    assert rate(1) == pytest.approx(0.25)
    assert rate(1.5) == pytest.approx(0.375)
    assert rate(2) == pytest.approx(0.5)
    assert rate(6) == pytest.approx(0.25)
    assert rate(4) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)) / 2)
    assert 0 < rate(9.99) < 1e-5
    steps = [rate(number / 20) for number in range(200)]
    assert int(np.argmax(steps)) == 40
    assert (np.diff(steps[2:41]) > 0).all()
    assert (np.diff(steps[40:]) < 0).all()


def test_the_other_schedules_move_from_epoch_to_epoch() -> None:
    for name, expected in (("constant", [1, 1, 1]), ("cosine", [1, 0.5, 0])):
        found = [
            learning_rate_at(name, 1, epochs=2, epoch=epoch, done=done) for epoch, done in ((1, 0.9), (2, 0.1), (3, 0))
        ]
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_running_mean_by_arithmetic() -> None:
    network = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    averaged = copy.deepcopy(network)
    before = copied_weights(averaged)
    with torch.no_grad():
        network[0].weight += 1
        network[1].running_mean += 2
        network[1].num_batches_tracked += 5
    average(averaged, network, 0.75)
    after = averaged.state_dict()
    torch.testing.assert_close(after["0.weight"], before["0.weight"] + 0.25)
    torch.testing.assert_close(after["1.running_mean"], before["1.running_mean"] + 0.5)
    assert int(after["1.num_batches_tracked"]) == 5


def test_a_batch_is_a_copy() -> None:
    images = np.zeros((1, 1, 2, 2, 2), dtype=np.float32)
    to_device(images, torch.device("cpu")).add_(1)
    assert not images.any()


def test_both_optimisers() -> None:
    network = nn.Linear(2, 1)
    for name, kind in (("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)):
        found = optimiser_of(network, name, learning_rate=0.1, weight_decay=0.2)
        assert type(found) is kind
        assert (found.defaults["lr"], found.defaults["weight_decay"]) == (0.1, 0.2)
