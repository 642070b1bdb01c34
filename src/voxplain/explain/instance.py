"""One lesion at a time: gradients of its voxels' scores on noisy copies of the scan (paper 004)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from voxplain.engine.boxes import Boxes
from voxplain.engine.jacobian import Jacobian
from voxplain.engine.probe import Probe
from voxplain.engine.progress import console, tracked
from voxplain.engine.pullback import Cotangents
from voxplain.engine.running import timed
from voxplain.engine.signed_maximum import SignedMaximum, laid_out
from voxplain.errors import InputError
from voxplain.explain.explainer import Explainer, Relevance
from voxplain.explain.parts import one_of
from voxplain.model import Model
from voxplain.target import RegionScore, Target

# So many regions are explained together at most: their maps are held at the same time.
_MOST_TOGETHER = 16
# Where a network reads all of the scan at once, regions within so many mm share passes.
_NEIGHBOURHOOD = 32.0


@dataclass(frozen=True)
class InstanceSmoothGrad(Explainer):
    """SmoothGrad of one lesion of a segmentation network: how each voxel of each sequence moves the lesion's scores.

    On each of N noisy copies x_n of the network's input, the gradients D_v = d y(x_n)[v] / d x_n of the raw scores y in
    the lesion's voxels v are taken, and aggregated; the map is the mean over the copies. `aggregation="maximum"` takes
    at every voxel and in every sequence the D_v that is farthest from 0, with its sign (004, Eq. 3; of equally far
    ones that of the first voxel), which lets lesions of all sizes be compared; "average" the mean over the voxels
    (Eq. 2). One copy without noise (`copies=1, sigma=0`) gives the plain gradient.

    One map per sequence, signed, in logit per intensity unit, where the unit of intensity is that of the network's
    input after normalisation; maps are never rescaled. Noise is drawn from the seed, on all of the network's input,
    each copy with a stream of its own. Of a lesion of more than `most_voxels` voxels, "maximum" looks at that many,
    drawn from the seed, and the provenance says so.

    Gradients of single voxels are followed back in boxes (`voxplain.engine.jacobian`): what the paper's code finds
    with one backward pass over the whole scan per voxel and copy, to rounding. `each` explains lesions that lie near
    each other together.
    """

    name: ClassVar[str] = "instance-smoothgrad"
    family: ClassVar[str] = "gradient"
    needs: ClassVar[Literal["calls", "gradients", "layer"]] = "gradients"
    cost: ClassVar[str] = "`copies` forward, `copies` x voxels of the lesion backward, each in a box"
    takes: ClassVar[tuple[type[Target], ...]] = (RegionScore,)

    aggregation: str = field(
        default="maximum",
        metadata={"help": "maximum: over the lesion's voxels, with its sign (004, Eq. 3); average (Eq. 2)"},
    )
    copies: int = field(default=50, metadata={"help": "noisy copies of the scan"})
    sigma: float = field(default=0.05, metadata={"help": "the noise's standard deviation, as a share of the range"})
    sigma_reference: str = field(
        default="channel",
        metadata={
            "help": "channel: the range (maximum - minimum) of each sequence; first_channel: that of the first one for "
            "all, as the paper's code"
        },
    )
    most_voxels: int = field(
        default=512, metadata={"help": "maximum: of larger lesions so many voxels, drawn at random, are looked at"}
    )

    def __post_init__(self) -> None:
        one_of("aggregation", self.aggregation, ("maximum", "average"))
        one_of("sigma_reference", self.sigma_reference, ("channel", "first_channel"))
        if self.copies < 1 or self.most_voxels < 1 or not 0 <= self.sigma < np.inf:
            raise InputError(
                "copies and most_voxels are at least 1, and sigma is a share of the range, 0 or more; got "
                f"copies {self.copies}, most_voxels {self.most_voxels}, sigma {self.sigma}"
            )

    def _relevance(self, probe: Probe) -> Relevance:
        (found,) = self._relevances([probe])
        return found

    def _together(self, model: Model, targets: Sequence[RegionScore]) -> list[list[int]]:
        """Regions whose middles lie in one cell of half a window, or of 32 mm."""
        if self.aggregation == "average":
            return super()._together(model, targets)
        cells: dict[tuple[int, ...], list[int]] = {}
        for number, target in enumerate(targets):
            grid = target.mask.grid
            middle = grid.world(np.argwhere(target.mask.data).mean(axis=0)[None])[0]
            size = np.full(3, _NEIGHBOURHOOD)
            if model.card.window is not None:
                size = np.array(model.card.window) / 2 * np.array(model.card.spacing or grid.spacing)
            cells.setdefault(tuple(np.floor(middle / size).astype(int).tolist()), []).append(number)
        return [
            numbers[first : first + _MOST_TOGETHER]
            for numbers in cells.values()
            for first in range(0, len(numbers), _MOST_TOGETHER)
        ]

    def _relevances(self, probes: Sequence[Probe]) -> Iterator[Relevance]:
        """Maps of several lesions of one input, on the same noisy copies; passes forward are shared."""
        first = probes[0]
        # Of each lesion the same streams, whoever it is explained with: one a copy, and one for the sample.
        streams = [probe.rng.spawn(self.copies + 1) for probe in probes]
        lesions = [_voxels_of(probe) for probe in probes]
        chosen = [self._sample(voxels, its[-1]) for voxels, its in zip(lesions, streams, strict=True)]
        index = first.model.card.classes.index(first.target.record()["name"])
        jacobian = Jacobian(first, np.concatenate(chosen), index, single=self.aggregation == "maximum")
        deviation = self._deviation(first.input)
        # Without noise all copies are the same.
        count = self.copies if deviation.any() else 1
        copies = (_noisy(first.input, deviation, stream) for stream in streams[0][:count])
        self._announce(first, jacobian, [len(voxels) for voxels in chosen], count)
        with closing(tracked(copies, f"{self.name}, copies", shown=first.compute.progress, total=count)) as each:
            added_up = _maxima if self.aggregation == "maximum" else _means
            maps = [total / count for total in added_up(first, jacobian, each, [len(voxels) for voxels in chosen])]
        spacing = first.prepared.input.grid.spacing
        for probe, voxels, used, found in zip(probes, lesions, chosen, maps, strict=True):
            probe.forwards += count
            probe.backwards += count * (len(used) if self.aggregation == "maximum" else 1)
            probe.notices += [notice for notice in first.notices if notice not in probe.notices]
            facts: dict[str, Any] = {
                "copies": self.copies,
                "sigma": [float(value) for value in deviation],
                "voxels": {"used": len(used), "of": len(voxels)},
                "engine": jacobian.engine,
                "crops": jacobian.crops,
                "lesions_together": len(probes),
            }
            if jacobian.reach is not None:
                millimetres = [round(n * s, 3) for n, s in zip(jacobian.reach, spacing, strict=False)]
                facts["receptive_field"] = {"voxels": list(jacobian.reach), "mm": millimetres}
            yield Relevance(
                unit="logit per intensity unit",
                signed=True,
                channels=probe.model.card.channels,
                map=found,
                facts=facts,
            )

    def _sample(self, voxels: np.ndarray, stream: np.random.Generator) -> np.ndarray:
        """The voxels that are looked at, in order."""
        if self.aggregation == "average" or len(voxels) <= self.most_voxels:
            return voxels
        return voxels[np.sort(stream.choice(len(voxels), self.most_voxels, replace=False))]

    def _deviation(self, image: np.ndarray) -> np.ndarray:
        """The noise's standard deviation in each sequence, (C,)."""
        ranges = np.ptp(image.reshape(len(image), -1), axis=1).astype(np.float64)
        if self.sigma_reference == "first_channel":
            ranges[:] = ranges[0]
        return self.sigma * ranges

    def _announce(self, probe: Probe, jacobian: Jacobian, counts: Sequence[int], count: int) -> None:
        """Say how much is to be done before it begins, and how long it should take."""
        if not probe.compute.progress:
            return
        lesions = f"{len(counts)} regions of {sum(counts)} voxels" if len(counts) > 1 else f"{counts[0]} voxels"
        if self.aggregation == "average":
            what = f"{count} copies, a backward pass for each"
            seconds = count * timed(lambda: jacobian.mean(probe.input, np.ones(sum(counts), dtype=np.float32)))
        else:
            what = f"{count} copies x {sum(counts)} voxels, {count * sum(counts)} gradients"
            seconds = count * jacobian.seconds(probe.input)
        console.print(f"{probe.prepared.name}: {lesions}, {what}, about {seconds:.0f} s", highlight=False)


def _voxels_of(probe: Probe) -> np.ndarray:
    """The region's voxels on the network's input, (N, 3), in order."""
    assert isinstance(probe.target, RegionScore)
    return np.argwhere(probe.target.mask.data)


def _noisy(image: np.ndarray, deviation: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """A copy of the network's input (C, X, Y, Z) with Gaussian noise in all of its voxels."""
    if not deviation.any():
        return image
    noise = stream.standard_normal(image.shape, dtype=np.float32)
    return image + noise * deviation.astype(np.float32)[:, None, None, None]


def _maxima(probe: Probe, jacobian: Jacobian, copies: Iterator[np.ndarray], counts: Sequence[int]) -> list[np.ndarray]:
    """Sum over copies of the signed maximum over each lesion's voxels, (C, X, Y, Z) each (Eq. 3)."""
    owner = np.repeat(np.arange(len(counts)), counts)
    totals: list[Cotangents | None] = [None] * len(counts)
    for image in copies:
        found: dict[int, SignedMaximum] = {}
        for rows in jacobian.rows(image):
            for lesion in np.unique(owner[rows.numbers]).tolist():
                boxes, values = rows.only(np.flatnonzero(owner[rows.numbers] == lesion))
                if lesion not in found:
                    # What earlier copies filled, this one will fill too.
                    before = totals[lesion]
                    held = Boxes(boxes.start[:1], boxes.size) if before is None else before.boxes
                    found[lesion] = SignedMaximum(len(probe.input), held, probe.device)
                found[lesion].add(boxes, values)
        for lesion, maximum in found.items():
            its, total = Cotangents(maximum.boxes, maximum.values, own=True), totals[lesion]
            totals[lesion] = its if total is None else total.plus(its)
    return [laid_out(total, probe.input.shape[1:]) for total in totals if total is not None]


def _means(probe: Probe, jacobian: Jacobian, copies: Iterator[np.ndarray], counts: Sequence[int]) -> list[np.ndarray]:
    """Sum over copies of the mean over each lesion's voxels, (C, X, Y, Z) each (Eq. 2)."""
    owner = np.repeat(np.arange(len(counts)), counts)
    sums = [np.zeros(probe.input.shape) for _ in counts]
    for image in copies:
        for lesion, count in enumerate(counts):
            sums[lesion] += jacobian.mean(image, ((owner == lesion) / count).astype(np.float32))
    return [total.astype(np.float32) for total in sums]
