"""The incremental engine as explainers use it: the same maps as in full, and a notice where it cannot follow."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

import voxplain as vx
from voxplain.engine.incremental import Incremental

FULL = vx.Compute(device="cpu", engine="full")
INCREMENTAL = vx.Compute(device="cpu", engine="incremental")


class Untraceable(torch.nn.Module):
    """A network whose course depends on its input, which a graph cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.sum() > 0:
            inputs = inputs * 2
        return self.weight * inputs.mean((1, 2, 3, 4))[:, None]


@pytest.mark.parametrize(
    "explainer",
    [
        vx.RelevanceMap(partition="cubes:24"),
        vx.RelevanceMap(partition="cubes:24", fill="min", effect="signed", scale="logit"),
        vx.Occlusion(),
    ],
    ids=lambda explainer: explainer.name,
)
def test_maps_are_those_of_full_passes(explainer, tiny_model, make_head):
    scan = make_head().scan()
    full = explainer(tiny_model, scan, compute=FULL)
    fast = explainer(tiny_model, scan, compute=INCREMENTAL)
    assert full.map.any()
    np.testing.assert_allclose(fast.map, full.map, rtol=0, atol=1e-6)
    assert fast.provenance["passes"] == full.provenance["passes"]
    assert fast.provenance["compute"]["engine"] == "incremental"
    assert full.provenance["finished_in_full_from"] == []
    # How it ran is no part of what was computed: either replays the other.
    again = vx.replay(fast.provenance, tiny_model, scan, FULL)
    np.testing.assert_array_equal(again.map, full.map)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_size_is_kept(batch_size, tiny_model, make_head):
    scan = make_head().scan()
    compute = vx.Compute(device="cpu", engine="incremental", batch_size=batch_size)
    explainer = vx.RelevanceMap(partition="cubes:24")
    found = explainer(tiny_model, scan, compute=compute)
    np.testing.assert_allclose(found.map, explainer(tiny_model, scan, compute=FULL).map, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scripted", [False, True])
def test_a_network_that_cannot_be_followed_runs_in_full_and_says_so(scripted, make_head):
    network = Untraceable().eval()
    if scripted:
        network = torch.jit.script(network)
    card = vx.Card(name="n", channels=("flair", "t1", "t1ce", "t2"), classes=("a",), normalisation="z-score")
    model, scan = vx.Model(network, card), make_head().scan()
    explainer = vx.RelevanceMap(partition="cubes:40")
    with pytest.warns(UserWarning, match="runs in full") as caught:
        found = explainer(model, scan, compute=INCREMENTAL)
    assert len(caught) == 1
    if not scripted:
        assert "if inputs.sum() > 0" in str(caught[0].message)
    np.testing.assert_array_equal(found.map, explainer(model, scan, compute=FULL).map)


def test_methods_that_touch_the_whole_input_run_in_full(tiny_model, make_head):
    scan = make_head().scan()
    explainer = vx.LIME(samples=6, segments=4)
    found = explainer(tiny_model, scan, compute=INCREMENTAL)
    np.testing.assert_array_equal(found.map, explainer(tiny_model, scan, compute=FULL).map)


def test_another_engine_is_refused():
    with pytest.raises(vx.InputError, match="engine is auto, full or incremental"):
        vx.Compute(engine="fast")


def wide_network(width: int) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convolutions = [torch.nn.Conv3d(1, width, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(width, width, 3, 2)]
        return torch.nn.Sequential(
            *convolutions, torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten(), torch.nn.Linear(width, 1)
        )


def wide_scan() -> vx.Scan:
    data = np.random.default_rng(0).normal(size=(1, 40, 40, 40))
    return vx.Scan(data, vx.Grid((40, 40, 40), np.eye(4)), ("t1",))


@pytest.mark.parametrize(
    ("width", "edge", "incremental"),
    [(48, 8, True), (48, 40, False), (2, 8, False)],
    ids=["worth it", "the part is all of it", "small network"],
)
def test_auto_follows_where_that_saves_work(width: int, edge: int, incremental: bool):
    model = vx.Model(wide_network(width), vx.Card(name="wide", channels=("t1",), classes=("a",)))
    explainer = vx.RelevanceMap(partition=f"cubes:{edge}", mask="none", scale="logit")
    found = explainer(model, wide_scan(), compute=vx.Compute(device="cpu", threads=1))
    full = explainer(model, wide_scan(), compute=vx.Compute(device="cpu", engine="full", threads=1))
    parts = len(found.scores)
    assert found.provenance["incremental_passes"] == (parts if incremental else 0)
    assert full.provenance["incremental_passes"] == 0
    assert found.provenance["passes"] == full.provenance["passes"]
    np.testing.assert_allclose(found.map, full.map, rtol=0, atol=1e-5 * np.abs(full.map).max())


class Dice(torch.nn.Module):
    """Draws on chance in eval mode too."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(inputs, 0.5, training=True).mean((1, 2, 3, 4))[:, None]


@pytest.mark.parametrize("engine", ["full", "auto", "incremental"])
def test_chance_is_refused(engine: str):
    model = vx.Model(Dice(), vx.Card(name="dice", channels=("t1",), classes=("a",)))
    compute = vx.Compute(device="cpu", engine=engine)
    for explainer in (vx.RelevanceMap(partition="cubes:20", mask="none"), vx.RISE(cell=20.0, samples=4, mask="none")):
        with pytest.raises(vx.InputError, match=r"draws on chance|works as in training"):
            explainer(model, wide_scan(), compute=compute)


@pytest.mark.parametrize("engine", ["full", "auto", "incremental"])
def test_batch_norm_without_statistics_is_refused(engine: str):
    norm = torch.nn.BatchNorm3d(1, track_running_stats=False)
    network = torch.nn.Sequential(norm, torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten())
    model = vx.Model(network, vx.Card(name="norm", channels=("t1",), classes=("a",)))
    with pytest.raises(vx.InputError, match="keeps no running statistics"):
        vx.RelevanceMap(partition="cubes:20")(model, wide_scan(), compute=vx.Compute(device="cpu", engine=engine))


class Blind(torch.nn.Module):
    """A black box: gradients end at its door."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.network(inputs.detach())


def test_gradients_guide_occlusion_where_there_are_any_and_memory_allows():
    # Nearly linear, so that the gradient knows nearly everything that few windows cannot.
    network = wide_network(4)
    card = vx.Card(name="wide", channels=("t1",), classes=("a",))
    every = vx.Occlusion(partition="cubes:8", stride=4.0, scale="logit", mask="none")
    some = vx.Occlusion(partition="cubes:8", stride=4.0, scale="logit", mask="none", passes=60)
    exact = every(vx.Model(network, card), wide_scan()).map
    cases = {
        "guided": (vx.Model(network, card), vx.Compute(device="cpu")),
        "blind": (vx.Model(Blind(network), card), vx.Compute(device="cpu")),
        "short": (vx.Model(network, card), vx.Compute(device="cpu", memory="1MB", batch_size=4)),
    }
    missed = {}
    for name, (model, compute) in cases.items():
        found = some(model, wide_scan(), compute=compute)
        assert found.provenance["facts"]["whole"]["guided_by_gradient"] is (name == "guided")
        assert found.provenance["passes"]["backward"] == (name == "guided")
        missed[name] = float(np.sqrt(np.mean((found.map - exact) ** 2)))
    assert missed["guided"] < 0.5 * missed["blind"]
    assert missed["short"] == pytest.approx(missed["blind"], rel=1e-3)


# Memory: the map stays the same, whatever there is no room for.

PARTS = vx.RelevanceMap(partition="cubes:8", mask="none", scale="logit")


def wide_model() -> vx.Model:
    return vx.Model(wide_network(8), vx.Card(name="wide", channels=("t1",), classes=("a",)))


def deep_model() -> vx.Model:
    """Many layers to keep, of which a full pass has two at a time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convolutions = [torch.nn.Conv3d(1 if layer == 0 else 4, 4, 5, padding=2) for layer in range(9)]
        network = torch.nn.Sequential(*convolutions, torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten())
    return vx.Model(network.eval(), vx.Card(name="deep", channels=("t1",), classes=("a", "b", "c", "d")))


def explained(
    said: str | None, model: vx.Model | None = None, parts: vx.RelevanceMap = PARTS, **compute: object
) -> vx.Explanation:
    """The wide scan's map, which must be that of full passes, after warnings that match."""
    model, full = model or wide_model(), vx.Compute("cpu", engine="full", threads=1)
    expected = parts(model, wide_scan(), compute=full).map
    with pytest.warns(UserWarning, match=said) if said else nullcontext():
        found = parts(model, wide_scan(), compute=vx.Compute("cpu", engine="incremental", threads=1, **compute))
    np.testing.assert_allclose(found.map, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert found.provenance["passes"]["forward"] == 1 + len(found.scores)
    return found


def greedy(monkeypatch: pytest.MonkeyPatch, fits: int) -> None:
    """Let no more perturbed inputs be followed together."""
    follow = Incremental.follow

    def follow_few(self, patches):
        if len(patches) > fits:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return follow(self, patches)

    monkeypatch.setattr(Incremental, "follow", follow_few)


def test_goes_on_with_fewer_perturbed_inputs_after_running_out_of_memory(monkeypatch):
    greedy(monkeypatch, fits=20)
    found = explained(r"out of memory with 64 perturbed inputs at a time; went on with 32")
    assert found.provenance["warnings"] == [
        f"whole: out of memory with {size} perturbed inputs at a time; went on with {size // 2}" for size in (64, 32)
    ]
    assert found.provenance["incremental_passes"] == len(found.scores)


def test_goes_on_in_full_where_not_even_one_fits(monkeypatch):
    greedy(monkeypatch, fits=0)
    found = explained(r"the network runs in full: out of memory with a single perturbed input")
    assert found.provenance["incremental_passes"] == 0


def test_goes_on_in_full_where_the_clean_run_runs_out_of_memory(monkeypatch):
    def out_of_memory(*_args, **_options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Incremental, "__init__", out_of_memory)
    explained(r"the network runs in full: out of memory with the activations that the incremental engine keeps")


def test_says_how_much_memory_the_engine_needs():
    # Few parts: a pass through so many layers takes long.
    parts = vx.RelevanceMap(partition="cubes:20", mask="none", scale="logit")
    found = explained(r"the incremental engine needs .* give --memory \S+ or more", deep_model(), parts, memory="8MB")
    assert found.provenance["incremental_passes"] == 0
    (warning,) = [text for text in found.provenance["warnings"] if "--memory" in text]
    enough = warning.partition("give --memory ")[2].split()[0]
    assert explained(None, deep_model(), parts, memory=enough).provenance["incremental_passes"] == len(found.scores)


@pytest.mark.parametrize("engine", ["full", "incremental"])
@pytest.mark.parametrize(
    ("explainer", "passes"), [(PARTS, 125), (vx.Occlusion(partition="cubes:16", mask="none", passes=40), 40)]
)
def test_passes_are_announced_once_and_cost_nothing(explainer, passes, engine, capsys):
    compute = {"device": "cpu", "engine": engine, "threads": 1}
    silent = explainer(wide_model(), wide_scan(), compute=vx.Compute(**compute))
    assert capsys.readouterr().err == ""
    told = explainer(wide_model(), wide_scan(), compute=vx.Compute(**compute, progress=True))
    kind = "incremental passes" if engine == "incremental" else "passes in batches of 16"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "passes" in line]
    assert f" {passes} {kind}, about " in line
    assert told.provenance["passes"] == silent.provenance["passes"]
    np.testing.assert_array_equal(told.map, silent.map)
