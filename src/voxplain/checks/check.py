"""Whether a map can be trusted: its order of parts put to the test, and its likeness to maps that know nothing."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from voxplain.checks.lines import against_control, against_random, labels, weights
from voxplain.checks.order import FILL, deletion_insertion
from voxplain.compute import Compute
from voxplain.engine.progress import console, tracked
from voxplain.errors import InputError
from voxplain.explain.explainer import Explainer, versions
from voxplain.explain.parts import PartsExplainer
from voxplain.explain.replaying import check_speaks_of, explainer_of, target_of
from voxplain.explain.rise import RISE
from voxplain.explanation import Explanation
from voxplain.grid import Grid
from voxplain.metrics.sanity import label_randomisation, weight_randomisation
from voxplain.model import Model
from voxplain.randomisation import Randomised, blocks, cascade
from voxplain.scan import Scan
from voxplain.target import ClassScore, PredictedClass, Target, default_target

_DRAWS = 3
# Row of the controls -> what the check against it is called.
_CONTROLS = {"edge-detector": "edge detector", "intensity/supervoxel-rank": "FLAIR intensity"}


def check(
    explanation: Explanation,
    model: Model,
    scan: Scan,
    *,
    explainer: Explainer | None = None,
    target: Target | None = None,
    shuffled: Model | None = None,
    quick: bool = False,
    seed: int = 0,
    compute: Compute | None = None,
) -> Explanation:
    """Put a map to the test: deletion and insertion, weight and label randomisation, and an edge detector.

    Costs about 400 full passes for each region whose probability can fall, and one map for each block of the network
    and two more. How the maps of randomised networks are made follows from the explanation's provenance.

    Args:
        explanation: the map, on the scan's grid.
        model: the model that it explains.
        scan: the scan that it explains.
        explainer: what made the map, for maps whose provenance does not say.
        target: what was explained, needed for regions (RegionScore) and where the provenance does not say.
        shuffled: the same architecture trained on shuffled labels; without it label randomisation is not tested.
        quick: a smoke run: few random orders, one random network; its outcomes mean nothing.
        seed: of random orders and random networks.
        compute: how to run.

    Returns:
        The same explanation; its provenance has `checks` in addition: `lines`, by the name of a check its `verdict`
        ("passed", "failed", "not tested"), `said` (the figures in words) and figures, and `run`.

    Raises:
        InputError: map, model, scan and target do not belong together, or the map is not finite.
    """
    compute = compute or Compute()
    provenance = explanation.provenance
    if difference := scan.grid.difference(explanation.grid):
        raise InputError(f"the map lies on another grid than the scan: {difference}; give the scan that was explained")
    if not np.isfinite(explanation.map).all():
        raise InputError("the map is NaN or infinite somewhere; mend it first")
    if not explanation.regions:
        raise InputError("a map is tested region by region, and this one names none; give it its regions")
    if {"model", "scan"} <= provenance.keys():
        check_speaks_of(provenance, model, scan)
    target = target_of(provenance, target) if "target" in provenance else target or default_target(model.card)
    for tested in (model,) if shuffled is None else (model, shuffled):
        target.check(tested.card, scan.grid)
    held = target
    if isinstance(target, PredictedClass):
        held = _AsExplained(tuple(region.target for region in explanation.regions))
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        regions = deletion_insertion(
            explanation, model, scan, target=target, random_orders=3 if quick else 20, seed=seed, compute=compute
        )
        lines = {"deletion/insertion": against_random(regions)}
        passes = sum(region.passes for region in regions)
        explainer, unknown = (explainer, "") if explainer is not None else _explainer(provenance)
        if isinstance(explainer, PartsExplainer | RISE) and explainer.fill.startswith("optimal:"):
            # Its network was trained against these very weights, and is refused with any other.
            explainer, unknown = None, "fill optimal belongs to this very network; a map of another fill can be tested"
        quiet = replace(compute, progress=False)

        def explain(other: Model, its_scan: Scan) -> Explanation:
            nonlocal passes
            assert explainer is not None
            made = explainer(other, its_scan, target=held, seed=int(provenance.get("seed", 0)), compute=quiet)
            passes += made.provenance["passes"]["forward"] + made.provenance["passes"]["backward"]
            return made

        lines["weight randomisation"] = {"verdict": "not tested", "said": unknown}
        if explainer is not None:
            layers = ("",) if quick and blocks(model) else blocks(model)
            draws = 1 if quick else _DRAWS
            networks = cascade(model, seed=seed, draws=draws, layers=layers)
            count = len(layers) - 1 + draws if layers else 0
            shown = _announced(networks, count, provenance.get("passes", {}), compute)
            try:
                found = weight_randomisation(explain, model, scan, explanation=explanation, networks=shown)
                lines["weight randomisation"] = weights(found)
            except InputError as error:
                # Random weights may overflow, or cut a layer off from the score; the other tests stand.
                said = f"the map of a network with random weights cannot be made: {error}"
                lines["weight randomisation"] = {"verdict": "not tested", "said": said}
        lines["label randomisation"] = {
            "verdict": "not tested",
            "said": unknown or "it takes a network of the same kind that was trained on shuffled labels",
        }
        if shuffled is not None and explainer is not None:
            similarity, verdict = label_randomisation(explanation, explain(shuffled, scan), scan=scan)
            lines["label randomisation"] = labels(similarity, verdict)
    # What there is to say of this scan was said when it was explained, and each network would say it again.
    said_before = [str(message) for message in provenance.get("warnings", [])]
    messages = [text for text in dict.fromkeys(str(one.message) for one in caught) if text not in said_before]
    for text in messages:
        warnings.warn(text, UserWarning, stacklevel=2)
    for row, name in _CONTROLS.items():
        if row == "edge-detector" or "flair" in model.card.channels:
            lines[name] = against_control(row, name, regions)
    run = {
        "quick": quick,
        "seed": seed,
        "fill": FILL,
        "passes": passes,
        "seconds": round(time.perf_counter() - started, 3),
        "engine": compute.engine,
        "warnings": messages,
        "versions": versions(),
    }
    return replace(explanation, provenance=provenance | {"checks": {"lines": lines, "run": run}})


@dataclass(frozen=True)
class _AsExplained(PredictedClass):
    """The classes that were predicted when the map was made, region by region.

    A network with other weights is asked for the same ones: maps of other classes would differ anyhow.
    """

    names: tuple[str, ...] = ()

    def on(self, grids: Sequence[Grid]) -> list[Target | None]:
        """The score of each region's class."""
        if len(grids) != len(self.names):
            raise InputError(
                f"the map speaks of {len(self.names)} regions; this network reads {len(grids)} of the scan: give one "
                "whose card reads the same"
            )
        return [ClassScore(name) for name in self.names]

    def record(self) -> dict[str, Any]:
        """Kind, and the class of each region."""
        return {"kind": "predicted classes, held", "names": list(self.names)}


def _explainer(provenance: dict[str, Any]) -> tuple[Explainer | None, str]:
    """What made the map, or why nobody knows."""
    if "explainer" not in provenance:
        return None, "the map does not say what made it"
    try:
        return explainer_of(provenance), ""
    except InputError:
        return None, f"{provenance['explainer']} is no explainer that could make the map of another network"


def _announced(
    networks: Iterable[Randomised], count: int, passes: dict[str, int], compute: Compute
) -> Iterator[Randomised]:
    """The networks, under a bar, with what they cost said before the first and how long they take after it."""
    each = sum(passes.values())
    if compute.progress and count:
        console.print(
            f"weight randomisation: maps of {count} randomised networks"
            + (f", {each} passes each, {count * each} in all" if each else ""),
            highlight=False,
            soft_wrap=True,
        )
    started = time.perf_counter()
    for index, network in enumerate(tracked(networks, "randomised networks", shown=compute.progress, total=count)):
        if compute.progress and index == 1:
            seconds = (count - 1) * (time.perf_counter() - started)
            console.print(f"weight randomisation: about {seconds:.0f} s more", highlight=False)
        yield network
