"""One explanation per layer, from the first block to the last: how deep a map is still fine enough to say where."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

from voxplain.compute import Compute
from voxplain.engine.probe import Probe
from voxplain.errors import InputError
from voxplain.explain.cam import ClassActivationMap
from voxplain.explain.explainer import in_evaluation
from voxplain.explanation import Explanation
from voxplain.model import Model
from voxplain.preparation import prepare
from voxplain.scan import Scan
from voxplain.target import Target, default_target


def block_grids(
    model: Model, scan: Scan, *, target: Target | None = None, compute: Compute | None = None
) -> dict[str, tuple[int, ...]]:
    """The cells along each axis of every block's output for a scan, by the block's name, first block first.

    Raises:
        InputError: model and scan do not fit each other, or a TorchScript network.
    """
    compute = compute or Compute()
    if not model.differentiable_inside:
        raise InputError("the blocks of a TorchScript network cannot be watched; name no layers, or load its folder")
    prepared = prepare(scan, model.card)[0]
    with compute.running(), in_evaluation(model.network, compute.torch_device):
        return Probe(model, prepared, target or default_target(model.card), 0, compute).blocks()


def every_layer(
    explainer: ClassActivationMap,
    model: Model,
    scan: Scan,
    *,
    grids: Mapping[str, tuple[int, ...]] | None = None,
    target: Target | None = None,
    seed: int = 0,
    compute: Compute | None = None,
) -> Iterator[tuple[str, Explanation]]:
    """Explain a scan by the feature maps of each block in turn (`voxplain.engine.blocks`), first block first.

    Blocks whose grid is a single cell are left out: nothing can be localised there. `grids` are what `block_grids`
    found, where that was asked before.

    Yields:
        A layer's name and the explanation.

    Raises:
        InputError: as an explainer's call.
    """
    for layer, grid in (grids or block_grids(model, scan, target=target, compute=compute)).items():
        if math.prod(grid) > 1:
            found = dataclasses.replace(explainer, layer=layer)
            yield layer, found(model, scan, target=target, seed=seed, compute=compute)
