"""What methods that score parts of a scan have in common: how the parts are cut, and what they are filled with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from voxplain.engine.probe import Probe
from voxplain.errors import InputError
from voxplain.explain.explainer import Explainer, Relevance
from voxplain.explain.fills import FORMS, Fill, fill_named
from voxplain.explain.perturbation import scores_without_each_part, scores_without_each_sequence
from voxplain.partition import cubes, supervoxels
from voxplain.scan import Labels


@dataclass(frozen=True)
class PartsExplainer(Explainer):
    """A method that fills parts of the scan, and reads the score again.

    Perturbations act on the network's input, after normalisation.
    """

    family: ClassVar[str] = "perturbation"
    needs: ClassVar[Literal["calls", "gradients", "layer"]] = "calls"

    fill: str = field(default="blank", metadata={"help": FORMS})
    scope: str = field(
        default="region", metadata={"help": "what min and max look at: region (paper 000) or sequence (001)"}
    )
    partition: str = field(default="slic", metadata={"help": "slic, or cubes:MM for cubes of an edge in mm"})
    segments: int = field(default=100, metadata={"help": "supervoxels that SLIC starts with"})
    compactness: float = field(
        default=0.3, metadata={"help": "SLIC compactness: low follows intensities, high gives cubes"}
    )
    channel: str | None = field(
        default=None, metadata={"help": "sequence that SLIC looks at, such as t2; all of them by default"}
    )
    mask: str = field(default="brain", metadata={"help": "brain: parts only where the scan is not background; or none"})
    scale: str = field(default="probability", metadata={"help": "score that is compared: probability or logit"})

    def __post_init__(self) -> None:
        fill_named(self.fill, self.scope)
        cube_edge(self.partition)
        one_of("mask", self.mask, ("brain", "none"))
        one_of("scale", self.scale, ("probability", "logit"))
        if self.segments < 1 or not 0 < self.compactness < np.inf:
            raise InputError(
                f"segments must be at least 1 and compactness above 0; got {self.segments} and {self.compactness}"
            )

    def _fill(self) -> Fill:
        return fill_named(self.fill, self.scope)

    def _parts(self, probe: Probe) -> Labels:
        scan = probe.prepared.input
        mask = probe.prepared.foreground if self.mask == "brain" else None
        edge = cube_edge(self.partition)
        if edge is not None:
            return cubes(scan.grid, edge=edge, mask=mask)
        image = scan.data if self.channel is None else scan.channel(self.channel)[None]
        return supervoxels(image, scan.grid, segments=self.segments, compactness=self.compactness, mask=mask)


@dataclass(frozen=True)
class PartByPartExplainer(PartsExplainer):
    """A method that fills one part at a time, and says how far the score moves.

    With `sequences="each"` one sequence of a part is filled at a time: a map per sequence, and a part's score is the
    sum over them.
    """

    effect: str = field(
        default="absolute",
        metadata={"help": "absolute: any change counts (papers); signed: positive where filling lowers the score"},
    )
    sequences: str = field(
        default="joint",
        metadata={
            "help": "joint: a part is filled in all sequences at once (papers); each: in one at a time, a map each"
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("effect", self.effect, ("absolute", "signed"))
        one_of("sequences", self.sequences, ("joint", "each"))

    def _relevance_of_parts(self, probe: Probe) -> Relevance:
        parts, fill = self._parts(probe), self._fill()
        names: tuple[str, ...] = ("all",)
        if self.sequences == "joint":
            scores = scores_without_each_part(probe, parts, fill, self.scale)
        else:
            scores, names = scores_without_each_sequence(probe, parts, fill, self.scale), probe.model.card.channels
        falls = probe.clean_score(self.scale) - scores
        signed = self.effect == "signed"
        found = falls if signed else np.abs(falls)
        facts: dict[str, Any] = {"parts": int(parts.data.max(initial=0)), "passes": probe.forwards}
        if self.sequences == "each":
            moved = np.abs(falls).sum(axis=1)
            shares = moved / (moved.sum() or 1.0)
            facts["share_of_sequences"] = dict(zip(names, np.round(shares, 6).tolist(), strict=True))
        return Relevance(
            unit=fall_unit(self.effect, self.scale),
            signed=signed,
            channels=names,
            parts=parts,
            scores=found,
            facts=facts,
        )


def one_of(name: str, given: str, allowed: tuple[str, ...]) -> None:
    """Raise InputError when an option has a value that it does not know."""
    if given not in allowed:
        raise InputError(f"{name} is one of {', '.join(allowed)}; got {given!r}")


def cube_edge(partition: str) -> float | None:
    """The edge in mm of "cubes:MM"; None for "slic"."""
    if partition == "slic":
        return None
    kind, _, edge = partition.partition(":")
    try:
        if kind == "cubes" and 0 < float(edge) < np.inf:
            return float(edge)
    except ValueError:
        pass
    raise InputError(f"partition is slic, or cubes:MM with an edge in mm such as cubes:16; got {partition!r}")


def fall_unit(effect: str, scale: str) -> str:
    """The unit of maps that compare a score with and without a part."""
    return f"fall of {scale}" if effect == "signed" else f"|change of {scale}|"
