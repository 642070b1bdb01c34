"""What came of a check: a verdict, the figures in words, and the figures in plain data."""

from __future__ import annotations

from typing import Any

from voxplain.checks.order import RegionCheck
from voxplain.metrics.sanity import THRESHOLD, Similarity, WeightRandomisation
from voxplain.metrics.verdict import Outcome, Verdict, overall


def against_random(regions: list[RegionCheck]) -> dict[str, Any]:
    """The line on deletion and insertion: the map's areas beside those of random orders, by region."""
    said: list[str] = []
    outcomes: list[Outcome] = []
    figures: dict[str, dict[str, Any]] = {}
    for region in regions:
        found = region.faithfulness
        verdict = found.against("random-rank")
        outcomes.append(verdict.outcome)
        (own,), random = found.areas["map"], found.areas.get("random-rank", ())
        figures[region.region] = {
            "verdict": verdict.outcome,
            "reason": verdict.reason,
            "deletion": own.deletion,
            "insertion": own.insertion,
            "probability": found.full,
            "probability_filled": found.empty,
            "curves": {
                "share": found.shares.tolist(),
                "deletion": found.deletion.tolist(),
                "insertion": found.insertion.tolist(),
            },
            "controls": {row: [list(areas) for areas in found.areas[row]] for row in found.areas if row != "map"},
        }
        if verdict.outcome == "not tested":
            said.append(f"{region.region}: not tested, {verdict.reason}")
            continue
        said.append(
            f"{region.region}: area under deletion {own.deletion:.3f} "
            f"({len(random)} random orders {_range([areas.deletion for areas in random])}), "
            f"under insertion {own.insertion:.3f} ({_range([areas.insertion for areas in random])})"
        )
    return _line(overall(outcomes), said, {"regions": figures})


def against_control(row: str, name: str, regions: list[RegionCheck]) -> dict[str, Any]:
    """The line on a control of one order: its areas beside the map's, by region."""
    said: list[str] = []
    outcomes: list[Outcome] = []
    figures: dict[str, dict[str, Any]] = {}
    for region in regions:
        verdict = region.faithfulness.against(row)
        outcomes.append(verdict.outcome)
        figures[region.region] = {"verdict": verdict.outcome, "reason": verdict.reason}
        words = f"{region.region}: not tested"
        if verdict.outcome != "not tested":
            (own,), (other,) = region.faithfulness.areas["map"], region.faithfulness.areas[row]
            words = (
                f"{region.region}: area under deletion {own.deletion:.3f} ({name} {other.deletion:.3f}), "
                f"under insertion {own.insertion:.3f} ({other.insertion:.3f})"
            )
            figures[region.region] |= {"deletion": other.deletion, "insertion": other.insertion}
        if row == "edge-detector" and region.edges is not None:
            words += f"; rank correlation with the edges {_signed(region.edges.values)}"
            figures[region.region] |= {"rank_correlation": region.edges.values}
        said.append(words)
    return _line(overall(outcomes), said, {"regions": figures})


def weights(found: WeightRandomisation) -> dict[str, Any]:
    """The line on weight randomisation: likeness to maps of networks that know nothing, then layer by layer."""
    verdict = found.verdict
    steps = [
        {
            "layer": step.layer,
            "complete": step.complete,
            "flat": list(step.flat),
            "similarity": {region: list(values) for region, values in step.similarity.items()},
        }
        for step in found.steps
    ]
    figures = {"threshold": found.threshold, "steps": steps, "reason": verdict.reason}
    if verdict.outcome == "not tested":
        return _line("not tested", [verdict.reason], figures)
    by_region = ", ".join(
        f"{region} {_signed(values.values)} (absolute values {_signed(values.absolute)})"
        for region, values in found.complete.items()
    )
    said = [f"rank correlation with maps of random networks: {by_region}; passes below {found.threshold:g}"]
    partial = [step for step in found.steps if not step.complete and step.similarity]
    if partial:
        worst = (max((values.values for values in step.similarity.values()), key=abs) for step in partial)
        trail = ", ".join(f"{step.layer} {_signed(value)}" for step, value in zip(partial, worst, strict=True))
        said.append(f"random from the output back to {trail}")
    figures["likeness"] = {region: list(values) for region, values in found.complete.items()}
    return _line(verdict.outcome, said, figures)


def labels(similarity: dict[str, Similarity], verdict: Verdict) -> dict[str, Any]:
    """The line on label randomisation."""
    figures = {"similarity": {region: list(values) for region, values in similarity.items()}, "reason": verdict.reason}
    if verdict.outcome == "not tested":
        return _line("not tested", [verdict.reason], figures)
    by_region = ", ".join(f"{region} {_signed(values.values)}" for region, values in similarity.items())
    words = f"rank correlation with the map of a network trained on shuffled labels: {by_region}"
    return _line(verdict.outcome, [f"{words}; passes below {THRESHOLD:g}"], figures)


def _line(outcome: Outcome, said: list[str], figures: dict[str, Any]) -> dict[str, Any]:
    return {"verdict": outcome, "said": "; ".join(said) or "no region was explained", **figures}


def _range(values: list[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")
