"""Gradients of the score with respect to the input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch.autograd.function import FunctionCtx
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from voxplain.engine.probe import Probe
from voxplain.errors import InputError
from voxplain.explain.explainer import Explainer, Relevance
from voxplain.explain.parts import one_of


@dataclass(frozen=True)
class GuidedBackprop(Explainer):
    """Guided backpropagation (Springenberg 2015): the logit's gradient at the input, through positive evidence alone.

    At every rectifier the gradient passes where it is positive and the rectifier's input is too; nothing passes
    elsewhere. The same holds of leaky rectifiers (LeakyReLU, PReLU, RReLU): slope 1 above 0, nothing below. Those with
    a ceiling (ReLU6) pass nothing above it either. Modules, functions, tensor methods and `clamp(min=0)` count, in
    place or not; a rectifier made of other operations, such as `maximum(x, 0)`, keeps its plain gradient unseen. Other
    activations (GELU, tanh) keep theirs too, and a warning names them. A network without a rectifier is refused.

    Such maps show the image's edges, and may hardly depend on the weights (Adebayo 2018): run `vx.check` on them.
    """

    name: ClassVar[str] = "guided-backprop"
    family: ClassVar[str] = "gradient"
    needs: ClassVar[Literal["calls", "gradients", "layer"]] = "layer"
    cost: ClassVar[str] = "2 forward, 1 backward"

    sequences: str = field(default="joint", metadata={"help": "joint: the sum over the sequences; each: a map each"})

    def __post_init__(self) -> None:
        one_of("sequences", self.sequences, ("joint", "each"))

    def _relevance(self, probe: Probe) -> Relevance:
        for name, module in probe.model.network.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                raise InputError(
                    f"layer {name!r} is TorchScript, whose rectifiers {self.name} cannot see; use the Python module"
                )
        guided = _Guided()
        gradient = probe.gradient(guided)
        others = ", ".join(sorted(guided.others))
        if not guided.rectifiers:
            raise InputError(
                f"{self.name} guides rectifiers (ReLU and its kin), and none ran between input and score; "
                f"this network's activations are {others or 'none that is known'}"
            )
        if others:
            probe.notices.append(f"{self.name} guides rectifiers alone; {others} kept the plain gradient")
        joint = self.sequences == "joint"
        return Relevance(
            unit="logit per intensity unit",
            signed=True,
            channels=("all",) if joint else probe.model.card.channels,
            map=gradient.sum(axis=0, keepdims=True) if joint else gradient,
            facts={"rectifiers": guided.rectifiers, "unguided": sorted(guided.others)},
        )


@dataclass(frozen=True, eq=False)
class _Rectifier:
    """A call of a rectifier: its input, the function of it, where it is flat from, whether it writes in place."""

    input: torch.Tensor
    function: Callable[[torch.Tensor], torch.Tensor]
    ceiling: float = math.inf
    inplace: bool = False


# What follows takes the arguments of torch's functions, under torch's names; None is no rectifier.


def _relu(input: torch.Tensor, inplace: bool = False) -> _Rectifier | None:
    return _Rectifier(input, torch.relu, inplace=inplace)


def _leaky_relu(input: torch.Tensor, negative_slope: float = 0.01, inplace: bool = False) -> _Rectifier | None:
    return _Rectifier(input, partial(functional.leaky_relu, negative_slope=negative_slope), inplace=inplace)


def _prelu(input: torch.Tensor, weight: torch.Tensor) -> _Rectifier | None:
    return _Rectifier(input, lambda x: torch.prelu(x, weight))


def _rrelu(
    input: torch.Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> _Rectifier | None:
    return _Rectifier(
        input, partial(functional.rrelu, lower=lower, upper=upper, training=training), inplace=bool(inplace)
    )


def _hardtanh(
    input: torch.Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> _Rectifier | None:
    return None if min_val else _Rectifier(input, partial(torch.clamp, min=0, max=max_val), max_val, inplace)


def _relu6(input: torch.Tensor, inplace: bool = False) -> _Rectifier | None:
    return _hardtanh(input, 0, 6, inplace)


def _threshold(input: torch.Tensor, threshold: float, value: float, inplace: bool = False) -> _Rectifier | None:
    return None if threshold or value else _relu(input, inplace)


def _clamp(
    input: torch.Tensor, min: float | torch.Tensor | None = None, max: float | torch.Tensor | None = None
) -> _Rectifier | None:
    if isinstance(min, torch.Tensor) or isinstance(max, torch.Tensor) or min != 0:
        return None
    return _hardtanh(input, 0, math.inf if max is None else max)


# By the name of the function, which variants in place end with an underscore.
_RECTIFIERS: dict[str, Callable[..., _Rectifier | None]] = {
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "rrelu": _rrelu,
    "relu6": _relu6,
    "hardtanh": _hardtanh,
    "threshold": _threshold,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp,
}
# Activations that have no rule here; a clamp with other bounds is mostly none.
_OTHERS = frozenset(
    (
        *("celu", "elu", "gelu", "glu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "log_sigmoid", "mish"),
        *("selu", "sigmoid", "silu", "softplus", "softshrink", "softsign", "tanh", "tanhshrink", "threshold"),
    )
)


class _Guided(TorchFunctionMode):
    """While it is on, rectifiers work as ever and pass gradients by the rule; nothing in the network is touched.

    Attributes:
        rectifiers: how many calls were guided.
        others: names of activations that were not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rectifiers = 0
        self.others: set[str] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one function of torch, or its guided form in its place."""
        kwargs = kwargs or {}
        called = getattr(func, "__name__", "")
        name = called.strip("_")
        if name not in _RECTIFIERS and name not in _OTHERS:
            return func(*args, **kwargs)
        first = args[0] if args else kwargs.get("input")
        if not (isinstance(first, torch.Tensor) and first.requires_grad and torch.is_grad_enabled()):
            return func(*args, **kwargs)
        found = _RECTIFIERS[name](*args, **kwargs) if name in _RECTIFIERS else None
        if found is None:
            self.others |= {name} & _OTHERS
            return func(*args, **kwargs)
        self.rectifiers += 1
        output = _Rectified.apply(found.input, found.function, found.ceiling)
        # Written where the network asked for it, so that every other name of the tensor sees it too.
        return found.input.copy_(output) if found.inplace or called.endswith("_") else output


class _Rectified(torch.autograd.Function):
    """A rectifier whose gradient passes where it and the input are positive."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor], ceiling: float
    ) -> torch.Tensor:
        ctx.save_for_backward((x > 0) & (x < ceiling))
        return function(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (passes,) = ctx.saved_tensors
        if passes.dtype != torch.bool:
            # A checkpoint ran its layers again, where nothing guides them.
            raise RuntimeError("a checkpoint inside the network hides its rectifiers; switch it off")
        return gradient.clamp(min=0) * passes, None, None
