"""What Instance SmoothGrad refuses and states, and lesions that are explained together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

import voxplain as vx
from voxplain.engine.boxes import Boxes
from voxplain.engine.pullback import Cotangents
from voxplain.engine.signed_maximum import SignedMaximum, laid_out

CPU = vx.Compute(device="cpu")
SHAPE = (32, 24, 16)
GRID = vx.Grid(SHAPE, np.diag([1.0, 1.0, 3.0, 1.0]))
CARD = vx.Card(name="net", channels=("flair", "t1"), classes=("lesion",), window=(16, 16, 8), overlap=0.25)
METHOD = vx.InstanceSmoothGrad(copies=2)


class Counted(nn.Module):
    """A U-Net that counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.net = UNet(3, 2, 1, channels=(3, 5), strides=(2,), norm="batch")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def a_scan() -> vx.Scan:
    data = np.random.default_rng(1).normal(0, 1, (2, *SHAPE)).astype(np.float32)
    return vx.Scan(data, GRID, ("flair", "t1"))


def lesions() -> vx.Labels:
    data = np.zeros(SHAPE, dtype=np.int32)
    data[6:8, 5:7, 3:5] = 1
    data[3:5, 6:8, 3:4] = 2
    data[27:30, 20:23, 12:15] = 5
    data[0:2, 0:1, 0:1] = 7
    return vx.Labels(data, GRID)


def a_model(card: vx.Card = CARD) -> vx.Model:
    return vx.Model(Counted().eval(), card)


@pytest.mark.parametrize("card", [CARD, dataclasses.replace(CARD, window=None)], ids=["windows", "whole"])
@pytest.mark.parametrize("aggregation", ["maximum", "average"])
def test_each_lesion_is_what_it_is_alone(card: vx.Card, aggregation: str) -> None:
    model, scan, regions = a_model(card), a_scan(), lesions()
    method = dataclasses.replace(METHOD, aggregation=aggregation, most_voxels=6)
    found = dict(method.each(model, scan, regions, name="lesion", seed=3, compute=CPU))
    assert set(found) == {1, 2, 5, 7}
    together = []
    for label, why in found.items():
        target = vx.RegionScore("lesion", regions, label)
        alone = method(model, scan, target=target, seed=3, compute=CPU)
        np.testing.assert_allclose(why.map, alone.map, rtol=0, atol=1e-5 * np.abs(alone.map).max())
        assert why.provenance["target"] == target.record()
        assert why.provenance["passes"] == alone.provenance["passes"]
        facts = [each.provenance["facts"]["whole"] for each in (why, alone)]
        assert facts[0]["voxels"] == facts[1]["voxels"]
        together.append(facts[0]["lesions_together"])
    assert together == ([3, 3, 3, 1] if aggregation == "maximum" else [1, 1, 1, 1])
    again = dict(method.each(model, scan, regions, name="lesion", labels=[5, 2], seed=3, compute=CPU))
    assert list(again) == [5, 2]


def test_other_methods_explain_one_lesion_after_the_other() -> None:
    model, scan, regions = a_model(), a_scan(), lesions()
    method = vx.GuidedBackprop()
    for label, why in method.each(model, scan, regions, name="lesion", labels=[5, 1], compute=CPU):
        alone = method(model, scan, target=vx.RegionScore("lesion", regions, label), compute=CPU)
        np.testing.assert_array_equal(why.map, alone.map)


def test_a_label_that_does_not_occur() -> None:
    with pytest.raises(vx.InputError, match="no label 4; its labels are 1, 2, 5, 7"):
        next(METHOD.each(a_model(), a_scan(), lesions(), name="lesion", labels=[4], compute=CPU))


def test_no_lesions_are_no_explanations() -> None:
    empty = vx.Labels(np.zeros(SHAPE, dtype=np.int32), GRID)
    assert list(METHOD.each(a_model(), a_scan(), empty, name="lesion", compute=CPU)) == []


def test_only_regions_are_explained() -> None:
    with pytest.raises(
        vx.InputError, match=r"explains a region, such as one lesion: target=vx.RegionScore.*ClassScore"
    ):
        METHOD(a_model(), a_scan(), compute=CPU)


@pytest.mark.parametrize(
    "options",
    [{"copies": 0}, {"sigma": -0.1}, {"sigma": float("nan")}, {"most_voxels": 0}, {"aggregation": "sum"}],
    ids=str,
)
def test_options_that_cannot_be(options: dict[str, object]) -> None:
    with pytest.raises(vx.InputError):
        vx.InstanceSmoothGrad(**options)


def test_what_is_to_be_done_is_said_before_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    compute = dataclasses.replace(CPU, progress=True)
    target = vx.RegionScore("lesion", lesions(), 1)
    why = METHOD(a_model(), a_scan(), target=target, compute=compute)
    assert "whole: 8 voxels, 2 copies x 8 voxels, 16 gradients, about" in capsys.readouterr().err
    assert why.provenance["passes"] == {"forward": 3, "backward": 16}
    dataclasses.replace(METHOD, aggregation="average")(a_model(), a_scan(), target=target, compute=compute)
    assert "8 voxels, 2 copies, a backward pass for each, about" in capsys.readouterr().err


def test_facts_name_the_field_and_the_crop() -> None:
    target = vx.RegionScore("lesion", lesions(), 5)
    facts = METHOD(a_model(), a_scan(), target=target, compute=CPU).provenance["facts"]["whole"]
    x, y, z = facts["receptive_field"]["voxels"]
    assert facts["receptive_field"]["mm"] == [x, y, 3 * z]
    assert facts["windows"]["run"] == len(facts["crops"])
    assert all(a <= b for crop in facts["crops"] for a, b in zip(crop, (16, 16, 8), strict=True))


def test_torchscript_is_explained_too() -> None:
    network = torch.jit.trace(Counted().eval(), torch.zeros(1, 2, 16, 16, 8), check_trace=False)
    target = vx.RegionScore("lesion", lesions(), 1)
    with pytest.warns(UserWarning, match="TorchScript network cannot be traced"):
        found = METHOD(vx.Model(network, CARD), a_scan(), target=target, compute=CPU)
    expected = METHOD(a_model(), a_scan(), target=target, compute=CPU)
    np.testing.assert_allclose(found.map, expected.map, rtol=0, atol=1e-5 * np.abs(expected.map).max())


def test_ties_are_the_first_voxels() -> None:
    found = SignedMaximum(1, Boxes(np.array([(2, 1)]), (1, 3)), torch.device("cpu"))
    start = np.array([(2, 1), (2, 1), (3, 1)])
    values = torch.tensor([[-2.0, 1.0, 3.0], [2.0, 1.0, -4.0], [9.0, -2.0, 0.0]]).view(3, 1, 1, 3)
    found.add(Boxes(start, (1, 3)), values)
    assert found.values[0, 0].tolist() == [[-2, 1, -4], [9, -2, 0]]
    found.add(Boxes(np.array([(3, 1), (2, 2)]), (1, 2)), torch.tensor([[-9.0, 2.5], [1.0, 4.0]]).view(2, 1, 1, 2))
    found.add(Boxes(np.array([(1, 3)]), (1, 2)), torch.tensor([[7.0, 8.0]]).view(1, 1, 1, 2))
    assert found.boxes.start.tolist() == [[1, 1]]
    assert found.values[0, 0].tolist() == [[0, 0, 7, 8], [-2, 1, -4, 0], [9, 2.5, 0, 0]]
    whole = laid_out(Cotangents(found.boxes, found.values), (7, 5, 1))
    assert whole.shape == (1, 7, 5, 1)
    assert whole[0, 3, 1, 0] == 9
    assert whole.sum() == found.values.sum()
