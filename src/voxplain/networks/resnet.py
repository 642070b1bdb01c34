"""3D residual networks of any width, built from MONAI's."""

from __future__ import annotations

from monai.networks.nets import ResNet

# depth -> (kind of block, blocks per stage, whether shortcuts are convolutions)
_DEPTHS = {
    10: ("basic", (1, 1, 1, 1)),
    18: ("basic", (2, 2, 2, 2)),
    50: ("bottleneck", (3, 4, 6, 3)),
}


def resnet(
    depth: int = 10,
    in_channels: int = 4,
    classes: int = 1,
    width: int = 64,
    stem_stride: int = 2,
    stem_kernel: int = 7,
) -> ResNet:
    """A 3D ResNet-10, -18 or -50: input (B, in_channels, X, Y, Z), output (B, classes) without activation.

    `width` is the number of features of the first stage (64 in the papers; each later stage doubles it). MONAI's own
    default stem has stride 1, which is three to four times slower; here the stem's stride is 2, followed by a max
    pooling of stride 2, as in He 2016.

    Raises:
        ValueError: no such depth.
    """
    if depth not in _DEPTHS:
        raise ValueError(f"depth is one of {', '.join(map(str, _DEPTHS))}; got {depth}")
    block, layers = _DEPTHS[depth]
    return ResNet(
        block=block,
        layers=list(layers),
        block_inplanes=[width, 2 * width, 4 * width, 8 * width],
        spatial_dims=3,
        n_input_channels=in_channels,
        num_classes=classes,
        conv1_t_size=stem_kernel,
        conv1_t_stride=stem_stride,
    )
