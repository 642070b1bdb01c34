"""What is explained: scores of classes and of regions, read off raw output, and refused in one clear line."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from torch import nn
from torch.nn import functional

import voxplain as vx

CPU = vx.Compute(device="cpu", threads=1)
SHAPE = (8, 6, 4)
AFFINE = np.array([[-1.5, 0, 0, 11], [0, 1, 0, -30], [0, 0, 2.5, 7], [0, 0, 0, 1.0]])
GRID = vx.Grid(SHAPE, AFFINE)


def card(**fields: Any) -> vx.Card:
    content: dict[str, Any] = {"name": "n", "channels": ("t1",), "classes": ("edema", "core", "necrosis")}
    return vx.Card(**(content | fields))


def boxed(*slices: slice, grid: vx.Grid = GRID, value: int = 1) -> vx.Labels:
    data = np.zeros(grid.shape, dtype=int)
    data[slices] = value
    return vx.Labels(data, grid)


REGION = boxed(slice(2, 5), slice(1, 3), slice(0, 3))
INSIDE = REGION.data > 0


def scan(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> vx.Scan:
    data = np.random.default_rng(seed).uniform(1, 2, (1, *shape))
    return vx.Scan(data, vx.Grid(shape, AFFINE), ("t1",))


def segmenter(classes: int = 3, dims: int = 3) -> nn.Module:
    convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            convolution(1, 4, 3, padding=1), nn.ReLU(), convolution(4, 5, 3, padding=1), nn.Tanh(),
            convolution(5, classes, 1),
        ).eval()  # fmt: skip


def classifier(classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, classes, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten()).eval()


class Broken(nn.Module):
    """Returns the tensor of a segmenter in a way that no target reads."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.inner, self.how = segmenter(), how

    def forward(self, inputs: torch.Tensor) -> object:
        return self.how(self.inner(inputs))


def output(*shape: int) -> torch.Tensor:
    # As wide as raw scores get: probabilities from almost 0 to almost 1.
    return torch.from_numpy(np.random.default_rng(1).normal(0, 8, shape).astype(np.float32))


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_region_is_the_mean_over_its_voxels(activation: str, dims: int) -> None:
    grid = GRID if dims == 3 else vx.Grid((8, 6, 1), AFFINE)
    region = boxed(slice(2, 5), slice(1, 3), slice(0, 3), grid=grid)
    raw, its_card = output(4, 3, *grid.shape[:dims]), card(activation=activation, spatial_dims=dims)
    squashed = (expit if activation == "sigmoid" else lambda x: softmax(x, axis=1))(raw.numpy().astype(np.float64))
    target = vx.RegionScore("core", region)
    inside = (region.data > 0).reshape(grid.shape[:dims])
    logit, probability = target.logit(raw, its_card), target.probability(raw, its_card)
    np.testing.assert_allclose(logit, raw.numpy()[:, 1, inside].mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(probability, squashed[:, 1, inside].mean(axis=1), rtol=1e-12)
    assert logit.shape == probability.shape == (4,)
    assert probability.dtype == torch.float64


def test_a_class_is_read_off_scores() -> None:
    raw = output(4, 3)
    assert vx.ClassScore("core").logit(raw, card()).tolist() == raw[:, 1].tolist()
    np.testing.assert_allclose(vx.ClassScore("core").probability(raw, card()), expit(raw[:, 1].double()), rtol=1e-12)


def test_a_label_picks_one_lesion() -> None:
    both = vx.Labels(REGION.data * 3 + boxed(slice(6, 8), slice(4, 6), slice(2, 4), value=7).data, GRID)
    picked = vx.RegionScore("core", both, label=3)
    assert picked.record() == vx.RegionScore("core", REGION).record() | {"label": 3}
    assert vx.RegionScore("core", both).record()["voxels"] == picked.record()["voxels"] + 8
    json.dumps(vx.RegionScore("core", both, label=np.int64(7)).record())
    assert repr(picked) == "RegionScore(name='core', label=3)"


def test_the_fingerprint_is_that_of_voxels_and_grid() -> None:
    again = vx.RegionScore("core", vx.Labels(REGION.data * 5, GRID))
    moved = vx.RegionScore("core", vx.Labels(REGION.data, vx.Grid(SHAPE, np.diag([1.5, 1, 2.5, 1]))))
    other = vx.RegionScore("core", vx.Labels(np.roll(REGION.data, 1, axis=0), GRID))
    here = vx.RegionScore("core", REGION).record()
    assert here == again.record()
    assert len({here["fingerprint"], moved.record()["fingerprint"], other.record()["fingerprint"]}) == 3
    assert {r["voxels"] for r in (here, moved.record(), other.record())} == {18}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vx.RegionScore("core", boxed(slice(0, 0))), "the region is empty"),
        (lambda: vx.RegionScore("core", REGION, label=2), "the region has no label 2; its labels are 1$"),
        (lambda: vx.RegionScore("core", REGION, label=0), "the region has no label 0"),
        (lambda: vx.RegionScore("core", REGION.data), "a region is voxplain.Labels .* got ndarray"),
    ],
)
def test_regions_that_are_none(make: Any, message: str) -> None:
    with pytest.raises(vx.InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def explained(network: nn.Module, target: vx.Target, on: vx.Scan | None = None, **fields: Any) -> vx.Explanation:
    explain = vx.RelevanceMap(partition="cubes:4", mask="none")
    return explain(vx.Model(network, card(**fields)), on or scan(), target=target, compute=CPU)


@pytest.mark.parametrize(
    ("network", "target", "message"),
    [
        (segmenter(), vx.ClassScore("core"), r"one score per class, shape \(1, 3\).*\(1, 3, 8, 6, 4\).*vx.RegionScore"),
        (classifier(), vx.RegionScore("core", REGION), r"a map per class .*\(1, 3\): .*vx.ClassScore\('core'\)"),
        (segmenter(2), vx.RegionScore("core", REGION), r"returns \(1, 2, 8, 6, 4\): name all classes"),
        (segmenter(2), vx.ClassScore("core"), r"returns \(1, 2, 8, 6, 4\): name all classes"),
        (Broken(lambda x: x[..., ::2]), vx.RegionScore("core", REGION), r"returns \(1, 3, 8, 6, 2\): name all"),
        (Broken(lambda x: [x]), vx.RegionScore("core", REGION), r"expected one tensor .* the network returns list"),
        (Broken(lambda x: {"out": x}), vx.ClassScore("core"), r"expected one tensor .* the network returns dict"),
        (Broken(lambda x: x * torch.nan), vx.RegionScore("core", REGION), "NaN or infinite"),
        (segmenter(), vx.RegionScore("stroke", REGION), "no class 'stroke'; it has edema, core, necrosis"),
    ],
)
def test_networks_that_do_not_fit_the_target(network: nn.Module, target: vx.Target, message: str) -> None:
    with pytest.raises(vx.InputError, match=message) as caught:
        explained(network, target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (vx.Grid((9, 6, 4), AFFINE), r"another grid than the scan: shape \(8, 6, 4\) against \(9, 6, 4\)"),
        (vx.Grid(SHAPE, AFFINE * np.array([-1, 1, 1, 1])), "another grid than the scan: orientation LAS against RAS"),
    ],
)
def test_a_region_on_another_grid_is_refused(grid: vx.Grid, message: str) -> None:
    with pytest.raises(vx.InputError, match=message):
        explained(segmenter(), vx.RegionScore("core", boxed(slice(2, 5), slice(2, 4), slice(0, 3), grid=grid)))


def test_what_is_said_of_the_region_is_calibrated_and_the_explained_score_is_not() -> None:
    network, calibration = segmenter(), (2.0, -1.0)
    with torch.no_grad():
        raw = network(torch.from_numpy(scan().data.copy())[None])[0, 1].numpy()[INSIDE].astype(np.float64)
    plain = explained(network, vx.RegionScore("core", REGION))
    why = explained(network, vx.RegionScore("core", REGION), calibration=calibration, threshold=0.01)
    assert why.regions[0].probability == pytest.approx(expit(2 * raw - 1).mean(), rel=1e-6)
    assert why.regions[0].logit == pytest.approx(raw.mean(), rel=1e-6)
    assert why.regions[0].positive
    np.testing.assert_array_equal(why.map, plain.map)


def test_the_card_may_reorient_resample_and_cut() -> None:
    """A network that says what it sees: in the region it sees the mean of the scan there, where the cut left it."""
    values = np.random.default_rng(0).uniform(1, 2, (1, 12, 10, 8))
    fine = vx.Scan(values, vx.Grid((12, 10, 8), np.diag([-1.0, 1, 1, 1])), ("t1",))
    region = boxed(slice(8, 12), slice(2, 6), slice(2, 4), grid=fine.grid)
    fields = {"orientation": "RAS", "spacing": (2, 2, 2), "shape": (4, 4, 2), "classes": ("core",)}
    with pytest.warns(UserWarning, match="16 of the region's 32 voxels lie outside of what the network reads"):
        why = explained(nn.Identity(), vx.RegionScore("core", region), fine, **fields)
    # Of the six voxels of 2 mm along the first axis, the cut leaves the middle four.
    assert why.regions[0].logit == pytest.approx(values[0, 8:10, 2:6, 2:4].mean(), rel=1e-6)
    assert any("lie outside" in said for said in why.provenance["warnings"])


def test_a_region_that_the_network_does_not_see_is_refused() -> None:
    network, far = nn.Identity(), vx.RegionScore("core", boxed(slice(0, 1), slice(0, 1), slice(0, 1)))
    with pytest.raises(vx.InputError, match="all 1 voxels of the region lie outside of what the network reads"):
        explained(network, far, classes=("core",), shape=(2, 2, 2))
    with pytest.raises(vx.InputError, match=r"region of 1 voxels, 0.00375 ml, is too small for the network's voxels"):
        explained(network, far, classes=("core",), spacing=(6, 6, 10))


def of_halves(half_card: Any) -> vx.Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv3d(4, 2, 3, padding=1), nn.ReLU(), nn.Conv3d(2, 1, 1)).eval()
    return vx.Model(network, half_card(normalisation="min-max", spacing=(4, 4, 4)))


def halves(region: vx.Labels, head: vx.Scan, half_card: Any) -> vx.Explanation:
    explain = vx.RelevanceMap(partition="cubes:24")
    return explain(of_halves(half_card), head, target=vx.RegionScore("tumour", region), compute=CPU)


@pytest.mark.parametrize(("side", "x"), [("right", slice(8, 12)), ("left", slice(28, 32))])
def test_only_the_half_that_holds_the_region_is_explained(side: str, x: slice, make_head: Any, half_card: Any) -> None:
    head = make_head().scan()
    region = boxed(x, slice(20, 26), slice(18, 22), grid=head.grid)
    with pytest.warns(UserWarning, match="lies in 1 of the 2 parts of the scan that the network reads") as caught:
        why = halves(region, head, half_card)
    assert len(caught) == 1
    assert [found.name for found in why.regions] == [side]
    outside = np.ones(head.grid.shape, dtype=bool)
    outside[why.regions[0].slices] = False
    assert not why.map[0][outside].any()
    assert why.map.any()
    # The map is where the region is: in the half, mirrored or not, and laid back.
    peak = np.unravel_index(why.total.argmax(), why.total.shape)
    assert why.parts is not None
    assert (region.data[why.parts.data == why.parts.data[peak]] > 0).any()
    assert why.ranks()["region"].unique().tolist() == [side]
    assert vx.segment.otsu(why).data.sum() == 0 or why.regions[0].positive
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = vx.replay(why.provenance, of_halves(half_card), head, CPU, target=vx.RegionScore("tumour", region))
    np.testing.assert_array_equal(again.map, why.map)


def test_a_region_in_both_halves_is_read_in_each(make_head: Any, half_card: Any) -> None:
    head = make_head().scan()
    region = boxed(slice(16, 26), slice(20, 26), slice(18, 22), grid=head.grid)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        why = halves(region, head, half_card)
    assert [found.name for found in why.regions] == ["right", "left"]
    assert why.regions[0].logit != why.regions[1].logit


def test_replay_asks_for_the_region_and_knows_it() -> None:
    network, target = segmenter(), vx.RegionScore("core", REGION)
    model = vx.Model(network, card())
    provenance = json.loads(json.dumps(explained(network, target).provenance))
    assert provenance["target"]["kind"] == "RegionScore"
    with pytest.raises(
        vx.InputError, match=r"names a RegionScore by its fingerprint.*vx.replay\(\.\.\., target=\.\.\.\)"
    ):
        vx.replay(provenance, model, scan())
    wrong = [
        vx.RegionScore("edema", REGION),
        vx.RegionScore("core", REGION, label=1),
        vx.RegionScore("core", boxed(slice(1, 4), slice(1, 3), slice(0, 3))),
        vx.ClassScore("core"),
    ]
    for other in wrong:
        with pytest.raises(vx.InputError, match="the provenance speaks of another target: it names"):
            vx.replay(provenance, model, scan(), target=other)


def test_replay_of_a_class_needs_no_target_and_checks_one_that_is_given() -> None:
    network = classifier()
    why = explained(network, vx.ClassScore("core"))
    model = vx.Model(network, card())
    for target in (None, vx.ClassScore("core")):
        np.testing.assert_array_equal(vx.replay(why.provenance, model, scan(), CPU, target=target).map, why.map)
    with pytest.raises(vx.InputError, match="another target"):
        vx.replay(why.provenance, model, scan(), CPU, target=vx.ClassScore("edema"))


@pytest.mark.parametrize("dims", [2, 3])
def test_grad_cam_of_a_region_is_autograd_by_hand(dims: int) -> None:
    image = scan((8, 6, 1) if dims == 2 else SHAPE)
    region = boxed(slice(2, 5), slice(1, 3), slice(0, 3), grid=image.grid)
    network = segmenter(dims=dims)
    why = vx.GradCAM(layer="2")(
        vx.Model(network, card(spatial_dims=dims, activation="softmax")),
        image,
        target=vx.RegionScore("core", region),
        compute=CPU,
    )
    inputs = torch.from_numpy(image.data.copy())[None].reshape(1, 1, *image.grid.shape[:dims])
    activation = network[:3](inputs).detach().requires_grad_()
    inside = torch.from_numpy((region.data > 0).reshape(image.grid.shape[:dims]))
    network[3:](activation)[0, 1][inside].mean().backward()
    weights = activation.grad[0].flatten(1).mean(dim=1)
    expected = functional.relu((weights.reshape(-1, *[1] * dims) * activation.detach()[0]).sum(dim=0))
    assert expected.max() > 0
    np.testing.assert_allclose(why.total.reshape(expected.shape), expected, rtol=0, atol=1e-6 * float(expected.max()))
    assert why.provenance["passes"] == {"forward": 2, "backward": 1}


def test_reports_tell_regions_apart() -> None:
    from voxplain.report.facts import target_name

    network, both = segmenter(), vx.Labels(REGION.data * 2 + boxed(slice(6, 8), slice(4, 6)).data, GRID)
    named = [target_name(explained(network, vx.RegionScore("core", both, label=label))) for label in (1, 2, None)]
    assert named == ["core in the region labelled 1", "core in the region labelled 2", "core in a region of 34 voxels"]


class Fixed(nn.Module):
    """Raw scores that are the input's mean times one weight per class."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.linear = nn.Linear(1, len(weights), bias=False)
        self.linear.weight.data = torch.tensor([[weight] for weight in weights])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(inputs.flatten(1).mean(dim=1, keepdim=True))


def test_the_predicted_class_is_the_highest_of_the_clean_input_and_stays_so() -> None:
    its_card = card(activation="softmax", absent=("edema",))
    model = vx.Model(Fixed(1.0, 3.0, -9.0), its_card)
    why = vx.RelevanceMap(partition="cubes:4", effect="signed", scale="logit")(model, scan(), compute=CPU)
    same = vx.RelevanceMap(partition="cubes:4", effect="signed", scale="logit")(
        model, scan(), target=vx.ClassScore("core"), compute=CPU
    )
    np.testing.assert_array_equal(why.map, same.map)
    assert why.provenance["target"] == {"kind": "PredictedClass"}
    assert why.provenance["facts"]["whole"]["class"] == why.regions[0].target == "core"
    assert "class" not in same.provenance["facts"]["whole"]
    assert same.regions[0].target == "core"
    stored = json.loads(json.dumps(why.provenance))
    np.testing.assert_array_equal(vx.replay(stored, model, scan(), CPU).map, why.map)


@pytest.mark.parametrize(
    ("weights", "target", "positive"),
    [
        ((1.0, 0.5, 0.2), vx.PredictedClass(), False),  # the highest class says that nothing is there
        ((0.9, 1.0, 0.8), vx.PredictedClass(), True),  # though its probability is far below the threshold
        ((9.0, 0.0, 0.0), vx.ClassScore("edema"), False),
        ((0.0, 9.0, 0.0), vx.ClassScore("core"), True),
        ((0.9, 1.0, 0.8), vx.ClassScore("core"), False),
    ],
)
def test_a_region_is_positive_where_something_is_there(
    weights: tuple[float, ...], target: vx.Target, positive: bool
) -> None:
    model = vx.Model(Fixed(*weights), card(activation="softmax", absent=("edema",)))
    why = vx.RelevanceMap(partition="cubes:4")(model, scan(), target=target, compute=CPU)
    assert why.regions[0].positive is positive


def test_what_is_explained_where_nobody_says() -> None:
    def named(**fields: Any) -> object:
        its_card = card(**fields)
        model = vx.Model(Fixed(*[1.0] * len(its_card.classes)), its_card)
        return vx.RelevanceMap(partition="cubes:4")(model, scan(), compute=CPU).provenance["target"]

    assert named(activation="softmax") == {"kind": "PredictedClass"}
    assert named() == {"kind": "ClassScore", "name": "edema"}
    assert named(activation="softmax", classes=("c",)) == {"kind": "ClassScore", "name": "c"}


def test_the_predicted_class_of_one_class_is_refused() -> None:
    model = vx.Model(Fixed(1.0), card(classes=("c",)))
    with pytest.raises(vx.InputError, match=r"this model has one class: ask for its score, target=vx.ClassScore"):
        vx.RelevanceMap(partition="cubes:4")(model, scan(), target=vx.PredictedClass(), compute=CPU)


def test_the_predicted_class_of_a_segmenter_is_refused_as_any_class_is() -> None:
    model = vx.Model(segmenter(), card(activation="softmax"))
    with pytest.raises(vx.InputError, match="explained by region"):
        vx.RelevanceMap(partition="cubes:4")(model, scan(), compute=CPU)


def test_checks_hold_the_class_that_was_predicted() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), *classifier().children())
        network[2] = nn.Conv3d(4, 3, 1)
    model = vx.Model(network.eval(), card(activation="softmax"))
    why = vx.GradCAM(layer="0")(model, scan(), compute=CPU)
    assert why.map.any()
    checked = vx.check(why, model, scan(), quick=True, compute=CPU)
    named = vx.GradCAM(layer="0")(model, scan(), target=vx.ClassScore(why.regions[0].target), compute=CPU)
    same = vx.check(named, model, scan(), quick=True, compute=CPU)
    lines, others = (one.provenance["checks"]["lines"] for one in (checked, same))
    assert lines == others
    assert lines["weight randomisation"]["verdict"] != "not tested", lines["weight randomisation"]["said"]
