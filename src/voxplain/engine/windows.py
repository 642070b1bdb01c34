"""Networks that read a scan in windows: their prediction is the blended raw score of all windows, as one function."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from voxplain.compute import Compute
from voxplain.engine.progress import tracked
from voxplain.engine.tracing import refuse_training
from voxplain.errors import InputError
from voxplain.model import Card, Model
from voxplain.preparation import Prepared

# The width of the Gaussian that weighs a window's voxels, as a share of the window (MONAI's default).
_SIGMA = 0.125

Slices = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Tiling:
    """Where windows lie on a volume, and how much each voxel of a window counts.

    They lie where `monai.inferers.sliding_window_inference` puts them. A volume that is smaller than the window along
    an axis is padded there on both sides; windows are counted in the padded volume.

    Attributes:
        shape: the volume's size in voxels.
        window: the windows' size in voxels.
        overlap: share of a window that the next one covers again.
    """

    shape: tuple[int, int, int]
    window: tuple[int, int, int]
    overlap: float

    @classmethod
    def of(cls, card: Card, shape: Sequence[int]) -> Tiling:
        """The windows that a card asks for on a volume; one that is the volume where it asks for none."""
        x, y, z = shape
        return cls((x, y, z), card.window or (x, y, z), card.overlap)

    @property
    def padded(self) -> tuple[int, int, int]:
        """The volume's size with padding."""
        x, y, z = (max(pair) for pair in zip(self.shape, self.window, strict=True))
        return x, y, z

    @property
    def before(self) -> tuple[int, int, int]:
        """How many voxels of padding lie before the volume along each axis."""
        x, y, z = ((size - extent) // 2 for size, extent in zip(self.padded, self.shape, strict=True))
        return x, y, z

    @property
    def inside(self) -> Slices:
        """The volume within the padded volume."""
        x, y, z = (slice(b, b + n) for b, n in zip(self.before, self.shape, strict=True))
        return x, y, z

    @cached_property
    def boxes(self) -> tuple[Slices, ...]:
        """Every window, in the padded volume."""
        if self.window == self.padded:
            return (_box([slice(0, size) for size in self.padded]),)
        # MONAI's data room takes a second to load, which models without windows are spared.
        from monai.data.utils import dense_patch_slices

        steps = [
            size if size == extent else max(1, int(size * (1 - self.overlap)))
            for size, extent in zip(self.window, self.padded, strict=True)
        ]
        found = dense_patch_slices(self.padded, self.window, steps)
        return tuple(_box([slice(int(side.start), int(side.stop)) for side in box]) for box in found)

    @cached_property
    def importance(self) -> torch.Tensor:
        """A window's Gaussian weights before they are made to add up to 1, float32 (x, y, z)."""
        from monai.data.utils import compute_importance_map

        return compute_importance_map(self.window, mode="gaussian", sigma_scale=_SIGMA)

    @cached_property
    def _total(self) -> torch.Tensor:
        """Sum of the windows' weights at every voxel of the padded volume."""
        total = torch.zeros(self.padded)
        for box in self.boxes:
            total[box] += self.importance
        return total

    def weights(self, number: int) -> torch.Tensor:
        """How much a window's voxels count, float32 (x, y, z); over all windows a voxel's weights add up to 1."""
        if len(self.boxes) == 1:
            return torch.ones(self.window)
        return self.importance / self._total[self.boxes[number]]

    def touching(self, voxels: np.ndarray) -> list[int]:
        """The windows that hold any of the voxels, boolean (X, Y, Z), of the volume."""
        where = np.nonzero(voxels)
        places = [index + before for index, before in zip(where, self.before, strict=True)]
        return [number for number, box in enumerate(self.boxes) if _among(places, box).any()]

    def reached(self, sides: Sequence[tuple[int, int]]) -> list[int]:
        """The windows that a box of the volume, (start, stop) per axis, reaches into."""
        moved = [(start + before, stop + before) for (start, stop), before in zip(sides, self.before, strict=True)]
        return [
            number
            for number, box in enumerate(self.boxes)
            if all(start < side.stop and side.start < stop for (start, stop), side in zip(moved, box, strict=True))
        ]

    def sides(self, number: int) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """A window, (start, stop) per axis, in the volume; of a padded axis it reaches beyond both ends."""
        x, y, z = (
            (side.start - before, side.stop - before)
            for side, before in zip(self.boxes[number], self.before, strict=True)
        )
        return x, y, z

    def pad(self, inputs: torch.Tensor, background: Sequence[float]) -> torch.Tensor:
        """Inputs (B, C, X, Y, Z) with the background of each of the C channels around; themselves where none is."""
        if self.padded == self.shape:
            return inputs
        around: list[int] = []
        for axis in (2, 1, 0):
            before = self.before[axis]
            around += [before, self.padded[axis] - self.shape[axis] - before]
        channels = [F.pad(inputs[:, i : i + 1], around, value=value) for i, value in enumerate(background)]
        return torch.cat(channels, dim=1)


def _box(sides: Sequence[slice]) -> Slices:
    x, y, z = sides
    return x, y, z


def _among(places: Sequence[np.ndarray], box: Slices) -> np.ndarray:
    """Which of the places (one array per axis) lie in a box."""
    inside = np.ones(len(places[0]), dtype=bool)
    for index, side in zip(places, box, strict=True):
        inside &= (index >= side.start) & (index < side.stop)
    return inside


class Stitched(nn.Module):
    """A network's blended prediction as one network: (B, C, X, Y, Z) -> (B, classes, X, Y, Z), raw scores.

    y[v] = sum over windows w of G_w(v) net(x_w)[v] / sum over w of G_w(v), with the windows and Gaussian weights of
    MONAI's `sliding_window_inference(mode="gaussian")`. It can be differentiated, blending included. Where the volume
    is smaller than the window, it is padded with `background`, what raw 0 became in each channel; MONAI pads with 0,
    which is the same after z-scoring, and brain on others. Scores in the padding are left out.

    Args:
        network: (B, C, x, y, z) -> (B, classes, x, y, z) on windows.
        card: says the windows' size and overlap, and the channels.
        background: a value per channel; 0 by default.
        read: the voxels that will be read, boolean (X, Y, Z); only windows that hold any of them run, and all other
            voxels are 0. All of them by default.

    Raises:
        InputError: in a call, a network that gives no map on the window's grid.
    """

    def __init__(
        self,
        network: nn.Module,
        card: Card,
        *,
        background: Sequence[float] | None = None,
        read: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.network, self.card = network, card
        self.background = tuple(background or (0.0,) * len(card.channels))
        self.read = None if read is None else np.asarray(read, dtype=bool)
        self._tiling: Tiling | None = None

    def tiling(self, shape: Sequence[int]) -> Tiling:
        """The windows on a volume of this shape."""
        if self._tiling is None or self._tiling.shape != tuple(shape):
            self._tiling = Tiling.of(self.card, shape)
        return self._tiling

    def numbers(self, shape: Sequence[int]) -> list[int]:
        """Which of the windows run."""
        tiling = self.tiling(shape)
        return list(range(len(tiling.boxes))) if self.read is None else tiling.touching(self.read)

    def piece(self, inputs: torch.Tensor, number: int) -> torch.Tensor:
        """A copy of what a window reads, (B, C, x, y, z)."""
        tiling = self.tiling(inputs.shape[2:])
        return tiling.pad(inputs, self.background)[(slice(None), slice(None), *tiling.boxes[number])].clone()

    def window_scores(self, pieces: torch.Tensor) -> torch.Tensor:
        """The network's raw scores of windows (B, C, x, y, z), unweighted, as (B, classes, x, y, z)."""
        scores = self.network(pieces)
        if not isinstance(scores, torch.Tensor):
            raise InputError(
                f"expected one tensor of raw scores; the network returns {type(scores).__name__}: "
                "wrap the network so that it returns its scores alone"
            )
        expected = (len(pieces), len(self.card.classes), *pieces.shape[2:])
        if tuple(scores.shape) != expected:
            raise InputError(
                f"expected a map per class on the window's grid, shape {expected}; the network returns "
                f"{tuple(scores.shape)}: name all classes in the card, set the card's window to a size that the "
                "network gives back, or drop the window"
            )
        return scores

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Raw scores of all windows that run, blended."""
        tiling = self.tiling(inputs.shape[2:])
        blended = torch.zeros(
            (len(inputs), len(self.card.classes), *tiling.padded), dtype=torch.float32, device=inputs.device
        )
        for number in self.numbers(inputs.shape[2:]):
            scores = self.window_scores(self.piece(inputs, number))
            blended[(slice(None), slice(None), *tiling.boxes[number])] += scores * tiling.weights(number).to(
                inputs.device
            )
        blended = blended[(slice(None), slice(None), *tiling.inside)]
        # Elsewhere windows are missing, so that what stands there is no score.
        return blended if self.read is None else blended * torch.from_numpy(self.read).to(inputs.device)


def stitched_prediction(model: Model, prepared: Prepared, compute: Compute) -> np.ndarray:
    """A segmentation network's raw scores of a whole scan, float32 (classes, X, Y, Z) on the grid that it reads.

    A card without a window runs on all of the input at once. One window is on the device at a time; with
    `compute.progress` it is said how many are done and what time remains. The network is in eval mode.

    Raises:
        InputError: a network in training mode, one that gives no map per class, or whose scores are not finite.
    """
    if not isinstance(model.network, torch.jit.ScriptModule):
        refuse_training(model.network)
    if model.card.spatial_dims == 2:
        raise InputError("a whole prediction is that of a 3D network; this card's network reads images")
    device, background = compute.torch_device, prepared.background
    image = torch.tensor(prepared.input.data[None])
    stitched = Stitched(model.network, model.card, background=background)
    tiling = stitched.tiling(image.shape[2:])
    blended = torch.zeros((len(model.card.classes), *tiling.padded))
    numbers = range(len(tiling.boxes))
    with torch.no_grad(), closing(tracked(numbers, f"{prepared.name}, windows", shown=compute.progress)) as stream:
        for number in stream:
            with compute.precision():
                scores = stitched.window_scores(stitched.piece(image, number).to(device))
            blended[(slice(None), *tiling.boxes[number])] += scores[0].float().cpu() * tiling.weights(number)
    if not bool(torch.isfinite(blended).all()):
        raise InputError("the network returns NaN or infinite scores for this scan; check its weights and the card")
    found: np.ndarray = blended[(slice(None), *tiling.inside)].numpy()
    return found
