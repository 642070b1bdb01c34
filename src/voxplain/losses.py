"""Losses, as functions of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PerturbationLoss:
    """How little a perturbation moves the probability: low where the change |p - p'| is large.

    `form="reciprocal"` is the papers' mean(1 / (|p - p'| + eps)) (000, 3.4.1; 001 has the sum). Its gradient grows as
    1 / |p - p'|^2, so parts that hardly matter outvote those that do. `form="logarithm"`, ours, is
    mean(-log(|p - p'| + eps)), whose gradient grows as 1 / |p - p'|: what counts is by which factor each change grows.
    `eps` keeps both finite where nothing changes.
    """

    eps: float = 1e-6
    form: str = "reciprocal"

    def __post_init__(self) -> None:
        if self.form not in ("reciprocal", "logarithm") or not 0 < self.eps < 1:
            raise ValueError(
                f"form is reciprocal or logarithm, and eps between 0 and 1; got {self.form!r} and {self.eps}"
            )

    def __call__(self, clean: torch.Tensor, perturbed: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar, of probabilities (B,) before and after."""
        change = (clean - perturbed).abs() + self.eps
        return (1 / change).mean() if self.form == "reciprocal" else -change.log().mean()
