"""The one core of perturbation methods: parts of the input are replaced, and the score is read again."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import find_objects

from voxplain.engine.probe import Probe, tracked
from voxplain.explain.fills import Fill
from voxplain.scan import Labels


def scores_without_each_part(probe: Probe, parts: Labels, fill: Fill, scale: str) -> np.ndarray:
    """The target's score ("probability" or "logit") with each part filled in turn, (N,) float64.

    Only the part's voxels change, in all channels at once. A part that its fill does not change keeps the clean
    score and costs no pass.
    """
    image, background = probe.input, np.asarray(probe.prepared.background, dtype=np.float32)
    boxes = find_objects(parts.data)
    scores = np.full(len(boxes), probe.clean_score(scale))
    fillings: dict[int, tuple[tuple[slice, slice, slice], np.ndarray]] = {}
    for index, box in enumerate(boxes):
        inside = parts.data == index + 1
        values = np.broadcast_to(fill(image, inside, background), (len(image), int(inside.sum())))
        if not np.array_equal(values, image[:, inside]):
            patch = image[(slice(None), *box)].copy()
            patch[:, inside[box]] = values
            fillings[index] = (box, patch)
    changing = list(fillings)
    probe.announce(len(changing), f"{len(boxes)} parts")
    batches = [changing[start : start + probe.batch_size] for start in range(0, len(changing), probe.batch_size)]
    for batch in tracked(batches, probe.prepared.name, shown=probe.compute.progress):
        perturbed = np.repeat(image[None], len(batch), axis=0)
        for row, index in enumerate(batch):
            box, patch = fillings[index]
            perturbed[(row, slice(None), *box)] = patch
        scores[batch] = probe.scores(perturbed, scale)
    return scores
