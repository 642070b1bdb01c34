"""HiResCAM, LayerCAM and Grad-CAM++ against plain autograd, class by class and for one lesion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet
from monai.visualize import GradCAMpp
from torch import nn
from torch.nn import functional

import voxplain as vx
from voxplain.networks.resnet import resnet

CPU = vx.Compute(device="cpu", threads=1)
GRID = vx.Grid((16, 20, 12), np.array([[-1.0, 0, 0, 5], [0, 2, 0, -9], [0, 0, 1.5, 4], [0, 0, 0, 1]]))
SCAN = vx.Scan(np.random.default_rng(7).normal(0, 1, (2, *GRID.shape)), GRID, ("flair", "t1"))
INPUT = torch.from_numpy(SCAN.data[None].copy())
LESION = np.zeros(GRID.shape, int)
LESION[6:9, 9:12, 4:7] = 3
LESION[0, 0, 0] = 1


def seeded(build, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 2)
        return network.eval()


def classifier() -> vx.Model:
    card = vx.Card(name="c", channels=("flair", "t1"), classes=("a", "b"), activation="softmax")
    return vx.Model(seeded(lambda: resnet(depth=10, in_channels=2, classes=2, width=8, stem_kernel=3)), card)


def unet(**fields: object) -> vx.Model:
    card = vx.Card(
        name="u", channels=("flair", "t1"), classes=("background", "lesion"), absent=("background",),
        activation="softmax", threshold=0.3,
    )  # fmt: skip
    network = seeded(lambda: UNet(3, 2, 2, (6, 8, 10), (2, 2), norm="batch", act="relu"))
    return vx.Model(network, replace(card, **fields))


def watched(network: nn.Module, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's output and the network's, by an ordinary hook."""
    kept = []
    handle = network.get_submodule(layer).register_forward_hook(lambda module, given, output: kept.append(output))
    # Activations in place would write over what the hook kept.
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    output = network(INPUT.clone().requires_grad_())
    handle.remove()
    return kept[0], output


def alphas(a: torch.Tensor, g: torch.Tensor, form: str) -> torch.Tensor:
    """Eq. 7, one map and voxel at a time in words: (K, ...) -> (K, ...)."""
    a, found = a.detach(), torch.zeros_like(g, dtype=torch.float64)
    for k in range(len(a)):
        for place in np.ndindex(*a.shape[1:]):
            slope = float(g[k][place].detach())
            whole = float(a[k].double().sum()) * slope**3
            if form == "monai":
                whole = float((a[k].double() * g[k].double() ** 3).sum())
            denominator = 2 * slope**2 + whole
            found[k][place] = slope**2 / denominator if denominator else 0.0
    return found


def laid_out(coarse: torch.Tensor) -> np.ndarray:
    """ReLU, then resized to the scan."""
    fine = functional.interpolate(coarse.float().relu()[None, None], size=GRID.shape, mode="trilinear")
    return fine[0, 0].detach().numpy()


def sums(a: torch.Tensor, g: torch.Tensor, method: str) -> torch.Tensor:
    if method == "hires-cam":
        return sum(g[k] * a[k] for k in range(len(a)))
    if method == "layer-cam":
        return sum(g[k].clamp(min=0) * a[k] for k in range(len(a)))
    form = method.partition(" ")[2] or "paper"
    weights = alphas(a, g, form) * g.clamp(min=0)
    if method.startswith("instance"):
        return sum(weights[k] * a[k] for k in range(len(a)))
    return sum(weights[k].sum() * a[k] for k in range(len(a)))


METHODS = {
    "hires-cam": vx.HiResCAM(),
    "layer-cam": vx.LayerCAM(),
    "grad-cam++": vx.GradCAMPlusPlus(),
    "grad-cam++ monai": vx.GradCAMPlusPlus(alpha="monai"),
    "instance-grad-cam++": vx.InstanceGradCAMPlusPlus(),
    "instance-grad-cam++ monai": vx.InstanceGradCAMPlusPlus(alpha="monai"),
}


def compare(found: np.ndarray, expected: np.ndarray) -> None:
    assert expected.max() > 0, "a map of zeros compares nothing"
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * expected.max())


@pytest.mark.parametrize("layer", ["layer1", "layer3"])
@pytest.mark.parametrize("method", [name for name in METHODS if not name.startswith("instance")])
def test_of_a_class(method: str, layer: str) -> None:
    why = replace(METHODS[method], layer=layer)(classifier(), SCAN, target=vx.ClassScore("b"), compute=CPU)
    a, output = watched(classifier().network, layer)
    (g,) = torch.autograd.grad(output[0, 1], a)
    compare(why.total, laid_out(sums(a[0], g[0], method)))
    assert why.provenance["passes"] == {"forward": 2, "backward": 1}


@pytest.mark.parametrize("layer", ["model.0", "model.1", "model.2"])
@pytest.mark.parametrize("method", METHODS)
def test_of_a_lesion(method: str, layer: str) -> None:
    target = vx.RegionScore("lesion", vx.Labels(LESION, GRID), 3)
    why = replace(METHODS[method], layer=layer)(unet(), SCAN, target=target, compute=CPU)
    a, output = watched(unet().network, layer)
    voxels = output[0, 1][torch.from_numpy(LESION == 3)]
    # Eq. 9 sums the lesion's logits; the score of a region is their mean.
    (g,) = torch.autograd.grad(voxels.sum() if method.startswith("instance") else voxels.mean(), a)
    compare(why.total, laid_out(sums(a[0], g[0], method)))


def test_of_the_last_layers_own_output_only_the_lesion_is_left() -> None:
    """The paper's literal choice: the gradient there is 1 in the lesion and 0 outside."""
    target = vx.RegionScore("lesion", vx.Labels(LESION, GRID), 3)
    model = unet()
    why = vx.InstanceGradCAMPlusPlus(layer="model.2")(model, SCAN, target=target, compute=CPU)
    logits = model.network(INPUT)[0, 1].detach().numpy()
    expected = np.where(LESION == 3, np.maximum(logits / (2 + logits.sum(dtype=float)), 0), 0)
    compare(why.total, expected)


def test_monais_alpha_is_monais() -> None:
    """But for exp(score), which is 1 here, and for 1e-7 in the denominator, which steep gradients drown."""
    network = classifier().network
    with torch.no_grad():
        network.fc.weight.mul_(3000)
        network.fc.bias.sub_(network(INPUT)[0])
    model = vx.Model(network, classifier().card)
    why = vx.GradCAMPlusPlus(layer="layer2", alpha="monai")(model, SCAN, target=vx.ClassScore("b"), compute=CPU)
    theirs = GradCAMpp(nn_module=network, target_layers="layer2", postprocessing=lambda values: values)
    expected = theirs(INPUT, class_idx=1)[0, 0].detach().numpy()
    np.testing.assert_allclose(why.total, expected, rtol=0, atol=1e-3 * expected.max())


def test_a_denominator_of_zero_gives_no_weight() -> None:
    """Without a gradient Eq. 7 is 0 / 0."""
    model = classifier()
    nn.init.zeros_(model.network.fc.weight)
    why = vx.GradCAMPlusPlus(layer="layer2")(vx.Model(model.network, model.card), SCAN, compute=CPU)
    assert not why.map.any()
    with pytest.raises(vx.InputError, match="alpha is one of paper, monai; got 'mine'"):
        vx.GradCAMPlusPlus(alpha="mine")


# The layer that is taken where none is named


class Joined(nn.Module):
    """What the last layer reads is a concatenation, which no module made."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv3d(2, 3, 3, padding=1), nn.ReLU(inplace=True))
        self.second = nn.Conv3d(3, 4, 3, padding=1)
        self.head = nn.Conv3d(7, 2, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = self.first(inputs)
        return self.head(torch.cat([features, self.second(features)], dim=1))


NETWORKS = {
    "model.1": lambda: UNet(3, 2, 2, (6, 8, 10), (2, 2), norm="batch"),
    "model.2.0": lambda: UNet(3, 2, 2, (6, 8, 10), (2, 2), num_res_units=1, norm="batch"),
    "second": Joined,
    "0": lambda: nn.Sequential(nn.Sequential(nn.Conv3d(2, 3, 1), nn.ReLU(inplace=True)), nn.Conv3d(3, 2, 1)),
}


@pytest.mark.parametrize("layer", NETWORKS)
def test_the_layer_is_that_which_the_last_one_reads(layer: str) -> None:
    model = vx.Model(seeded(NETWORKS[layer]), unet().card)
    target = vx.RegionScore("lesion", vx.Labels(LESION, GRID), 3)
    why = vx.InstanceGradCAMPlusPlus()(model, SCAN, target=target, compute=CPU)
    facts = why.provenance["facts"]["whole"]
    assert facts["layer"] == layer
    assert why.provenance["passes"] == {"forward": 3, "backward": 1}
    named = vx.InstanceGradCAMPlusPlus(layer=layer)(model, SCAN, target=target, compute=CPU)
    np.testing.assert_array_equal(why.map, named.map)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.network.modules())


def test_a_network_of_one_layer_has_none_before_it() -> None:
    model = vx.Model(seeded(lambda: nn.Sequential(nn.Conv3d(2, 2, 3, padding=1))), unet().card)
    target = vx.RegionScore("lesion", vx.Labels(LESION, GRID), 3)
    with pytest.raises(vx.InputError, match="no layer before the network's last one gives feature maps"):
        vx.InstanceGradCAMPlusPlus()(model, SCAN, target=target, compute=CPU)


@pytest.mark.parametrize("method", METHODS)
def test_in_windows_as_on_the_whole_where_one_window_is_all(method: str) -> None:
    target = vx.RegionScore("lesion", vx.Labels(LESION, GRID), 3)
    explainer = replace(METHODS[method], layer="model.1")
    whole = explainer(unet(), SCAN, target=target, compute=CPU)
    windowed = explainer(unet(window=GRID.shape), SCAN, target=target, compute=CPU)
    compare(windowed.total, whole.total)


@pytest.mark.parametrize("method", ["hires-cam", "instance-grad-cam++"])
def test_windows_add_up_with_their_weights(method: str) -> None:
    """Each window's own sum, with the gradient of what it adds to the blended score."""
    from voxplain.engine.windows import Tiling

    model, window = unet(window=(12, 12, 12), overlap=0.5), (12, 12, 12)
    target = vx.RegionScore("lesion", vx.Labels(LESION, GRID), 3)
    why = replace(METHODS[method], layer="model.1")(model, SCAN, target=target, compute=CPU)
    tiling, inside = Tiling.of(model.card, GRID.shape), torch.from_numpy(LESION == 3)
    expected, touched = np.zeros(GRID.shape), 0
    for number, box in enumerate(tiling.boxes):
        kept: list[torch.Tensor] = []
        handle = model.network.get_submodule("model.1").register_forward_hook(lambda m, i, o, k=kept: k.append(o))
        output = model.network(INPUT[(slice(None), slice(None), *box)].clone().requires_grad_())
        handle.remove()
        if not inside[box].any():
            continue
        touched += 1
        read = (output[0, 1] * tiling.weights(number))[inside[box]].sum()
        read = read if method.startswith("instance") else read / inside.sum()
        (g,) = torch.autograd.grad(read, kept[0])
        coarse = sums(kept[0][0], g[0], method).float()
        fine = functional.interpolate(coarse[None, None], size=window, mode="trilinear")[0, 0]
        expected[box] += fine.detach().numpy()
    assert touched > 1
    compare(why.total, np.maximum(expected, 0))


@pytest.mark.parametrize("scale", ["logit", "probability"])
def test_score_cam(scale: str) -> None:
    """Wang 2020, eq. 5 to 9, one feature map after the other."""
    model, layer = classifier(), "layer1"
    why = vx.ScoreCAM(layer=layer, scale=scale)(model, SCAN, target=vx.ClassScore("b"), compute=CPU)
    a, _ = watched(model.network, layer)
    scores = []
    with torch.no_grad():
        for feature in a[0]:
            mask = functional.interpolate(feature[None, None], size=GRID.shape, mode="trilinear")
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            output = model.network(INPUT * mask)
            scores.append(float(output[0, 1] if scale == "logit" else output.softmax(dim=1)[0, 1]))
    weights = torch.tensor(scores, dtype=torch.float64).softmax(dim=0)
    compare(why.total, laid_out(sum(w * feature for w, feature in zip(weights, a[0].detach(), strict=True))))
    assert why.provenance["passes"] == {"forward": 2 + len(scores), "backward": 1}


def test_a_feature_map_that_is_the_same_everywhere_has_no_weight() -> None:
    network = nn.Sequential(
        nn.Sequential(nn.Conv3d(2, 3, 3, padding=1), nn.ReLU()), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(3, 1)
    )
    network = seeded(lambda: network)
    with torch.no_grad():
        network[0][0].weight[1].zero_()
        network[0][0].bias[1] = 50.0
    card = vx.Card(name="c", channels=("flair", "t1"), classes=("a",))
    why = vx.ScoreCAM(layer="0")(vx.Model(network, card), SCAN, compute=CPU)
    assert 0 < why.total.max() < 25


def test_several_layers_are_fused_as_shares_of_their_highest_values() -> None:
    single = [vx.GradCAM(layer=layer)(classifier(), SCAN, compute=CPU).total for layer in ("layer1", "layer3")]
    fused = vx.GradCAM(layer="layer1, layer3")(classifier(), SCAN, compute=CPU)
    np.testing.assert_allclose(fused.total, sum(one / one.max() for one in single) / 2, rtol=1e-5, atol=1e-7)
    (facts,) = fused.provenance["facts"].values()
    assert facts["layer"] == ["layer1", "layer3"]
    assert facts["layer_grid_mm"][0] != facts["layer_grid_mm"][1]
    assert fused.provenance["passes"] == {"forward": 3, "backward": 2}


def test_a_layer_of_one_cell_localises_nothing() -> None:
    network = nn.Sequential(nn.Conv3d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(3, 1))
    card = vx.Card(name="c", channels=("flair", "t1"), classes=("a",))
    model = vx.Model(seeded(lambda: network), card)
    for explainer in (vx.GradCAM(layer="2"), vx.ScoreCAM(layer="2"), vx.LayerCAM(layer="0,2")):
        with pytest.raises(vx.InputError, match=r"layer 2 has a grid of 1 x 1 x 1 cells, .* name an earlier layer"):
            explainer(model, SCAN, compute=CPU)
