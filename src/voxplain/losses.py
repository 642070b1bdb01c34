"""Losses, as functions of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PerturbationLoss:
    """How little a perturbation moves the probability: low where the change |p - p'| is large.

    `form="reciprocal"` is the papers' mean(1 / (|p - p'| + eps)) (000, 3.4.1; 001 has the sum). Its gradient grows as
    1 / |p - p'|^2, so parts that hardly matter outvote those that do. Two forms are ours: "logarithm",
    mean(-log(|p - p'| + eps)), where it counts by which factor each change grows; and "difference",
    mean(1 - |p - p'|), where it counts by how much, which is the figure that held-out patients are scored by. `eps`
    keeps the first two finite where nothing changes.
    """

    eps: float = 1e-6
    form: str = "reciprocal"

    def __post_init__(self) -> None:
        if self.form not in ("reciprocal", "logarithm", "difference") or not 0 < self.eps < 1:
            raise ValueError(
                "form is reciprocal, logarithm or difference, and eps between 0 and 1; "
                f"got {self.form!r} and {self.eps}"
            )

    def __call__(self, clean: torch.Tensor, perturbed: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar, of probabilities (B,) before and after."""
        change = (clean - perturbed).abs()
        if self.form == "difference":
            return (1 - change).mean()
        return (1 / (change + self.eps)).mean() if self.form == "reciprocal" else -(change + self.eps).log().mean()
