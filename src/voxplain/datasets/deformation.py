"""Another head of the same kind: a scan and its labels, turned, scaled and bent at random."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn.functional import grid_sample, interpolate

from voxplain.errors import InputError
from voxplain.scan import Labels, Scan

_ROTATION = math.radians(12)
_SCALE = 0.12
# Every voxel is moved by what lies between nodes of a lattice; these move so far (standard deviation).
_NODES = 7
_BEND_MM = 2.5


def deformed(scan: Scan, labels: Labels, *, seed: int = 0) -> tuple[Scan, Labels]:
    """A scan and its labels turned by up to 12 degrees about each axis, scaled by 0.88 to 1.12, and bent by some mm.

    Intensities are interpolated linearly, labels and where the brain ends by nearest voxel; what leaves the field of
    view is gone. The grid stays as it is, so that nothing of the result lies where it lay.

    Raises:
        InputError: the labels lie on another grid.
    """
    if difference := scan.grid.difference(labels.grid):
        raise InputError(f"labels lie on the scan's grid; these differ: {difference}")
    where = _sources(scan.grid.shape, scan.grid.spacing, np.random.default_rng(seed))
    images = torch.from_numpy(np.array(scan.data))[None]
    masks = torch.from_numpy(np.stack([scan.foreground(), labels.data]).astype(np.float32))[None]
    moved = grid_sample(images, where, mode="bilinear", align_corners=True)[0].numpy()
    brain, numbers = grid_sample(masks, where, mode="nearest", align_corners=True)[0].numpy()
    return Scan(np.where(brain > 0, moved, 0), scan.grid, scan.channels), Labels(numbers, scan.grid)


def _sources(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], random: np.random.Generator
) -> torch.Tensor:
    """Where each voxel comes from, (1, X, Y, Z, 3), as grid_sample has it: -1 to 1, the last axis first."""
    x, y, z = random.uniform(-_ROTATION, _ROTATION, 3)
    turn = _about(0, x) @ _about(1, y) @ _about(2, z) @ np.diag(random.uniform(1 - _SCALE, 1 + _SCALE, 3))
    nodes = torch.from_numpy(random.normal(0, _BEND_MM, (1, 3, _NODES, _NODES, _NODES)).astype(np.float32))
    bend = interpolate(nodes, size=shape, mode="trilinear", align_corners=True)[0]
    half = (np.array(shape) - 1) / 2 * np.array(spacing)
    axes = [torch.linspace(-float(h), float(h), n) for h, n in zip(half, shape, strict=True)]
    millimetres = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    source = torch.einsum("ij,jxyz->ixyz", torch.from_numpy(turn.astype(np.float32)), millimetres) + bend
    reach = torch.from_numpy(np.maximum(half, 1e-6).astype(np.float32))
    return (source / reach[:, None, None, None]).flip(0).permute(1, 2, 3, 0)[None]


def _about(axis: int, angle: float) -> np.ndarray:
    """A rotation about one axis, (3, 3)."""
    matrix = np.eye(3)
    one, other = [number for number in range(3) if number != axis]
    matrix[[one, other], [one, other]] = math.cos(angle)
    matrix[one, other], matrix[other, one] = -math.sin(angle), math.sin(angle)
    return matrix
