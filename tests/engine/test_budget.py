"""How many inputs fit into memory at a time."""

import numpy as np
import pytest
import torch
from torch import nn

import voxplain as vx
from voxplain.engine.budget import ActivationMeter

SHAPE = (1, 2, 8, 6, 4)
VOXELS = 8 * 6 * 4


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(5, 1)
    )


def measured(net: nn.Module) -> ActivationMeter:
    with torch.inference_mode(), ActivationMeter(net) as meter:
        net(torch.zeros(SHAPE))
    return meter


# Convolution and ReLU give 5 maps each; pooling and flattening 5 numbers each, the last layer one.
BYTES = 4 * (5 * VOXELS + 5 * VOXELS + 5 + 5 + 1)
INPUT = 4 * 2 * VOXELS


def test_adds_up_what_every_layer_gives() -> None:
    assert measured(network()).bytes == BYTES


def test_leaves_no_hook_even_after_an_exception() -> None:
    net = network()
    with pytest.raises(RuntimeError), ActivationMeter(net):
        net(torch.zeros(1, 3, 4, 4, 4))
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (INPUT + BYTES - 1, 1),
        (INPUT + BYTES, 1),
        (2 * (INPUT + BYTES) - 1, 1),
        (2 * (INPUT + BYTES), 2),
        (7 * (INPUT + BYTES), 7),
        (1, 1),
        (1000 * (INPUT + BYTES), 16),
    ],
)
def test_batch_size_follows_from_the_memory(memory: int, expected: int) -> None:
    meter = measured(network())
    assert meter.batch_size(torch.zeros(SHAPE), vx.Compute("cpu", memory=str(memory))) == expected


def test_a_given_batch_size_is_kept() -> None:
    meter = measured(network())
    assert meter.batch_size(torch.zeros(SHAPE), vx.Compute("cpu", memory="1", batch_size=40)) == 40


def test_torchscript_is_estimated_from_its_input() -> None:
    scripted = torch.jit.script(network().eval())
    with torch.inference_mode(), ActivationMeter(scripted) as meter:
        scripted(torch.zeros(SHAPE))
    assert meter.bytes == 0
    for count in (1, 3, 9):
        compute = vx.Compute("cpu", memory=str(count * 101 * INPUT))
        assert meter.batch_size(torch.zeros(SHAPE), compute) == count


def test_batches_of_an_explanation_keep_within_the_memory() -> None:
    net = network().eval()
    sizes: list[int] = []
    net.register_forward_hook(lambda module, given, output: sizes.append(len(output)))
    scan = vx.Scan(np.random.default_rng(0).uniform(1, 2, SHAPE[1:]), vx.Grid(SHAPE[2:], np.eye(4)), ("a", "b"))
    card = vx.Card(name="net", channels=("a", "b"), classes=("c",))
    explain = vx.RelevanceMap(partition="cubes:2")
    explain(vx.Model(net, card), scan, compute=vx.Compute("cpu", memory=str(5 * (INPUT + BYTES))))
    # 4 x 3 x 2 cubes after the clean input.
    assert sizes == [1, 5, 5, 5, 5, 4]
