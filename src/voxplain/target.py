"""What is explained: a value that turns the network's raw output into one number per input."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from voxplain.errors import InputError
from voxplain.grid import Grid
from voxplain.model import Card
from voxplain.scan import Labels


class Target(ABC):
    """What is explained. A target never runs the network; it reads its raw output."""

    @abstractmethod
    def check(self, card: Card, grid: Grid) -> None:
        """Raise InputError when the model, or a scan on this grid, does not have what this target asks for."""

    @abstractmethod
    def on(self, grids: Sequence[Grid]) -> list[Target | None]:
        """The target on each of the grids that the network reads of one scan; None where it has no part there.

        Warns of what lies on none of them.

        Raises:
            InputError: all of it lies on none of them.
        """

    @abstractmethod
    def check_output(self, output: tuple[int, ...], inputs: tuple[int, ...], card: Card) -> None:
        """Raise InputError when the network's output is not of the shape that this target reads.

        `inputs` is the shape of the inputs that it was given, (B, C, X, Y, Z), or (B, C, X, Y) for 2D networks.
        """

    @abstractmethod
    def logit(self, output: torch.Tensor, card: Card) -> torch.Tensor:
        """The explained score before any squashing, (B,), from the network's raw output (B, classes, ...)."""

    @abstractmethod
    def probability(self, output: torch.Tensor, card: Card) -> torch.Tensor:
        """The explained score as a probability, (B,), from the network's raw output (B, classes, ...)."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """The target as provenance states it, in plain data; equal for targets that ask for the same."""

    def resolved(self, output: torch.Tensor, card: Card) -> Target:
        """The target once the raw output (1, classes, ...) of the clean input is known; most targets are settled."""
        return self

    def positive(self, output: torch.Tensor, card: Card) -> bool:
        """Whether a region counts as positive, by the raw output (1, classes, ...) of the clean input."""
        return float(self.probability(card.calibrated(output), card)[0]) >= card.threshold


@dataclass(frozen=True)
class ClassScore(Target):
    """The score of one class of a classifier, by name as the model card has it."""

    name: str

    def check(self, card: Card, grid: Grid) -> None:
        """Raise InputError when the model has no such class."""
        _check_class(self.name, card)

    def on(self, grids: Sequence[Grid]) -> list[Target | None]:
        """The same score on every grid."""
        return [self] * len(grids)

    def check_output(self, output: tuple[int, ...], inputs: tuple[int, ...], card: Card) -> None:
        """Raise InputError unless the output is (B, classes)."""
        expected = (inputs[0], len(card.classes))
        if output == expected:
            return
        advice = "name all classes in the card, or wrap the network so that it returns scores"
        if output == (*expected, *inputs[2:]):
            advice = (
                "a network that gives a map per class is explained by region: --lesion N on the command line, "
                "target=vx.RegionScore(name, region) in Python"
            )
        raise InputError(f"expected one score per class, shape {expected}; the network returns {output}: {advice}")

    def positive(self, output: torch.Tensor, card: Card) -> bool:
        """Whether the calibrated probability reaches the card's threshold; never of a class that says "nothing"."""
        return self.name not in card.absent and super().positive(output, card)

    def logit(self, output: torch.Tensor, card: Card) -> torch.Tensor:
        """Raw output of the class, (B,)."""
        return output[:, card.classes.index(self.name)]

    def probability(self, output: torch.Tensor, card: Card) -> torch.Tensor:
        """Probability of the class, (B,) float64, by the activation that the card states."""
        return probabilities(output, card)[:, card.classes.index(self.name)]

    def record(self) -> dict[str, Any]:
        """Kind and name."""
        return {"kind": "ClassScore", "name": self.name}


@dataclass(frozen=True)
class PredictedClass(Target):
    """The score of the class that the network gives the highest raw score, of each region on its own.

    Which class that is follows from the clean input; all else is then asked of that class. A region is positive unless
    the card lists its class as `absent`. What is read before that is of the highest class of each output by itself.
    """

    def check(self, card: Card, grid: Grid) -> None:
        """Raise InputError when the model has one class only, which would always be the predicted one."""
        if len(card.classes) < 2:
            raise InputError(
                f"the predicted class is the highest of several; this model has one class: ask for its score, "
                f"target=vx.ClassScore({card.classes[0]!r})"
            )

    def on(self, grids: Sequence[Grid]) -> list[Target | None]:
        """The predicted class of every grid."""
        return [self] * len(grids)

    def check_output(self, output: tuple[int, ...], inputs: tuple[int, ...], card: Card) -> None:
        """Raise InputError unless the output is (B, classes)."""
        ClassScore(card.classes[0]).check_output(output, inputs, card)

    def resolved(self, output: torch.Tensor, card: Card) -> ClassScore:
        """The score of the highest class; of equal ones the first."""
        return ClassScore(card.classes[int(output[0].argmax())])

    def positive(self, output: torch.Tensor, card: Card) -> bool:
        """Whether the predicted class says that something is there."""
        return self.resolved(output, card).name not in card.absent

    def logit(self, output: torch.Tensor, card: Card) -> torch.Tensor:
        """Highest raw output, (B,)."""
        return output.amax(dim=1)

    def probability(self, output: torch.Tensor, card: Card) -> torch.Tensor:
        """Probability of the highest class, (B,) float64, by the activation that the card states."""
        return probabilities(output, card).amax(dim=1)

    def record(self) -> dict[str, Any]:
        """Kind alone; provenance says of each region which class it was."""
        return {"kind": "PredictedClass"}


def default_target(card: Card) -> Target:
    """What is explained where nobody says: of a softmax over classes the predicted one, else the first class."""
    if card.activation == "softmax" and len(card.classes) > 1:
        return PredictedClass()
    return ClassScore(card.classes[0])


@dataclass(frozen=True, eq=False)
class RegionScore(Target):
    """The score that a segmentation network gives one class in a region, such as one lesion: the mean over its voxels.

    The network returns a map per class on its input's grid: (B, classes, X, Y, Z), or (B, classes, X, Y) in 2D. The
    region is brought to that grid by nearest voxel. Of a card with `region: half`, only halves that hold voxels of the
    region are explained; each half's score is the mean over those that it holds.

    Attributes:
        name: the class, as the model card has it.
        region: labels on the scan's own grid; all voxels that are not 0.
        label: takes the voxels of this label alone, such as one lesion among several.

    Raises:
        InputError: a region without a voxel, a label that does not occur.
    """

    name: str
    region: Labels = field(repr=False)
    label: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.region, Labels):
            raise InputError(
                f"a region is voxplain.Labels on the scan's grid, such as vx.Labels(array, scan.grid); "
                f"got {type(self.region).__name__}"
            )
        if self.count:
            return
        if self.label is None:
            raise InputError("the region is empty: every voxel is 0; expected at least one that is not")
        present = [str(label) for label in np.unique(self.region.data[self.region.data > 0])]
        shown = ", ".join(present[:20] + ["..."] * (len(present) > 20)) or "none"
        raise InputError(f"the region has no label {self.label}; its labels are {shown}")

    @property
    def mask(self) -> Labels:
        """The voxels that are read, as labels 0 and 1 on the region's grid."""
        if self.label is None and int(self.region.data.max()) <= 1:
            return self.region
        # Made anew: of hundreds of lesions whole masks would not fit into memory.
        chosen = np.zeros(self.region.grid.shape, dtype=np.int32)
        chosen[self._where] = 1
        return Labels(chosen, self.region.grid)

    @property
    def count(self) -> int:
        """How many voxels are read."""
        return len(self._where[0])

    @cached_property
    def _where(self) -> tuple[np.ndarray, ...]:
        """Where the voxels are along each axis, in order."""
        data = self.region.data
        return np.nonzero(data) if self.label is None else np.nonzero((data == self.label) & (data != 0))

    @cached_property
    def _fingerprint(self) -> str:
        return self.mask.fingerprint

    def check(self, card: Card, grid: Grid) -> None:
        """Raise InputError when the model has no such class, or the region lies on another grid than the scan."""
        _check_class(self.name, card)
        if difference := grid.difference(self.region.grid):
            raise InputError(f"the region lies on another grid than the scan: {difference}; give it on the scan's grid")

    def on(self, grids: Sequence[Grid]) -> list[Target | None]:
        """The region by nearest voxel on each grid; None where no voxel of it is left."""
        mask = self.mask
        there = [mask.on(grid) for grid in grids]
        found: list[Target | None] = [RegionScore(self.name, mask) if mask.data.any() else None for mask in there]
        count, outside = self.count, self._outside(grids)
        if outside == count:
            raise InputError(f"all {count} voxels of the region lie outside of what the network reads of this scan")
        if not any(found):
            spacing = " x ".join(f"{size:.3g}" for size in grids[0].spacing)
            raise InputError(
                f"the region of {count} voxels, {mask.volume:.3g} ml, is too small for the network's voxels of "
                f"{spacing} mm: the centre of none lies in it; explain a larger region"
            )
        if outside:
            warnings.warn(
                f"{outside} of the region's {count} voxels lie outside of what the network reads; its score leaves "
                "them out",
                UserWarning,
                stacklevel=2,
            )
        if None in found:
            warnings.warn(
                f"the region lies in {len(found) - found.count(None)} of the {len(found)} parts of the scan that the "
                "network reads; the others are not explained, and the map is 0 there",
                UserWarning,
                stacklevel=2,
            )
        return found

    def check_output(self, output: tuple[int, ...], inputs: tuple[int, ...], card: Card) -> None:
        """Raise InputError unless the output is (B, classes, X, Y, Z), or (B, classes, X, Y) in 2D."""
        expected = (inputs[0], len(card.classes), *inputs[2:])
        if output == expected:
            return
        advice = "name all classes in the card, or wrap the network so that it returns that one map"
        if output == expected[:2]:
            advice = f"a network that gives one score per class is explained by target=vx.ClassScore({self.name!r})"
        raise InputError(
            f"expected a map per class on the input's grid, shape {expected}; the network returns {output}: {advice}"
        )

    def positive(self, output: torch.Tensor, card: Card) -> bool:
        """Whether the calibrated probability reaches the card's threshold; never of a class that says "nothing"."""
        return self.name not in card.absent and super().positive(output, card)

    def logit(self, output: torch.Tensor, card: Card) -> torch.Tensor:
        """Mean over the region's voxels of the raw output of the class, (B,) float64."""
        return self._voxels(output)[:, card.classes.index(self.name)].double().mean(dim=1)

    def probability(self, output: torch.Tensor, card: Card) -> torch.Tensor:
        """Mean over the region's voxels of the probability of the class, (B,) float64."""
        return probabilities(self._voxels(output), card)[:, card.classes.index(self.name)].mean(dim=1)

    def record(self) -> dict[str, Any]:
        """Kind, name, label, and of the region how many voxels it has and its fingerprint."""
        return {
            "kind": "RegionScore",
            "name": self.name,
            "label": None if self.label is None else int(self.label),
            "voxels": self.count,
            "fingerprint": self._fingerprint,
        }

    def _voxels(self, output: torch.Tensor) -> torch.Tensor:
        """The output in the region's voxels, (B, classes, voxels): they are few where maps are large."""
        every = slice(None)
        index: list[slice | torch.Tensor] = [axis.to(output.device) for axis in self._index[: output.ndim - 2]]
        return output[(every, every, *index)]

    @cached_property
    def _index(self) -> list[torch.Tensor]:
        """Where the region's voxels are along each axis."""
        return [torch.from_numpy(axis) for axis in self._where]

    def _outside(self, grids: Sequence[Grid]) -> int:
        """How many of the region's voxels have their centre in none of the grids' fields of view."""
        world = self.region.grid.world(np.stack(self._where, axis=1))
        outside = np.ones(len(world), dtype=bool)
        for grid in grids:
            index = grid.index(world)
            outside &= ~((index > -0.5 - 1e-6) & (index < np.array(grid.shape) - 0.5 + 1e-6)).all(axis=1)
        return int(outside.sum())


def _check_class(name: str, card: Card) -> None:
    if name not in card.classes:
        raise InputError(f"the model has no class {name!r}; it has {', '.join(card.classes)}")


def probabilities(output: torch.Tensor, card: Card) -> torch.Tensor:
    """Probabilities (B, classes, ...), float64, of raw output, by the activation that the card states."""
    # Near 1 the steps of 32-bit numbers are larger than what a part changes when the network is sure.
    output = output.double()
    return torch.sigmoid(output) if card.activation == "sigmoid" else torch.softmax(output, dim=1)
