"""What a segmentation network says inside of one region when it is shown so much of what lies around it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from voxplain.compute import Compute
from voxplain.engine.windows import Stitched
from voxplain.errors import InputError
from voxplain.explain.explainer import in_evaluation
from voxplain.model import Model
from voxplain.preparation import Prepared
from voxplain.target import probabilities

# Everything is shown.
WHOLE = float("inf")


def probability_within(
    model: Model,
    prepared: Prepared,
    region: np.ndarray,
    *,
    name: str,
    distances: Sequence[float] = (WHOLE,),
    compute: Compute,
) -> np.ndarray:
    """The calibrated probability of a class in a region's voxels, with what lies farther away than a distance hidden.

    What is hidden holds the background, the value that raw 0 has after normalisation (004, 2.5, where it is 0); it acts
    on the network's input. Distances are in mm between centres of voxels; 0 shows the region alone, `WHOLE` everything,
    which is the stitched prediction. Only windows that hold voxels of the region run.

    Args:
        model: a segmentation network in windows, or without any.
        prepared: the network's input.
        region: boolean (X, Y, Z) on the input's grid.
        name: the class.
        distances: in mm.
        compute: how to run.

    Returns:
        Probabilities, float64 (distances, voxels), voxels in the order of `np.nonzero(region)`.

    Raises:
        InputError: the region is empty or on another grid.
    """
    if region.shape != prepared.input.grid.shape or not region.any():
        raise InputError(
            f"expected a region of at least one voxel on the input's grid of {prepared.input.grid.shape}; "
            f"got {int(region.sum())} voxels of {region.shape}"
        )
    device, card = compute.torch_device, model.card
    stitched = Stitched(model.network, card, background=prepared.background, read=region)
    image = torch.tensor(prepared.input.data[None])
    tiling = stitched.tiling(image.shape[2:])
    away = _away(region, prepared, max((distance for distance in distances if distance < WHOLE), default=0))
    background = torch.tensor(prepared.background, dtype=torch.float32).reshape(1, -1, 1, 1, 1)
    places = [index + before for index, before in zip(np.nonzero(region), tiling.before, strict=True)]
    total = torch.zeros((len(distances), len(card.classes), len(places[0])), dtype=torch.float32)
    with compute.running(), in_evaluation(model.network, device), torch.no_grad():
        for number in stitched.numbers(image.shape[2:]):
            box = tiling.boxes[number]
            held = np.all([(i >= s.start) & (i < s.stop) for i, s in zip(places, box, strict=True)], axis=0)
            x, y, z = (torch.from_numpy(i[held] - s.start) for i, s in zip(places, box, strict=True))
            weights = tiling.weights(number)[x, y, z]
            piece = stitched.piece(image, number)
            shown = tiling.pad(away, (WHOLE,))[(slice(None), slice(None), *box)]
            for row, distance in enumerate(distances):
                seen = piece if distance == WHOLE else torch.where(shown <= distance, piece, background)
                with compute.precision():
                    scores = stitched.window_scores(seen.to(device))[0].float().cpu()
                total[row][:, torch.from_numpy(held)] += scores[:, x, y, z] * weights
    found = probabilities(card.calibrated(total), card)[:, card.classes.index(name)]
    if not bool(torch.isfinite(found).all()):
        raise InputError("the network returns NaN or infinite scores for this scan; check its weights and the card")
    return np.asarray(found.numpy(), dtype=np.float64)


def _away(region: np.ndarray, prepared: Prepared, reach: float) -> torch.Tensor:
    """Distance in mm of every voxel to the region, (1, 1, X, Y, Z); infinite beyond the reach."""
    spacing = prepared.input.grid.spacing
    (around,) = ndimage.find_objects(region.astype(np.int8))
    margins = [int(np.ceil(reach / size)) for size in spacing]
    box = tuple(slice(max(0, s.start - m), s.stop + m) for s, m in zip(around, margins, strict=True))
    found = np.full(region.shape, WHOLE, dtype=np.float32)
    # A hair less than measured, so that a whole distance in float32 is not above itself.
    found[box] = ndimage.distance_transform_edt(~region[box], sampling=spacing) - 1e-4
    return torch.from_numpy(found)[None, None]
