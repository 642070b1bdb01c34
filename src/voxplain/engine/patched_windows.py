"""A region's scores where one box of the input is replaced, of a network that reads the scan in windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from voxplain.engine.windows import Stitched
from voxplain.grid import Grid
from voxplain.model import Card
from voxplain.scan import Labels
from voxplain.target import RegionScore

Box = Sequence[tuple[int, int]]


class PatchedWindows:
    """Blended raw scores of a region's voxels, window by window: those that a box does not reach stay as they were.

    Args:
        stitched: the network in the windows that the region touches.
        image: the clean input (C, X, Y, Z), on the network's device.
        target: the region.
        call: runs windows (B, C, x, y, z) and gives their raw scores (B, classes, x, y, z).

    Attributes:
        clean: the clean scores, float64 (classes, voxels), on the CPU.
    """

    def __init__(
        self,
        stitched: Stitched,
        image: torch.Tensor,
        target: RegionScore,
        call: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        shape = image.shape[1:]
        self._tiling = stitched.tiling(shape)
        self._padded = self._tiling.pad(image[None], stitched.background)[0]
        self._call = call
        self._numbers = stitched.numbers(shape)
        # All of the region's voxels in a row, so that outputs of many inputs need no volumes.
        count = int(target.mask.data.sum())
        self._row = RegionScore(
            target.name, Labels(np.ones((count, 1, 1), dtype=np.int32), Grid((count, 1, 1), np.eye(4)))
        )
        places = np.argwhere(target.mask.data) + self._tiling.before
        # Window -> which of the voxels it holds, where they are in it, and how much the window counts there.
        self._held: dict[int, tuple[np.ndarray, tuple[torch.Tensor, ...], torch.Tensor]] = {}
        self._scores: dict[int, np.ndarray] = {}
        self.clean = np.zeros((len(stitched.card.classes), count))
        for number in self._numbers:
            box = self._tiling.boxes[number]
            low, high = np.array([side.start for side in box]), np.array([side.stop for side in box])
            held = np.flatnonzero(((places >= low) & (places < high)).all(axis=1))
            index = tuple(torch.from_numpy(axis) for axis in (places[held] - low).T)
            self._held[number] = held, index, self._tiling.weights(number)[index].double()
            with torch.no_grad():
                self._scores[number] = self._weighted(number, call(self.piece(number)[None]))[0]
            self.clean[:, held] += self._scores[number]

    def reached(self, sides: Box) -> list[int]:
        """The windows that hold voxels of the region and that a box, (start, stop) per axis, reaches into."""
        return [number for number in self._tiling.reached(sides) if number in self._held]

    def piece(
        self, number: int, sides: Box | None = None, values: np.ndarray | torch.Tensor | None = None
    ) -> torch.Tensor:
        """A copy of what a window reads, (C, x, y, z); in a box of the input `values` (C, dx, dy, dz) stand."""
        piece = self._padded[(slice(None), *self._tiling.boxes[number])].clone()
        if sides is None or values is None:
            return piece
        here, there = [slice(None)], [slice(None)]
        for (start, stop), (first, last) in zip(sides, self._tiling.sides(number), strict=True):
            low, high = max(start, first), min(stop, last)
            here.append(slice(low - first, high - first))
            there.append(slice(low - start, high - start))
        piece[tuple(here)] = torch.as_tensor(values[tuple(there)]).to(piece)
        return piece

    def changes(self, numbers: Sequence[int], pieces: Sequence[torch.Tensor]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Which of the voxels windows hold, and what their scores change by, when the windows read `pieces`."""
        outputs = self._call(torch.stack(list(pieces)))
        return [
            (self._held[number][0], self._weighted(number, output[None])[0] - self._scores[number])
            for number, output in zip(numbers, outputs, strict=True)
        ]

    def read(self, scores: np.ndarray, card: Card, scale: str) -> np.ndarray:
        """The target's "probability" or "logit" (N,) from scores of the voxels (N, classes, voxels)."""
        output = torch.from_numpy(scores)[..., None, None]
        read = self._row.probability if scale == "probability" else self._row.logit
        return read(output, card).numpy()

    def _weighted(self, number: int, output: torch.Tensor) -> np.ndarray:
        """A window's part of the blended scores, float64 (B, classes, its voxels), from its output."""
        _, index, weights = self._held[number]
        device = output.device
        every = slice(None)
        where: list[slice | torch.Tensor] = [axis.to(device) for axis in index]
        found = output[(every, every, *where)].double().cpu() * weights
        values: np.ndarray = found.numpy()
        return values
