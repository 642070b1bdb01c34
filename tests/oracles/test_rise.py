"""RISE against its formula, voxel by voxel, and what its masks must be."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import voxplain as vx
from voxplain.explain.rise import soft_masks

CPU = vx.Compute(device="cpu", threads=1, batch_size=7)
SHAPE = (9, 8, 7)
GRID = vx.Grid(SHAPE, np.diag([1.0, 2, 3, 1]))
CARD = vx.Card(name="small", channels=("flair", "t1ce"), classes=("tumour",), normalisation="min-max")


def model(seed: int = 0) -> vx.Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9 * 8 * 7, 1)
        ).eval().requires_grad_(False)  # fmt: skip
    return vx.Model(network, CARD)


def scan(seed: int = 0) -> vx.Scan:
    """One sequence has negative values, so that its background is not 0 on the network's input."""
    data = np.random.default_rng(seed).normal(0, 1, (2, *SHAPE)) + np.array([4.0, 0.0])[:, None, None, None]
    data[:, :2] = 0
    return vx.Scan(data, GRID, ("flair", "t1ce"))


def naive_mask(lattice: np.ndarray, cell: list[int], shift: list[int]) -> np.ndarray:
    """A lattice interpolated linearly, one voxel after the other, with all eight corners written out."""
    mask = np.zeros(SHAPE)
    for voxel in np.ndindex(SHAPE):
        at = [(v + s) / c for v, s, c in zip(voxel, shift, cell, strict=True)]
        for corner in np.ndindex(2, 2, 2):
            node = [int(a) + c for a, c in zip(at, corner, strict=True)]
            weight = np.prod([a % 1 if c else 1 - a % 1 for a, c in zip(at, corner, strict=True)])
            if weight:
                mask[voxel] += weight * lattice[tuple(node)]
    return mask


def naive_masks(cell: list[int], keep: float, samples: int, seed: int) -> list[np.ndarray]:
    """The same draws: a lattice that covers the volume at every shift, then a shift along each axis."""
    rng = np.random.default_rng(seed)
    # As many nodes as the last voxel at the largest shift needs.
    nodes = [int(np.ceil((n - 1 + c - 1) / c)) + 1 for n, c in zip(SHAPE, cell, strict=True)]
    found = []
    for _ in range(samples):
        lattice = rng.random(nodes) < keep
        found.append(naive_mask(lattice, cell, [int(rng.integers(c)) for c in cell]))
    return found


@pytest.mark.parametrize("scale", ["probability", "logit"])
@pytest.mark.parametrize("baseline", ["mean", "none"])
@pytest.mark.parametrize(("edge", "keep"), [(6.0, 0.5), (4.0, 0.2), (1.0, 0.7), (50.0, 0.5)])
def test_agrees_with_its_formula(edge: float, keep: float, baseline: str, scale: str) -> None:
    one, image = model(), scan()
    samples = 25
    explain = vx.RISE(samples=samples, cell=edge, keep=keep, baseline=baseline, scale=scale, mask="none")
    why = explain(one, image, seed=6, compute=CPU)
    cell = [max(1, round(edge / spacing)) for spacing in GRID.spacing]
    low, high = image.data.min(axis=(1, 2, 3), keepdims=True), image.data.max(axis=(1, 2, 3), keepdims=True)
    clean, background = (image.data - low) / (high - low), (0 - low) / (high - low)
    masks = naive_masks(cell, keep, samples, 6)
    scores = []
    for mask in masks:
        logit = float(one.network(torch.tensor((mask * clean + (1 - mask) * background)[None], dtype=torch.float32)))
        scores.append(logit if scale == "logit" else 1 / (1 + np.exp(-logit)))
    level = np.mean(scores) if baseline == "mean" else 0
    # Equation 6: the sum over masks of score x mask, divided by their number and by the mean of a mask.
    expected = sum((score - level) * mask for score, mask in zip(scores, masks, strict=True)) / (samples * keep)
    np.testing.assert_allclose(why.total, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    facts = why.provenance["facts"]["whole"]
    assert facts["mean_score"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert facts["deviation_of_scores"] == pytest.approx(np.std(scores), abs=1e-6)
    assert facts["cell_voxels"] == cell
    assert why.provenance["passes"]["forward"] == samples + 1
    inside = dataclasses.replace(explain, mask="brain")(one, image, seed=6, compute=CPU)
    np.testing.assert_array_equal(inside.total, np.where(image.foreground(), why.total, 0))


@pytest.mark.parametrize("fill", ["min", "max"])
def test_fills_with_the_sequences_extremes(fill: str) -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[np.ndarray] = []

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            self.seen += [one.numpy().copy() for one in inputs]
            return inputs.mean(dim=(1, 2, 3, 4))[:, None]

    network = Read()
    vx.RISE(samples=20, cell=1.0, fill=fill)(vx.Model(network, CARD), scan(), compute=CPU)
    clean, *blended = network.seen
    value = {"min": 0.0, "max": 1.0}[fill]
    # Along x, cells of one voxel are kept or not, with nothing between.
    low, high = np.minimum(clean, value) - 1e-6, np.maximum(clean, value) + 1e-6
    for image in blended:
        assert (low <= image).all()
        assert (image <= high).all()
    assert np.mean([np.abs(image - value) < 1e-6 for image in blended]) > 0.4


@pytest.mark.parametrize("cell", [(1, 1, 1), (3, 4, 2), (30, 30, 30)])
@pytest.mark.parametrize("keep", [0.1, 0.5])
def test_the_mean_mask_is_the_probability_of_keeping_everywhere(cell: tuple[int, ...], keep: float) -> None:
    masks = np.array([*soft_masks((6, 7, 5), cell, keep, 4000, np.random.default_rng(0))])
    assert masks.dtype == np.float32
    assert masks.min() >= 0
    assert masks.max() <= 1 + 1e-6
    # Five standard errors of one voxel.
    assert np.abs(masks.mean(axis=0) - keep).max() < 5 * np.sqrt(keep * (1 - keep) / 4000)


def test_no_place_is_softer_than_another() -> None:
    """Random shifts: without them voxels on the lattice would be kept or filled, and others always blended."""
    masks = np.array([*soft_masks((12, 1, 1), (4, 1, 1), 0.5, 8000, np.random.default_rng(1))])[:, :, 0, 0]
    spread = masks.std(axis=0)
    assert np.ptp(spread) < 0.03 * spread.mean()


def test_of_a_linear_network_converges_to_its_smoothed_weights() -> None:
    """Cov(score, mask) / keep, worked out from the kernel of linear interpolation, for cells of one voxel."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = nn.Sequential(nn.Flatten(), nn.Linear(2 * 9 * 8 * 7, 1)).eval().requires_grad_(False)
    card = dataclasses.replace(CARD, normalisation="none")
    image = scan()
    why = vx.RISE(samples=6000, cell=0.5, scale="logit")(vx.Model(network, card), image, compute=CPU)
    weights = network[1].weight.numpy().reshape(2, *SHAPE)
    expected = (weights * image.data).sum(axis=0) * 0.25 / 0.5
    assert np.corrcoef(why.total.ravel(), expected.ravel())[0, 1] > 0.9
    assert np.polyfit(expected.ravel(), why.total.ravel(), 1)[0] == pytest.approx(1, abs=0.1)
