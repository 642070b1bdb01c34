"""What a check comes to, in one word."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["passed", "failed", "not tested"]


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check ("passed", "failed" or "not tested"), and why in a few words."""

    outcome: Outcome
    reason: str


def overall(outcomes: Iterable[Outcome]) -> Outcome:
    """One outcome for several regions: "failed" where any failed, else "passed" where any passed, else "not tested"."""
    found = set(outcomes)
    return "failed" if "failed" in found else "passed" if "passed" in found else "not tested"
