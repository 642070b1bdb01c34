"""What a cross-validation learns: labelled inputs of cases, networks that learn them, and the words for both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from voxplain.compute import Compute
from voxplain.datasets.case import Case
from voxplain.engine.progress import tracked
from voxplain.errors import InputError
from voxplain.model import Card
from voxplain.training import Example, Settings


@dataclass(frozen=True)
class Preset:
    """A network, what it reads, and how it is trained.

    `attempts` trainings start from other weights each, and the one with the lowest validation loss is kept: small
    networks on few scans may get stuck where they begin.
    """

    card: Card
    settings: Settings
    attempts: int = 1


@dataclass(frozen=True, eq=False)
class Labelled:
    """One labelled input in memory: the case, the region of it ("left", "whole"), 0 or 1, and (C, X, Y, Z) 16-bit."""

    case: Case
    region: str
    label: int
    image: np.ndarray

    @property
    def example(self) -> Example:
        """The input as the training loop takes it."""
        return Example(f"{self.case.id}/{self.region}", self.label, lambda: self.image.astype(np.float32))


@dataclass(frozen=True, eq=False)
class Task:
    """What is learnt: which labelled inputs a case gives, which networks learn them, and how a card speaks of it.

    Attributes:
        inputs: the labelled inputs of a case, cut as the card declares; those without a label are left out.
        presets: networks and trainings by name.
        rarer: the label that fewer patients bring; the patients with an input of it are spread evenly over the parts.
        words: what an input is called, in the plural ("halves"), and what those of label 1 are ("with tumour"); files
            and facts are named after them.
        region: what a file calls the region of an input ("side").
        labels: where the labels come from.
        data: where the scans come from, with citations.
        description: what the network says, and what it learnt from.
        limits: what it must not be used for.
        caution: why no figure of these cases means anything, or None; stands beside every figure.
    """

    inputs: Callable[[Case, Card], list[Labelled]]
    presets: Mapping[str, Preset]
    rarer: int
    words: tuple[str, str]
    region: str
    labels: str
    data: str
    description: str
    limits: str
    caution: Callable[[Sequence[Case]], str | None] = lambda cases: None

    def preset(self, name: str) -> Preset:
        """The preset of that name.

        Raises:
            InputError: there is none.
        """
        if name not in self.presets:
            raise InputError(f"preset is one of {', '.join(self.presets)}; got {name!r}")
        return self.presets[name]

    def note(self, cases: Sequence[Case]) -> dict[str, str]:
        """The caution as an entry of a file of figures, or nothing."""
        caution = self.caution(cases)
        return {} if caution is None else {"caution": caution}

    def read(self, cases: Sequence[Case], card: Card, compute: Compute) -> list[Labelled]:
        """All labelled inputs, read once and kept in memory."""
        shown = tracked(cases, "reading scans", shown=compute.progress)
        return [labelled for case in shown for labelled in self.inputs(case, card)]
