"""A network as a graph in which no layer writes into another's output: a copy, in which batch norm is folded."""

from __future__ import annotations

import copy
import inspect
import linecache
import operator
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.fusion import fuse_conv_bn_eval

from voxplain.engine.convolution import Convolution
from voxplain.errors import InputError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}

_INPLACE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid),
    *(nn.Hardtanh, nn.Threshold, nn.RReLU, _DropoutNd),
)
_INPLACE_FUNCTIONS = DROPOUTS | {
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.silu, F.mish, F.hardswish, F.hardsigmoid, F.hardtanh),
    *(F.threshold, F.rrelu),
}
# What writes into its first argument -> what does the same without.
_WITHOUT_WRITING: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    torch.relu_: torch.relu,
    torch.sigmoid_: torch.sigmoid,
    torch.tanh_: torch.tanh,
    F.relu_: F.relu,
    F.leaky_relu_: F.leaky_relu,
    F.elu_: F.elu,
    F.hardtanh_: F.hardtanh,
}
# What may hand its argument on as it is: a later write in place is seen on both sides.
_SAME_MODULES = (nn.Identity, _DropoutNd)
_SAME = DROPOUTS | {"contiguous", "detach", "to", "float"}
_VIEWS = {
    *(operator.getitem, torch.chunk, torch.split, torch.flatten, torch.reshape, torch.permute, torch.transpose),
    *(torch.squeeze, torch.unsqueeze, torch.unbind, torch.narrow),
    *("chunk", "split", "view", "flatten", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "unbind"),
    *("expand", "expand_as", "view_as", "reshape_as", "narrow", "select"),
}


def layer_name(node: fx.Node) -> str:
    """What a user calls a node: the module's name, or the function's in the graph."""
    return str(node.meta.get("layer", node.target)) if node.op == "call_module" else node.name


class UntraceableError(InputError):
    """A network that torch.fx cannot write down as a graph; only full passes serve it."""


def refuse_training(network: nn.Module) -> None:
    """Refuse what would make a pass depend on chance or on the other inputs of its batch.

    Raises:
        InputError: a module in training mode, or batch norm that keeps no running statistics.
    """
    for name, module in network.named_modules():
        if module.training and isinstance(module, (_BatchNorm, _DropoutNd, nn.RReLU)):
            kind = type(module).__name__
            raise InputError(f"{kind} {name!r} is in training mode; call network.eval() before explaining it")
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise InputError(
                f"batch norm {name!r} keeps no running statistics, so that each input's score depends on its batch; "
                "use track_running_stats=True"
            )
    if network.training:
        raise InputError("the network is in training mode; call network.eval() before explaining it")


def traced(network: nn.Module) -> fx.GraphModule:
    """A copy of a network as a graph of torch's own modules and functions, without writes in place, norms folded.

    Raises:
        InputError: dropout or batch norm that a forward method switches on itself.
        UntraceableError: naming the line that stops tracing.
    """
    if isinstance(network, torch.jit.ScriptModule):
        raise UntraceableError("a TorchScript network cannot be traced; give the Python network")
    network = copy.deepcopy(network).requires_grad_(False)
    tracer = fx.Tracer()
    try:
        graph = fx.GraphModule(network, tracer.trace(network))
    # Tracing runs the network's own code on stand-ins for tensors, which may fail in any way.
    except Exception as error:
        raise UntraceableError(f"torch.fx cannot trace {_line_of(error)}: {_first_line(error)}") from error
    _refuse_switched_on(graph)
    _without_writes(graph)
    _fold_batch_norm(graph)
    _convolve_directly(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _line_of(error: Exception) -> str:
    """The last line outside of torch that led to an error."""
    torch_folder = str(Path(torch.__file__).parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(torch_folder)]
    frame = next((f for f in reversed(frames) if f.filename != __file__ and f.filename != "<string>"), frames[-1])
    source = linecache.getline(frame.filename, frame.lineno or 0).strip()
    return f"{Path(frame.filename).name}:{frame.lineno} ({frame.name}): {source!r}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _arguments(node: fx.Node) -> dict[str, Any]:
    """A Python function's arguments by name."""
    bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    bound.apply_defaults()
    return dict(bound.arguments)


def _refuse_switched_on(graph: fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        if node.target in DROPOUTS | {F.batch_norm} and node.op == "call_function" and _arguments(node)["training"]:
            raise InputError(
                f"{node.name} works as in training even in eval mode; switch it off to explain the network"
            )


def _without_writes(graph: fx.GraphModule) -> None:
    """Replace every write in place; what reads the written tensor later on reads the new one instead."""
    order = {node: position for position, node in enumerate(graph.graph.nodes)}
    # Node -> (the node whose memory it shares, whether it sees it through another shape).
    shared: dict[fx.Node, tuple[fx.Node, bool]] = {}
    writing: set[nn.Module] = set()
    for node in list(graph.graph.nodes):
        module = graph.get_submodule(node.target) if node.op == "call_module" else None
        first = node.args[0] if node.args else node.kwargs.get("input")
        shared[node] = (node, False)
        if not isinstance(first, fx.Node):
            continue
        root, viewed = shared[first]
        writes = _stop_writing(node, module, writing)
        if writes:
            for other, (its_root, its_view) in list(shared.items()):
                later = [user for user in other.users if order[user] > order[node]]
                if its_root is not root or other is node or not later:
                    continue
                if other is not first and (viewed or its_view):
                    raise UntraceableError(f"{node.name} writes in place into a view of {root.name}")
                for user in later:
                    user.replace_input_with(other, node)
        elif isinstance(module, _SAME_MODULES) or (module is None and node.target in _SAME):
            shared[node] = (root, viewed)
        elif isinstance(module, nn.Flatten) or (module is None and node.target in _VIEWS):
            shared[node] = (root, True)


def _stop_writing(node: fx.Node, module: nn.Module | None, writing: set[nn.Module]) -> bool:
    """Make a node give a new tensor; says whether it wrote into its argument before.

    `writing` are the modules that wrote: one that several nodes share is switched off at the first of them.
    """
    if isinstance(module, _INPLACE_MODULES):
        if module.inplace:
            writing.add(module)
            module.inplace = False
        return module in writing
    if node.op == "call_function" and node.target in _INPLACE_FUNCTIONS:
        arguments = _arguments(node)
        wrote = bool(arguments["inplace"])
        arguments["inplace"] = False
        node.args, node.kwargs = (), {}
        node.args = (arguments.pop("input"),)
        node.kwargs = arguments
        return wrote
    if node.op == "call_function" and node.target in _WITHOUT_WRITING:
        node.target = _WITHOUT_WRITING[node.target]
        return True
    if node.target in (operator.setitem, operator.iconcat):
        raise UntraceableError(f"{node.name} writes into a part of a tensor")
    if node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__"):
        node.target = str(node.target)[:-1]
        return True
    return False


def _fold_batch_norm(graph: fx.GraphModule) -> None:
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, _BatchNorm) or not isinstance(node.args[0], fx.Node):
            continue
        before = node.args[0]
        convolution = modules.get(str(before.target)) if before.op == "call_module" else None
        if convolution is None or len(before.users) != 1 or type(convolution) not in (*_CONVOLUTIONS, *_TRANSPOSED):
            continue
        transposed = isinstance(convolution, _TRANSPOSED)
        if transposed and convolution.groups > 1:  # torch folds these wrongly
            continue
        folded = fuse_conv_bn_eval(convolution, norm, transpose=transposed)
        name = f"{before.target}_with_{node.name}".replace(".", "_")
        graph.add_submodule(name, folded)
        before.meta["layer"] = before.target
        before.target = name
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)


def _convolve_directly(graph: fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, nn.Conv2d | nn.Conv3d):
            continue
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            continue
        name = f"{node.target}_{node.name}_directly".replace(".", "_")
        graph.add_submodule(name, Convolution(module))
        node.meta.setdefault("layer", node.target)
        node.target = name
