"""bfloat16 on request: close to float32, recorded and said, and never by accident."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import voxplain as vx

FLOAT32 = vx.Compute(device="cpu", threads=1)
BFLOAT16 = vx.Compute(device="cpu", threads=1, dtype="bfloat16")
GRID = vx.Grid((12, 10, 8), np.eye(4))
REGION = vx.Labels(np.pad(np.ones((3, 3, 3), dtype=int), ((4, 5), (4, 3), (2, 3))), GRID)
EXPLAINERS = [
    vx.RelevanceMap(partition="cubes:4", effect="signed"),
    vx.Occlusion(partition="cubes:4"),
    vx.LIME(partition="cubes:4", samples=100),
    vx.KernelSHAP(partition="cubes:4", samples=100),
    vx.RISE(cell=3, samples=100),
    vx.GradCAM(layer="0"),
]


class Watched(nn.Sequential):
    """A network that notes what its first layer gives out, and that returns what its last one gives."""

    def __init__(self, dense: bool) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            ends = [] if dense else [nn.AdaptiveAvgPool3d(1), nn.Flatten()]
            super().__init__(nn.Conv3d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv3d(6, 1, 3, padding=1), *ends)
        self.seen: set[torch.dtype] = set()
        self[0].register_forward_hook(lambda module, inputs, output: self.seen.add(output.dtype))
        # Contrast enough that parts move the score by more than its last digits.
        with torch.no_grad():
            self[2].weight.mul_(8)
        self.eval()


def world(dense: bool) -> tuple[vx.Model, vx.Scan, vx.Target]:
    data = np.random.default_rng(0).uniform(0, 1, (1, *GRID.shape)) + 4 * (REGION.data > 0)
    card = vx.Card(name="watched", channels=("t1",), classes=("a",))
    target = vx.RegionScore("a", REGION) if dense else vx.ClassScore("a")
    return vx.Model(Watched(dense), card), vx.Scan(data, GRID, ("t1",)), target


@pytest.mark.parametrize("dense", [False, True], ids=["class", "region"])
@pytest.mark.parametrize("explainer", EXPLAINERS, ids=lambda explainer: explainer.name)
def test_the_map_is_close_to_float32s_and_says_so(explainer: vx.Explainer, dense: bool) -> None:
    model, scan, target = world(dense)
    exact = explainer(model, scan, target=target, compute=FLOAT32)
    assert model.network.seen == {torch.float32}
    model.network.seen.clear()
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    with pytest.warns(UserWarning, match="ran in bfloat16: scores carry two to three significant digits") as caught:
        why = explainer(model, scan, target=target, compute=BFLOAT16)
    assert len(caught) == 1
    assert model.network.seen == {torch.bfloat16}
    assert why.map.dtype == np.float32
    assert np.abs(why.map - exact.map).max() <= 0.05 * np.abs(exact.map).max()
    assert why.regions[0].logit == pytest.approx(exact.regions[0].logit, rel=0.02)
    assert why.provenance["compute"]["dtype"] == "bfloat16"
    assert any("ran in bfloat16" in said for said in why.provenance["warnings"])
    assert exact.provenance["compute"]["dtype"] == "float32"
    assert not exact.provenance["warnings"]
    for name, value in model.network.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    # How it ran is recorded, and no part of what replays.
    again = vx.replay(why.provenance, model, scan, FLOAT32, target=target)
    np.testing.assert_array_equal(again.map, exact.map)


@pytest.mark.parametrize("engine", ["full", "incremental"])
def test_a_callers_autocast_does_not_reach_in(engine: Any) -> None:
    model, scan, target = world(dense=True)
    explainer, compute = EXPLAINERS[0], vx.Compute(device="cpu", threads=1, engine=engine)
    exact = explainer(model, scan, target=target, compute=compute)
    with warnings.catch_warnings(), torch.autocast("cpu", dtype=torch.bfloat16):
        warnings.simplefilter("error")
        why = explainer(model, scan, target=target, compute=compute)
    assert model.network.seen == {torch.float32}
    np.testing.assert_array_equal(why.map, exact.map)
