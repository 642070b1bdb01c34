"""Which layers work on boxes: from a node of the graph to its rule."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from voxplain.engine.convolution import Convolution, InputGradient, convolve
from voxplain.engine.rules import Elementwise, Rule, Separable, Transposed, Windowed, Windows
from voxplain.engine.tracing import DROPOUTS

Sizes = int | Sequence[int]

# Builders: each takes the clean output, then a layer's arguments with clean tensors, under the names that torch gives
# them, and returns the layer's rule, or None where only full passes serve.


def _each(value: Sizes, dimensions: int) -> tuple[int, ...]:
    """One number per axis."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dimensions if len(values) == 1 else values


def _windows(output: torch.Tensor, kernel: Sizes, stride: Sizes, dilation: Sizes, padding: Sizes) -> Windows:
    k, s, d, p = (np.asarray(_each(value, output.ndim - 2)) for value in (kernel, stride, dilation, padding))
    return Windows(k, s, d, p, tuple(output.shape[2:]))


def _convolution(
    output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Rule:
    dimensions = input.ndim - 2
    kernel, stride, dilation = tuple(weight.shape[2:]), _each(stride, dimensions), _each(dilation, dimensions)
    if padding == "same":
        padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
    windows = _windows(output, kernel, stride, dilation, 0 if isinstance(padding, str) else padding)
    unpadded = (0,) * dimensions

    def call(piece: torch.Tensor) -> torch.Tensor:
        return convolve(piece, weight, bias, stride, unpadded, dilation, groups)

    return Windowed(windows, call, back=InputGradient(weight, stride, dilation, groups))


def _transposed_convolution(
    output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Rule:
    dimensions = input.ndim - 2
    transposed = (F.conv_transpose2d, F.conv_transpose3d)[dimensions - 2]
    stride, dilation, unpadded = _each(stride, dimensions), _each(dilation, dimensions), (0,) * dimensions

    def call(piece: torch.Tensor) -> torch.Tensor:
        return transposed(piece, weight, bias, stride, 0, 0, groups, dilation)

    def back(piece: torch.Tensor) -> torch.Tensor:
        return convolve(piece, weight, None, stride, unpadded, dilation, groups)

    return Transposed(_windows(output, weight.shape[2:], stride, dilation, padding), call, back)


def _max_pooling(
    output: torch.Tensor,
    input: torch.Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Rule | None:
    if return_indices:
        return None
    dimensions = input.ndim - 2
    pool = (F.max_pool2d, F.max_pool3d)[dimensions - 2]
    kernel_size, stride = _each(kernel_size, dimensions), _each(stride or kernel_size, dimensions)

    dilation = _each(dilation, dimensions)

    def call(piece: torch.Tensor) -> torch.Tensor:
        return pool(piece, kernel_size, stride, 0, dilation)

    return Windowed(_windows(output, kernel_size, stride, dilation, padding), call, fill=-math.inf)


def _average_pooling(
    output: torch.Tensor,
    input: torch.Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Rule:
    dimensions = input.ndim - 2
    pool = (F.avg_pool2d, F.avg_pool3d)[dimensions - 2]
    kernel_size, stride = _each(kernel_size, dimensions), _each(stride or kernel_size, dimensions)

    def call(piece: torch.Tensor) -> torch.Tensor:
        return pool(piece, kernel_size, stride, 0, divisor_override=divisor_override or 1)

    windows, counts = _windows(output, kernel_size, stride, 1, padding), []
    kernel, before = windows.kernel, windows.padding
    for axis, extent in enumerate(windows.extent):
        start = np.arange(extent) * windows.stride[axis] - before[axis]
        # Windows that ceil_mode lets reach beyond the padding count no voxel there.
        stop = np.minimum(start + kernel[axis], input.shape[2 + axis] + before[axis])
        if not count_include_pad:
            start, stop = np.maximum(start, 0), np.minimum(stop, input.shape[2 + axis])
        counts.append(torch.as_tensor(stop - start, dtype=input.dtype, device=input.device))
    divided = None if divisor_override else tuple(counts)
    channels, ones = input.shape[1], torch.ones((1, 1, *kernel_size), dtype=input.dtype, device=input.device)
    each = ones.expand(channels, 1, *kernel_size) / (divisor_override or 1)
    back = InputGradient(each, stride, (1,) * dimensions, channels)
    return Windowed(windows, call, counts=divided, back=back)


def _padding(
    output: torch.Tensor, input: torch.Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Rule | None:
    dimensions = input.ndim - 2
    if mode != "constant" or len(pad) > 2 * dimensions:
        return None
    before = [0] * dimensions
    for axis, amount in enumerate(pad[::2]):
        before[dimensions - 1 - axis] = amount
    return Windowed(_windows(output, 1, 1, 1, before), torch.Tensor.clone, fill=value or 0.0, back=torch.Tensor.clone)


_MODES_PER_AXIS = {
    "nearest": "nearest",
    "nearest-exact": "nearest-exact",
    "area": "area",
    "bilinear": "linear",
    "trilinear": "linear",
}


def _interpolation(
    output: torch.Tensor,
    input: torch.Tensor,
    size: Sizes | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Rule | None:
    if mode not in _MODES_PER_AXIS or antialias:
        return None
    matrices = []
    for axis, extent in enumerate(input.shape[2:]):
        # Each axis alone, on unit vectors, so that torch itself says what each output voxel reads.
        unit = torch.eye(extent, dtype=input.dtype, device=input.device)[None]
        scale = scale_factor[axis] if isinstance(scale_factor, Sequence) else scale_factor
        wanted = None if size is None else int(output.shape[2 + axis])
        along = _MODES_PER_AXIS[mode]
        matrices.append(
            F.interpolate(unit, wanted, scale, along, align_corners, recompute_scale_factor=recompute_scale_factor)[0]
        )
    return Separable(tuple(matrices))


def _adaptive_mean(output: torch.Tensor, input: torch.Tensor, output_size: Any) -> Rule | None:
    if math.prod(output.shape[2:]) == 1:
        return None
    pairs = zip(input.shape[2:], output.shape[2:], strict=True)
    units = ((torch.eye(extent, dtype=input.dtype, device=input.device)[None], wanted) for extent, wanted in pairs)
    return Separable(tuple(F.adaptive_avg_pool1d(unit, wanted)[0] for unit, wanted in units))


_FUNCTIONS: dict[Any, Callable[..., Rule | None]] = {
    **dict.fromkeys((F.conv2d, F.conv3d), _convolution),
    **dict.fromkeys((F.conv_transpose2d, F.conv_transpose3d), _transposed_convolution),
    **dict.fromkeys((F.max_pool2d, F.max_pool3d, torch.max_pool2d, torch.max_pool3d), _max_pooling),
    **dict.fromkeys((F.avg_pool2d, F.avg_pool3d), _average_pooling),
    **dict.fromkeys((F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), _adaptive_mean),
    F.interpolate: _interpolation,
    F.pad: _padding,
}

_ELEMENTWISE_MODULES = (
    *(_BatchNorm, _DropoutNd, nn.Identity, nn.PReLU, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU),
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Hardshrink, nn.Softshrink),
    *(nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Tanhshrink, nn.Softplus, nn.Softsign, nn.Threshold, nn.RReLU),
)
_ELEMENTWISE = DROPOUTS | {
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid),
    *(F.hardtanh, F.sigmoid, F.tanh, F.logsigmoid, F.softplus, F.softsign, F.threshold, F.batch_norm),
    *(torch.relu, torch.sigmoid, torch.tanh, torch.exp, torch.log, torch.sqrt, torch.rsqrt, torch.abs, torch.neg),
    *(torch.square, torch.clamp, torch.pow, torch.sin, torch.cos, torch.erf),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum),
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.pow),
    *("relu", "sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "abs", "neg", "square", "clamp", "pow"),
    *("add", "sub", "mul", "div", "contiguous", "clone", "detach", "float", "leaky_relu"),
}
_RECTIFIERS = {F.relu, torch.relu, "relu"}
# Those that a channel's parameters are given to: vectors, which are no maps to cut.
_WITH_CHANNEL_VECTORS = {F.batch_norm, F.prelu, torch.prelu}


def rule_for(node: fx.Node, module: nn.Module | None, clean: dict[fx.Node, Any], inputs: list[fx.Node]) -> Rule | None:
    """The rule of a node of the graph whose `inputs` depend on the network's input; None where it has none.

    `clean` holds the clean value of every node.
    """
    dimensions = _spatial_dimensions(clean[inputs[0]])
    output = clean[node]
    if dimensions not in (2, 3) or _spatial_dimensions(output) != dimensions:
        return None
    if module is None and (
        node.target is operator.getitem or node.target in ("chunk", "split", torch.chunk, torch.split)
    ):
        return Elementwise(_caller(node, None, clean, inputs, []), (), False) if _along_channels(node, clean) else None
    if not isinstance(output, torch.Tensor):
        return None
    if isinstance(module, nn.ReLU) or (module is None and node.target in _RECTIFIERS):
        return Elementwise(torch.relu_ if _gives_new(inputs[0], node) else torch.relu, (), reads_clean=False)
    if len(inputs) == 1 and isinstance(module, nn.Module):
        return _rule_of_module(module, output, clean[inputs[0]])
    if module is not None:
        return None
    if node.target in _FUNCTIONS:
        if len(inputs) != 1 or node.all_input_nodes[0] is not inputs[0]:
            return None
        arguments = fx.map_arg(node.args, lambda n: clean[n])
        named = fx.map_arg(node.kwargs, lambda n: clean[n])
        return _FUNCTIONS[node.target](output, *arguments, **named)
    if node.target in (torch.cat, torch.concat):
        if (node.kwargs.get("dim", 0) if len(node.args) < 2 else node.args[1]) not in (1, 1 - output.ndim):
            return None
    elif node.target not in _ELEMENTWISE | _WITH_CHANNEL_VECTORS:
        return None
    return _elementwise(node, output, clean, inputs)


def _gives_new(node: fx.Node, reader: fx.Node) -> bool:
    """Whether a node's output is a tensor of its own, for this reader alone, who may write into it."""
    if len(node.users) > 1 or list(node.users) != [reader]:
        return False
    if node.op == "call_module":
        owner = node.graph.owning_module
        return owner is not None and isinstance(owner.get_submodule(str(node.target)), (Convolution, _BatchNorm))
    return node.target in (operator.add, torch.add)


def _spatial_dimensions(value: Any) -> int:
    if isinstance(value, tuple | list) and value and all(isinstance(v, torch.Tensor) for v in value):
        value = value[0]
    return value.ndim - 2 if isinstance(value, torch.Tensor) else 0


def _along_channels(node: fx.Node, clean: dict[fx.Node, Any]) -> bool:
    """Whether taking an item or splitting leaves batch and space as they are."""
    if node.target is not operator.getitem:
        dim = node.kwargs.get("dim", 0) if len(node.args) < 3 else node.args[2]
        return dim in (1, 1 - clean[node][0].ndim)
    source, item = node.args
    if isinstance(clean[source], tuple | list):  # type: ignore[index]
        return isinstance(item, int)
    if not isinstance(item, tuple) or len(item) < 2 or item[0] != slice(None) or not isinstance(item[1], slice):
        return False
    return all(rest is Ellipsis or rest == slice(None) for rest in item[2:])


def _caller(
    node: fx.Node, module: nn.Module | None, clean: dict[fx.Node, Any], inputs: list[fx.Node], constants: list[fx.Node]
) -> Callable[..., Any]:
    """The node's function of the pieces of `inputs`, then of `constants`."""

    def call(*pieces: Any) -> Any:
        given = dict(zip([*inputs, *constants], pieces, strict=True))
        arguments, named = fx.map_arg((node.args, node.kwargs), lambda n: given[n] if n in given else clean[n])
        if node.op == "call_method":
            return getattr(arguments[0], str(node.target))(*arguments[1:], **named)
        assert callable(node.target)
        return node.target(*arguments, **named)

    return call


def _elementwise(node: fx.Node, output: torch.Tensor, clean: dict[fx.Node, Any], inputs: list[fx.Node]) -> Rule | None:
    extent = output.shape[2:]
    if any(not isinstance(clean[n], torch.Tensor) or clean[n].shape[2:] != extent for n in inputs):
        return None
    constants = []
    if node.target not in _WITH_CHANNEL_VECTORS:
        for other in node.all_input_nodes:
            if other not in inputs and isinstance(clean[other], torch.Tensor):
                constants.append(other)
    maps = []
    for constant in constants:
        value = clean[constant]
        if value.ndim > 0:
            shape = (1,) * (output.ndim - value.ndim) + tuple(value.shape)
            if shape[0] != 1:
                return None
            value = value.reshape(shape).expand(1, shape[1], *extent)
        maps.append(value)
    call = _caller(node, None, clean, inputs, constants)
    return Elementwise(call, tuple(maps), reads_clean=len(inputs) > 1 or bool(maps))


def _rule_of_module(module: nn.Module, output: torch.Tensor, input: torch.Tensor) -> Rule | None:
    dimensions = input.ndim - 2
    if isinstance(module, Convolution | nn.Conv2d | nn.Conv3d):
        if not isinstance(module, Convolution) and module.padding_mode != "zeros":
            return None
        m = module
        return _convolution(output, input, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)
    if isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
        t = module
        assert not isinstance(t.padding, str)  # torch allows numbers only
        return _transposed_convolution(output, input, t.weight, t.bias, t.stride, t.padding, 0, t.groups, t.dilation)
    if isinstance(module, nn.MaxPool2d | nn.MaxPool3d):
        p = module
        return _max_pooling(
            output, input, p.kernel_size, p.stride, p.padding, p.dilation, p.ceil_mode, p.return_indices
        )
    if isinstance(module, nn.AvgPool2d | nn.AvgPool3d):
        a, include = module, module.count_include_pad
        return _average_pooling(
            output, input, a.kernel_size, a.stride, a.padding, a.ceil_mode, include, a.divisor_override
        )
    if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d):
        return _adaptive_mean(output, input, module.output_size)
    if isinstance(module, nn.Upsample):
        u = module
        return _interpolation(output, input, u.size, u.scale_factor, u.mode, u.align_corners, u.recompute_scale_factor)
    if isinstance(module, nn.ConstantPad2d | nn.ConstantPad3d):
        return _padding(output, input, module.padding, "constant", module.value)
    if isinstance(module, nn.Softmax) and module.dim in (1, -1 - dimensions):
        return Elementwise(module, (), reads_clean=False)
    if isinstance(module, _ELEMENTWISE_MODULES):
        return Elementwise(module, (), reads_clean=False)
    return None
