"""3D DenseNet-BC of any size, built from MONAI's, with dropout in the transitions as well."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import DenseNet
from torch import nn

from voxplain.networks.pooling import GlobalPooling

# Huang 2017, table 1: DenseNet-169.
_BLOCKS_169 = (6, 12, 32, 32)


def densenet(
    in_channels: int = 4,
    classes: int = 3,
    blocks: Sequence[int] = _BLOCKS_169,
    growth: int = 32,
    width: int = 64,
    dropout: float = 0.2,
    pooling: str = "average",
) -> DenseNet:
    """A 3D DenseNet-BC: input (B, in_channels, X, Y, Z) of 32 voxels or more an edge, output (B, classes), raw scores.

    The defaults are DenseNet-BC 169 as paper grading (003, IV.B.2) has it: growth 32, `dropout` 0.2 after every dense
    layer and in every transition, where MONAI's has none. `blocks` are the layers of each dense block, `width` the
    features of the stem. `pooling` other than "average" is one of `GlobalPooling`: a class is then said for what is
    seen somewhere, and tissue that says nothing of it need not be outweighed. Layers to explain are called denseblock1,
    transition1, denseblock2, ...

    Raises:
        ValueError: no such pooling.
    """
    network = DenseNet(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=classes,
        init_features=width,
        growth_rate=growth,
        block_config=tuple(blocks),
        dropout_prob=dropout,
    )
    if pooling != "average":
        network.class_layers.add_module("pool", GlobalPooling(pooling))
    if dropout:
        for index in range(1, len(blocks)):
            transition = network.features.get_submodule(f"transition{index}")
            assert isinstance(transition, nn.Sequential)
            transition.add_module("dropout", nn.Dropout3d(dropout))
    return network
