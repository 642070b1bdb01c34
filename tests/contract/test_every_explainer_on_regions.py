"""What every explainer owes a user of segmentation networks: the contract again, with a region as the target."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import voxplain as vx
from voxplain import explain

CPU = vx.Compute(device="cpu")
EVERY = [getattr(explain, name) for name in explain.__all__]
# A network that explains itself says one score per class, and its map is of that score.
KINDS = [kind for kind in EVERY if issubclass(vx.RegionScore, kind.takes)]
# A flipped, anisotropic grid with an odd origin; RAS+ world, so this one is LAS.
AFFINE = np.array([[-1.5, 0, 0, 11], [0, 1, 0, -30], [0, 0, 2.5, 7], [0, 0, 0, 1.0]])
# Lengths in mm must suit worlds of 2 to 4 cm, and numbers of samples a suite that runs each method many times.
SETTINGS: dict[str, dict[str, object]] = {
    "occlusion": {"partition": "cubes:5", "stride": 2.5},
    "lime": {"samples": 250},
    "kernel-shap": {"samples": 250},
    "rise": {"cell": 3.0, "samples": 300},
    "instance-smoothgrad": {"copies": 8},
}


class Segmenter(nn.Module):
    """A U-Net of two levels whose last map is how far a voxel, and a little of what is around it, is above a threshold.

    (B, channels, *extent) -> (B, classes, *extent); extents are even. The last class is the blob.
    """

    def __init__(self, channels: int, classes: int, dims: int, threshold: float) -> None:
        super().__init__()
        convolution, norm, pool, mode = {
            2: (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, "bilinear"),
            3: (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d, "trilinear"),
        }[dims]
        self.features = nn.Sequential(convolution(channels, 1, 3, padding=1), norm(1), nn.ReLU(inplace=True))
        self.coarse = nn.Sequential(pool(2), convolution(1, 2, 3, padding=1), nn.ReLU())
        self.up = nn.Upsample(scale_factor=2, mode=mode)
        self.head = convolution(3, classes, 1)
        kernel = torch.full((3,) * dims, 0.02)
        kernel[(1,) * dims] = 1
        with torch.no_grad():
            self.features[0].weight.copy_(kernel / channels)
            # Tissue must stay below, the blob far above.
            self.features[0].bias.fill_(-threshold)
            self.coarse[1].weight.fill_(0.5 / 3**dims)
            self.head.weight.zero_()
            self.head.weight[-1] = 1.5 / threshold
            self.head.bias.fill_(-1.0)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = self.features(inputs)
        return self.head(torch.cat([features, self.up(self.coarse(features))], dim=1))


@dataclass(frozen=True, eq=False)
class World:
    """A scan with a planted blob, the model that marks it, and the blob as a target."""

    model: vx.Model
    scan: vx.Scan
    target: vx.RegionScore

    @property
    def blob(self) -> np.ndarray:
        return self.target.region.data > 0


def a_world(shape: tuple[int, int, int], corner: tuple[int, int, int], **fields: Any) -> World:
    """An ellipsoid of tissue, symmetric from left to right, with noise and a blob of 3 voxels."""
    middle = (np.array(shape) - 1) / 2
    index = np.moveaxis(np.indices(shape), 0, -1)
    brain = (((index - middle) / (np.maximum(middle, 1) * 0.95)) ** 2).sum(axis=-1) < 1
    blob = np.zeros(shape, dtype=bool)
    blob[tuple(slice(c, c + 3) for c in corner)] = True
    channels, classes = ("flair", "t2"), fields.pop("classes", ("blob",))
    data = np.where(brain, np.random.default_rng(3).normal(1.0, 0.1, (2, *shape)) + 7.0 * blob, 0)
    grid = vx.Grid(shape, AFFINE)
    card = vx.Card(name="segmenter", channels=channels, classes=classes, **fields)
    # Scaled to 0-1 the blob is at 1 and tissue at about 1 / 9.
    threshold = 0.35 if card.normalisation == "min-max" else 3.0
    network = Segmenter(2, len(classes), card.spatial_dims, threshold).eval()
    return World(vx.Model(network, card), vx.Scan(data, grid, channels), vx.RegionScore("blob", vx.Labels(blob, grid)))


WORLDS = {
    "volume": a_world((14, 16, 12), (8, 5, 4), orientation="RAS"),
    "2D image with softmax": a_world(
        (24, 20, 1), (6, 9, 0), spatial_dims=2, classes=("rest", "blob"), activation="softmax"
    ),
    "one of two halves": a_world((20, 18, 12), (13, 7, 4), region="half", orientation="LPS", normalisation="min-max"),
}


@pytest.fixture(params=WORLDS, ids=lambda name: name.replace(" ", "-"))
def world(request: pytest.FixtureRequest) -> World:
    return WORLDS[request.param]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def explainer(request: pytest.FixtureRequest) -> vx.Explainer:
    asks = "layer" in {option.name for option in dataclasses.fields(request.param)}
    layer = {"layer": "features"} if asks else {}
    return request.param(**(layer | SETTINGS.get(request.param.name, {})))


@pytest.fixture(autouse=True)
def _warnings_are_not_for_here() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def run(explainer: vx.Explainer, world: World, **compute: Any) -> vx.Explanation:
    return explainer(world.model, world.scan, target=world.target, seed=5, compute=dataclasses.replace(CPU, **compute))


def test_finds_the_blob_and_replays(explainer: vx.Explainer, world: World) -> None:
    why = run(explainer, world)
    assert why.map.shape == (len(why.channels), *world.scan.grid.shape)
    assert np.isfinite(why.map).all()
    peak = np.unravel_index(why.total.argmax(), why.total.shape)
    assert world.blob[peak]
    assert why.total[world.blob].mean() > 5 * np.abs(why.total[~world.blob]).mean()
    (region,) = why.regions  # of halves, the one that holds the blob
    assert region.positive
    assert world.blob[region.slices].sum() == world.blob.sum()
    assert why.provenance["target"] == world.target.record()
    stored = json.loads(json.dumps(why.provenance))
    again = vx.replay(stored, world.model, world.scan, CPU, target=world.target)
    np.testing.assert_array_equal(again.map, why.map)
    assert again.provenance["target"] == stored["target"]


def test_the_incremental_engine_gives_the_same_map(explainer: vx.Explainer, world: World) -> None:
    full, fast = run(explainer, world), run(explainer, world, engine="incremental")
    np.testing.assert_allclose(fast.map, full.map, rtol=0, atol=1e-5)
    assert fast.provenance["passes"] == full.provenance["passes"]


def test_batch_size_changes_nothing(explainer: vx.Explainer) -> None:
    world = WORLDS["volume"]
    reference, why = run(explainer, world), run(explainer, world, batch_size=5)
    assert np.abs(why.map - reference.map).max() <= 1e-5 * np.abs(reference.map).max()


@pytest.mark.parametrize("flips", [(-1, 1, 1), (1, -1, -1)], ids=str)
def test_the_blob_is_found_however_the_scan_lies(explainer: vx.Explainer, flips: tuple[int, int, int]) -> None:
    world = WORLDS["volume"]
    affine = np.diag([1.5 * flips[0], 1.0 * flips[1], 2.5 * flips[2], 1.0])
    affine[:3, 3] = (3, -44, 12.5)
    grid = vx.Grid(world.scan.grid.shape, affine)
    turned = World(
        world.model,
        vx.Scan(world.scan.data, grid, world.scan.channels),
        vx.RegionScore("blob", vx.Labels(world.blob, grid)),
    )
    why = run(explainer, turned)
    np.testing.assert_array_equal(why.grid.affine, affine)
    assert why.total[world.blob].mean() > 5 * np.abs(why.total[~world.blob]).mean()


def test_a_constant_network_gives_a_zero_map(explainer: vx.Explainer) -> None:
    world = WORLDS["volume"]
    network = Segmenter(2, len(world.model.card.classes), world.model.card.spatial_dims, 1.0).eval()
    nn.init.zeros_(network.head.weight)
    why = run(explainer, dataclasses.replace(world, model=vx.Model(network, world.model.card)))
    np.testing.assert_array_equal(why.map, 0)


@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
def test_leaves_everything_as_it_was(explainer: vx.Explainer, error: type[BaseException] | None) -> None:
    world = WORLDS["volume"]
    network = Segmenter(2, 1, 3, 3.0).train()
    network.features[1].eval()
    network.head.weight.requires_grad_(False)
    network.features.register_forward_hook(lambda module, inputs, output: None)
    calls: list[int] = []

    def stumble(module: nn.Module, inputs: object, output: object) -> None:
        calls.append(1)
        if error is not None and len(calls) > 1:
            raise error("stumbled")

    network.up.register_forward_hook(stumble)
    modules = [*network.modules()]

    def everything() -> dict[str, Any]:
        hooks = [(sort, [*kept.items()]) for m in modules for sort, kept in vars(m).items() if "hooks" in sort and kept]
        return {
            "weights": {name: value.tolist() for name, value in network.state_dict().items()},
            "modes": [module.training for module in modules],
            "requires_grad": [(parameter.requires_grad, parameter.grad) for parameter in network.parameters()],
            "hooks": hooks,
            "scan": world.scan.data.tobytes(),
            "random": torch.get_rng_state().tolist(),
        }

    before, there = everything(), dataclasses.replace(world, model=vx.Model(network, world.model.card))
    if error is None:
        run(explainer, there)
    else:
        with pytest.raises(error, match="stumbled"):
            run(explainer, there)
    assert everything() == before
    assert len(calls) > 1


def test_refuses_targets_that_it_does_not_take(explainer: vx.Explainer) -> None:
    world = WORLDS["2D image with softmax"]
    for target in (vx.ClassScore("blob"), vx.PredictedClass()):
        taken = isinstance(target, explainer.takes)
        words = "a map per class is explained by region: --lesion N" if taken else "such as one lesion: target=vx.Reg"
        with pytest.raises(vx.InputError, match=words):
            explainer(world.model, world.scan, target=target, compute=CPU)
