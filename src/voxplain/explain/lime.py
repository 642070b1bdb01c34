"""LIME in 3D: a linear model of the score around the scan, one coefficient per part (Ribeiro 2016)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from voxplain.engine.probe import Probe
from voxplain.errors import InputError
from voxplain.explain.explainer import Relevance
from voxplain.explain.parts import PartsExplainer
from voxplain.explain.perturbation import features, scores_of_coalitions


@dataclass(frozen=True)
class LIME(PartsExplainer):
    """LIME: how much keeping a part adds to the score, in a ridge regression on random halves of the parts.

    Each sample keeps every part with probability 1/2 and fills the others (the first sample keeps all). A sample z
    weighs exp(-D^2 / (2 `kernel_width`^2)), where D = 1 - sqrt(kept / parts) is the cosine distance to the whole scan,
    as in the authors' own code; the coefficients minimise the weighted squared error + `ridge` x their sum of squares,
    with a free intercept and no selection of features (Ribeiro 2016, eq. 1 and 2). Positive where a part speaks for
    the class. A part that its fill does not change has 0 and takes no part in the fit.
    """

    name: ClassVar[str] = "lime"
    cost: ClassVar[str] = "1 + one pass per sample (`samples` - 1)"

    samples: int = field(default=1000, metadata={"help": "samples, the whole scan included"})
    kernel_width: float = field(
        default=0.25, metadata={"help": "width of the exponential kernel, in cosine distance (0 to 1)"}
    )
    ridge: float = field(default=1.0, metadata={"help": "strength of the ridge penalty on the coefficients; 0 is none"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2:
            raise InputError(f"samples must be at least 2, the whole scan and another one; got {self.samples}")
        if not 0 < self.kernel_width < np.inf or not 0 <= self.ridge < np.inf:
            raise InputError(
                f"kernel_width must be above 0 and ridge at least 0; got {self.kernel_width} and {self.ridge}"
            )

    def _relevance(self, probe: Probe) -> Relevance:
        parts = self._parts(probe)
        known = features(probe, parts, self._fill())
        count = len(known.labels)
        if self.ridge == 0 and self.samples <= count:
            raise InputError(
                f"{count} parts cannot be told apart by {self.samples} samples without a ridge; "
                "give more samples, fewer segments, or a ridge above 0"
            )
        # Without a part that its fill changes, all samples are the whole scan.
        coalitions = halves(self.samples if count else 1, count, probe.rng)
        changes = np.zeros(len(coalitions))
        # The whole scan's score is known. Differences from it, so that a score that never moves gives exact zeros.
        changes[1:] = scores_of_coalitions(probe, known, coalitions[1:], self.scale) - probe.clean_score(self.scale)
        weights = closeness(coalitions, self.kernel_width)
        coefficients, intercept, r_squared = ridge_regression(coalitions, changes, weights, self.ridge)
        return Relevance(
            unit=f"LIME coefficient, rise of {self.scale}",
            signed=True,
            parts=parts,
            scores=known.scores_by_label(coefficients, int(parts.data.max())),
            facts={
                "parts": int(parts.data.max()),
                "features": count,
                "samples": len(coalitions),
                "kernel": f"exp(-D^2 / (2 {self.kernel_width}^2)), D = 1 - sqrt(kept / features)",
                "kernel_width": self.kernel_width,
                "ridge": self.ridge,
                "r_squared": r_squared,
                "intercept": intercept + probe.clean_score(self.scale),
                "passes": probe.forwards,
            },
        )


def halves(samples: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """The design: boolean (samples, count), each feature kept with probability 1/2; the first sample keeps all."""
    kept = rng.random((samples, count)) < 0.5
    kept[0] = True
    return kept


def closeness(coalitions: np.ndarray, kernel_width: float) -> np.ndarray:
    """The exponential kernel of the cosine distance between each coalition (S, M) and the one that keeps all, (S,)."""
    distance = 1 - np.sqrt(coalitions.mean(axis=1)) if coalitions.shape[1] else np.zeros(len(coalitions))
    return np.exp(-(distance**2) / (2 * kernel_width**2))


def ridge_regression(
    design: np.ndarray, scores: np.ndarray, weights: np.ndarray, strength: float
) -> tuple[np.ndarray, float, float]:
    """Weighted ridge regression with an intercept that is not penalised.

    Returns:
        Coefficients (M,), intercept, and the weighted R^2 of the fit (at most 1; 1 where the scores do not vary).
    """
    share = weights / weights.sum()
    middle, level = share @ design, float(share @ scores)
    centred, deviations = design - middle, scores - level
    normal = centred.T @ (weights[:, None] * centred) + strength * np.eye(design.shape[1])
    # Least squares, so that a feature that no sample moves (or moves with another) still has a defined coefficient.
    coefficients = np.linalg.lstsq(normal, centred.T @ (weights * deviations), rcond=None)[0]
    left, varies = (float(weights @ values**2) for values in (deviations - centred @ coefficients, deviations))
    return coefficients, level - float(middle @ coefficients), 1 - left / varies if varies > 0 else 1.0
