"""Blocks of networks as their users name them, with their grids."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from voxplain.engine.blocks import blocks
from voxplain.networks.densenet import densenet
from voxplain.networks.resnet import resnet


def found(network: nn.Module, size: int = 32, channels: int = 2) -> dict[str, tuple[int, ...]]:
    image = torch.zeros(1, channels, size, size, size)
    with torch.no_grad():
        return blocks(network.eval(), lambda: network(image), dims=3)


def test_dense_blocks_and_transitions() -> None:
    network = densenet(in_channels=2, blocks=(2, 2, 2), growth=2, width=4, dropout=0.1)
    assert found(network) == {
        "features.denseblock1": (8, 8, 8),
        "features.transition1": (4, 4, 4),
        "features.denseblock2": (4, 4, 4),
        "features.transition2": (2, 2, 2),
        "features.denseblock3": (2, 2, 2),
    }


def test_layers_of_a_resnet() -> None:
    network = resnet(depth=10, in_channels=2, classes=2, width=4, stem_kernel=3)
    grids = found(network)
    assert list(grids) == ["layer1", "layer2", "layer3", "layer4"]
    assert len(set(grids.values())) >= 3


def test_a_unet_is_more_than_one_block() -> None:
    grids = found(UNet(3, 2, 2, (4, 8, 8, 8), (2, 2, 2)))
    assert len(grids) > 2
    assert len(set(grids.values())) > 2


def test_a_network_without_blocks_has_its_layers() -> None:
    network = nn.Sequential(nn.Conv3d(2, 3, 3), nn.ReLU(), nn.Conv3d(3, 3, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    assert found(network, 8) == {"0": (6, 6, 6), "2": (4, 4, 4)}


def test_hooks_are_gone_even_when_the_pass_fails() -> None:
    network = nn.Sequential(nn.Conv3d(2, 3, 3))
    with pytest.raises(RuntimeError, match="broken"):
        blocks(network, lambda: (_ for _ in ()).throw(RuntimeError("broken")), dims=3)
    assert not network[0]._forward_hooks
