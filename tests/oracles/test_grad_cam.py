"""Grad-CAM against Captum's, and against MONAI's once its inverted scale is undone."""

import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam
from monai.networks.nets import ResNet
from monai.visualize import GradCAM as MonaiGradCAM
from torch import nn

import voxplain as vx
from voxplain.networks.resnet import resnet

CPU = vx.Compute(device="cpu", threads=1)
AFFINE = np.array([[-1.0, 0, 0, 5], [0, 2, 0, -9], [0, 0, 1.5, 4], [0, 0, 0, 1]])


def seeded(build, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build()
        # Statistics as after a training, so that normalisation does something.
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 2)
        return network.eval()


def flat() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, stride=2), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Conv2d(5, 7, 3, stride=2), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(28, 3),
    )  # fmt: skip


def deep() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 5, 3, stride=2, padding=1), nn.BatchNorm3d(5), nn.ReLU(),
        nn.Conv3d(5, 7, 3), nn.Tanh(), nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(56, 2),
    )  # fmt: skip


def residual() -> ResNet:
    return resnet(depth=10, in_channels=4, classes=1, width=8)


# builder, shape, channels, layers, classes
NETWORKS = {
    "2D": (flat, (30, 26, 1), 1, ("0", "1", "2", "3", "4"), 3),
    "3D": (deep, (14, 16, 12), 2, ("0", "1", "2", "3", "4"), 2),
    "ResNet-10": (residual, (32, 40, 24), 4, ("conv1", "bn1", "act", "layer1", "layer2"), 1),
}
CASES = [(name, layer) for name, (*_, layers, _) in NETWORKS.items() for layer in layers]


def world(name: str) -> tuple[vx.Model, vx.Scan, torch.Tensor]:
    build, shape, channels, _, classes = NETWORKS[name]
    sequences = tuple(f"s{number}" for number in range(channels))
    card = vx.Card(
        name=name, channels=sequences, classes=tuple(f"c{number}" for number in range(classes)),
        activation="softmax" if classes > 1 else "sigmoid", spatial_dims=2 if shape[2] == 1 else 3,
    )  # fmt: skip
    data = np.random.default_rng(7).normal(0, 1, (channels, *shape)).astype(np.float32)
    inputs = torch.from_numpy(data[None])
    scan = vx.Scan(data, vx.Grid(shape, AFFINE), sequences)
    return vx.Model(seeded(build), card), scan, inputs[..., 0] if shape[2] == 1 else inputs


@pytest.mark.parametrize(("name", "layer"), CASES)
def test_agrees_with_captum(name: str, layer: str) -> None:
    model, scan, inputs = world(name)
    last = model.card.classes[-1]
    why = vx.GradCAM(layer=layer)(model, scan, target=vx.ClassScore(last), compute=CPU)
    # A copy without in-place activations, over which Captum's hooks stumble; the arithmetic is the same.
    theirs = world(name)[0].network
    for module in theirs.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    cam = LayerGradCam(theirs, theirs.get_submodule(layer))
    coarse = cam.attribute(inputs, target=len(model.card.classes) - 1, relu_attributions=True)
    mode = "bilinear" if inputs.ndim == 4 else "trilinear"
    fine = LayerAttribution.interpolate(coarse, tuple(inputs.shape[2:]), interpolate_mode=mode)
    expected = fine.detach().numpy()[0, 0].reshape(scan.grid.shape)
    assert expected.max() > 0, "a map of zeros compares nothing"
    np.testing.assert_allclose(why.total, expected, rtol=0, atol=2e-5 * expected.max())
    facts = why.provenance["facts"]["whole"]
    assert facts["layer_shape"] == list(coarse.shape[2:])
    assert why.provenance["passes"] == {"forward": 2, "backward": 1}


@pytest.mark.parametrize("layer", ["layer1", "layer2"])
def test_agrees_with_monai_once_its_scale_is_turned_around(layer: str) -> None:
    model, scan, inputs = world("ResNet-10")
    why = vx.GradCAM(layer=layer)(model, scan, compute=CPU)
    theirs = MonaiGradCAM(nn_module=world("ResNet-10")[0].network, target_layers=layer)(inputs, class_idx=0)
    turned = 1 - theirs[0, 0].detach().numpy()
    np.testing.assert_allclose(why.scaled().total / 100, turned, rtol=0, atol=1e-4)
    raw = MonaiGradCAM(
        nn_module=world("ResNet-10")[0].network, target_layers=layer, postprocessing=lambda values: values
    )(inputs, class_idx=0)
    np.testing.assert_allclose(why.total, raw[0, 0].detach().numpy(), rtol=0, atol=2e-5 * why.total.max())


def test_the_gradient_is_of_the_logit_and_not_of_the_probability() -> None:
    """A bias on the output moves the probability's gradient, and leaves the logit's as it is."""
    model, scan, _ = world("ResNet-10")
    before = vx.GradCAM(layer="layer1")(model, scan, compute=CPU)
    with torch.no_grad():
        model.network.fc.bias.add_(8)
    after = vx.GradCAM(layer="layer1")(vx.Model(model.network, model.card), scan, compute=CPU)
    assert after.regions[0].probability > before.regions[0].probability + 0.1
    np.testing.assert_allclose(after.map, before.map, rtol=0, atol=1e-5 * before.map.max())


@pytest.mark.parametrize(
    ("layer", "shape", "millimetres"),
    [
        ("conv1", [16, 20, 12], [2.0, 4.0, 3.0]),
        ("layer1", [8, 10, 6], [4.0, 8.0, 6.0]),
        ("layer3", [2, 3, 2], [16.0, 26.667, 18.0]),
    ],
)
def test_states_the_layers_own_grid(layer: str, shape: list[int], millimetres: list[float]) -> None:
    """The input of 32 x 40 x 24 voxels of 1 x 2 x 1.5 mm, shared out among the layer's voxels."""
    model, scan, _ = world("ResNet-10")
    facts = vx.GradCAM(layer=layer)(model, scan, compute=CPU).provenance["facts"]["whole"]
    assert facts == {"layer": layer, "layer_shape": shape, "layer_grid_mm": millimetres}
