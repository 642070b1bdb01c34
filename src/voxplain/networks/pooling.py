"""How the features of all places become one number each: the highest, the mean of the highest, or something between."""

from __future__ import annotations

import math

import torch
from torch import nn


class GlobalPooling(nn.Module):
    """Features (B, C, spatial...) to one number per feature, (B, C).

    `pooling` is

    - "max": the highest value;
    - "top:SHARE": the mean of that share of the highest values, such as "top:0.03";
    - "log-sum-exp:SHARPNESS": log(mean(exp(r x))) / r, between the mean (r small) and the maximum (r large), as in
      Pinheiro and Collobert 2015.

    Raises:
        ValueError: no such pooling.
    """

    def __init__(self, pooling: str) -> None:
        super().__init__()
        self.kind, self.number = _parsed(pooling)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The pooled features (B, C)."""
        flat = features.flatten(2)
        if self.kind == "max":
            return flat.amax(dim=2)
        if self.kind == "top":
            return flat.topk(self._count(flat), dim=2, sorted=False).values.mean(dim=2)
        # Exponentials of thousands of places do not add up in 16 bits.
        wide = flat.to(torch.promote_types(flat.dtype, torch.float32))
        pooled = (torch.logsumexp(self.number * wide, dim=2) - math.log(flat.shape[2])) / self.number
        return pooled.to(flat.dtype)

    def shares(self, features: torch.Tensor) -> torch.Tensor:
        """What each place adds to its feature's pooled value, (B, C, spatial...); they add up to it.

        With "max" all of it comes from the highest place (the first of several), with "top" from each of the share by
        its value, with "log-sum-exp" by the weights of the softmax.
        """
        flat = features.flatten(2)
        if self.kind == "log-sum-exp":
            found = torch.softmax(self.number * flat, dim=2) * self(features)[..., None]
            return found.reshape(features.shape)
        count = self._count(flat) if self.kind == "top" else 1
        highest = flat.max(dim=2, keepdim=True) if self.kind == "max" else flat.topk(count, dim=2)
        return torch.zeros_like(flat).scatter(2, highest.indices, highest.values / count).reshape(features.shape)

    def _count(self, flat: torch.Tensor) -> int:
        return max(1, round(self.number * flat.shape[2]))


def _parsed(pooling: str) -> tuple[str, float]:
    kind, _, argument = pooling.partition(":")
    try:
        number = float(argument) if argument else math.nan
    except ValueError:
        number = math.nan
    if pooling == "max" or (kind == "top" and 0 < number <= 1) or (kind == "log-sum-exp" and 0 < number < math.inf):
        return kind, number
    raise ValueError(f'pooling is "max", "top:SHARE" (0 to 1) or "log-sum-exp:SHARPNESS" (above 0); got {pooling!r}')
