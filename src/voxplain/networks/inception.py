"""InceptionV3 for 2D images, under torchvision's names of its weights (Szegedy 2016; an opaque rival in 002)."""

from __future__ import annotations

import math

import torch
from torch import fx, nn
from torch.nn import functional

SMALLEST = 75  # pixels an axis: less, and nothing is left before the last of the strides

# A convolution: the end of its name, how many features it gives, its kernel.
_Layer = tuple[str, int, int | tuple[int, int]]
# A branch: layers one after the other, or side by side, their features joined, where a step holds several.
_Branch = tuple[str, tuple[tuple[_Layer, ...], ...]]


def _chain(name: str, *layers: _Layer) -> _Branch:
    return name, tuple((layer,) for layer in layers)


def _grid_35(pooled: int) -> tuple[_Branch, ...]:
    return (
        _chain("branch1x1", ("", 64, 1)),
        _chain("branch5x5", ("_1", 48, 1), ("_2", 64, 5)),
        _chain("branch3x3dbl", ("_1", 64, 1), ("_2", 96, 3), ("_3", 96, 3)),
        _chain("branch_pool", ("", pooled, 1)),
    )


def _grid_17(inner: int) -> tuple[_Branch, ...]:
    wide, high = (1, 7), (7, 1)
    return (
        _chain("branch1x1", ("", 192, 1)),
        _chain("branch7x7", ("_1", inner, 1), ("_2", inner, wide), ("_3", 192, high)),
        _chain(
            "branch7x7dbl",
            *(("_1", inner, 1), ("_2", inner, high), ("_3", inner, wide), ("_4", inner, high), ("_5", 192, wide)),
        ),
        _chain("branch_pool", ("", 192, 1)),
    )


_WIDE_3, _HIGH_3 = (1, 3), (3, 1)
_GRID_8: tuple[_Branch, ...] = (
    _chain("branch1x1", ("", 320, 1)),
    ("branch3x3", ((("_1", 384, 1),), (("_2a", 384, _WIDE_3), ("_2b", 384, _HIGH_3)))),
    ("branch3x3dbl", ((("_1", 448, 1),), (("_2", 384, 3),), (("_3a", 384, _WIDE_3), ("_3b", 384, _HIGH_3)))),
    _chain("branch_pool", ("", 192, 1)),
)
_TO_17: tuple[_Branch, ...] = (
    _chain("branch3x3", ("", 384, 3)),
    _chain("branch3x3dbl", ("_1", 64, 1), ("_2", 96, 3), ("_3", 96, 3)),
)
_TO_8: tuple[_Branch, ...] = (
    _chain("branch3x3", ("_1", 192, 1), ("_2", 320, 3)),
    _chain("branch7x7x3", ("_1", 192, 1), ("_2", 192, (1, 7)), ("_3", 192, (7, 1)), ("_4", 192, 3)),
)
# Name of a block, its branches, whether it halves the grid.
_BLOCKS = (
    *(("Mixed_5b", _grid_35(32), False), ("Mixed_5c", _grid_35(64), False), ("Mixed_5d", _grid_35(64), False)),
    *(("Mixed_6a", _TO_17, True), ("Mixed_6b", _grid_17(128), False), ("Mixed_6c", _grid_17(160), False)),
    *(("Mixed_6d", _grid_17(160), False), ("Mixed_6e", _grid_17(192), False)),
    *(("Mixed_7a", _TO_8, True), ("Mixed_7b", _GRID_8, False), ("Mixed_7c", _GRID_8, False)),
)


class InceptionV3(nn.Module):
    """InceptionV3: 21,792,003 weights at 4 channels and 3 classes (21.8 M in 002), torchvision's names and shapes.

    Input (B, in_channels, X, Y) of at least 75 pixels an axis, normalised by the caller; output (B, classes) without
    activation. `width` scales the features of every layer, rounded up. `auxiliary` adds the weights of the second
    classifier (`AuxLogits`), so that torchvision's files fit; nothing runs it.

    Raises:
        ValueError: a width that is not above 0, an input that is too small.
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 1000,
        *,
        width: float = 1.0,
        auxiliary: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 < width < math.inf:
            raise ValueError(f"width scales the features of every layer, so it is above 0; got {width}")
        sizes = [math.ceil(size * width) for size in (32, 32, 64, 80, 192)]
        self.Conv2d_1a_3x3 = _Convolution(in_channels, sizes[0], 3, stride=2, padded=False)
        self.Conv2d_2a_3x3 = _Convolution(sizes[0], sizes[1], 3, padded=False)
        self.Conv2d_2b_3x3 = _Convolution(sizes[1], sizes[2], 3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = _Convolution(sizes[2], sizes[3], 1)
        self.Conv2d_4a_3x3 = _Convolution(sizes[3], sizes[4], 3, padded=False)
        self.maxpool2 = nn.MaxPool2d(3, stride=2)
        before = sizes[4]
        for name, branches, halving in _BLOCKS:
            block = _Mixed(before, branches, width, halving=halving)
            self.add_module(name, block)
            before = block.features
            if name == "Mixed_6e" and auxiliary:
                self.AuxLogits = _Auxiliary(before, math.ceil(128 * width), math.ceil(768 * width), classes)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Score a batch."""
        _check_size(x)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(self.maxpool1(x)))
        x = self.maxpool2(x)
        for name, _, _ in _BLOCKS:
            x = self.get_submodule(name)(x)
        return self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))


@fx.wrap  # one node of a graph that nothing uses: the network stays traceable
def _check_size(x: torch.Tensor) -> None:
    if min(x.shape[2:]) < SMALLEST:
        raise ValueError(f"InceptionV3 needs at least {SMALLEST} pixels an axis; got {tuple(x.shape[2:])}: enlarge it")


class _Convolution(nn.Module):
    """A convolution without bias, batch normalisation and ReLU."""

    def __init__(
        self, before: int, after: int, kernel: int | tuple[int, int], *, stride: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        edges = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (edges[0] // 2, edges[1] // 2) if padded else 0
        self.conv = nn.Conv2d(before, after, edges, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=0.001)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Branches side by side, their `features` joined: on the grid of the input, or `halving` it, pooling included."""

    def __init__(self, before: int, branches: tuple[_Branch, ...], width: float, *, halving: bool) -> None:
        super().__init__()
        self.halving = halving
        self.plan = [[[name + end for end, _, _ in step] for step in steps] for name, steps in branches]
        self.features = before if halving else 0
        for name, steps in branches:
            incoming = before
            for place, step in enumerate(steps):
                shrinks = halving and place == len(steps) - 1
                for end, size, kernel in step:
                    layer = _Convolution(
                        incoming, math.ceil(size * width), kernel, stride=2 if shrinks else 1, padded=not shrinks
                    )
                    self.add_module(name + end, layer)
                incoming = sum(math.ceil(size * width) for _, size, _ in step)
            self.features += incoming

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = []
        for steps in self.plan:
            y = functional.avg_pool2d(x, 3, stride=1, padding=1) if steps == [["branch_pool"]] else x
            for names in steps:
                side_by_side = [self.get_submodule(name)(y) for name in names]
                y = side_by_side[0] if len(names) == 1 else torch.cat(side_by_side, dim=1)
            found.append(y)
        if self.halving:
            found.append(functional.max_pool2d(x, 3, stride=2))
        return torch.cat(found, dim=1)


class _Auxiliary(nn.Module):
    """The weights of the second classifier: two convolutions and a linear layer."""

    def __init__(self, before: int, inner: int, after: int, classes: int) -> None:
        super().__init__()
        self.conv0 = _Convolution(before, inner, 1)
        self.conv1 = _Convolution(inner, after, 5, padded=False)
        self.fc = nn.Linear(after, classes)
