"""A map put to the test: planted evidence found, reversed maps caught, every figure recomputed with plain passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import voxplain as vx
from voxplain.checks.check import check
from voxplain.checks.order import deletion_insertion
from voxplain.metrics.controls import edge_detector
from voxplain.metrics.faithfulness import SHARES
from voxplain.metrics.network_free import network_free_rankings
from voxplain.networks.perturbation import PerturbationUNet
from voxplain.partition import cubes
from voxplain.preparation import prepare
from voxplain.results import read_results, write_checks, write_results

CPU = vx.Compute(device="cpu", threads=1)
SHAPE = (16, 14, 12)
GRID = vx.Grid(SHAPE, np.array([[-2.0, 0, 0, 5], [0, 2, 0, -9], [0, 0, 3, 4], [0, 0, 0, 1]]))
CARD = vx.Card(name="blob", channels=("flair", "t1"), classes=("blob",))
BLOB = (slice(4, 8), slice(4, 8), slice(4, 8))
EXPLAIN = vx.RelevanceMap(partition="cubes:8", effect="signed")


class Blob(nn.Module):
    """Evidence in one place: the logit grows with what lies there, weighed voxel by voxel, and with nothing else."""

    def __init__(self, strength: float = 6.0) -> None:
        super().__init__()
        weight = torch.zeros(2, *SHAPE)
        weight[(slice(None), *BLOB)] = strength / 128
        self.weight = nn.Parameter(weight)
        self.shift = nn.Parameter(torch.tensor([-3.0]))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs * self.weight).sum(dim=(1, 2, 3, 4))[:, None] + self.shift


def scan(seed: int = 0) -> vx.Scan:
    data = np.random.default_rng(seed).uniform(0.8, 1.2, (2, *SHAPE))
    data[:, :2] = 0
    return vx.Scan(data, GRID, ("flair", "t1"))


def model(strength: float = 6.0, **card: Any) -> vx.Model:
    return vx.Model(Blob(strength), replace(CARD, **card))


def line(checked: vx.Explanation, name: str) -> dict[str, Any]:
    return checked.provenance["checks"]["lines"][name]


@pytest.fixture(scope="module")
def checked() -> vx.Explanation:
    trained = model()
    return check(EXPLAIN(trained, scan(), compute=CPU), trained, scan(), compute=CPU)


def test_the_right_map_passes_and_says_so_in_plain_data(checked: vx.Explanation) -> None:
    outcomes = {name: found["verdict"] for name, found in checked.provenance["checks"]["lines"].items()}
    assert outcomes == {
        "deletion/insertion": "passed",
        "weight randomisation": "passed",
        "label randomisation": "not tested",
        "edge detector": "passed",
        "FLAIR intensity": "passed",
    }
    assert json.loads(json.dumps(checked.provenance["checks"])) == checked.provenance["checks"]
    found = line(checked, "deletion/insertion")["regions"]["whole"]
    assert f"area under deletion {found['deletion']:.3f}" in line(checked, "deletion/insertion")["said"]
    assert found["probability"] == pytest.approx(checked.regions[0].probability)
    run = checked.provenance["checks"]["run"]
    count = len(checked.scores)  # type: ignore[arg-type]
    assert run["passes"] == 3 + 23 * 2 * len(SHARES) + 3 * (1 + count)


def test_a_reversed_map_fails() -> None:
    trained = model()
    why = EXPLAIN(trained, scan(), compute=CPU)
    assert why.scores is not None
    wrong = replace(why, map=-why.map, scores=-why.scores)
    found = line(check(wrong, trained, scan(), quick=True, compute=CPU), "deletion/insertion")
    assert found["verdict"] == "failed"
    assert found["regions"]["whole"]["reason"] == "random-rank does better in deletion and insertion"


def areas(
    network: nn.Module, image: np.ndarray, parts: np.ndarray, scores: np.ndarray, background: float = 0.0
) -> list[float]:
    """Deletion and insertion as they are defined, with one plain full pass for each step."""
    order = sorted(range(1, parts.max() + 1), key=lambda label: (-scores[label - 1], label))
    total = np.count_nonzero(parts)
    found = []
    for inserting in (False, True):
        shares, values, gone = [], [], np.zeros(parts.shape, dtype=bool)
        waiting = [0.0, *SHARES, 1.0]
        for label in [0, *order]:
            gone |= (parts == label) & (label > 0)
            share = np.count_nonzero(gone) / total
            if share < waiting[0] - 1e-9:
                continue
            waiting = [limit for limit in waiting if limit > share + 1e-9] or [2.0]
            filled = ((parts > 0) & ~gone) if inserting else gone
            changed = np.where(filled, np.float32(background), image)
            with torch.no_grad():
                values.append(float(torch.sigmoid(network(torch.from_numpy(changed[None]).float()))[0, 0]))
            shares.append(share)
        found.append(float(np.trapezoid(values, shares)))
    return found


def test_areas_are_those_of_plain_full_passes(checked: vx.Explanation) -> None:
    assert checked.parts is not None
    assert checked.scores is not None
    found = line(checked, "deletion/insertion")["regions"]["whole"]
    parts, data = checked.parts.data, scan().data
    expected = areas(Blob(), data, parts, checked.scores)
    np.testing.assert_allclose([found["deletion"], found["insertion"]], expected, atol=1e-5)
    rankings = network_free_rankings(scan(), checked, seed=0)
    (flair,) = [ranked for row, ranked in rankings if row == "intensity/supervoxel-rank"]
    np.testing.assert_allclose(
        found["controls"]["intensity/supervoxel-rank"][0], areas(Blob(), data, parts, flair.scores), atol=1e-5
    )
    random = [ranked for row, ranked in rankings if row == "random-rank"]
    for index in (0, 19):
        expected = areas(Blob(), data, parts, random[index].scores)
        np.testing.assert_allclose(found["controls"]["random-rank"][index], expected, atol=1e-5)
    edges = edge_detector(scan(), checked).scores
    np.testing.assert_allclose(found["controls"]["edge-detector"][0], areas(Blob(), data, parts, edges), atol=1e-5)


def test_halves_are_tested_each_on_their_own(tiny_model: vx.Model, make_head: Any) -> None:
    """The second half is read mirrored; its parts and figures are those of a plain run on what the network reads."""
    head = make_head().scan("RAS")
    network = tiny_model.network
    with torch.no_grad():  # an answer that hangs on what is there
        network.get_parameter("fc.weight").mul_(60)
    sharp = vx.Model(network, tiny_model.card)
    why = vx.RelevanceMap(partition="cubes:24", effect="signed")(sharp, head, compute=CPU)
    assert why.parts is not None
    assert why.scores is not None
    found = deletion_insertion(why, sharp, head, target=vx.ClassScore("tumour"), random_orders=2, compute=CPU)
    assert [region.region for region in found] == ["right", "left"]
    for region, prepared in zip(found, prepare(head, sharp.card), strict=True):
        parts = why.parts.on(prepared.input.grid).data
        present = np.unique(parts[parts > 0])
        local = np.where(parts > 0, np.searchsorted(present, parts) + 1, 0)
        expected = areas(network, prepared.input.data, local, why.scores[present - 1])
        np.testing.assert_allclose(region.faithfulness.areas["map"][0], expected, atol=1e-4)


def test_maps_without_parts_are_ranked_by_supervoxels_of_the_input() -> None:
    trained = model()
    values = np.zeros((1, *SHAPE))
    values[(0, *BLOB)] = 1
    why = replace(EXPLAIN(trained, scan(), compute=CPU), map=values, parts=None, scores=None)
    for sign, outcome in ((1, "passed"), (-1, "failed")):
        signed = replace(why, map=sign * values)
        (found,) = deletion_insertion(signed, trained, scan(), target=vx.ClassScore("blob"), compute=CPU)
        assert found.faithfulness.against("random-rank").outcome == outcome
        assert len(found.faithfulness.shares) > 5


@pytest.mark.parametrize("normalisation", ["min-max", "z-score"])
def test_background_that_is_not_zero_on_the_input(normalisation: str) -> None:
    data = scan().data.copy()
    data[:, 2:] -= 2.0  # background is now the highest value
    image = vx.Scan(data, GRID, ("flair", "t1"))
    trained = model(normalisation=normalisation)
    why = EXPLAIN(trained, image, compute=CPU)
    assert why.parts is not None
    assert why.scores is not None
    (prepared,) = prepare(image, trained.card)
    (found,) = deletion_insertion(why, trained, image, target=vx.ClassScore("blob"), random_orders=1, compute=CPU)
    expected = areas(trained.network, prepared.input.data, why.parts.data, why.scores, prepared.background[0])
    np.testing.assert_allclose(found.faithfulness.areas["map"][0], expected, atol=1e-5)


def test_a_fill_of_this_very_network_cannot_be_tested_on_another(tmp_path: Path) -> None:
    trained = model()
    card = replace(
        CARD,
        classes=CARD.channels,
        factory="voxplain.networks.perturbation:PerturbationUNet",
        arguments={"channels": 2, "widths": [2, 4], "residual_units": 0},
        training={"classifier": {"name": "blob", "fingerprint": trained.fingerprint}},
    )
    vx.save_model(PerturbationUNet(channels=2, widths=(2, 4), residual_units=0), card, tmp_path)
    for explainer in (replace(EXPLAIN, fill=f"optimal:{tmp_path}"), vx.RISE(fill=f"optimal:{tmp_path}", samples=5)):
        why = explainer(trained, scan(), compute=CPU)
        found = check(why, trained, scan(), shuffled=model(0.0), quick=True, compute=CPU)
        for name in ("weight randomisation", "label randomisation"):
            assert line(found, name) == {
                "verdict": "not tested",
                "said": "fill optimal belongs to this very network; a map of another fill can be tested",
            }
        assert line(found, "edge detector")["verdict"] != ""


def test_an_image_is_tested_too() -> None:
    grid = vx.Grid((24, 20, 1), np.eye(4))
    data = np.random.default_rng(0).uniform(1, 2, (1, 24, 20, 1))
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 22 * 18, 1))
    flat = vx.Model(network, vx.Card(name="2d", channels=("t1",), classes=("c",), spatial_dims=2))
    image = vx.Scan(data, grid, ("t1",))
    why = vx.RelevanceMap(partition="cubes:5", scale="logit")(flat, image, compute=CPU)
    found = check(why, flat, image, quick=True, compute=CPU)
    assert set(found.provenance["checks"]["lines"]) == {
        "deletion/insertion", "weight randomisation", "label randomisation", "edge detector",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("strength", "partition", "said"),
    [
        (0.0, "cubes:8", "all parts are equally relevant"),
        (6.0, "cubes:1000", "too few parts to tell a good order by: 1"),
    ],
)
def test_a_constant_network_and_a_single_part_are_not_tested(strength: float, partition: str, said: str) -> None:
    trained = model(strength)
    why = replace(EXPLAIN, partition=partition)(trained, scan(), compute=CPU)
    found = check(why, trained, scan(), quick=True, compute=CPU)
    for name in ("deletion/insertion", "weight randomisation", "edge detector"):
        assert line(found, name)["verdict"] == "not tested"
    assert said in line(found, "deletion/insertion")["said"]


def test_equal_relevances_are_not_tested() -> None:
    trained = model()
    why = EXPLAIN(trained, scan(), compute=CPU)
    assert why.scores is not None
    flat = replace(why, map=0 * why.map, scores=0 * why.scores)
    found = check(flat, trained, scan(), quick=True, compute=CPU)
    assert "equally relevant" in line(found, "deletion/insertion")["said"]
    assert "no ranks to compare" in line(found, "weight randomisation")["said"]


def test_edges_in_place_of_a_map_are_caught() -> None:
    trained = model()
    edges = edge_detector(scan(), EXPLAIN(trained, scan(), compute=CPU))
    found = check(edges, trained, scan(), compute=CPU)
    assert line(found, "edge detector")["verdict"] == "failed"
    assert "rank correlation with the edges 1.00" in line(found, "edge detector")["said"]
    assert line(found, "weight randomisation")["verdict"] == "not tested"
    assert "is no explainer" in line(found, "weight randomisation")["said"]


def test_maps_from_elsewhere_can_be_tested(checked: vx.Explanation) -> None:
    trained = model()
    bare = replace(checked, provenance={})
    found = check(bare, trained, scan(), quick=True, compute=CPU)
    assert line(found, "deletion/insertion")["verdict"] == "passed"
    assert line(found, "weight randomisation")["said"] == "the map does not say what made it"
    named = check(bare, trained, scan(), explainer=EXPLAIN, compute=CPU)
    assert line(named, "weight randomisation")["steps"] == line(checked, "weight randomisation")["steps"]


def test_shuffled_labels() -> None:
    trained, other = model(), model()
    with torch.no_grad():
        other.network.get_parameter("weight").copy_(torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(9)))
    why = EXPLAIN(trained, scan(), compute=CPU)
    found = check(why, trained, scan(), shuffled=vx.Model(other.network, CARD), quick=True, compute=CPU)
    assert line(found, "label randomisation")["verdict"] == "passed"
    same = check(why, trained, scan(), shuffled=trained, quick=True, compute=CPU)
    assert line(same, "label randomisation")["verdict"] == "failed"
    assert "whole 1.00" in line(same, "label randomisation")["said"]


def test_the_callers_network_is_left_as_it_was(checked: vx.Explanation) -> None:
    trained = model()
    trained.network.train()
    before = {name: value.clone() for name, value in trained.network.state_dict().items()}
    check(checked, trained, scan(), quick=True, compute=CPU)
    assert trained.network.training
    assert all(torch.equal(value, before[name]) for name, value in trained.network.state_dict().items())
    assert not trained.network._forward_hooks


def test_the_same_seed_gives_the_same_checks(checked: vx.Explanation) -> None:
    again = check(checked, model(), scan(), compute=CPU)
    assert again.provenance["checks"]["lines"] == checked.provenance["checks"]["lines"]
    other = check(checked, model(), scan(), seed=1, compute=CPU)
    assert line(other, "weight randomisation")["steps"] != line(checked, "weight randomisation")["steps"]


def test_a_region_is_tested_as_the_target_that_was_explained() -> None:
    card = replace(CARD, name="segmenter")
    segmenter = vx.Model(nn.Conv3d(2, 1, 3, padding=1), card)
    target = vx.RegionScore("blob", vx.Labels(np.pad(np.ones((4, 4, 4)), ((4, 8), (4, 6), (4, 4))), GRID))
    why = EXPLAIN(segmenter, scan(), target=target, compute=CPU)
    with pytest.raises(vx.InputError, match=r"names a RegionScore by its fingerprint.*vx.check"):
        check(why, segmenter, scan(), compute=CPU)
    found = check(why, segmenter, scan(), target=target, quick=True, compute=CPU)
    assert set(line(found, "deletion/insertion")["regions"]) == {"whole"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda why, m, s: (why, model(5.0), s), "speaks of another model"),
        (lambda why, m, s: (why, m, scan(1)), "speaks of another scan"),
        (lambda why, m, s: (why, m, vx.Scan(s.data, GRID.flipped(1), s.channels)), "another grid than the scan"),
        (lambda why, m, s: (replace(why, map=why.map * np.nan), m, s), "NaN or infinite"),
        (lambda why, m, s: (replace(why, regions=()), m, s), "names none"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    checked: vx.Explanation, change: Callable[..., tuple[vx.Explanation, vx.Model, vx.Scan]], said: str
) -> None:
    with pytest.raises(vx.InputError, match=said):
        check(*change(checked, model(), scan()), compute=CPU)


def test_checks_are_kept_beside_the_map_and_go_with_it(checked: vx.Explanation, tmp_path: Any) -> None:
    plain = replace(checked, provenance={k: v for k, v in checked.provenance.items() if k != "checks"})
    mask = vx.segment.otsu(plain)
    write_results(plain, mask, "relevance-map", tmp_path, rule="otsu")
    (result,) = read_results(tmp_path)
    assert "checks" not in result.explanation.provenance
    write_checks(result, checked.provenance["checks"])
    (result,) = read_results(tmp_path)
    assert result.explanation.provenance["checks"] == checked.provenance["checks"]
    # Another map under the same name has not been checked, and does not take the checks of this one.
    write_results(replace(plain, map=plain.map * 2, scores=plain.scores * 2), mask, "relevance-map", tmp_path, rule="x")
    with pytest.raises(vx.InputError, match="changed while its map was checked"):
        write_checks(result, checked.provenance["checks"])
    (result,) = read_results(tmp_path)
    assert "checks" not in result.explanation.provenance


@pytest.mark.parametrize("damage", [3, {"lines": {"a": {}}}, {"lines": {"a": {"verdict": "great", "said": ""}}}, {}])
def test_damaged_checks_are_named(checked: vx.Explanation, tmp_path: Any, damage: Any) -> None:
    write_results(checked, vx.segment.otsu(checked), "relevance-map", tmp_path, rule="otsu")
    content = json.loads((tmp_path / "relevance-map.json").read_text())
    (tmp_path / "relevance-map.json").write_text(json.dumps(content | {"checks": damage}))
    with pytest.raises(vx.InputError, match=r"relevance-map.json in .* is not what voxplain writes"):
        read_results(tmp_path)


def test_parts_of_cubes_too_small_for_the_network_are_left_out() -> None:
    network = nn.Sequential(nn.AvgPool3d(2), nn.Flatten(), nn.Linear(2 * 4 * 3 * 3, 1))
    trained = vx.Model(network, replace(CARD, spacing=(4, 4, 6)))
    why = EXPLAIN(trained, scan(), compute=CPU)
    fine = cubes(GRID, edge=2.0)
    scores = np.arange(float(fine.data.max()))
    tiny = replace(why, map=np.append(0, scores)[fine.data][None], parts=fine, scores=scores)
    (found,) = deletion_insertion(tiny, trained, scan(), target=vx.ClassScore("blob"), random_orders=1, compute=CPU)
    assert np.isfinite(found.faithfulness.areas["map"][0]).all()


def test_random_networks_that_overflow_leave_the_other_tests_standing() -> None:
    trained = model()
    why = EXPLAIN(trained, scan(), compute=CPU)

    class Brittle(Blob):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            known = bool((self.weight[0, 0] == 0).all())
            return super().forward(inputs) if known else super().forward(inputs) * torch.inf

    found = check(replace(why, provenance={}), vx.Model(Brittle(), CARD), scan(), explainer=EXPLAIN, compute=CPU)
    assert line(found, "deletion/insertion")["verdict"] == "passed"
    assert line(found, "weight randomisation")["verdict"] == "not tested"
    assert "cannot be made: the network returns NaN" in line(found, "weight randomisation")["said"]


def test_a_network_that_the_engine_cannot_follow_is_said_once() -> None:
    class Untraceable(Blob):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs) if bool(inputs.sum() > -1e9) else inputs

    trained = vx.Model(Untraceable(), CARD)
    why = EXPLAIN(trained, scan(), compute=CPU)
    with pytest.warns(UserWarning, match="the network runs in full") as caught:
        found = check(why, trained, scan(), compute=replace(CPU, engine="incremental"))
    assert len(caught) == 1
    assert found.provenance["checks"]["run"]["warnings"] == [str(caught[0].message)]
    assert line(found, "deletion/insertion")["verdict"] == "passed"


def test_a_class_that_one_of_the_networks_does_not_have_is_refused_at_once() -> None:
    trained = model()
    why = replace(EXPLAIN(trained, scan(), compute=CPU), provenance={})
    with pytest.raises(vx.InputError, match="other"):
        check(why, trained, scan(), target=vx.ClassScore("other"), compute=CPU)
    with pytest.raises(vx.InputError, match="blob"):
        check(why, trained, scan(), shuffled=model(classes=("other",)), compute=CPU)
