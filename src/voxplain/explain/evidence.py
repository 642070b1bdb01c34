"""Maps that a network makes itself, read off a network that explains itself (paper gp, 002)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import torch

from voxplain.engine.probe import Probe
from voxplain.errors import InputError
from voxplain.explain.explainer import Explainer, Relevance
from voxplain.networks.self_explaining import SelfExplaining
from voxplain.target import ClassScore, PredictedClass, Target

_SHOWN = ("heat-map", "log-odds", "contributions")


@dataclass(frozen=True)
class HeatMap(Explainer):
    """The network's own map of the class: its last convolution without the pooling before it (002).

    `show="heat-map"` is what each pixel would score by itself, the head's bias included as in the paper: a network
    whose answer is always the same shows that bias everywhere. Where features are pooled by their maximum, the score is
    a weighted sum of one maximum per feature, each from a place of its own, so the heat map does not add up to it.
    `show="contributions"` are the shares that do: with the head's bias they sum up to the score. Under max pooling they
    are points, one per feature. `show="log-odds"` (ours) is the heat map of the class less that of all others,
    log(sum(exp)): a softmax hears nothing but such differences, and what all classes share is evidence for none.
    `mirrored` (ours) is the mean map of the input and its mirror images along the first two axes: what a network sees
    in one of them alone is not a property of the scan.
    """

    name: ClassVar[str] = "heat-map"
    family: ClassVar[str] = "self-explaining"
    needs: ClassVar[Literal["calls", "gradients", "layer", "self-explaining"]] = "self-explaining"
    cost: ClassVar[str] = "2 forward"
    takes: ClassVar[tuple[type[Target], ...]] = (ClassScore, PredictedClass)

    show: str = field(
        default="heat-map",
        metadata={
            "help": "heat-map (each pixel's score), log-odds (less the other classes') or contributions (adds up)"
        },
    )

    mirrored: bool = field(default=False, metadata={"help": "mean heat map of the input and its mirror images"})

    def __post_init__(self) -> None:
        if self.show not in _SHOWN:
            raise InputError(f"show is one of {', '.join(_SHOWN)}; got {self.show!r}")
        if self.mirrored and self.show == "contributions":
            raise InputError("mirrored is for heat maps: contributions of mirror images add up to other scores")

    def _relevance(self, probe: Probe) -> Relevance:
        network, target = probe.model.network, probe.target
        assert isinstance(network, SelfExplaining), "the template lets no other network through"
        assert isinstance(target, ClassScore), "the predicted class is settled by now"
        readings: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "heat-map": network.heat_map,
            "log-odds": partial(_log_odds, network),
            "contributions": network.contributions,
        }
        read = readings[self.show]
        if self.mirrored:
            read = partial(_mirrored, read)
        classes = probe.model.card.classes
        found = probe.class_map(read, classes.index(target.name))
        bias = network.head.bias
        facts = {"bias": 0.0 if bias is None else float(bias[classes.index(target.name)])}
        return Relevance(unit="logit", signed=True, map=found[None], facts=facts)


def _log_odds(network: SelfExplaining, x: torch.Tensor) -> torch.Tensor:
    """Heat maps (B, classes, spatial...), each less log(sum(exp)) of the others; a single class is its own log-odds."""
    maps = network.heat_map(x)
    if maps.shape[1] == 1:
        return maps
    others = [torch.cat([maps[:, :index], maps[:, index + 1 :]], dim=1) for index in range(maps.shape[1])]
    return maps - torch.stack([some.logsumexp(dim=1) for some in others], dim=1)


def _mirrored(read: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Mean maps (B, classes, spatial...) of the input (B, channels, spatial...) and its three mirror images."""
    axes: tuple[tuple[int, ...], ...] = ((), (2,), (3,), (2, 3))
    return torch.stack([read(x.flip(some)).flip(some) for some in axes]).mean(dim=0)
