"""The one template: what every explainer shares, so that a new method is one function on one network input."""

from __future__ import annotations

import dataclasses
import platform
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from torch import nn

from voxplain.compute import Compute
from voxplain.engine.probe import Probe
from voxplain.errors import InputError
from voxplain.explanation import Explanation, Region
from voxplain.grid import Grid, resample
from voxplain.model import Model
from voxplain.preparation import Prepared, prepare
from voxplain.scan import Labels, Scan
from voxplain.target import ClassScore, Target

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


@dataclass(frozen=True)
class Explainer(ABC):
    """A method of explanation: a small value whose fields are its options; model and scan arrive at the call.

    A new method is a frozen subclass with fields (each with `metadata={"help": ...}`) and `_relevance`.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    needs: ClassVar[Literal["calls", "gradients", "layer"]]
    cost: ClassVar[str]

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
            card's first class.

        Raises:
            InputError: model, scan, target and options do not fit each other.
        """
        target = target or ClassScore(model.card.classes[0])
        compute = compute or Compute()
        target.check(model.card, scan.grid)
        if self.needs == "layer" and not model.differentiable_inside:
            raise InputError(
                f"{self.name} watches layers, which a TorchScript network does not allow; methods that need calls "
                f"only work: {', '.join(other.name for other in _all_explainers() if other.needs == 'calls')}"
            )
        started = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            regions = prepare(scan, model.card)
            targets = target.on([prepared.input.grid for prepared in regions])
        found: list[tuple[Prepared, Probe, Relevance]] = []
        with compute.running(), in_evaluation(model.network, compute.torch_device):
            for prepared, its_target in zip(regions, targets, strict=True):
                if its_target is None:
                    continue
                probe = Probe(model, prepared, its_target, seed, compute)
                relevance = self._relevance(probe)
                _check(relevance, prepared, self.name)
                found.append((prepared, probe, relevance))
        said = [str(warning.message) for warning in caught]
        said += [f"{prepared.name}: {notice}" for prepared, probe, _ in found for notice in probe.notices]
        if compute.dtype != "float32":
            said.append(f"ran in {compute.dtype}: scores carry two to three significant digits")
        for message in said:
            warnings.warn(message, UserWarning, stacklevel=2)
        provenance = {
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
            "finished_in_full_from": sorted({name for _, probe, _ in found for name in probe.finished_in_full_from}),
            "passes": {
                "forward": sum(probe.forwards for _, probe, _ in found),
                "backward": sum(probe.backwards for _, probe, _ in found),
            },
            "incremental_passes": sum(probe.followed for _, probe, _ in found),
            "seconds": round(time.perf_counter() - started, 3),
            "preparation": dict(regions[0].record),
            "warnings": said,
            "facts": {prepared.name: {**relevance.facts, **probe.facts} for prepared, probe, relevance in found},
            "versions": versions(),
        }
        return _assemble(scan, model, found, provenance)

    @abstractmethod
    def _relevance(self, probe: Probe) -> Relevance:
        """Explain one input of the network, on the network's own grid."""


def versions() -> dict[str, str]:
    """Versions of voxplain and of what its results depend on."""
    packages = ("voxplain", "torch", "monai", "numpy", "scikit-image", "nibabel")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def replay(
    provenance: Mapping[str, Any],
    model: Model,
    scan: Scan,
    compute: Compute | None = None,
    *,
    target: Target | None = None,
) -> Explanation:
    """Run again what a provenance describes, on the same model and scan.

    `target` is needed where the provenance holds its fingerprint alone: regions (RegionScore).

    Raises:
        InputError: model, scan, target or the fill's perturbation network are not those that the provenance names, the
            target is needed and was not given, or the method is not known here.
    """
    check_speaks_of(provenance, model, scan)
    explainer, target = explainer_of(provenance), target_of(provenance, target)
    again = explainer(model, scan, target=target, seed=provenance["seed"], compute=compute)
    for region, facts in provenance["facts"].items():
        named, found = (each.get("perturbation_network") for each in (facts, again.provenance["facts"].get(region, {})))
        if named != found:
            raise InputError(f"the provenance names the perturbation network {named}; its fill's folder holds {found}")
    return again


def check_speaks_of(provenance: Mapping[str, Any], model: Model, scan: Scan) -> None:
    """Raise InputError when a provenance names another model or scan."""
    for what, given, stated in (
        ("model", model.fingerprint, provenance["model"]["fingerprint"]),
        ("scan", scan.fingerprint, provenance["scan"]["fingerprint"]),
    ):
        if given != stated:
            raise InputError(
                f"the provenance speaks of another {what}: it names {stated}, this one is {given}; "
                f"give the {what} that was explained, or explain this one"
            )


def explainer_of(provenance: Mapping[str, Any]) -> Explainer:
    """The explainer that a provenance names, with its options.

    Raises:
        InputError: the method is not known here.
    """
    known = {f"{kind.__module__}:{kind.__qualname__}": kind for kind in _all_explainers()}
    if provenance["explainer"] not in known:
        raise InputError(f"no explainer {provenance['explainer']}; known: {', '.join(known)}")
    return known[provenance["explainer"]](**provenance["options"])


def target_of(provenance: Mapping[str, Any], target: Target | None = None) -> Target:
    """The target that a provenance names; regions (RegionScore), which it does not hold, are given as `target`.

    Raises:
        InputError: the target is needed and was not given, or is not the one that the provenance names.
    """
    named = dict(provenance["target"])
    if target is None and named["kind"] == "ClassScore":
        target = ClassScore(named["name"])
    if target is None:
        raise InputError(
            f"the provenance names a {named['kind']} by its fingerprint, and does not hold it; "
            "give the one that was explained: vx.replay(..., target=...), vx.check(..., target=...)"
        )
    if target.record() != named:
        raise InputError(f"the provenance speaks of another target: it names {named}, this one is {target.record()}")
    return target


def _all_explainers() -> list[type[Explainer]]:
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


def _assemble(
    scan: Scan, model: Model, found: list[tuple[Prepared, Probe, Relevance]], provenance: dict[str, Any]
) -> Explanation:
    """Lay each region's result back on the scan's own grid."""
    first = found[0][2]
    whole = np.zeros((len(first.channels), *scan.grid.shape), dtype=np.float32)
    parts = np.zeros(scan.grid.shape, dtype=np.int32) if first.parts is not None else None
    scores: list[np.ndarray] = []
    regions = []
    for prepared, probe, relevance in found:
        region = Region(
            prepared.name,
            prepared.box,
            probability=probe.calibrated,
            logit=probe.logit,
            positive=probe.calibrated >= model.card.threshold,
        )
        regions.append(region)
        target = scan.grid.window([start for start, _ in region.box], [stop - start for start, stop in region.box])
        if relevance.parts is not None and relevance.scores is not None and parts is not None:
            labels, values = parts_on(relevance.parts, np.atleast_2d(relevance.scores), target)
            labels = np.where(labels > 0, labels + sum(found.shape[1] for found in scores), 0)
            parts[region.slices] = labels
            scores.append(values)
            lookup = np.concatenate([np.zeros((len(values), 1)), *scores], axis=1)
            whole[(slice(None), *region.slices)] = lookup[:, labels]
        else:
            assert relevance.map is not None
            whole[(slice(None), *region.slices)] = resample(relevance.map, prepared.input.grid, target)
    return Explanation(
        map=whole,
        channels=first.channels,
        grid=scan.grid,
        signed=first.signed,
        unit=first.unit,
        regions=tuple(regions),
        parts=None if parts is None else Labels(parts, scan.grid),
        # What several sequences say of a part adds up, as `Explanation.total` adds up their maps.
        scores=None if parts is None else np.concatenate(scores, axis=1).sum(axis=0),
        provenance=provenance | {"regions": [dataclasses.asdict(region) for region in regions]},
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
