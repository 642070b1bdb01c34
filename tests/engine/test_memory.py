"""Networks that run out of memory, and how many perturbed inputs exist at a time."""

import gc
import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

import voxplain as vx

SHAPE = (8, 8, 6)
CARD = vx.Card(name="greedy", channels=("a", "b"), classes=("c",))
METHODS = [
    vx.RelevanceMap(partition="cubes:3"),
    vx.Occlusion(partition="cubes:4", stride=2.0),
    vx.LIME(partition="cubes:3", samples=40),
    vx.KernelSHAP(partition="cubes:4", samples=40),
    vx.RISE(cell=2.0, samples=40),
]


class Greedy(nn.Module):
    """Fits only so many inputs at a time, and tells as a device or as the CPU's allocator does."""

    def __init__(self, fits: int, words: str = "CUDA out of memory. Tried to allocate 20.00 MiB") -> None:
        super().__init__()
        self.fits, self.words = fits, words
        self.sizes: list[int] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(inputs))
        if len(inputs) > self.fits:
            raise RuntimeError(self.words)
        return (inputs**2).mean(dim=(1, 2, 3, 4))[:, None]


def scan(shape: tuple[int, int, int] = SHAPE) -> vx.Scan:
    return vx.Scan(np.random.default_rng(0).uniform(1, 2, (2, *shape)), vx.Grid(shape, np.eye(4)), ("a", "b"))


@pytest.mark.parametrize(
    "words", ["CUDA out of memory. Tried to allocate 20.00 MiB", "DefaultCPUAllocator: can't allocate memory"]
)
@pytest.mark.parametrize("explain", METHODS, ids=lambda method: method.name)
def test_goes_on_with_smaller_batches_and_says_so(explain: vx.Explainer, words: str) -> None:
    plenty = explain(vx.Model(Greedy(99), CARD), scan(), compute=vx.Compute("cpu", batch_size=2))
    network = Greedy(2, words)
    with pytest.warns(UserWarning, match="whole: out of memory") as said:
        why = explain(vx.Model(network, CARD), scan(), compute=vx.Compute("cpu", batch_size=8))
    np.testing.assert_allclose(why.map, plenty.map, rtol=0, atol=1e-5 * np.abs(plenty.map).max())
    # The clean input twice, then 8, 4 of them, 2 of these; and 2 from then on.
    assert network.sizes[:5] == [1, 1, 8, 4, 2]
    assert max(network.sizes[5:]) == 2
    notices = [f"whole: out of memory with {size} inputs at a time; went on with {size // 2}" for size in (8, 4)]
    assert [str(warning.message) for warning in said] == notices
    # Passes that did not fit are no passes.
    assert why.provenance["passes"] == plenty.provenance["passes"]
    assert why.provenance["warnings"] == notices


def test_a_single_input_that_does_not_fit_is_said_in_one_line() -> None:
    with pytest.raises(vx.InputError, match=r"out of memory; free some, give a smaller --memory"):
        vx.RelevanceMap(partition="cubes:3")(vx.Model(Greedy(0), CARD), scan(), compute=vx.Compute("cpu"))


def test_other_errors_of_the_network_are_not_tried_again() -> None:
    network = Greedy(1, "size mismatch")
    with pytest.raises(vx.InputError, match="the network refuses inputs"):
        vx.RISE(cell=2.0, samples=9)(vx.Model(network, CARD), scan(), compute=vx.Compute("cpu", batch_size=4))
    assert network.sizes == [1, 1, 4]


@pytest.mark.parametrize("explain", METHODS[1:], ids=lambda method: method.name)
def test_no_more_inputs_exist_than_one_batch(explain: vx.Explainer) -> None:
    """NumPy tells of its arrays: forty samples need no more than those of one batch of two, and a few volumes."""
    image = scan((48, 40, 32))
    volume = image.data.nbytes
    larger = {"occlusion": vx.Occlusion(partition="cubes:16"), "rise": vx.RISE(cell=8.0, samples=40)}
    parts = {"partition": "cubes:16", "samples": 40}
    larger |= {"lime": vx.LIME(**parts), "kernel-shap": vx.KernelSHAP(**parts)}
    model = vx.Model(Greedy(99), CARD)
    gc.collect()
    tracemalloc.start()
    try:
        larger[explain.name](model, image, compute=vx.Compute("cpu", batch_size=2))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * volume
