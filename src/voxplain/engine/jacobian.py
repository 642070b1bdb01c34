"""The Jacobian of a segmentation network's raw scores in some voxels, stitched where it reads the scan in windows."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from voxplain.engine.boxes import Boxes
from voxplain.engine.local_gradients import AutogradNetwork, LocalNetwork, Reading, Rows
from voxplain.engine.probe import Probe
from voxplain.engine.pullback import Cotangents, joined
from voxplain.engine.receptive_field import ReceptiveField, Sides, receptive_field
from voxplain.engine.tracing import UntraceableError
from voxplain.engine.windows import Tiling

# Shares of the memory limit: what passes keep for gradients, and gradients on their way through a layer.
_KEPT, _ON_THE_WAY = 2, 8
# Of voxels that lie in several windows, so many rows are put together before more gain nothing.
_MOST_AT_ONCE = 32
# Windows of so many voxels run forward in less time than it takes to find what of them could be left out.
_UNCROPPED = 128**3
# So many voxels of each window tell how long rows take.
_TIMED = 8


@dataclass(frozen=True, eq=False)
class _Window:
    """A window that holds some of the voxels.

    Attributes:
        number: its number in the tiling.
        held: which of the voxels it holds.
        places: where these are in the crop, (n, D).
        weights: how much the window counts there, (n,).
        crop: what of the window runs.
        origin: the crop's first voxel, counted in the input, (D,).
    """

    number: int
    held: np.ndarray
    places: np.ndarray
    weights: torch.Tensor
    crop: Sides
    origin: np.ndarray


class Jacobian:
    """Rows of the Jacobian d y[v] / d x of one class's raw score y in voxels v, on copies of a probe's input x.

    A row is the gradient of one voxel's score, blended over windows where the network reads those: blending weights
    are part of it. Gradients are followed back in boxes, layer by layer; a network or layer for which there are no
    rules runs backward as a whole, and the probe's `notices` say so. Passes work on the receptive field alone, where
    the window is larger than `uncropped`; below that, finding it costs more than it saves, unless each voxel's
    gradient runs backward through all of it.

    Args:
        probe: network and input; its target may be any, of these voxels or others.
        voxels: of the input, whole numbers (N, 3).
        index: the class, by its place in the card.
        single: whether `rows` will be asked for, or `mean` alone.
        uncropped: voxels of a window up to which it is not cropped.

    Attributes:
        engine: "local", or "autograd" where the network runs backward as a whole.
    """

    def __init__(
        self, probe: Probe, voxels: np.ndarray, index: int, *, single: bool = True, uncropped: int = _UNCROPPED
    ) -> None:
        self._probe, self._index, self._single, self._uncropped = probe, index, single, uncropped
        self._axes = probe.model.card.spatial_dims
        self._shape = probe.input.shape[1:]
        self._tiling = Tiling.of(probe.model.card, self._shape)
        self._voxels = voxels
        self.engine = "local" if single else "autograd"
        self._fields: list[tuple[ReceptiveField, Sides]] = []
        self._largest = np.zeros(self._axes, dtype=np.int64)
        self._networks: dict[tuple[int, ...], LocalNetwork | AutogradNetwork] = {}
        clean = self._padded(probe.input)
        found = (self._window(number, clean) for number in range(len(self._tiling.boxes)))
        self._windows = [window for window in found if window is not None]
        self._groups = self._grouped()

    @property
    def crops(self) -> list[list[int]]:
        """What runs of each window that holds any of the voxels, in voxels along each axis."""
        return [[stop - start for start, stop in window.crop] for window in self._windows]

    @property
    def reach(self) -> tuple[int, ...] | None:
        """The receptive field of a single voxel, in voxels along each axis; None where nothing has shown it yet.

        Windows may cut it.
        """
        if self._largest.any():
            return tuple(self._largest.tolist())
        spans = [
            [(b - a) - (last - first - 1) for (a, b), (first, last) in zip(field.box, wanted, strict=True)]
            for field, wanted in self._fields
        ]
        return tuple(np.max(spans, axis=0).tolist()) if spans else None

    def rows(self, image: np.ndarray) -> Iterator[Rows]:
        """All rows on an input (C, X, Y, Z), in boxes of it; voxels that lie in the same windows after each other."""
        padded = self._padded(image)
        passes: dict[int, Reading] = {}
        for place, (windows, numbers) in enumerate(self._groups):
            self._forget(passes, place)
            for number in windows:
                if number not in passes:
                    piece = self._piece(padded, self._windows[number])
                    passes[number] = self._network(piece).read(piece)
            used = [(self._windows[number], passes[number]) for number in windows]
            if len(used) == 1:
                yield from self._of_window(*used[0], numbers)
                continue
            step = self._at_once(len(used))
            for first in range(0, len(numbers), step):
                yield self._blended(used, numbers[first : first + step])

    def _of_window(self, window: _Window, reading: Reading, numbers: np.ndarray) -> Iterator[Rows]:
        """What a window adds to the rows of voxels that it holds."""
        which = np.searchsorted(window.held, numbers)
        for rows in reading.rows(window.places[which], self._index):
            values = rows.values
            if self.engine == "local":
                self._largest = np.maximum(self._largest, rows.boxes.size)
            if len(self._tiling.boxes) > 1:
                weights = window.weights[torch.from_numpy(which[rows.numbers])].to(values)
                values = values * weights.view(-1, *[1] * (values.ndim - 1))
            found = Cotangents(Boxes(rows.boxes.start + window.origin, rows.boxes.size), values)
            inside = found.within(self._shape[: self._axes])
            yield Rows(numbers[rows.numbers], inside.boxes, inside.values)

    def _blended(self, used: Sequence[tuple[_Window, Reading]], numbers: np.ndarray) -> Rows:
        """Rows of voxels that lie in all of some windows, summed over these."""
        total: Cotangents | None = None
        for window, reading in used:
            parts = [
                Cotangents(rows.boxes, rows.values, own=True) for rows in self._of_window(window, reading, numbers)
            ]
            found = joined(parts)
            total = found if total is None else total.plus(found)
        assert total is not None
        inside = total.within(self._shape[: self._axes])
        return Rows(numbers, inside.boxes, inside.values)

    def _at_once(self, windows: int) -> int:
        """How many voxels' rows are held at a time of so many windows that are put together."""
        largest = max(math.prod(stop - start for start, stop in window.crop) for window in self._windows)
        each = 4 * len(self._probe.input) * largest * (windows + 1)
        return int(np.clip(self._probe.compute.memory_bytes // (_ON_THE_WAY * each), 1, _MOST_AT_ONCE))

    def seconds(self, image: np.ndarray) -> float:
        """About how long all rows on one input take: a few of them are timed in each window."""
        padded, total = self._padded(image), 0.0
        for window in self._windows:
            piece = self._piece(padded, window)
            network = self._network(piece)
            some = window.places[:: -(-len(window.places) // _TIMED)]
            started = time.perf_counter()
            reading = network.read(piece)
            read = time.perf_counter()
            for _ in reading.rows(some, self._index):
                pass
            total += read - started + (time.perf_counter() - read) * len(window.places) / len(some)
        return total

    def mean(self, image: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The sum over voxels of `weights` (N,) times their rows, float32 (C, X, Y, Z): one backward pass a window."""
        padded, every = self._padded(image), slice(None)
        found = np.zeros((len(image), *self._shape), dtype=np.float32)
        for window in self._windows:
            inputs = self._piece(padded, window).requires_grad_()
            with torch.enable_grad():
                output = self._probe.raw_scores(inputs.clone())
                places: list[int | slice | torch.Tensor] = [0, self._index, *map(torch.from_numpy, window.places.T)]
                counted = torch.from_numpy(weights[window.held]).to(output) * window.weights.to(output)
                (gradient,) = torch.autograd.grad((output[tuple(places)] * counted).sum(), inputs)
            boxes = Boxes(window.origin[None], tuple(gradient.shape[2:]))
            inside = Cotangents(boxes, gradient).within(self._shape[: self._axes])
            values = inside.values[0].float().cpu().numpy()
            if self._axes == 2:
                values = values[..., None]
            sides = zip(inside.boxes.start[0].tolist(), inside.boxes.size, strict=True)
            box = tuple(slice(first, first + size) for first, size in sides)
            found[(every, *box)] += values
        return found

    def _padded(self, image: np.ndarray) -> torch.Tensor:
        """An input (C, X, Y, Z) as the network reads it, (1, C, X, Y, Z) with padding or (1, C, X, Y)."""
        whole = torch.from_numpy(np.array(image[None], dtype=np.float32)).to(self._probe.device)
        return whole[..., 0] if self._axes == 2 else self._tiling.pad(whole, self._probe.prepared.background)

    def _piece(self, padded: torch.Tensor, window: _Window) -> torch.Tensor:
        """A copy of what a window's crop reads."""
        sides = zip(self._tiling.boxes[window.number], window.crop, strict=False)
        box = [slice(side.start + first, side.start + last) for side, (first, last) in sides]
        return padded[(slice(None), slice(None), *box)].clone()

    def _window(self, number: int, clean: torch.Tensor) -> _Window | None:
        """A window and what of it runs; None where it holds none of the voxels."""
        box = self._tiling.boxes[number]
        low, high = np.array([side.start for side in box]), np.array([side.stop for side in box])
        places = self._voxels + np.array(self._tiling.before)
        held = np.flatnonzero(((places >= low) & (places < high)).all(axis=1))
        if not len(held):
            return None
        inside = places[held] - low
        weights = self._tiling.weights(number)[tuple(torch.from_numpy(axis) for axis in inside.T)]
        inside = inside[:, : self._axes]
        wanted = tuple(zip(inside.min(axis=0).tolist(), (inside.max(axis=0) + 1).tolist(), strict=True))
        whole = clean[(slice(None), slice(None), *box[: self._axes])]
        crop = self._crop(whole, wanted)
        first = np.array([start for start, _ in crop])
        origin = (low - self._tiling.before)[: self._axes] + first
        return _Window(number, held, inside - first, weights, crop, origin)

    def _crop(self, whole: torch.Tensor, wanted: Sides) -> Sides:
        """What of a window runs."""
        if math.prod(whole.shape[2:]) <= self._uncropped:
            at_once = not self._single or isinstance(self._network(whole), LocalNetwork)
            if at_once:
                return tuple((0, size) for size in whole.shape[2:])
        field = receptive_field(self._probe.raw_scores, whole, wanted, module=self._probe.model.network)
        self._fields.append((field, wanted))
        if field.notice is not None and field.notice not in self._probe.notices:
            self._probe.notices.append(field.notice)
        return field.crop

    def _network(self, example: torch.Tensor) -> LocalNetwork | AutogradNetwork:
        """What runs on crops of this shape."""
        shape = tuple(example.shape)
        if shape not in self._networks:
            self._networks[shape] = self._followed(example)
        return self._networks[shape]

    def _followed(self, example: torch.Tensor) -> LocalNetwork | AutogradNetwork:
        compute = self._probe.compute
        reason = f"gradients run in {compute.dtype}" if compute.dtype != "float32" else None
        if reason is None and self.engine == "local" and compute.engine != "full":
            try:
                return LocalNetwork(self._probe.model.network, example, compute.memory_bytes // _ON_THE_WAY)
            except UntraceableError as error:
                reason = str(error)
        if self.engine == "local" and reason is not None:
            self._probe.notices.append(
                f"gradients of single voxels run through all of the receptive field, one by one: {reason}"
            )
        self.engine = "autograd"
        return AutogradNetwork(self._probe.raw_scores)

    def _grouped(self) -> list[tuple[list[int], np.ndarray]]:
        """Voxels that lie in the same windows: these, by their place in the list, and the voxels' numbers."""
        lies = np.zeros((len(self._voxels), len(self._windows)), dtype=bool)
        for place, window in enumerate(self._windows):
            lies[window.held, place] = True
        patterns, which = np.unique(lies, axis=0, return_inverse=True)
        which = which.reshape(-1)
        return [
            (np.flatnonzero(pattern).tolist(), np.flatnonzero(which == number))
            for number, pattern in enumerate(patterns)
        ]

    def _forget(self, passes: dict[int, Reading], place: int) -> None:
        """Let passes go that no group from this one on needs, and all that this one does not need if they are large."""
        later = {number for windows, _ in self._groups[place:] for number in windows}
        if sum(reading.kept_bytes for reading in passes.values()) > self._probe.compute.memory_bytes // _KEPT:
            later = set(self._groups[place][0])
        for number in [number for number in passes if number not in later]:
            del passes[number]
