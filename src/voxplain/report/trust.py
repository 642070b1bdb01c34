"""What the page says of how a map was tested: one line per check, also where nobody tested anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from voxplain.explanation import Explanation

# Check -> what it asks, for readers who have never heard of it.
QUESTIONS = {
    "deletion/insertion": "does the answer go when the parts that rank highest are taken away, and come back when they "
    "are put back, sooner than in random order?",
    "weight randomisation": "does the map change when the network forgets all that it learnt?",
    "label randomisation": "does it differ from the map of a network that was trained on shuffled labels?",
    "edge detector": "do its ranks explain the answer better than the edges of the scan, which know no network?",
    "FLAIR intensity": "do its ranks explain the answer better than how bright the parts are on FLAIR?",
}
_HOW = "voxplain check FOLDER --model MODEL, or vx.check, puts this map to the test"


@dataclass(frozen=True)
class TrustLine:
    """One check of one map: its name, the verdict ("passed", "failed" or "not tested"), and the figures in words."""

    check: str
    verdict: str
    said: str


@dataclass(frozen=True)
class Trust:
    """All checks of one map; `note` says what to know of the run."""

    name: str
    lines: tuple[TrustLine, ...]
    note: str


def trust(names: Sequence[str], explanations: Sequence[Explanation]) -> list[Trust]:
    """What came of the checks of each map, from its provenance; maps that nobody checked are "not tested"."""
    found = []
    for name, explanation in zip(names, explanations, strict=True):
        checks = explanation.provenance.get("checks")
        if checks is None:
            found.append(Trust(name, (TrustLine("all tests", "not tested", _HOW),), ""))
            continue
        lines = tuple(
            TrustLine(check, str(line["verdict"]), str(line["said"])) for check, line in checks["lines"].items()
        )
        quick = bool(checks.get("run", {}).get("quick"))
        found.append(Trust(name, lines, "A smoke run: these verdicts mean nothing." if quick else ""))
    return found


def questions(found: Sequence[Trust]) -> list[tuple[str, str]]:
    """The checks that are on the page, each with what it asks; all of them where a map was not tested."""
    names = {line.check for one in found for line in one.lines}
    return [(name, asked) for name, asked in QUESTIONS.items() if name in names or "all tests" in names]
