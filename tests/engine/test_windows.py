"""What windows refuse, what they run, and that every method works on a network that reads a scan in windows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import voxplain as vx
from voxplain.engine.windows import Stitched, Tiling, stitched_prediction
from voxplain.preparation import prepare

CPU = vx.Compute(device="cpu")
CARD = vx.Card(name="net", channels=("t1",), classes=("blob",), window=(8, 8, 8), overlap=0.25)
SHAPE = (18, 14, 10)


class Neighbourhood(nn.Module):
    """A map of how far a voxel's surroundings lie above 1; (B, 1, x, y, z) -> (B, 1, x, y, z). It counts its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Conv3d(1, 1, 1)
        self.seen = 0
        with torch.no_grad():
            self.conv.weight.fill_(1 / 27)
            self.conv.bias.fill_(-0.2)
            self.head.weight.fill_(3.0)
            self.head.bias.fill_(-1.0)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.seen += len(inputs)
        return self.head(self.act(self.conv(inputs)))


def a_world(shape: tuple[int, int, int] = SHAPE) -> tuple[vx.Model, vx.Scan, vx.RegionScore]:
    blob = np.zeros(shape, dtype=bool)
    blob[6:9, 5:8, 3:6] = True
    data = np.random.default_rng(2).uniform(0.1, 0.3, (1, *shape)) + 2.0 * blob
    grid = vx.Grid(shape, np.eye(4))
    target = vx.RegionScore("blob", vx.Labels(blob, grid))
    return vx.Model(Neighbourhood().eval(), CARD), vx.Scan(data, grid, ("t1",)), target


@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    window=st.tuples(*[st.integers(1, 20)] * 3),
    overlap=st.floats(0, 0.95),
)
def test_weights_add_up_to_one_everywhere(
    shape: tuple[int, int, int], window: tuple[int, int, int], overlap: float
) -> None:
    window = tuple(max(w, n // 3) for w, n in zip(window, shape, strict=True))
    overlap = min(overlap, 0.5)
    tiling = Tiling(shape, window, overlap)
    total = torch.zeros(tiling.padded)
    for number, box in enumerate(tiling.boxes):
        assert all(side.stop - side.start == size for side, size in zip(box, window, strict=True))
        total[box] += tiling.weights(number)
    torch.testing.assert_close(total, torch.ones(tiling.padded), rtol=0, atol=1e-5)
    assert total[tiling.inside].shape == shape


@given(corner=st.tuples(*[st.integers(0, 9)] * 3), size=st.integers(1, 6))
def test_windows_that_touch_a_region(corner: tuple[int, int, int], size: int) -> None:
    tiling = Tiling((15, 11, 10), (8, 16, 5), 0.4)
    mask = np.zeros(tiling.shape, dtype=bool)
    mask[tuple(slice(c, c + size) for c in corner)] = True
    padded = np.zeros(tiling.padded, dtype=bool)
    padded[tiling.inside] = mask
    expected = [number for number, box in enumerate(tiling.boxes) if padded[box].any()]
    assert tiling.touching(mask) == expected
    where = np.argwhere(mask)
    sides = tuple(zip(where.min(axis=0).tolist(), (where.max(axis=0) + 1).tolist(), strict=True))
    assert tiling.reached(sides) == expected


def test_only_windows_that_are_read_run_and_the_rest_is_zero() -> None:
    model, scan, target = a_world()
    inputs = torch.tensor(scan.data[None])
    whole = Stitched(model.network, CARD)(inputs)
    model.network.seen = 0
    read = target.mask.data > 0
    some = Stitched(model.network, CARD, read=read)
    found = some(inputs)
    assert model.network.seen == len(some.numbers(SHAPE)) < len(some.tiling(SHAPE).boxes)
    torch.testing.assert_close(found[0, 0][torch.from_numpy(read)], whole[0, 0][torch.from_numpy(read)])
    assert not found[0, 0][torch.from_numpy(~read)].any()


def test_a_whole_prediction_runs_every_window_once() -> None:
    model, scan, _ = a_world()
    (prepared,) = prepare(scan, CARD)
    found = stitched_prediction(model, prepared, CPU)
    assert model.network.seen == len(Tiling(SHAPE, CARD.window, CARD.overlap).boxes)
    assert found.shape == (1, *SHAPE)


METHODS = {
    "occlusion": vx.Occlusion(partition="cubes:3", stride=3.0, mask="none"),
    "relevance-map": vx.RelevanceMap(partition="cubes:3", mask="none"),
    "lime": vx.LIME(samples=200, partition="cubes:4", mask="none"),
    "kernel-shap": vx.KernelSHAP(samples=200, partition="cubes:4", mask="none"),
    "rise": vx.RISE(cell=3.0, samples=200),
    "guided-backprop": vx.GuidedBackprop(),
    "grad-cam": vx.GradCAM(layer="act"),
}


@pytest.mark.parametrize("explainer", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("shape", [SHAPE, (18, 14, 7)], ids=["larger", "smaller along z"])
def test_every_method_finds_the_blob(explainer: vx.Explainer, shape: tuple[int, int, int]) -> None:
    model, scan, target = a_world(shape)
    why = explainer(model, scan, target=target, seed=1, compute=CPU)
    blob = target.mask.data > 0
    assert why.total[blob].mean() > 3 * np.abs(why.total[~blob]).mean()
    assert why.regions[0].positive
    assert why.provenance["facts"]["whole"]["windows"]["size"] == [8, 8, 8]
    again = vx.replay(why.provenance, model, scan, CPU, target=target)
    np.testing.assert_array_equal(again.map, why.map)
    batched = explainer(model, scan, target=target, seed=1, compute=dataclasses.replace(CPU, batch_size=5))
    assert np.abs(batched.map - why.map).max() <= 1e-5 * np.abs(why.map).max()


def test_parts_outside_of_the_lesions_windows_cost_no_pass() -> None:
    model, scan, target = a_world()
    why = vx.RelevanceMap(partition="cubes:2", mask="none")(model, scan, target=target, compute=CPU)
    tiling = Tiling(SHAPE, CARD.window, CARD.overlap)
    near = np.zeros(SHAPE, dtype=bool)
    for number in tiling.touching(target.mask.data > 0):
        near[tiling.boxes[number]] = True
    touched = len(np.unique(why.parts.data[near]))
    assert touched < len(why.scores)
    assert why.provenance["passes"]["forward"] == 1 + touched


def test_the_incremental_engine_is_said_to_be_left_out() -> None:
    model, scan, target = a_world()
    explainer = METHODS["relevance-map"]
    full = explainer(model, scan, target=target, compute=dataclasses.replace(CPU, engine="full"))
    with pytest.warns(UserWarning, match="does not work in windows"):
        fast = explainer(model, scan, target=target, compute=dataclasses.replace(CPU, engine="incremental"))
    np.testing.assert_array_equal(fast.map, full.map)


def test_announced_times_speak_of_windows(capsys: pytest.CaptureFixture[str]) -> None:
    model, scan, target = a_world()
    METHODS["relevance-map"](model, scan, target=target, compute=dataclasses.replace(CPU, progress=True))
    assert "passes" in capsys.readouterr().err


def test_a_class_score_is_refused_after_one_window() -> None:
    model, scan, _ = a_world()
    with pytest.raises(
        vx.InputError,
        match=r"explained by region: --lesion N on the command line, target=vx.RegionScore\(name, region\)",
    ):
        vx.Occlusion(partition="cubes:4")(model, scan, compute=CPU)
    assert model.network.seen == 1


class Classifier(nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.mean(dim=(2, 3, 4))


class Smaller(nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs[..., 1:-1]


class Two(nn.Module):
    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs, inputs


@pytest.mark.parametrize(
    ("network", "region", "message"),
    [
        (Classifier(), False, "this one gives one score per class: drop the window"),
        (Classifier(), True, r"expected a map per class on the window's grid, shape \(1, 1, 8, 8, 8\).*\(1, 1\)"),
        (Smaller(), True, r"returns \(1, 1, 8, 8, 6\).*set the card's window to a size that the network gives back"),
        (Two(), True, "returns tuple"),
    ],
)
def test_networks_that_windows_are_not_for(network: nn.Module, region: bool, message: str) -> None:
    _, scan, target = a_world()
    model = vx.Model(network.eval(), CARD)
    explainer = vx.Occlusion(partition="cubes:4")
    with pytest.raises(vx.InputError, match=message):
        explainer(model, scan, target=target if region else None, compute=CPU)


def test_whole_predictions_are_refused() -> None:
    model, scan, _ = a_world()
    (prepared,) = prepare(scan, CARD)
    with torch.no_grad():
        model.network.head.bias.fill_(float("nan"))
    with pytest.raises(vx.InputError, match="NaN or infinite"):
        stitched_prediction(model, prepared, CPU)
    model.network.train()
    with pytest.raises(vx.InputError, match="training mode"):
        stitched_prediction(model, prepared, CPU)
