"""What the perturbation methods refuse, and scans that leave them nothing to do."""

import numpy as np
import pytest
import torch
from torch import nn

import voxplain as vx
from voxplain.explain.kernel_shap import shapley_coalitions

CPU = vx.Compute(device="cpu", threads=1)
SHAPE = (10, 9, 8)


class Mean(nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.mean(dim=(1, 2, 3, 4))[:, None]


def model() -> vx.Model:
    return vx.Model(Mean(), vx.Card(name="mean", channels=("t1", "t2"), classes=("c",)))


def scan(data: np.ndarray | None = None) -> vx.Scan:
    data = np.random.default_rng(0).uniform(1, 2, (2, *SHAPE)) if data is None else data
    return vx.Scan(data, vx.Grid(SHAPE, np.diag([2.0, 2, 2, 1])), ("t1", "t2"))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (vx.LIME, {"samples": 1}, "samples must be at least 2"),
        (vx.LIME, {"kernel_width": 0.0}, "kernel_width must be above 0"),
        (vx.LIME, {"kernel_width": float("nan")}, "kernel_width must be above 0"),
        (vx.LIME, {"ridge": -1.0}, "ridge at least 0"),
        (vx.LIME, {"fill": "mean"}, "fill is one of"),
        (vx.LIME, {"partition": "cubes"}, "partition is slic, or cubes:MM"),
        (vx.KernelSHAP, {"samples": 1}, "samples must be at least 2"),
        (vx.KernelSHAP, {"scale": "odds"}, "scale is one of probability, logit; got 'odds'"),
        (vx.RISE, {"samples": 1}, "samples must be at least 2"),
        (vx.RISE, {"cell": 0.0}, "cell above 0 mm"),
        (vx.RISE, {"keep": 1.0}, "keep between 0 and 1"),
        (vx.RISE, {"keep": 0.0}, "keep between 0 and 1"),
        (vx.RISE, {"baseline": "median"}, "baseline is one of mean, none; got 'median'"),
        (vx.RISE, {"mask": "head"}, "mask is one of brain, none"),
        (vx.RISE, {"fill": "mean"}, "fill is one of"),
        (vx.Occlusion, {"effect": "both"}, "effect is one of absolute, signed"),
        (vx.Occlusion, {"stride": 30.0}, "stride must be above 0 and at most the windows' edge of 20 mm"),
        (vx.Occlusion, {"stride": 0.0}, "stride must be above 0"),
        (vx.Occlusion, {"stride": 4.0, "partition": "slic"}, "supervoxels do not overlap"),
    ],
)
def test_refuses_options_that_mean_nothing(kind: type[vx.Explainer], options: dict[str, object], message: str) -> None:
    with pytest.raises(vx.InputError, match=message):
        kind(**options)


def test_shapley_values_need_more_samples_than_parts() -> None:
    with pytest.raises(vx.InputError, match=r"need at least \d+ samples; got 40: give more samples or fewer segments"):
        vx.KernelSHAP(partition="cubes:4", samples=40)(model(), scan(), compute=CPU)


def test_lime_without_a_ridge_needs_more_samples_than_parts() -> None:
    with pytest.raises(vx.InputError, match="cannot be told apart by 40 samples without a ridge"):
        vx.LIME(partition="cubes:4", samples=40, ridge=0.0)(model(), scan(), compute=CPU)


@pytest.mark.parametrize("kind", [vx.LIME, vx.KernelSHAP, vx.Occlusion, vx.RelevanceMap])
def test_a_scan_that_its_fill_does_not_change_costs_one_pass_and_gives_zeros(kind: type[vx.Explainer]) -> None:
    flat = scan(np.full((2, *SHAPE), 2.0))
    why = kind(fill="min", partition="cubes:8")(model(), flat, compute=CPU)
    assert not why.map.any()
    assert why.provenance["passes"]["forward"] == 1


@pytest.mark.parametrize("kind", [vx.LIME, vx.KernelSHAP])
def test_a_single_part_gets_all_there_is(kind: type[vx.Explainer]) -> None:
    options = {"ridge": 0.0} if kind is vx.LIME else {}
    why = kind(partition="cubes:1000", scale="logit", samples=20, **options)(model(), scan(), compute=CPU)
    assert why.scores == pytest.approx([why.regions[0].logit], rel=1e-5)


@pytest.mark.parametrize(("count", "samples"), [(0, 10), (1, 10), (2, 2), (5, 10), (9, 19)])
def test_few_parts_or_few_samples(count: int, samples: int) -> None:
    coalitions, weights = shapley_coalitions(count, samples, np.random.default_rng(0))
    assert coalitions.shape == (len(weights), count)
    assert len(coalitions) <= samples
    assert (len(coalitions) > 0) == (count > 1)
