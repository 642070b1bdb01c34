"""Heat maps against the head's weights applied by hand, and contributions against the score that they add up to."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import voxplain as vx
from voxplain.networks.gp_reconresnet import GPReconResNet
from voxplain.networks.gp_shuffleunet import GPShuffleUNet
from voxplain.networks.gp_unet import GPUNet
from voxplain.networks.self_explaining import SelfExplaining

CPU = vx.Compute(device="cpu", threads=1)
CLASSES = ("none", "low", "high")
AFFINE = np.diag([-1.0, -2, 1.5, 1])


def seeded(pooling: str, dims: int) -> SelfExplaining:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = GPUNet(2, 3, spatial_dims=dims, width=4, pooling=pooling).eval()
        nn.init.normal_(network.head.bias)
    return network


def world(pooling: str = "max", dims: int = 2) -> tuple[vx.Model, vx.Scan, torch.Tensor]:
    shape = (16, 12, 1) if dims == 2 else (12, 8, 8)
    card = vx.Card(name="n", channels=("a", "b"), classes=CLASSES, activation="softmax", spatial_dims=dims)
    data = np.random.default_rng(5).normal(0, 1, (2, *shape)).astype(np.float32)
    inputs = torch.from_numpy(data[None])
    scan = vx.Scan(data, vx.Grid(shape, AFFINE), ("a", "b"))
    return vx.Model(seeded(pooling, dims), card), scan, inputs[..., 0] if dims == 2 else inputs


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", CLASSES)
def test_the_heat_map_is_the_head_applied_to_every_pixel(dims: int, name: str) -> None:
    model, scan, inputs = world(dims=dims)
    why = vx.HeatMap()(model, scan, target=vx.ClassScore(name), compute=CPU)
    features = model.network.features(inputs)[0].detach().double().numpy()
    weights, bias = (value.detach().double().numpy() for value in (model.network.head.weight, model.network.head.bias))
    index = CLASSES.index(name)
    expected = sum(weight * feature for weight, feature in zip(weights[index].ravel(), features, strict=True))
    np.testing.assert_allclose(why.total, (expected + bias[index]).reshape(scan.grid.shape), atol=1e-5)
    assert (why.unit, why.signed) == ("logit", True)
    assert why.provenance["passes"] == {"forward": 2, "backward": 0}
    assert why.provenance["facts"]["whole"]["bias"] == pytest.approx(bias[index])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("pooling", ["max", "top:0.1", "log-sum-exp:3"])
def test_contributions_and_the_bias_sum_up_to_the_logit(pooling: str, dims: int) -> None:
    model, scan, _ = world(pooling, dims)
    for name in CLASSES:
        why = vx.HeatMap(show="contributions")(model, scan, target=vx.ClassScore(name), compute=CPU)
        bias = why.provenance["facts"]["whole"]["bias"]
        assert why.total.sum(dtype=float) + bias == pytest.approx(why.regions[0].logit, abs=1e-4)


def test_under_max_pooling_the_heat_map_does_not_add_up_and_contributions_are_points() -> None:
    model, scan, _ = world()
    heat, shares = (vx.HeatMap(show=show)(model, scan, compute=CPU) for show in ("heat-map", "contributions"))
    logit = heat.regions[0].logit
    assert abs(heat.total.sum() - logit) > 1
    assert abs(heat.total.max() - logit) > 1e-3
    assert 0 < np.count_nonzero(shares.total) <= 4


@pytest.mark.parametrize("kind", [GPReconResNet, GPShuffleUNet])
def test_the_other_networks_are_read_as_well(kind: type[SelfExplaining]) -> None:
    small = {GPReconResNet: {"width": 4, "blocks": 1}, GPShuffleUNet: {"width": 4}}[kind]
    network = kind(2, 3, **small).eval()
    model, scan, inputs = world()
    why = vx.HeatMap()(vx.Model(network, model.card), scan, compute=CPU)
    index = CLASSES.index(why.regions[0].target)
    np.testing.assert_allclose(
        why.total[..., 0], network.heat_map(inputs)[0, index].detach().numpy(), rtol=1e-4, atol=1e-4
    )


def test_a_constant_heat_map_gives_an_empty_mask() -> None:
    model, scan, _ = world()
    nn.init.zeros_(model.network.head.weight)
    constant = vx.Model(model.network, model.card)
    for bias in (-1.0, 0.0, 2.0):
        nn.init.constant_(model.network.head.bias, bias)
        why = vx.HeatMap()(constant, scan, compute=CPU)
        np.testing.assert_array_equal(why.map, bias)
        for rule in (vx.segment.otsu, vx.segment.multi_otsu):
            assert not rule(why, everywhere=True).data.any()


def test_other_networks_and_targets_are_refused_with_what_would_work() -> None:
    model, scan, _ = world()
    plain = vx.Model(nn.Sequential(nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), model.card)
    with pytest.raises(vx.InputError, match=r"gp_unet, gp_reconresnet and .* this one is Sequential: .*relevance-map"):
        vx.HeatMap()(plain, scan, compute=CPU)
    region = vx.RegionScore("low", vx.Labels(np.ones(scan.grid.shape, int), scan.grid))
    with pytest.raises(vx.InputError, match="heat-map explains ClassScore or PredictedClass; got RegionScore"):
        vx.HeatMap()(model, scan, target=region, compute=CPU)
    with pytest.raises(vx.InputError, match="show is one of heat-map, log-odds, contributions; got 'both'"):
        vx.HeatMap(show="both")


class Smaller(GPUNet):
    """Promises a map on the input's grid, and gives another."""

    def heat_map(self, x: torch.Tensor) -> torch.Tensor:
        return super().heat_map(x)[..., ::2]


class NoNumber(GPUNet):
    def heat_map(self, x: torch.Tensor) -> torch.Tensor:
        return super().heat_map(x) * float("nan")


@pytest.mark.parametrize(("kind", "said"), [(Smaller, "a map per class on the input's grid"), (NoNumber, "NaN")])
def test_maps_that_are_not_what_they_promise_are_refused(kind: type[GPUNet], said: str) -> None:
    model, scan, _ = world()
    with pytest.raises(vx.InputError, match=said), warnings.catch_warnings():
        vx.HeatMap()(vx.Model(kind(2, 3, width=4).eval(), model.card), scan, compute=CPU)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_mirrored_heat_map_is_the_mean_over_mirror_images(dims: int) -> None:
    model, scan, inputs = world(dims=dims)
    why = vx.HeatMap(mirrored=True)(model, scan, target=vx.ClassScore("low"), compute=CPU)
    expected = np.zeros(scan.grid.shape)
    for flips in ((1, 1), (-1, 1), (1, -1), (-1, -1)):
        turned = inputs.numpy()[:, :, :: flips[0], :: flips[1]].copy()
        with torch.no_grad():
            found = model.network.heat_map(torch.from_numpy(turned))[0, 1].numpy()
        expected += found[:: flips[0], :: flips[1]].reshape(scan.grid.shape) / 4
    np.testing.assert_allclose(why.total, expected, atol=1e-5)
    mirror = vx.Scan(scan.data[:, ::-1], scan.grid, scan.channels)
    again = vx.HeatMap(mirrored=True)(model, mirror, target=vx.ClassScore("low"), compute=CPU)
    np.testing.assert_allclose(again.total[::-1], why.total, atol=1e-5)


def test_contributions_are_not_mirrored() -> None:
    with pytest.raises(vx.InputError, match="mirrored is for heat maps"):
        vx.HeatMap(show="contributions", mirrored=True)


@pytest.mark.parametrize("name", CLASSES)
def test_log_odds_are_the_heat_map_less_that_of_the_other_classes(name: str) -> None:
    model, scan, inputs = world()
    why = vx.HeatMap(show="log-odds")(model, scan, target=vx.ClassScore(name), compute=CPU)
    with torch.no_grad():
        shares = torch.softmax(model.network.heat_map(inputs).double(), dim=1)[0, CLASSES.index(name)].numpy()
    np.testing.assert_allclose(why.total[..., 0], np.log(shares / (1 - shares)), atol=1e-4)


def test_one_class_alone_is_its_own_log_odds() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = GPUNet(1, 1, width=4).eval()
    model = vx.Model(network, vx.Card(name="n", channels=("a",), classes=("lesion",), spatial_dims=2))
    scan = vx.Scan(np.random.default_rng(1).normal(size=(1, 16, 12, 1)), vx.Grid((16, 12, 1), AFFINE), ("a",))
    plain, odds = (vx.HeatMap(show=show)(model, scan, compute=CPU).total for show in ("heat-map", "log-odds"))
    np.testing.assert_array_equal(plain, odds)
