"""The one template: what every explainer shares, so that a new method is one function on one network input."""

from __future__ import annotations

import dataclasses
import platform
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from torch import nn

from voxplain.compute import Compute
from voxplain.engine.probe import Probe
from voxplain.engine.progress import tracked
from voxplain.errors import InputError
from voxplain.explanation import Explanation, Region
from voxplain.grid import Grid, resample
from voxplain.model import Model
from voxplain.networks.self_explaining import SelfExplaining
from voxplain.preparation import Prepared, prepare
from voxplain.scan import Labels, Scan
from voxplain.target import RegionScore, Target, default_target

# Up to so many regions have a bar and notices of their own: the two halves of a head.
_BARS = 2
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True, eq=False)
class Relevance:
    """What a method finds on one network input: map (K, X, Y, Z) there, or scores of parts, and facts worth stating.

    With `parts` and `scores` the map follows from them, so `map` is left out. Scores are one per part, (N,), or one per
    channel and part, (K, N).
    """

    unit: str
    signed: bool
    channels: tuple[str, ...] = ("all",)
    map: np.ndarray | None = None
    parts: Labels | None = None
    scores: np.ndarray | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Found:
    """What is kept of one region once it is explained; its probe, which may hold activations, is let go."""

    region: Region
    map_grid: Grid
    relevance: Relevance
    facts: dict[str, Any]
    notices: list[str]
    forwards: int
    backwards: int
    followed: int
    finished_in_full_from: tuple[str, ...]

    @classmethod
    def of(cls, prepared: Prepared, probe: Probe, relevance: Relevance) -> _Found:
        """What a probe found out about a region."""
        region = Region(
            prepared.name,
            prepared.box,
            probability=probe.calibrated,
            logit=probe.logit,
            positive=probe.positive,
            target=str(probe.target.record().get("name", "")),
        )
        return cls(
            region,
            prepared.map_grid,
            relevance,
            {**relevance.facts, **probe.facts},
            probe.notices,
            probe.forwards,
            probe.backwards,
            probe.followed,
            probe.finished_in_full_from,
        )


@dataclass(frozen=True)
class Explainer(ABC):
    """A method of explanation: a small value whose fields are its options; model and scan arrive at the call.

    A new method is a frozen subclass with fields (each with `metadata={"help": ...}`) and `_relevance`. One that can
    explain several regions in less than the sum of their passes writes `_together` and `_relevances` as well. `takes`
    are the kinds of targets that it explains.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    needs: ClassVar[Literal["calls", "gradients", "layer", "self-explaining"]]
    cost: ClassVar[str]
    takes: ClassVar[tuple[type[Target], ...]] = (Target,)

    @final
    def __call__(
        self,
        model: Model,
        scan: Scan,
        *,
        target: Target | None = None,
        seed: int = 0,
        compute: Compute | None = None,
    ) -> Explanation:
        """Explain what the network says of a scan.

        Returns:
            The map on the scan's own grid, with provenance that replays it. `target` is by default the score of the
            card's first class, and for a softmax over several classes that of the predicted one.

        Raises:
            InputError: model, scan, target and options do not fit each other.
        """
        (found,) = self._explained(model, scan, [target or default_target(model.card)], seed, compute or Compute())
        return found

    @final
    def each(
        self,
        model: Model,
        scan: Scan,
        regions: Labels,
        *,
        name: str,
        labels: Sequence[int] | None = None,
        seed: int = 0,
        compute: Compute | None = None,
    ) -> Iterator[tuple[int, Explanation]]:
        """Explain what the network says of several regions of a scan, such as all of its lesions.

        Each is explained as `RegionScore(name, regions, label)` alone would be, to rounding; a method may share passes
        among regions that lie near each other, which then come after each other.

        Args:
            regions: labels on the scan's own grid.
            name: the class whose score is explained.
            labels: those to explain, in this order where nothing is shared; all of them by default.

        Yields:
            A label and its explanation, as soon as it is there.

        Raises:
            InputError: a label that does not occur, or model, scan and options that do not fit each other.
        """
        wanted = [int(label) for label in (np.unique(regions.data[regions.data > 0]) if labels is None else labels)]
        targets = [RegionScore(name, regions, label) for label in wanted]
        for some in self._together(model, targets):
            found = self._explained(model, scan, [targets[i] for i in some], seed, compute or Compute())
            yield from zip((wanted[i] for i in some), found, strict=True)

    def _explained(
        self, model: Model, scan: Scan, targets: Sequence[Target], seed: int, compute: Compute
    ) -> list[Explanation]:
        """Explain several targets of one scan, which share what the method lets them share."""
        self._check_fits(model, scan, targets)
        started = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            regions = prepare(scan, model.card)
            on_grids = [target.on([prepared.input.grid for prepared in regions]) for target in targets]
        wanted = [
            (prepared, [(number, its) for number, its in enumerate(there) if its is not None])
            for prepared, there in zip(regions, zip(*on_grids, strict=True), strict=True)
        ]
        wanted = [(prepared, there) for prepared, there in wanted if there]
        # One bar over many slices, not a bar and an announcement for each of them.
        many = len(wanted) > _BARS
        its_compute = dataclasses.replace(compute, progress=False) if many else compute
        found: list[list[_Found]] = [[] for _ in targets]
        with (
            compute.running(),
            in_evaluation(model.network, compute.torch_device),
            closing(tracked(wanted, f"{self.name}, slices", shown=compute.progress and many)) as stream,
        ):
            for prepared, there in stream:
                probes = [Probe(model, prepared, target, seed, its_compute) for _, target in there]
                for (number, _), probe, relevance in zip(there, probes, self._relevances(probes), strict=True):
                    _check(relevance, prepared, self.name)
                    found[number].append(_Found.of(prepared, probe, relevance))
        seconds = (time.perf_counter() - started) / len(targets)
        facts = {"preparation": dict(regions[0].record), "seconds": round(seconds, 3)}
        warned = [str(warning.message) for warning in caught]
        explained = []
        # A loop: a comprehension is a frame of its own on Python 3.11, and warnings would name this file.
        for target, of_it in zip(targets, found, strict=True):
            provenance = self._provenance(model, scan, target, seed, compute, of_it, warned)
            explained.append(_assemble(scan, of_it, provenance | facts))
        return explained

    def _check_fits(self, model: Model, scan: Scan, targets: Sequence[Target]) -> None:
        """Raise InputError where method, model, scan and targets do not fit each other."""
        for target in targets:
            if not isinstance(target, self.takes):
                what = " or ".join(kind.__name__ for kind in self.takes)
                if self.takes == (RegionScore,):
                    what = "a region, such as one lesion: target=vx.RegionScore(name, region)"
                raise InputError(f"{self.name} explains {what}; got {type(target).__name__}")
            target.check(model.card, scan.grid)
        if self.needs == "layer" and not model.differentiable_inside:
            raise InputError(
                f"{self.name} watches layers, which a TorchScript network does not allow; methods that need calls "
                f"only work: {', '.join(other.name for other in all_explainers() if other.needs == 'calls')}"
            )
        if self.needs == "self-explaining" and not isinstance(model.network, SelfExplaining):
            others = ", ".join(other.name for other in all_explainers() if other.needs != "self-explaining")
            raise InputError(
                f"{self.name} reads a map that the network itself makes, as those of voxplain.networks.gp_unet, "
                f"gp_reconresnet and gp_shuffleunet do; this one is {type(model.network).__name__}: train one of "
                f"those, or use {others}"
            )

    def _provenance(
        self,
        model: Model,
        scan: Scan,
        target: Target,
        seed: int,
        compute: Compute,
        found: list[_Found],
        warned: list[str],
    ) -> dict[str, Any]:
        """What replays an explanation; what there is to say of how it ran is warned of."""
        said = warned + _noticed(found)
        if compute.dtype != "float32":
            said.append(f"ran in {compute.dtype}: scores carry two to three significant digits")
        for message in said:
            warnings.warn(message, UserWarning, stacklevel=4)
        return {
            "explainer": f"{type(self).__module__}:{type(self).__qualname__}",
            "options": dataclasses.asdict(self),
            "target": target.record(),
            "seed": seed,
            "model": {
                "name": model.card.name,
                "fingerprint": model.fingerprint,
                "threshold": model.card.threshold,
                "calibration": list(model.card.calibration),
            },
            "scan": {"fingerprint": scan.fingerprint, "channels": list(scan.channels), "shape": list(scan.grid.shape)},
            "compute": dataclasses.asdict(compute) | {"device": str(compute.torch_device)},
            "finished_in_full_from": sorted({name for one in found for name in one.finished_in_full_from}),
            "passes": {
                "forward": sum(one.forwards for one in found),
                "backward": sum(one.backwards for one in found),
            },
            "incremental_passes": sum(one.followed for one in found),
            "warnings": said,
            "facts": {one.region.name: one.facts for one in found},
            "versions": versions(),
        }

    def _together(self, model: Model, targets: Sequence[RegionScore]) -> list[list[int]]:
        """Which of several regions are explained at a time, by their numbers: each alone, where nothing is shared."""
        return [[number] for number in range(len(targets))]

    def _relevances(self, probes: Sequence[Probe]) -> Iterator[Relevance]:
        """Explain several targets of one input of the network: after each other, where nothing is shared."""
        return (self._relevance(probe) for probe in probes)

    @abstractmethod
    def _relevance(self, probe: Probe) -> Relevance:
        """Explain one input of the network, on the network's own grid."""


def versions() -> dict[str, str]:
    """Versions of voxplain and of what its results depend on."""
    packages = ("voxplain", "torch", "monai", "numpy", "scikit-image", "nibabel")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def all_explainers() -> list[type[Explainer]]:
    """Every method that is known here, those of others included."""
    found, waiting = [], list(Explainer.__subclasses__())
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        found.append(kind)
    return [kind for kind in found if "name" in kind.__dict__]


@contextmanager
def in_evaluation(network: nn.Module, device: torch.device) -> Iterator[None]:
    """The network in eval mode, on the device, its weights not asking for gradients; all put back afterwards."""
    modules = list(network.modules())
    modes = [module.training for module in modules]
    asking = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    scripted = isinstance(network, torch.jit.ScriptModule)
    hooks = [] if scripted else [(getattr(m, name), set(getattr(m, name))) for m in modules for name in _HOOKS]
    home = next((tensor.device for tensor in (*network.parameters(), *network.buffers())), torch.device("cpu"))
    try:
        network.to(device).eval()
        for parameter, _ in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for registered, before in hooks:
            for key in set(registered) - before:
                del registered[key]
        for parameter, asked in asking:
            parameter.requires_grad_(asked)
        # Each module's own mode, not its parent's: a frozen batch norm inside a training network stays frozen.
        for module, mode in zip(modules, modes, strict=True):
            if scripted:
                module.train(mode)
            else:
                module.training = mode
        network.to(home)


def _check(relevance: Relevance, prepared: Prepared, name: str) -> None:
    """A method that returns something else than a finite map of the input's shape is a defect, said loudly."""
    shape = prepared.input.grid.shape
    if relevance.parts is not None and relevance.scores is not None:
        values = relevance.scores
        count = int(relevance.parts.data.max())
        fits = relevance.parts.grid.shape == shape and np.atleast_2d(values).shape == (len(relevance.channels), count)
    else:
        assert relevance.map is not None, f"{name} returned neither a map nor parts with scores"
        values = relevance.map
        fits = values.shape == (len(relevance.channels), *shape)
    assert fits, f"{name} returned a result of the wrong shape {values.shape} for an input of {shape}"
    assert np.isfinite(values).all(), f"{name} returned values that are not finite"


def _noticed(found: list[_Found]) -> list[str]:
    """What there is to say of how regions ran; what holds of many slices is said once."""
    of: dict[str, list[str]] = {}
    for one in found:
        for notice in one.notices:
            of.setdefault(notice, []).append(one.region.name)
    return [
        f"{name}: {notice}"
        for notice, names in of.items()
        for name in (names if len(names) <= _BARS else [f"{names[0]} and {len(names) - 1} more"])
    ]


def _assemble(scan: Scan, found: list[_Found], provenance: dict[str, Any]) -> Explanation:
    """Lay each region's result back on the scan's own grid."""
    first = found[0].relevance
    whole = np.zeros((len(first.channels), *scan.grid.shape), dtype=np.float32)
    parts = np.zeros(scan.grid.shape, dtype=np.int32) if first.parts is not None else None
    scores: list[np.ndarray] = []
    count = 0
    for one in found:
        region, relevance = one.region, one.relevance
        target = scan.grid.window([start for start, _ in region.box], [stop - start for start, stop in region.box])
        if relevance.parts is not None and relevance.scores is not None and parts is not None:
            its_parts = Labels(relevance.parts.data, one.map_grid)
            labels, values = parts_on(its_parts, np.atleast_2d(relevance.scores), target)
            parts[region.slices] = np.where(labels > 0, labels + count, 0)
            lookup = np.concatenate([np.zeros((len(values), 1)), values], axis=1)
            whole[(slice(None), *region.slices)] = lookup[:, labels]
            scores.append(values)
            count += values.shape[1]
        else:
            assert relevance.map is not None
            whole[(slice(None), *region.slices)] = resample(relevance.map, one.map_grid, target)
    return Explanation(
        map=whole,
        channels=first.channels,
        grid=scan.grid,
        signed=first.signed,
        unit=first.unit,
        regions=tuple(one.region for one in found),
        parts=None if parts is None else Labels(parts, scan.grid),
        # What several sequences say of a part adds up, as `Explanation.total` adds up their maps.
        scores=None if parts is None else np.concatenate(scores, axis=1).sum(axis=0),
        provenance=provenance | {"regions": [dataclasses.asdict(one.region) for one in found]},
    )


def parts_on(parts: Labels, scores: np.ndarray, target: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Part labels on another grid, renumbered without gaps (a part may be too small for a coarser grid).

    Scores (K, N) lose the columns of parts that are gone.
    """
    labels = parts.on(target).data
    present = np.unique(labels[labels > 0])
    renumbered = np.zeros(scores.shape[1] + 1, dtype=np.int32)
    renumbered[present] = np.arange(1, len(present) + 1)
    return renumbered[labels], scores[:, present - 1]
