"""The incremental engine as explainers use it: the same maps as in full, and a notice where it cannot follow."""

import numpy as np
import pytest
import torch

import voxplain as vx

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
    with pytest.raises(vx.InputError, match="engine is full or incremental"):
        vx.Compute(engine="fast")
