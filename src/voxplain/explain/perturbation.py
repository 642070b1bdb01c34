"""The one core of perturbation methods: parts x fill x design of experiments x estimator.

A design says which inputs are run, as a stream of samples; `scored` alone builds and runs them, one batch at a time;
an estimator turns their scores into one number per part or per voxel. Designs and estimators that one method alone has
are in that method's file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import numpy as np
from scipy.ndimage import find_objects

from voxplain.engine.incremental import Patch
from voxplain.engine.probe import PATCHES_AT_ONCE, Probe
from voxplain.engine.progress import tracked
from voxplain.explain.fills import Box, Fill
from voxplain.scan import Labels

WHOLE: Box = (slice(None), slice(None), slice(None))


@dataclass(frozen=True, eq=False)
class Sample:
    """One perturbed input: inside a box of the clean input, what is not kept is filled.

    `keep` has the box's shape (x, y, z): boolean, or float32 from 0 (filled) to 1 (kept), between which the input is
    blended with the fill. `fill` is (C, x, y, z), or of a shape that broadcasts to it.
    """

    box: Box
    keep: np.ndarray
    fill: np.ndarray

    def patch(self, image: np.ndarray) -> Patch:
        """The box, (start, stop) per axis, and what a perturbed input (C, X, Y, Z) holds there, (C, x, y, z)."""
        inside = image[(slice(None), *self.box)].copy()
        self._perturb(inside)
        return self.sides(image), inside

    def sides(self, image: np.ndarray) -> list[tuple[int, int]]:
        """The box in an input (C, X, Y, Z), (start, stop) per axis."""
        return [side.indices(size)[:2] for side, size in zip(self.box, image.shape[1:], strict=True)]

    def write(self, image: np.ndarray) -> None:
        """Perturb a copy of the clean input (C, X, Y, Z) in place."""
        self._perturb(image[(slice(None), *self.box)])

    def _perturb(self, inside: np.ndarray) -> None:
        if self.keep.dtype == np.bool_:
            np.copyto(inside, self.fill, where=~self.keep)
        else:
            inside -= self.fill
            inside *= self.keep
            inside += self.fill

    def in_one(self, sequence: int, image: np.ndarray) -> Sample:
        """The same perturbation of the clean input (C, X, Y, Z) in one sequence alone, by its place among the C."""
        fill = image[(slice(None), *self.box)].copy()
        fill[sequence] = self.fill[sequence]
        return Sample(self.box, self.keep, fill)

    def changes(self, image: np.ndarray) -> bool:
        """Whether a sample of boolean `keep` differs from the clean input (C, X, Y, Z)."""
        inside = image[(slice(None), *self.box)]
        return bool(((inside != self.fill) & ~self.keep).any())


def scored(
    probe: Probe, samples: Iterable[Sample], scale: str, *, count: int, what: str | None
) -> Iterator[tuple[Sample, float]]:
    """Run a stream of `count` samples, and pass each on with the target's score ("probability" or "logit").

    The one loop over perturbed inputs: no more of them exist at a time than one batch, and samples are drawn from the
    stream only as batches need them. Samples that perturb a part of the input go through the engine that the run asks
    for; those that touch all of it run in full. `what` they are is announced; None leaves that, and a progress bar, to
    the caller.
    """
    shown = probe.compute.progress and what is not None
    if what is not None:
        announce(probe, samples, count=count, what=what)
    with closing(tracked(samples, probe.prepared.name, shown=shown, total=count)) as stream:
        while batch := list(islice(stream, probe.batch_size)):
            if all(sample.box != WHOLE for sample in batch) and probe.works_in_boxes:
                # Boxes are small: more of them than whole inputs fit into the memory of one batch.
                if probe.compute.batch_size is None:
                    batch += islice(stream, PATCHES_AT_ONCE - len(batch))
                scores = probe.scores_of_patches([sample.patch(probe.input) for sample in batch], scale)
            else:
                scores = probe.scores_of([sample.write for sample in batch], scale)
            yield from zip(batch, scores.tolist(), strict=True)


def announce(probe: Probe, samples: Iterable[Sample], *, count: int, what: str) -> None:
    """Say how many passes are coming and how long they should take, where `count` of these samples will run.

    What samples of a stream perturb is not known beforehand; they are taken to run in full.
    """
    known = list(samples) if isinstance(samples, Collection) else []
    in_part = all(sample.box != WHOLE for sample in known)
    probe.announce(count, what, [sample.sides(probe.input) for sample in known] if in_part else ())


def without_each_part(probe: Probe, parts: Labels, fill: Fill) -> dict[int, Sample]:
    """The design that fills one part at a time, in all channels at once, by label.

    A part that its fill does not change is left out: its score is the clean one, and costs no pass.
    """
    values = fill(probe)
    samples: dict[int, Sample] = {}
    for label, box in enumerate(find_objects(parts.data), start=1):
        inside = parts.data[box] == label
        sample = Sample(box, ~inside, values(box, inside))
        if sample.changes(probe.input):
            samples[label] = sample
    return samples


def scores_without_each_part(probe: Probe, parts: Labels, fill: Fill, scale: str) -> np.ndarray:
    """The target's score ("probability" or "logit") with each part filled in turn, (N,) float64.

    Only the part's voxels change. A part that its fill does not change keeps the clean score and costs no pass.
    """
    scores = np.full(int(parts.data.max(initial=0)), probe.clean_score(scale))
    samples = without_each_part(probe, parts, fill)
    run = scored(probe, samples.values(), scale, count=len(samples), what=f"{len(scores)} parts")
    for label, (_, score) in zip(samples, run, strict=True):
        scores[label - 1] = score
    return scores


def scores_without_each_sequence(probe: Probe, parts: Labels, fill: Fill, scale: str) -> np.ndarray:
    """The target's score with each part filled in one sequence at a time, (C, N) float64.

    What stays as it is keeps the clean score and costs no pass, as in `scores_without_each_part`.
    """
    count = int(parts.data.max(initial=0))
    scores = np.full((len(probe.input), count), probe.clean_score(scale))
    samples = {
        (sequence, label - 1): alone
        for label, sample in without_each_part(probe, parts, fill).items()
        for sequence in range(len(probe.input))
        if (alone := sample.in_one(sequence, probe.input)).changes(probe.input)
    }
    what = f"{count} parts in {len(probe.input)} sequences"
    run = scored(probe, samples.values(), scale, count=len(samples), what=what)
    for place, (_, score) in zip(samples, run, strict=True):
        scores[place] = score
    return scores


@dataclass(frozen=True, eq=False)
class Features:
    """The M parts that their fill changes: what coalitions are made of.

    `labels` (M,) are their labels among all parts; `index` (X, Y, Z) says 1..M which feature a voxel belongs to, and 0
    where it is never filled; `filled` (C, X, Y, Z) is the input with all of them filled.
    """

    labels: np.ndarray
    index: np.ndarray
    filled: np.ndarray

    def scores_by_label(self, values: np.ndarray, count: int) -> np.ndarray:
        """Values of the features (M,) as scores of all parts, (count,); parts that change nothing have 0."""
        scores = np.zeros(count)
        scores[self.labels - 1] = values
        return scores


def features(probe: Probe, parts: Labels, fill: Fill) -> Features:
    """The parts that their fill changes, and the input with all of them filled."""
    samples = without_each_part(probe, parts, fill)
    filled = probe.input.copy()
    index = np.zeros(parts.data.shape, dtype=np.int32)
    for number, sample in enumerate(samples.values(), start=1):
        sample.write(filled)
        index[sample.box][~sample.keep] = number
    return Features(np.array([*samples], dtype=np.int64), index, filled)


def scores_of_coalitions(probe: Probe, known: Features, coalitions: np.ndarray, scale: str) -> np.ndarray:
    """The target's score ("probability" or "logit") with only the members of each coalition kept, (S,) float64.

    `coalitions` is boolean (S, M): which features are kept; all others are filled.
    """
    samples = (Sample(WHOLE, np.append(True, members)[known.index], known.filled) for members in coalitions)
    what = f"{len(known.labels)} parts"
    return np.array([score for _, score in scored(probe, samples, scale, count=len(coalitions), what=what)])
