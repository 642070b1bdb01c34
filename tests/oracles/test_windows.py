"""The blended prediction against MONAI's, and its gradients against autograd through all windows at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import UNet
from torch import nn

import voxplain as vx
from voxplain.engine.probe import Probe
from voxplain.engine.windows import Stitched, stitched_prediction
from voxplain.explain.explainer import in_evaluation
from voxplain.preparation import prepare

CPU = vx.Compute(device="cpu")
WINDOW, OVERLAP = (16, 12, 8), 0.3
SHAPE = (38, 20, 15)


def unet(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(3, 2, 2, channels=(3, 5, 7), strides=(2, 2), norm="batch")
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 2)
        return network.eval().requires_grad_(False)


def card(**fields: object) -> vx.Card:
    content = {"name": "lesions", "channels": ("flair", "t1"), "classes": ("rest", "lesion"), "activation": "softmax"}
    return vx.Card(**(content | {"window": WINDOW, "overlap": OVERLAP} | fields))


def scan(shape: tuple[int, int, int] = SHAPE) -> vx.Scan:
    data = np.random.default_rng(4).normal(0, 1, (2, *shape)).astype(np.float32)
    return vx.Scan(data, vx.Grid(shape, np.diag([1.0, 1.0, 2.0, 1.0])), ("flair", "t1"))


def lesion(corner: tuple[int, int, int], size: int = 3, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(c, c + size) for c in corner)] = True
    return mask


def monai(network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return sliding_window_inference(
        inputs, WINDOW, 1, network, overlap=OVERLAP, mode="gaussian", sigma_scale=0.125, padding_mode="constant"
    )


# In the middle of the first window, at the border, straddling several windows (they begin at 0, 11, 22 along x).
LESIONS = {"middle": (7, 6, 4), "border": (0, 17, 12), "straddling": (11, 8, 5)}


@pytest.mark.parametrize("shape", [SHAPE, (16, 12, 8), (17, 9, 31), (10, 11, 7), (30, 40, 9)], ids=str)
def test_the_prediction_is_monais(shape: tuple[int, int, int]) -> None:
    """Also of volumes smaller than the window along one axis or all: MONAI pads with 0, which is raw 0 here."""
    network, image = unet(), scan(shape)
    inputs = torch.tensor(image.data[None])
    expected = monai(network, inputs)
    found = Stitched(network, card())(inputs)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()
    (prepared,) = prepare(image, card())
    whole = stitched_prediction(vx.Model(network, card()), prepared, CPU)
    np.testing.assert_allclose(whole, found[0], rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_padding_is_what_background_became() -> None:
    network, image = unet(), scan((10, 12, 8))
    inputs = torch.tensor(image.data[None])
    padded = torch.nn.functional.pad(inputs, (0, 0, 0, 0, 3, 3))
    padded[:, 1] -= 2.0
    padded[:, 1, 3:13] += 2.0
    expected = network(padded)[:, :, 3:13]
    found = Stitched(network, card(), background=(0.0, -2.0))(inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found - Stitched(network, card())(inputs)).abs().max() > 1e-3


def test_without_a_window_the_prediction_is_the_networks_own() -> None:
    network, image = unet(), scan((16, 12, 20))
    plain = card(window=None)
    (prepared,) = prepare(image, plain)
    whole = stitched_prediction(vx.Model(network, plain), prepared, CPU)
    np.testing.assert_allclose(whole, network(torch.tensor(image.data[None]))[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("corner", LESIONS.values(), ids=LESIONS)
@pytest.mark.parametrize("scripted", [False, True], ids=["Python", "TorchScript"])
def test_the_gradient_is_that_of_all_windows(corner: tuple[int, int, int], scripted: bool) -> None:
    network, image, mask = unet(), scan(), lesion(corner)
    inputs = torch.tensor(image.data[None], requires_grad=True)
    score = monai(network, inputs)[0, 1][torch.from_numpy(mask)].mean()
    (expected,) = torch.autograd.grad(score, inputs)
    runs = torch.jit.trace(network, torch.zeros(1, 2, *WINDOW)) if scripted else network
    model = vx.Model(runs, card())
    target = vx.RegionScore("lesion", vx.Labels(mask, image.grid))
    with in_evaluation(model.network, CPU.torch_device):
        (prepared,) = prepare(image, model.card)
        probe = Probe(model, prepared, target, 0, CPU)
        found = probe.gradient()
        again = torch.tensor(image.data[None], requires_grad=True)
        (through,) = torch.autograd.grad(target.logit(probe.network(again), model.card).sum(), again)
    assert probe.logit == pytest.approx(float(score.detach()), abs=1e-6)
    peak = float(expected.abs().max())
    np.testing.assert_allclose(found, expected[0], rtol=0, atol=1e-6 * peak)
    np.testing.assert_allclose(through[0], expected[0], rtol=0, atol=1e-6 * peak)
    every = probe.network.tiling(SHAPE).boxes
    touched = [number for number, box in enumerate(every) if mask[box].any()]
    assert probe.facts["windows"] == {"size": list(WINDOW), "overlap": 0.3, "run": len(touched), "of": len(every)}
    assert len(touched) < len(every)


@pytest.mark.parametrize("corner", LESIONS.values(), ids=LESIONS)
def test_patches_are_scored_as_all_windows_would(corner: tuple[int, int, int]) -> None:
    network, image, mask = unet(), scan(), lesion(corner)
    model = vx.Model(network, card())
    target = vx.RegionScore("lesion", vx.Labels(mask, image.grid))
    (prepared,) = prepare(image, model.card)
    probe = Probe(model, prepared, target, 0, CPU)
    boxes = [
        ((0, 4), (0, 4), (0, 4)),
        ((9, 14), (7, 12), (4, 9)),
        ((33, 38), (15, 20), (11, 15)),
        ((0, 38), (0, 20), (0, 15)),
    ]
    patches = [(box, np.full((2, *(b - a for a, b in box)), 1.5, dtype=np.float32)) for box in boxes]
    expected: dict[str, list[float]] = {"logit": [], "probability": []}
    changed = []
    for box, values in patches:
        image_there = image.data.copy()
        image_there[(slice(None), *(slice(*side) for side in box))] = values
        output = monai(network, torch.tensor(image_there[None]))[0][:, torch.from_numpy(mask)].double()
        expected["logit"].append(float(output[1].mean()))
        expected["probability"].append(float(output.softmax(dim=0)[1].mean()))
        changed.append(abs(expected["logit"][-1] - probe.logit) > 1e-5)
    before = probe.forwards
    for scale, values in expected.items():
        np.testing.assert_allclose(probe.scores_of_patches(patches, scale), values, rtol=0, atol=2e-6)
    windows = [box for box in probe.network.tiling(SHAPE).boxes if mask[box].any()]
    touch = [
        any(all(a < w.stop and w.start < b for (a, b), w in zip(box, window, strict=True)) for window in windows)
        for box in boxes
    ]
    assert probe.forwards - before == 2 * sum(touch)
    untouched = [score for score, its in zip(probe.scores_of_patches(patches, "logit"), touch, strict=True) if not its]
    assert untouched == [probe.logit] * len(untouched)
    assert sum(changed) <= sum(touch)


def test_activation_maps_of_windows_add_up() -> None:
    """Grad-CAM by hand: each window's maps, weighted by the mean gradient of the whole prediction there."""
    network, image, mask = unet(), scan(), lesion(LESIONS["straddling"])
    layer = "model.0"
    kept: list[torch.Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(lambda m, i, o: kept.append(o))
    inputs = torch.tensor(image.data[None], requires_grad=True)
    score = monai(network, inputs)[0, 1][torch.from_numpy(mask)].mean()
    handle.remove()
    gradients = torch.autograd.grad(score, kept)
    expected = torch.zeros(SHAPE)
    for box, activation, gradient in zip(Stitched(network, card()).tiling(SHAPE).boxes, kept, gradients, strict=True):
        coarse = (gradient.mean(dim=(2, 3, 4), keepdim=True) * activation).sum(dim=1, keepdim=True)
        expected[box] += torch.nn.functional.interpolate(coarse, size=WINDOW, mode="trilinear")[0, 0].detach()
    model = vx.Model(network, card())
    target = vx.RegionScore("lesion", vx.Labels(mask, image.grid))
    why = vx.GradCAM(layer=layer)(model, image, target=target, compute=CPU)
    expected = expected.clamp(min=0).numpy()
    assert expected.max() > 0
    np.testing.assert_allclose(why.total, expected, rtol=0, atol=1e-5 * expected.max())
    assert why.provenance["facts"]["whole"]["layer_shape"] == list(kept[0].shape[2:])
