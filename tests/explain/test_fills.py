"""What a perturbed part is filled with: each fill against plain loops, and what it refuses."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

import voxplain as vx
from voxplain import explain
from voxplain.engine.probe import Probe
from voxplain.explain.fills import Blurred, Optimal, fill_named
from voxplain.midplane import midplane
from voxplain.preparation import Prepared, prepare

CPU = vx.Compute(device="cpu", threads=1)
SHAPE = (9, 8, 7)
# The first axis runs from right to left, its plane of symmetry is the face 4, between voxels 3 and 4.
GRID = vx.Grid(SHAPE, np.diag([-2.0, -1.5, 3.0, 1]))
PART = (slice(1, 4), slice(2, 5), slice(3, 6))
NAMES = ["blank", "min", "max", "tissue-mean", "blurred:3", "mirror", "noise"]
KINDS = [vx.RelevanceMap, vx.Occlusion, vx.LIME, vx.KernelSHAP, vx.RISE]
OPTIONS: dict[str, dict[str, object]] = {
    "relevance-map": {"partition": "cubes:6"},
    "occlusion": {"partition": "cubes:6"},
    "lime": {"partition": "cubes:6", "samples": 60},
    "kernel-shap": {"partition": "cubes:6", "samples": 120},
    "rise": {"cell": 4.0, "samples": 40},
}


class Linear(nn.Module):
    """The logit is a weighted sum of the input, with random weights."""

    def __init__(self) -> None:
        super().__init__()
        weights = np.random.default_rng(5).normal(0, 0.05, (2, *SHAPE))
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs * self.weights).sum(dim=(1, 2, 3, 4))[:, None]


def scan() -> vx.Scan:
    """A box of tissue on a background of 0, which is its own mirror image about the face 4."""
    data = np.random.default_rng(0).uniform(1, 3, (2, *SHAPE))
    data[:, 0] = data[:, 7:] = 0
    data[:, :, :1] = 0
    return vx.Scan(data, GRID, ("t1", "t2"))


def probe(seed: int = 0, normalisation: str = "min-max", **card: object) -> Probe:
    card = vx.Card(name="linear", channels=("t1", "t2"), classes=("c",), normalisation=normalisation, **card)
    # A probe takes networks in eval mode only; explainers see to that themselves.
    model = vx.Model(Linear().eval(), card)
    (prepared,) = prepare(scan(), model.card)
    return Probe(model, prepared, vx.ClassScore("c"), seed, CPU)


def inside() -> np.ndarray:
    """A part that does not fill its box."""
    mask = np.random.default_rng(1).random((3, 3, 3)) < 0.6
    assert 0 < mask.sum() < mask.size
    return mask


def filled(name: str, at_work: Probe, scope: str = "region") -> np.ndarray:
    """What the part's voxels get, (C, n)."""
    mask = inside()
    before = at_work.input.copy()
    values = np.broadcast_to(fill_named(name, scope)(at_work)(PART, mask), (2, *mask.shape))
    np.testing.assert_array_equal(at_work.input, before)
    return values[:, mask]


def voxels() -> np.ndarray:
    """Indices (n, 3) of the part's voxels, in the order in which `filled` gives them."""
    return np.argwhere(inside()) + [side.start for side in PART]


@pytest.mark.parametrize("scope", ["region", "sequence"])
@pytest.mark.parametrize("name", ["blank", "min", "max"])
def test_one_value_per_sequence(name: str, scope: str) -> None:
    at_work = probe()
    found = filled(name, at_work, scope)
    for channel in range(2):
        part = [at_work.input[(channel, *voxel)] for voxel in voxels()]
        values = part if scope == "region" else at_work.input[channel].ravel()
        expected = {"blank": at_work.prepared.background[channel], "min": min(values), "max": max(values)}[name]
        np.testing.assert_array_equal(found[channel], np.float32(expected))


@pytest.mark.parametrize("normalisation", ["min-max", "z-score", "none"])
def test_tissue_mean_is_the_mean_over_the_foreground(normalisation: str) -> None:
    at_work = probe(normalisation=normalisation)
    found = filled("tissue-mean", at_work)
    for channel in range(2):
        tissue = [at_work.input[(channel, *v)] for v in np.ndindex(SHAPE) if at_work.prepared.foreground[v]]
        np.testing.assert_allclose(found[channel], math.fsum(tissue) / len(tissue), atol=1e-6)


def test_blurred_is_a_gaussian_in_mm() -> None:
    """Each voxel as the weighted mean of all, in three plain passes; the grid's spacing differs from axis to axis."""
    at_work = probe()
    sigma = 3.0
    smooth = at_work.input.astype(np.float64)
    for axis, (size, spacing) in enumerate(zip(SHAPE, (2.0, 1.5, 3.0), strict=True), start=1):
        reach = int(4 * sigma / spacing + 0.5)
        offsets = np.arange(-reach, reach + 1)
        weights = np.exp(-0.5 * (offsets * spacing / sigma) ** 2)
        weights /= weights.sum()
        sides = np.clip(np.arange(size)[:, None] + offsets, 0, size - 1)
        smooth = np.moveaxis((np.moveaxis(smooth, axis, -1)[..., sides] * weights).sum(axis=-1), -1, axis)
    expected = np.array([smooth[(slice(None), *voxel)] for voxel in voxels()]).T
    np.testing.assert_allclose(filled("blurred:3", at_work), expected, atol=1e-5)
    assert fill_named("blurred:3", "region") == Blurred(3.0)


def test_mirror_takes_the_other_side() -> None:
    at_work = probe()
    assert midplane(at_work.prepared.foreground, GRID).face == 4
    expected = np.array([at_work.input[:, 7 - x, y, z] for x, y, z in voxels()]).T
    np.testing.assert_array_equal(filled("mirror", at_work), expected)
    assert at_work.facts == {"mirror_plane": "middle of the grid (overlap of brain and mirror image 1.000)"}


def test_mirror_outside_of_the_scan_is_background() -> None:
    at_work = probe()
    everything = fill_named("mirror", "region")(at_work)((slice(None),) * 3, np.ones(SHAPE, dtype=bool))
    # Face 4 of 9 voxels: voxel 8 would take the one before the first.
    for channel in range(2):
        np.testing.assert_array_equal(everything[channel, 8], np.float32(at_work.prepared.background[channel]))


def test_mirror_twice_is_the_scan() -> None:
    at_work = probe()
    everywhere = ((slice(None),) * 3, np.ones(SHAPE, dtype=bool))
    once = fill_named("mirror", "region")(at_work)(*everywhere)
    prepared = dataclasses.replace(at_work.prepared, input=vx.Scan(once, GRID, ("t1", "t2")))
    again = Probe(at_work.model, prepared, vx.ClassScore("c"), 0, CPU)
    np.testing.assert_array_equal(fill_named("mirror", "region")(again)(*everywhere)[:, :8], at_work.input[:, :8])


def test_noise_has_the_tissues_mean_and_deviation_and_follows_the_seed() -> None:
    everywhere = ((slice(None),) * 3, np.ones(SHAPE, dtype=bool))
    drawn = []
    for seed in range(60):
        at_work = probe(seed)
        tissue = at_work.input[:, at_work.prepared.foreground]
        values = fill_named("noise", "region")(at_work)(*everywhere)
        drawn.append((values - tissue.mean(axis=1)[:, None, None, None]) / tissue.std(axis=1)[:, None, None, None])
    together = np.array(drawn)
    assert abs(together.mean()) < 0.02
    assert abs(together.std() - 1) < 0.02
    np.testing.assert_array_equal(filled("noise", probe(3)), filled("noise", probe(3)))
    assert np.abs(filled("noise", probe(3)) - filled("noise", probe(4))).max() > 0.1


def test_noise_leaves_the_samples_of_a_method_as_they_are() -> None:
    """What a method draws is the same whatever the fill."""
    noisy, plain = probe(), probe()
    filled("noise", noisy)
    filled("blank", plain)
    assert noisy.rng.random() == plain.rng.random()


@pytest.mark.parametrize(
    "name",
    [
        "mean", "", "blurred", "blurred:", "blurred:-1", "blurred:0", "blurred:nan", "blurred:inf", "blurred:wide",
        "blurred:1e9", "optimal", "optimal:", "blank:8", "Mirror",
    ],
)  # fmt: skip
def test_names_that_do_not_exist_are_refused_with_those_that_do(name: str) -> None:
    with pytest.raises(vx.InputError, match=r"blank, min, max, tissue-mean, .* at most 100 mm; .* got") as error:
        fill_named(name, "region")
    assert str(error.value).endswith(f"got {name!r}")


@pytest.mark.parametrize("name", ["blank", "blurred:8", "nothing"])
@pytest.mark.parametrize("scope", ["voxel", ""])
def test_scopes_that_do_not_exist_are_refused(name: str, scope: str) -> None:
    with pytest.raises(vx.InputError, match=f"scope, .* is one of region, sequence; got '{scope}'"):
        fill_named(name, scope)


def test_a_perturbation_network_is_named_by_its_folder() -> None:
    assert fill_named("optimal:runs/optimal", "region") == Optimal("runs/optimal")


def test_mirror_on_halves_is_refused(make_head: type, tiny_model: vx.Model) -> None:
    with pytest.raises(vx.InputError, match=r"network that reads halves .* does not see; use blank"):
        vx.RelevanceMap(fill="mirror", segments=5)(tiny_model, make_head().scan(), compute=CPU)


def test_mirror_of_a_head_that_is_not_aligned_is_refused() -> None:
    data = scan().data.copy()
    data[:, 5:] = 0
    model = vx.Model(Linear(), vx.Card(name="linear", channels=("t1", "t2"), classes=("c",)))
    with pytest.raises(vx.InputError, match=r"aligned with the grid's axes; here .* Dice of"):
        vx.RelevanceMap(fill="mirror", partition="cubes:6")(model, vx.Scan(data, GRID, ("t1", "t2")), compute=CPU)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_takes_every_fill(kind: type[vx.Explainer], name: str) -> None:
    model = vx.Model(Linear(), vx.Card(name="linear", channels=("t1", "t2"), classes=("c",), normalisation="z-score"))
    method = kind(fill=name, **OPTIONS[kind.name])
    why = method(model, scan(), seed=2, compute=CPU)
    assert why.map.any()
    again = vx.replay(why.provenance, model, scan(), compute=CPU)
    np.testing.assert_array_equal(again.map, why.map)
    batches = method(model, scan(), seed=2, compute=dataclasses.replace(CPU, batch_size=3))
    np.testing.assert_allclose(batches.map, why.map, rtol=0, atol=1e-5 * np.abs(why.map).max())


@pytest.mark.parametrize("scale", ["logit", "probability"])
@pytest.mark.parametrize("name", NAMES)
def test_relevance_maps_against_a_plain_loop(name: str, scale: str) -> None:
    at_work = probe(7)
    model, image = at_work.model, at_work.input
    why = vx.RelevanceMap(fill=name, partition="cubes:5", scale=scale)(model, scan(), seed=7, compute=CPU)
    assert why.parts is not None
    assert why.scores is not None
    everything = _whole_fill(name, probe(7), why.parts.data)
    read = torch.nn.Identity() if scale == "logit" else torch.sigmoid
    score = lambda data: float(read(model.network(torch.tensor(data[None])).double())[0, 0])  # noqa: E731
    for label in range(1, len(why.scores) + 1):
        changed = np.where(why.parts.data == label, everything[label], image)
        assert why.scores[label - 1] == pytest.approx(abs(score(image) - score(changed)), abs=2e-6)


def _whole_fill(name: str, at_work: Probe, parts: np.ndarray) -> dict[int, np.ndarray]:
    """The filled volume by label, for fills whose single voxels the tests above check."""
    image, prepared = at_work.input, at_work.prepared
    everywhere = ((slice(None),) * 3, np.ones(SHAPE, dtype=bool))
    found = {}
    for label in range(1, int(parts.max()) + 1):
        if name in ("min", "max"):
            reduce = np.min if name == "min" else np.max
            values = np.array([reduce(channel[parts == label]) for channel in image])[:, None, None, None]
        elif name == "blank":
            values = np.array(prepared.background)[:, None, None, None]
        else:
            values = found[label - 1] if label > 1 else fill_named(name, "region")(at_work)(*everywhere)
        found[label] = np.broadcast_to(values, image.shape).astype(np.float32)
    return found


def test_fills_are_made_ready_once_for_each_input(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    whole = Blurred.__call__
    monkeypatch.setattr(Blurred, "__call__", lambda self, at_work: calls.append(at_work) or whole(self, at_work))
    model = vx.Model(Linear(), vx.Card(name="linear", channels=("t1", "t2"), classes=("c",)))
    for kind in KINDS:
        calls.clear()
        kind(fill="blurred:2", **OPTIONS[kind.name])(model, scan(), compute=CPU)
        assert len(calls) == 1, kind.name


def test_every_method_with_a_fill_is_tested_here() -> None:
    kinds = [getattr(explain, name) for name in explain.__all__]
    assert {kind for kind in kinds if "fill" in {field.name for field in dataclasses.fields(kind)}} == set(KINDS)


def test_an_input_without_tissue_gets_its_background() -> None:
    at_work = probe()
    empty = Prepared("whole", at_work.prepared.input, np.zeros(SHAPE, dtype=bool), (0.5, 0.25), at_work.prepared.box)
    at_work.prepared = empty
    for name in ("tissue-mean", "noise"):
        np.testing.assert_array_equal(filled(name, at_work)[:, 0], np.float32([0.5, 0.25]))
    with pytest.raises(vx.InputError, match="aligned"):
        filled("mirror", at_work)
