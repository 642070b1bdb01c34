"""Weight and label randomisation: maps that follow the network pass, maps that follow the scan fail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from torch import nn

import voxplain as vx
from voxplain.metrics.controls import edge_detector
from voxplain.metrics.sanity import label_randomisation, rank_similarity, spearman, weight_randomisation
from voxplain.partition import cubes
from voxplain.randomisation import Randomised, cascade

SHAPE = (12, 12, 12)
GRID = vx.Grid(SHAPE, np.diag([2.0, 2, 2, 1]))
REGION = vx.Region("whole", ((0, 12), (0, 12), (0, 12)), 0.9, 2.2, True)
CARD = vx.Card(name="places", channels=("a",), classes=("c",))
PARTS = cubes(GRID, edge=6.0)
SCAN = vx.Scan(np.random.default_rng(0).uniform(1, 2, (1, *SHAPE)), GRID, ("a",))


class Places(nn.Module):
    """A network with one weight per voxel, learnt: the score is their product with the scan."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(SHAPE, generator=torch.Generator().manual_seed(100 + seed)))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs[:, 0] * self.weight).sum(dim=(1, 2, 3))[:, None]


def explained(values: np.ndarray, regions: tuple[vx.Region, ...] = (REGION,), parts: bool = True) -> vx.Explanation:
    if not parts:
        return vx.Explanation(values[None], ("all",), GRID, True, "u", regions)
    count = int(PARTS.data.max())
    sums = np.bincount(PARTS.data.ravel(), weights=values.ravel(), minlength=count + 1)[1:]
    painted = np.concatenate([[0], sums])[PARTS.data][None]
    return vx.Explanation(painted, ("all",), GRID, True, "u", regions, PARTS, sums)


def by_weights(model: vx.Model, scan: vx.Scan) -> vx.Explanation:
    return explained(model.network.weight.detach().numpy() * scan.data[0])


def model(seed: int = 0) -> vx.Model:
    return vx.Model(Places(seed), CARD)


def test_a_map_of_the_weights_passes_and_the_network_is_not_touched() -> None:
    trained = model()
    before = trained.network.weight.detach().clone()
    found = weight_randomisation(by_weights, trained, SCAN)
    assert found.verdict.outcome == "passed"
    assert [step.complete for step in found.steps] == [True] * 3
    assert torch.equal(before, trained.network.weight)
    expected = by_weights(trained, SCAN).scores
    for step, network in zip(found.steps, cascade(model()), strict=True):
        other = by_weights(network.model, SCAN).scores
        assert step.similarity["whole"].values == pytest.approx(stats.spearmanr(expected, other).statistic, abs=1e-9)
        absolute = stats.spearmanr(np.abs(expected), np.abs(other)).statistic
        assert step.similarity["whole"].absolute == pytest.approx(absolute, abs=1e-9)
    sizes = [abs(step.similarity["whole"].values) for step in found.steps]
    assert found.complete["whole"].values == pytest.approx(np.mean(sizes))


def test_an_edge_detector_and_a_map_that_only_changes_its_sign_fail() -> None:
    def edges(_model: vx.Model, scan: vx.Scan) -> vx.Explanation:
        return edge_detector(scan, explained(scan.data[0]))

    found = weight_randomisation(edges, model(), SCAN)
    assert found.verdict.outcome == "failed"
    assert found.complete["whole"] == pytest.approx((1, 1))

    signs = iter([1, -1, 1, -1])

    def either_way(_model: vx.Model, scan: vx.Scan) -> vx.Explanation:
        return explained(scan.data[0] * next(signs))

    found = weight_randomisation(either_way, model(), SCAN)
    assert [step.similarity["whole"].values for step in found.steps] == pytest.approx([-1, 1, -1])
    assert found.verdict.outcome == "failed"


def test_one_region_that_fails_fails_the_map() -> None:
    halves = (
        vx.Region("a", ((0, 6), (0, 12), (0, 12)), 0.9, 2.2, True),
        vx.Region("b", ((6, 12), (0, 12), (0, 12)), 0.9, 2.2, True),
    )

    def half_of_it(trained: vx.Model, scan: vx.Scan) -> vx.Explanation:
        values = trained.network.weight.detach().numpy() * scan.data[0]
        values[6:] = scan.data[0][6:]
        return explained(values, halves, parts=False)

    found = weight_randomisation(half_of_it, model(), SCAN)
    assert found.complete["a"].values < 0.1
    assert found.complete["b"].values == pytest.approx(1)
    assert found.verdict.outcome == "failed"


def test_constant_maps_are_not_tested_and_flat_draws_left_out() -> None:
    def constant(_model: vx.Model, scan: vx.Scan) -> vx.Explanation:
        return explained(np.ones(SHAPE), parts=False)

    found = weight_randomisation(constant, model(), SCAN)
    assert found.verdict.outcome == "not tested"
    assert "no ranks" in found.verdict.reason

    trained = by_weights(model(), SCAN)
    networks = list(cascade(model()))
    flat = weight_randomisation(constant, model(), SCAN, explanation=trained, networks=networks)
    assert all(step.flat == ("whole",) for step in flat.steps)
    assert flat.verdict.outcome == "not tested"
    assert "the same everywhere" in flat.verdict.reason

    def sometimes(given: vx.Model, scan: vx.Scan) -> vx.Explanation:
        return constant(given, scan) if given is networks[0].model else by_weights(given, scan)

    some = weight_randomisation(sometimes, model(), SCAN, explanation=trained, networks=networks)
    kept = [abs(step.similarity["whole"].values) for step in some.steps[1:]]
    assert some.complete["whole"].values == pytest.approx(np.mean(kept))


def test_a_network_without_weights_is_not_tested() -> None:
    nothing = vx.Model(nn.Flatten(), CARD)
    found = weight_randomisation(lambda _model, scan: explained(scan.data[0]), nothing, SCAN)
    assert found.verdict.outcome == "not tested"
    assert "no weights" in found.verdict.reason


def test_label_randomisation() -> None:
    trained = by_weights(model(0), SCAN)
    similarity, verdict = label_randomisation(trained, by_weights(model(1), SCAN), scan=SCAN)
    assert verdict.outcome == "passed"
    assert abs(similarity["whole"].values) < 0.3
    assert label_randomisation(trained, trained, scan=SCAN)[1].outcome == "failed"
    constant = explained(np.zeros(SHAPE))
    for pair in ((trained, constant), (constant, trained)):
        similarity, verdict = label_randomisation(*pair, scan=SCAN)
        assert (similarity, verdict.outcome) == ({}, "not tested")


def test_a_tiny_network_trained_on_shuffled_labels_looks_elsewhere() -> None:
    """Scans of class 1 are bright in one place; with shuffled labels nothing can be learnt there."""
    random = np.random.default_rng(3)
    labels = np.arange(24) % 2
    scans = random.normal(0, 1, (24, 1, *SHAPE)).astype(np.float32)
    scans[labels == 1, :, 2:5, 2:5, 2:5] += 2

    def trained(on: np.ndarray) -> vx.Model:
        network = Places(7)
        with torch.no_grad():
            network.weight.zero_()
        optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
        for _ in range(30):
            optimiser.zero_grad()
            logits = network(torch.from_numpy(scans))[:, 0]
            nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(on).float()).backward()
            optimiser.step()
        return vx.Model(network, CARD)

    explain = vx.RelevanceMap(partition="cubes:6", mask="none", effect="signed", scale="logit")
    scan = vx.Scan(scans[1], GRID, ("a",))
    maps = [
        explain(trained(on), scan, compute=vx.Compute(device="cpu", threads=1))
        for on in (labels, random.permutation(labels))
    ]
    similarity, verdict = label_randomisation(maps[0], maps[1], scan=scan)
    assert verdict.outcome == "passed"
    assert maps[0].ranks()["label"][0] == maps[0].parts.data[3, 3, 3]  # type: ignore[union-attr]
    assert similarity["whole"].values < 0.5


def test_thresholds_and_other_grids_are_refused() -> None:
    why = by_weights(model(), SCAN)
    for threshold in (0.0, 1.5, np.nan):
        with pytest.raises(vx.InputError, match="above 0 and at most 1"):
            weight_randomisation(by_weights, model(), SCAN, threshold=threshold)
        with pytest.raises(vx.InputError, match="above 0 and at most 1"):
            label_randomisation(why, why, scan=SCAN, threshold=threshold)
    other = vx.Explanation(why.map, why.channels, GRID.flipped(0), True, "u", (REGION,))
    with pytest.raises(vx.InputError, match="on one grid"):
        rank_similarity(why, other, scan=SCAN)
    with pytest.raises(vx.InputError, match="names none"):
        rank_similarity(replace(why, regions=()), why, scan=SCAN)
    with pytest.raises(vx.InputError, match="NaN or infinity"):
        rank_similarity(explained(np.arange(1728.0).reshape(SHAPE), parts=False), replace(
            explained(np.ones(SHAPE), parts=False), map=np.full((1, *SHAPE), np.nan)), scan=SCAN)  # fmt: skip


def test_maps_with_other_parts_are_compared_by_voxel() -> None:
    values = np.arange(1728.0).reshape(SHAPE)
    of_parts, of_voxels = explained(values), explained(values, parts=False)
    expected = stats.spearmanr(of_parts.total.ravel(), of_voxels.total.ravel()).statistic
    assert rank_similarity(of_parts, of_voxels, scan=SCAN)["whole"].values == pytest.approx(expected)


def test_spearman_of_nothing_and_of_constants() -> None:
    assert np.isnan(spearman(np.zeros(0), np.zeros(0)))
    assert np.isnan(spearman(np.ones(1), np.ones(1)))
    assert spearman(np.ones(5), np.arange(5)) == 0.0
    assert spearman(np.ones(5), np.ones(5)) == 0.0
    with pytest.raises(vx.InputError, match="of one shape"):
        spearman(np.ones(5), np.ones(4))


VALUES = arrays.arrays(np.float64, 20, elements=st.integers(-5, 5).map(float))


@given(VALUES, VALUES)
def test_spearman_is_scipys_and_follows_ranks_alone(first: np.ndarray, second: np.ndarray) -> None:
    found = spearman(first, second)
    assert -1 <= found <= 1
    assert found == pytest.approx(spearman(second, first), abs=1e-12)
    assert found == pytest.approx(spearman(first**3, second * 7 + 2), abs=1e-12)
    assert found == pytest.approx(-spearman(-first, second), abs=1e-12)
    if np.ptp(first) and np.ptp(second):
        assert found == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)


def test_steps_are_named_after_their_layer() -> None:
    made = [Randomised("layer", model(1), complete=False)]
    found = weight_randomisation(by_weights, model(), SCAN, networks=made)
    assert found.steps[0].layer == "layer"
    # No fully random network was among them.
    assert found.verdict.outcome == "not tested"
