"""A provenance run again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from voxplain.compute import Compute
from voxplain.errors import InputError
from voxplain.explain.explainer import Explainer, all_explainers
from voxplain.explanation import Explanation
from voxplain.model import Model
from voxplain.scan import Scan
from voxplain.target import ClassScore, PredictedClass, Target


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
    known = {f"{kind.__module__}:{kind.__qualname__}": kind for kind in all_explainers()}
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
    if target is None and named["kind"] == "PredictedClass":
        target = PredictedClass()
    if target is None:
        raise InputError(
            f"the provenance names a {named['kind']} by its fingerprint, and does not hold it; "
            "give the one that was explained: vx.replay(..., target=...), vx.check(..., target=...)"
        )
    if target.record() != named:
        raise InputError(f"the provenance speaks of another target: it names {named}, this one is {target.record()}")
    return target
