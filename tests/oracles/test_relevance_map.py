"""The relevance map against a loop of ten lines, against Captum, and against the rules of the papers."""

import dataclasses

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation
from torch import nn

import voxplain as vx
from voxplain.partition import cubes, supervoxels

CPU = vx.Compute(device="cpu", threads=1)
SHAPE = (14, 16, 10)
AFFINE = np.array([[-2.0, 0, 0, 5], [0, 2, 0, -9], [0, 0, 3, 4], [0, 0, 0, 1]])
CARD = vx.Card(name="small", channels=("flair", "t1ce"), classes=("tumour",))


def network(classes: int = 1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(classes)
        return nn.Sequential(
            nn.Conv3d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv3d(6, 4, 3, stride=2), nn.Tanh(), nn.Flatten(),
            nn.Linear(4 * 6 * 7 * 4, classes),
        ).eval().requires_grad_(False)  # fmt: skip


def scan(seed: int = 0) -> vx.Scan:
    rng = np.random.default_rng(seed)
    index = np.moveaxis(np.indices(SHAPE), 0, -1)
    brain = (((index - np.array(SHAPE) / 2) / (np.array(SHAPE) * 0.45)) ** 2).sum(axis=-1) < 1
    data = np.where(brain, rng.normal(0, 1, (2, *SHAPE)) + 3.0, 0)
    return vx.Scan(data, vx.Grid(SHAPE, AFFINE), ("flair", "t1ce"))


def model(**card: object) -> vx.Model:
    card = dataclasses.replace(CARD, **card)
    return vx.Model(network(len(card.classes)), card)


def independent(net: nn.Module, data: np.ndarray, parts: np.ndarray, fill: str, scope: str, read) -> np.ndarray:
    """Algorithm 1 of paper 000 as it is written there: fill a supervoxel, predict, take the difference, in a loop."""
    clean = read(net(torch.tensor(data[None])))
    found = np.zeros(parts.shape)
    for label in range(1, parts.max() + 1):
        changed = data.copy()
        for channel in range(len(data)):
            source = data[channel][parts == label] if scope == "region" else data[channel]
            value = {"blank": 0.0, "min": source.min(), "max": source.max()}[fill]
            changed[channel][parts == label] = value
        found[parts == label] = abs(read(net(torch.tensor(changed[None]))) - clean)
    return found


@pytest.mark.parametrize("scale", ["probability", "logit"])
@pytest.mark.parametrize("scope", ["region", "sequence"])
@pytest.mark.parametrize("fill", ["blank", "min", "max"])
def test_agrees_with_a_plain_loop(fill: str, scope: str, scale: str) -> None:
    one, image = model(), scan()
    why = vx.RelevanceMap(fill=fill, scope=scope, scale=scale, segments=30)(one, image, compute=CPU)
    assert why.parts is not None
    expected = independent(
        one.network, image.data, why.parts.data, fill, scope,
        lambda output: float((torch.sigmoid(output) if scale == "probability" else output)[0, 0]),
    )  # fmt: skip
    assert expected.max() > 1e-3
    np.testing.assert_allclose(why.total, expected, rtol=0, atol=1e-5 * expected.max())


@pytest.mark.parametrize("scale", ["probability", "logit"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", ["none", "tumour"])
def test_agrees_with_a_plain_loop_for_each_of_two_classes(name: str, activation: str, scale: str) -> None:
    two, image = model(classes=("none", "tumour"), activation=activation), scan()
    which = ("none", "tumour").index(name)

    def read(output: torch.Tensor) -> float:
        values = output[0].double().numpy()
        if scale == "logit":
            return float(values[which])
        if activation == "sigmoid":
            return float(1 / (1 + np.exp(-values[which])))
        return float(np.exp(values[which]) / np.exp(values).sum())

    explain = vx.RelevanceMap(scale=scale, segments=20)
    why = explain(two, image, target=vx.ClassScore(name), compute=CPU)
    assert why.parts is not None
    expected = independent(two.network, image.data, why.parts.data, "blank", "region", read)
    np.testing.assert_allclose(why.total, expected, rtol=0, atol=1e-5 * expected.max())
    raw = float(two.network(torch.tensor(image.data[None]))[0, which])
    assert why.regions[0].logit == pytest.approx(raw, abs=1e-6)


def test_the_first_class_is_explained_unless_another_is_named() -> None:
    two, image = model(classes=("none", "tumour"), activation="softmax"), scan()
    explain = vx.RelevanceMap(segments=10, scale="logit")
    first = explain(two, image, compute=CPU)
    np.testing.assert_array_equal(first.map, explain(two, image, target=vx.ClassScore("none"), compute=CPU).map)
    assert np.abs(first.map - explain(two, image, target=vx.ClassScore("tumour"), compute=CPU).map).max() > 1e-4


def test_signed_effect_is_positive_where_the_score_falls_and_its_size_is_the_papers() -> None:
    one, image = model(), scan()
    signed = vx.RelevanceMap(effect="signed", segments=30)(one, image, compute=CPU)
    absolute = vx.RelevanceMap(segments=30)(one, image, compute=CPU)
    np.testing.assert_array_equal(np.abs(signed.map), absolute.map)
    assert signed.signed
    assert not absolute.signed
    assert signed.map.min() < 0 < signed.map.max()
    assert signed.parts is not None
    assert signed.scores is not None
    label = int(np.argmax(signed.scores)) + 1
    changed = np.where(signed.parts.data == label, 0, image.data).astype(np.float32)
    clean, without = (float(torch.sigmoid(one.network(torch.tensor(x[None])))[0, 0]) for x in (image.data, changed))
    assert signed.scores[label - 1] == pytest.approx(clean - without, abs=1e-6)
    kept = vx.segment.fixed(signed, threshold=0.0, everywhere=True).data > 0
    np.testing.assert_array_equal(kept, signed.map[0] > 0)


@pytest.mark.parametrize("fill", ["blank", "min"])
def test_agrees_with_captum(fill: str) -> None:
    one, image = model(), scan(4)
    why = vx.RelevanceMap(fill=fill, scale="logit", segments=25)(one, image, compute=CPU)
    assert why.parts is not None
    inputs = torch.tensor(image.data[None])
    mask = torch.from_numpy(why.parts.data.astype(np.int64))[None, None].expand(1, 2, *SHAPE)
    baseline = torch.zeros_like(inputs)
    if fill == "min":
        for label in range(1, int(why.parts.data.max()) + 1):
            inside = why.parts.data == label
            for channel in range(2):
                baseline[0, channel][torch.from_numpy(inside)] = float(image.data[channel][inside].min())
    theirs = FeatureAblation(one.network).attribute(inputs, baselines=baseline, feature_mask=mask, target=0)
    # Captum's sign says in which direction; the papers take the size of the change. Label 0 is no part for us.
    expected = np.where(why.parts.data > 0, theirs[0, 0].abs().numpy(), 0)
    np.testing.assert_allclose(why.total, expected, rtol=0, atol=1e-5 * expected.max())


def test_parts_are_the_papers_supervoxels() -> None:
    one, image = model(), scan()
    foreground = image.foreground()
    why = vx.RelevanceMap(segments=30, channel="t1ce")(one, image, compute=CPU)
    expected = supervoxels(image.select(["t1ce"]).data, image.grid, segments=30, mask=foreground)
    assert why.parts is not None
    np.testing.assert_array_equal(why.parts.data, expected.data)
    np.testing.assert_array_equal(why.parts.data > 0, foreground)
    everywhere = vx.RelevanceMap(segments=30, mask="none")(one, image, compute=CPU)
    assert everywhere.parts is not None
    assert (everywhere.parts.data > 0).all()


def test_cubes_are_cubes_in_mm() -> None:
    one, image = model(), scan()
    why = vx.RelevanceMap(partition="cubes:6", mask="none")(one, image, compute=CPU)
    assert why.parts is not None
    labels = why.parts.data
    # 6 mm are 3 x 3 x 2 voxels of 2 x 2 x 3 mm.
    expected = np.zeros(SHAPE, dtype=int)
    for number, start in enumerate(np.ndindex(5, 6, 5), start=1):
        x, y, z = np.array(start) * (3, 3, 2)
        expected[x : x + 3, y : y + 3, z : z + 2] = number
    np.testing.assert_array_equal(labels, expected)
    masked = vx.RelevanceMap(partition="cubes:6")(one, image, compute=CPU)
    assert masked.parts is not None
    np.testing.assert_array_equal(masked.parts.data > 0, image.foreground())
    np.testing.assert_array_equal(masked.parts.data, cubes(image.grid, edge=6, mask=image.foreground()).data)
    read = lambda output: float(torch.sigmoid(output)[0, 0])  # noqa: E731
    expected = independent(one.network, image.data, masked.parts.data, "blank", "region", read)
    np.testing.assert_allclose(masked.total, expected, rtol=0, atol=1e-5 * expected.max())


def test_a_part_that_its_fill_does_not_change_costs_no_pass() -> None:
    one, image = model(), scan()
    why = vx.RelevanceMap(partition="cubes:6", mask="none")(one, image, compute=CPU)
    assert why.parts is not None
    labels, empty = why.parts.data, ~image.foreground()
    blank = {label for label in range(1, labels.max() + 1) if empty[labels == label].all()}
    assert blank, "the scan must have cubes of nothing but background"
    # One pass for the clean input, and one for each cube that holds any tissue.
    assert why.provenance["passes"] == {"forward": 1 + labels.max() - len(blank), "backward": 0}
    assert why.scores is not None
    assert {label for label, score in enumerate(why.scores, start=1) if score == 0} >= blank


def test_a_flat_region_filled_with_its_own_minimum_costs_only_the_clean_pass() -> None:
    image = vx.Scan(np.full((2, *SHAPE), 2.0), vx.Grid(SHAPE, AFFINE), ("flair", "t1ce"))
    why = vx.RelevanceMap(fill="min", partition="cubes:6")(model(), image, compute=CPU)
    assert why.provenance["passes"]["forward"] == 1
    np.testing.assert_array_equal(why.map, 0)


def test_scaling_to_0_to_100_keeps_the_order() -> None:
    why = vx.RelevanceMap(segments=30)(model(), scan(), compute=CPU)
    scaled = why.scaled()
    assert scaled.unit == "0-100"
    assert scaled.scores is not None
    assert why.scores is not None
    assert (scaled.map.min(), scaled.map.max()) == (0, 100)
    low, high = min(0, why.scores.min()), why.scores.max()
    np.testing.assert_allclose(scaled.scores, (why.scores - low) / (high - low) * 100)
    assert list(scaled.ranks()["label"]) == list(why.ranks()["label"])


def test_scaling_a_map_of_equal_values_gives_zeros() -> None:
    image = vx.Scan(np.full((2, *SHAPE), 2.0), vx.Grid(SHAPE, AFFINE), ("flair", "t1ce"))
    flat = vx.RelevanceMap(fill="min", partition="cubes:6")(model(), image, compute=CPU).scaled()
    np.testing.assert_array_equal(flat.map, 0)
    np.testing.assert_array_equal(flat.scores, 0)


def test_ranks_against_counting_voxel_by_voxel() -> None:
    why = vx.RelevanceMap(segments=30)(model(), scan(), compute=CPU)
    assert why.parts is not None
    assert why.scores is not None
    table = why.ranks()
    assert list(table["rank"]) == list(range(1, len(why.scores) + 1))
    assert sorted(table["label"]) == list(range(1, len(why.scores) + 1))
    for line in table.itertuples():
        voxels = np.argwhere(why.parts.data == line.label)
        assert line.score == why.scores[line.label - 1]
        assert line.volume_ml == pytest.approx(len(voxels) * 2 * 2 * 3 / 1000)
        x, y, z = voxels.mean(axis=0)
        assert (line.x_mm, line.y_mm, line.z_mm) == pytest.approx((5 - 2 * x, -9 + 2 * y, 4 + 3 * z))
        assert line.region == "whole"


def test_ranks_break_ties_by_label() -> None:
    parts = np.zeros(SHAPE, dtype=int)
    for label in range(1, 7):
        parts[label] = label
    scores = np.array([0.2, 0.5, 0.2, 0.5, 0.0, 0.5])
    whole = vx.Region("whole", tuple((0, n) for n in SHAPE), 0.9, 2.0, True)
    grid = vx.Grid(SHAPE, AFFINE)
    why = vx.Explanation(
        np.append(0, scores)[parts][None], ("all",), grid, False, "x", (whole,), vx.Labels(parts, grid), scores
    )
    assert list(why.ranks()["label"]) == [2, 4, 6, 1, 3, 5]


def test_a_network_that_is_sure_still_ranks_its_parts() -> None:
    """At a probability of 0.999999 changes are as small as the steps of 32-bit numbers near 1."""
    one, image = model(), scan()
    with torch.no_grad():
        one.network[-1].bias.add_(14)
    sure = vx.Model(one.network, one.card)
    single, batches = (
        vx.RelevanceMap(segments=30)(sure, image, compute=vx.Compute("cpu", batch_size=size)) for size in (1, 5)
    )
    assert 0.999998 < single.regions[0].probability < 1
    assert single.parts is not None
    expected = independent(
        one.network, image.data, single.parts.data, "blank", "region",
        lambda output: float(torch.sigmoid(output.double())[0, 0]),
    )  # fmt: skip
    assert 0 < expected.max() < 1e-6
    np.testing.assert_allclose(single.total, expected, rtol=0, atol=1e-5 * expected.max())
    # Logits near 14 are themselves known to a millionth only.
    np.testing.assert_allclose(batches.total, expected, rtol=0, atol=1e-4 * expected.max())


def test_calibration_changes_what_is_said_and_not_what_is_explained() -> None:
    plain = vx.RelevanceMap(partition="cubes:8")(model(), scan(), compute=CPU)
    calibrated = vx.RelevanceMap(partition="cubes:8")(model(calibration=(3.0, -1.0)), scan(), compute=CPU)
    np.testing.assert_array_equal(calibrated.map, plain.map)
    (before,), (after,) = plain.regions, calibrated.regions
    assert after.logit == before.logit
    assert before.probability == pytest.approx(1 / (1 + np.exp(-before.logit)))
    assert after.probability == pytest.approx(1 / (1 + np.exp(-(3 * before.logit - 1))))
    assert after.positive == (after.probability >= 0.5)
    assert calibrated.provenance["model"]["calibration"] == [3.0, -1.0]
