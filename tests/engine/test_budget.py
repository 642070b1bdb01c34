"""What one pass needs, measured as it runs, and how many inputs fit into memory at a time."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import voxplain as vx
from voxplain.compute import size_in_words
from voxplain.engine.budget import UNSEEN, MemoryMeter, Needs

VOXELS = 24 * 20 * 16
MAP = 4 * VOXELS
CPU = torch.device("cpu")


def needs(run: Callable[[torch.Tensor], object], channels: int = 3) -> Needs:
    inputs = torch.zeros(1, channels, 24, 20, 16)
    with torch.no_grad(), MemoryMeter(CPU) as meter:
        run(inputs.clone())
    return meter.needs


class Functional(nn.Module):
    """Three maps at a time at most, none of them given by a module: the copy, its square, their sum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        square = x * x
        total = torch.relu(x + square)
        del square
        return total.mean((2, 3, 4))


def test_follows_tensors_of_functions_until_they_go() -> None:
    found = needs(Functional())
    # Copy, square, sum, and the sum's rectified copy; 3 channels each.
    assert found.single == pytest.approx(UNSEEN * 4 * 3 * MAP, rel=0.01)
    assert found.each == found.single
    assert found.once == 0


def test_sees_into_torchscript() -> None:
    assert needs(torch.jit.script(Functional())).single == pytest.approx(needs(Functional()).single, rel=0.35)


def test_what_goes_at_once_is_not_added_up() -> None:
    def chain(x: torch.Tensor) -> torch.Tensor:
        for _ in range(50):
            x = x + 1
        return x

    # The one before and the one made.
    assert needs(chain).single == pytest.approx(UNSEEN * 2 * 3 * MAP, rel=0.01)


def test_weights_were_there_before_but_convolutions_make_copies_of_them() -> None:
    layer = nn.Conv3d(3, 32, 5, padding=2)
    found = needs(layer)
    assert found.once == pytest.approx(UNSEEN * 2 * layer.weight.nbytes, rel=0.01)
    assert found.single >= UNSEEN * (3 + 32) * MAP


def test_a_small_single_input_makes_a_matrix_of_windows() -> None:
    found = needs(lambda x: F.conv3d(x, torch.ones(2, 3, 3, 3, 3), padding=1))
    assert found.single >= UNSEEN * 27 * 3 * MAP > found.each


@pytest.mark.parametrize(("memory", "expected"), [(1, 1), (1099, 1), (1100, 1), (2100, 2), (7100, 7), (10**6, 16)])
def test_batch_size_follows_from_the_memory(memory: int, expected: int) -> None:
    measured = Needs(single=1050, each=1000, once=100)
    assert measured.batch_size(memory, vx.Compute("cpu")) == expected
    assert measured.batch_size(memory, vx.Compute("cpu", batch_size=40)) == 40


@pytest.mark.parametrize("size", [1, 999, 1024, 5 * 2**20, 1300 * 2**20, 2**31, 9 * 2**40])
def test_sizes_are_said_as_options_take_them(size: int) -> None:
    again = vx.Compute(memory=size_in_words(size)).memory_bytes
    assert size <= again <= 1.1 * size + 1


def test_an_input_beyond_the_limit_runs_alone_and_is_told() -> None:
    scan = vx.Scan(np.ones((1, 24, 20, 16)), vx.Grid((24, 20, 16), np.eye(4)), ("a",))
    model = vx.Model(Functional(), vx.Card(name="net", channels=("a",), classes=("c",)))
    with pytest.warns(UserWarning, match=r"one input takes about \d+KB, more than the limit of 1KB"):
        vx.RelevanceMap(partition="cubes:8", mask="none")(model, scan, compute=vx.Compute("cpu", memory="1KB"))


# Peak memory of real runs, each in a process of its own.

RUN = Path(__file__).with_name("run_within_memory.py")


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory as Linux tells it")
@pytest.mark.parametrize(
    ("network", "method", "engine", "limits"),
    [
        ("resnet", "relevance-map", "full", ("100MB", "400MB")),
        ("resnet", "relevance-map", "incremental", ("75MB", "400MB")),
        ("unet", "rise", "full", ("50MB", "200MB")),
    ],
)
def test_the_limit_is_kept_and_used(network: str, method: str, engine: str, limits: tuple[str, str]) -> None:
    batches = []
    for limit in limits:
        done = subprocess.run(
            [sys.executable, str(RUN), network, method, engine, limit],
            capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["notices"] == []
        assert 0 < found["used"] <= vx.Compute(memory=limit).memory_bytes
        batches.append(found["at_a_time"])
    assert batches[0] < batches[1]
