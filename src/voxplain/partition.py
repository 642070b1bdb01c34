"""Cutting a volume into parts: SLIC supervoxels and cubes."""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import distance_transform_edt
from skimage.measure import label as connected_components
from skimage.segmentation import slic

from voxplain.errors import InputError
from voxplain.grid import Grid, resample
from voxplain.scan import Labels

# From this ratio of longest to shortest voxel edge on, SLIC works on an isotropic lattice.
_ANISOTROPIC = 1.25


def supervoxels(
    image: np.ndarray,
    grid: Grid,
    *,
    segments: int = 100,
    compactness: float = 0.3,
    mask: np.ndarray | None = None,
) -> Labels:
    """SLIC supervoxels of an image (C, X, Y, Z), aware of the voxel spacing, labelled 1..N; 0 lies outside the mask.

    `segments` is how many SLIC starts with; masked SLIC can give one label to pieces that do not touch, so the labels
    are made connected (through voxel faces) afterwards, and N can differ. `compactness` is in the image's own unit: low
    follows intensities, high gives cubes. Papers relevance (000, 3.3).
    """
    if segments < 1:
        raise InputError(f"segments must be at least 1; got {segments}")
    if compactness <= 0:
        raise InputError(f"compactness must be more than 0; got {compactness}")
    if mask is not None and not mask.any():
        return Labels(np.zeros(grid.shape, dtype=np.int32), grid)
    lattice = _isotropic(grid)
    if lattice is not grid:
        inside = np.ones(grid.shape, dtype=bool) if mask is None else mask
        parts = supervoxels(
            resample(image, grid, lattice),
            lattice,
            segments=segments,
            compactness=compactness,
            mask=resample(inside.astype(np.uint8), grid, lattice, nearest=True) > 0,
        )
        return _carried_over(parts, grid, inside)
    # skimage stretches the image to 0-1 first, so one bright voxel would change what a compactness means; dividing by
    # the range keeps it in the image's unit (z-scores, say). A constant image has no range, and gives cubes anyway.
    spread = float(np.ptp(image)) or 1.0
    found = slic(
        np.moveaxis(image, 0, -1),
        n_segments=segments,
        compactness=compactness / spread,
        mask=mask,
        spacing=grid.spacing,
        start_label=1,
        channel_axis=-1,
    )
    if mask is not None:
        # SLIC forgets pieces that are too small for a segment of their own.
        found[mask & (found == 0)] = found.max() + 1
    return Labels(connected_components(found, background=0, connectivity=1), grid)


def _isotropic(grid: Grid) -> Grid:
    """A grid of about as many voxels, of one edge along all axes; the grid itself where that is (nearly) so.

    skimage lays its seeds out in voxels, so that its parts would be as elongated as the voxels are.
    """
    axes = [axis for axis in range(3) if grid.shape[axis] > 1]
    edges = [grid.spacing[axis] for axis in axes]
    if not axes or max(edges) < _ANISOTROPIC * min(edges):
        return grid
    edge = math.prod(edges) ** (1 / len(edges))
    return grid.with_spacing([edge if axis in axes else grid.spacing[axis] for axis in range(3)])


def _carried_over(parts: Labels, grid: Grid, inside: np.ndarray) -> Labels:
    """Parts on another grid: every voxel inside gets the nearest one's label, and pieces get labels of their own."""
    found = parts.on(grid).data
    if not found.any():
        found = inside
    nearest = distance_transform_edt(found == 0, sampling=grid.spacing, return_distances=False, return_indices=True)
    return Labels(connected_components(np.where(inside, found[tuple(nearest)], 0), background=0, connectivity=1), grid)


def cubes(grid: Grid, *, edge: float, mask: np.ndarray | None = None) -> Labels:
    """Cubes of an edge in mm (as near as whole voxels allow), labelled 1..N; 0 lies outside the mask."""
    if not 0 < edge < math.inf:
        raise InputError(f"the edge of the cubes must be more than 0 mm; got {edge}")
    size = [max(1, round(edge / spacing)) for spacing in grid.spacing]
    count = [-(-n // s) for n, s in zip(grid.shape, size, strict=True)]
    index = [np.arange(n) // s for n, s in zip(grid.shape, size, strict=True)]
    numbered = np.ravel_multi_index(np.ix_(*index), count)
    inside = np.ones(grid.shape, dtype=bool) if mask is None else mask
    labels = np.zeros(grid.shape, dtype=np.int32)
    labels[inside] = np.unique(numbered[inside], return_inverse=True)[1] + 1
    return Labels(labels, grid)
