"""Instance SmoothGrad against the paper's equations: a loop over copies, and one over voxels, with autograd."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import UNet
from torch import nn

import voxplain as vx

CPU = vx.Compute(device="cpu")
SHAPE = (20, 24, 16)
CARD = vx.Card(
    name="lesions", channels=("flair", "t1"), classes=("rest", "lesion"), activation="softmax", normalisation="z-score"
)
CARDS = {"whole": CARD, "windows": dataclasses.replace(CARD, window=(16, 16, 8), overlap=0.25)}
COPIES = 3


def unet(norm: str = "batch") -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = UNet(3, 2, 2, channels=(3, 5, 7), strides=(2, 2), norm=norm)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 2)
        return network.eval().requires_grad_(False)


def a_scan() -> vx.Scan:
    random = np.random.default_rng(8)
    data = random.uniform(1, 3, (2, *SHAPE)).astype(np.float32)
    data[1] *= 40
    data[:, :3] = 0
    return vx.Scan(data, vx.Grid(SHAPE, np.diag([1.0, 2.0, 1.0, 1.0])), ("flair", "t1"))


def a_lesion() -> vx.Labels:
    data = np.zeros(SHAPE, dtype=np.int32)
    data[9:12, 10:12, 7:9] = 4
    data[12, 11, 8] = 4
    data[3, 3, 3] = 9
    return vx.Labels(data, vx.Grid(SHAPE, np.diag([1.0, 2.0, 1.0, 1.0])))


def normalised(scan: vx.Scan) -> np.ndarray:
    """z-score over non-zero voxels; zeros stay 0."""
    found = np.zeros_like(scan.data)
    for channel, values in enumerate(scan.data.astype(np.float64)):
        inside = values != 0
        found[channel][inside] = (values[inside] - values[inside].mean()) / values[inside].std()
    return found


def score_map(network: nn.Module, inputs: torch.Tensor, card: vx.Card) -> torch.Tensor:
    if card.window is None:
        return network(inputs)[0, 1]
    return sliding_window_inference(inputs, card.window, 1, network, overlap=card.overlap, mode="gaussian")[0, 1]


def equations(
    network: nn.Module,
    card: vx.Card,
    *,
    seed: int,
    sigma: float,
    aggregation: str,
    reference: str = "channel",
    used: np.ndarray | None = None,
) -> np.ndarray:
    """Eq. 2 or Eq. 3, (C, X, Y, Z) float64; noise of each copy from a stream of its own."""
    image = normalised(a_scan())
    voxels = np.argwhere(a_lesion().data == 4) if used is None else used
    ranges = [float(channel.max() - channel.min()) for channel in image]
    if reference == "first_channel":
        ranges = [ranges[0]] * 2
    streams = np.random.default_rng(seed).spawn(COPIES + 1)
    total = np.zeros(image.shape)
    for stream in streams[:COPIES]:
        noise = stream.standard_normal(image.shape, dtype=np.float32)
        noisy = image + noise * np.array(ranges, dtype=np.float32).reshape(2, 1, 1, 1) * np.float32(sigma)
        inputs = torch.tensor(noisy[None], requires_grad=True)
        scores = score_map(network, inputs, card)
        gradients = [
            torch.autograd.grad(scores[tuple(voxel)], inputs, retain_graph=True)[0][0].numpy()
            for voxel in voxels.tolist()
        ]
        if aggregation == "average":
            total += np.mean(gradients, axis=0)
            continue
        best = np.zeros(image.shape)
        for gradient in gradients:
            best = np.where(np.abs(gradient) > np.abs(best), gradient, best)
        total += best
    return total / COPIES


def check(why: vx.Explanation, expected: np.ndarray) -> None:
    peak = np.abs(expected).max()
    assert peak > 0
    assert why.channels == ("flair", "t1")
    np.testing.assert_allclose(why.map, expected, rtol=0, atol=1e-5 * peak)


@pytest.mark.parametrize("aggregation", ["maximum", "average"])
@pytest.mark.parametrize("engine", ["auto", "full"])
@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_the_equations(card: vx.Card, engine: str, aggregation: str) -> None:
    network = unet()
    target = vx.RegionScore("lesion", a_lesion(), 4)
    explainer = vx.InstanceSmoothGrad(aggregation=aggregation, copies=COPIES, sigma=0.07)
    compute = dataclasses.replace(CPU, engine=engine)
    why = explainer(vx.Model(network, card), a_scan(), target=target, seed=6, compute=compute)
    check(why, equations(network, card, seed=6, sigma=0.07, aggregation=aggregation))
    facts = why.provenance["facts"]["whole"]
    assert facts["voxels"] == {"used": 13, "of": 13}
    assert facts["engine"] == ("local" if (engine, aggregation) == ("auto", "maximum") else "autograd")
    assert why.unit == "logit per intensity unit"
    assert why.signed


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_the_first_channels_range_as_the_authors_code(card: vx.Card) -> None:
    network, target = unet(), vx.RegionScore("lesion", a_lesion(), 4)
    explainer = vx.InstanceSmoothGrad(copies=COPIES, sigma=0.2, sigma_reference="first_channel")
    why = explainer(vx.Model(network, card), a_scan(), target=target, compute=CPU)
    check(why, equations(network, card, seed=0, sigma=0.2, aggregation="maximum", reference="first_channel"))
    image = normalised(a_scan())
    assert why.provenance["facts"]["whole"]["sigma"] == pytest.approx([0.2 * np.ptp(image[0])] * 2, rel=1e-5)


def test_a_network_without_rules() -> None:
    network, target = unet("instance"), vx.RegionScore("lesion", a_lesion(), 4)
    explainer = vx.InstanceSmoothGrad(copies=COPIES)
    with pytest.warns(UserWarning, match=r"InstanceNorm3d .* looks at all of it; goes on without the crop"):
        why = explainer(vx.Model(network, CARDS["windows"]), a_scan(), target=target, compute=CPU)
    check(why, equations(network, CARDS["windows"], seed=0, sigma=0.05, aggregation="maximum"))
    assert why.provenance["facts"]["whole"]["engine"] == "autograd"


def test_a_sample_of_a_large_lesion() -> None:
    network, target = unet(), vx.RegionScore("lesion", a_lesion(), 4)
    explainer = vx.InstanceSmoothGrad(copies=COPIES, most_voxels=5)
    why = explainer(vx.Model(network, CARD), a_scan(), target=target, seed=2, compute=CPU)
    chance = np.random.default_rng(2).spawn(COPIES + 1)[-1]
    voxels = np.argwhere(a_lesion().data == 4)
    used = voxels[np.sort(chance.choice(len(voxels), 5, replace=False))]
    check(why, equations(network, CARD, seed=2, sigma=0.05, aggregation="maximum", used=used))
    assert why.provenance["facts"]["whole"]["voxels"] == {"used": 5, "of": 13}


@pytest.mark.parametrize("aggregation", ["maximum", "average"])
def test_one_copy_without_noise_is_the_plain_gradient(aggregation: str) -> None:
    network, lesion = unet(), a_lesion()
    inputs = torch.tensor(normalised(a_scan())[None], requires_grad=True)
    (expected,) = torch.autograd.grad(score_map(network, inputs, CARD)[3, 3, 3], inputs)
    explainer = vx.InstanceSmoothGrad(aggregation=aggregation, copies=1, sigma=0.0)
    why = explainer(vx.Model(network, CARD), a_scan(), target=vx.RegionScore("lesion", lesion, 9), compute=CPU)
    check(why, expected[0].numpy())
