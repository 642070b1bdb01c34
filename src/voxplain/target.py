"""What is explained: a value that turns the network's raw output into one number per input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from voxplain.errors import InputError
from voxplain.model import Card


class Target(ABC):
    """What is explained. A target never runs the network; it reads its raw output."""

    @abstractmethod
    def logit(self, output: torch.Tensor, card: Card) -> torch.Tensor:
        """The explained score before any squashing, (B,), from the network's raw output (B, classes)."""

    @abstractmethod
    def probability(self, output: torch.Tensor, card: Card) -> torch.Tensor:
        """The explained score as a probability, (B,), from the network's raw output (B, classes)."""

    @abstractmethod
    def check(self, card: Card) -> None:
        """Raise InputError when the network does not have what this target asks for."""


@dataclass(frozen=True)
class ClassScore(Target):
    """The score of one class of a classifier, by name as the model card has it."""

    name: str

    def check(self, card: Card) -> None:
        """Raise InputError when the model has no such class."""
        if self.name not in card.classes:
            raise InputError(f"the model has no class {self.name!r}; it has {', '.join(card.classes)}")

    def logit(self, output: torch.Tensor, card: Card) -> torch.Tensor:
        """Raw output of the class, (B,)."""
        return output[:, card.classes.index(self.name)]

    def probability(self, output: torch.Tensor, card: Card) -> torch.Tensor:
        """Probability of the class, (B,) float64, by the activation that the card states."""
        # Near 1 the steps of 32-bit numbers are larger than what a part changes when the network is sure.
        output = output.double()
        squashed = torch.sigmoid(output) if card.activation == "sigmoid" else torch.softmax(output, dim=1)
        return squashed[:, card.classes.index(self.name)]
