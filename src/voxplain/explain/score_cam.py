"""Score-CAM: feature maps weighted by what the score is where only they let the input through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from scipy.special import softmax

from voxplain.engine.differentiating import LayerGradient, add_inside
from voxplain.engine.probe import Probe
from voxplain.explain.cam import ClassActivationMap, resized
from voxplain.explain.parts import one_of
from voxplain.explain.perturbation import WHOLE, Sample, scored


@dataclass(frozen=True)
class ScoreCAM(ClassActivationMap):
    """Score-CAM (Wang 2020): feature maps weighted by the score of the input seen through each of them.

    A map, resized and scaled to 0-1 (eq. 5 and 6), is multiplied into the input, what it hides being background; the
    weights are a softmax over the maps of the scores that these inputs have beyond that of background alone. A map that
    is the same everywhere has weight 0, and where no map moves the score all have. A constant does not change a
    softmax, so that the baseline, the score of background alone, cancels.
    """

    name: ClassVar[str] = "score-cam"
    cost: ClassVar[str] = "2 forward, 1 backward, one pass per feature map"
    unit: ClassVar[str] = "weight x activation"

    scale: str = field(default="logit", metadata={"help": "score that is read: logit or probability"})

    def __post_init__(self) -> None:
        one_of("scale", self.scale, ("logit", "probability"))

    def _weighting(self, probe: Probe, pieces: Sequence[LayerGradient]) -> Callable[[LayerGradient], np.ndarray]:
        shape = probe.input.shape[1:]
        background = np.array(probe.prepared.background, dtype=np.float32)[:, None, None, None]
        fill = np.broadcast_to(background, probe.input.shape)
        channels = len(pieces[0].activation)

        def samples() -> Iterator[Sample]:
            for channel in range(channels):
                fine = np.zeros((1, *shape), dtype=np.float32)
                for piece in pieces:
                    add_inside(fine, resized(piece.activation[channel], piece), piece.sides)
                low, high = float(fine.min()), float(fine.max())
                yield Sample(WHOLE, (fine[0] - low) / ((high - low) or 1), fill)

        said = scored(probe, samples(), self.scale, count=channels, what=f"{channels} feature maps")
        scores = np.array([score for _, score in said])
        every = np.concatenate([piece.activation.reshape(channels, -1) for piece in pieces], axis=1)
        flat = np.ptp(every, axis=1) == 0
        weights = np.zeros(channels)
        # A softmax of equal scores would spread weight over maps that do nothing.
        if not flat.all() and (scores[~flat] != probe.clean_score(self.scale)).any():
            weights[~flat] = softmax(scores[~flat])
        return lambda piece: np.tensordot(weights.astype(np.float32), piece.activation, axes=(0, 0))
