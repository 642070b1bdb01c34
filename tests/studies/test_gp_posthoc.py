"""Post-hoc methods beside heat maps: which slice is shown, how agreement is counted, and that pictures are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

import voxplain as vx
from voxplain.networks.gp_unet import GPUNet
from voxplain.networks.resnext import ResNeXt50
from voxplain.scan import Labels
from voxplain.studies.gp_data import Stack
from voxplain.studies.gp_pictures import confusions, histograms, maps_of_slice, post_hoc
from voxplain.studies.gp_posthoc import compare, methods, one_slice, reading_as_it_is, summary_rows

CPU = vx.Compute(device="cpu", threads=1)


def card(**changes: object) -> vx.Card:
    content = {
        "name": "slices", "channels": ("flair", "t1"), "classes": ("tumour-free", "tumour"),
        "absent": ("tumour-free",), "activation": "softmax", "spatial_dims": 2, "slices": "axial",
        "spacing": (2.0, 2.0, 2.0), "normalisation": "z-score",
    }  # fmt: skip
    return vx.Card(**(content | changes))


@pytest.fixture(scope="module")
def models() -> dict[str, vx.Model]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        own = GPUNet(2, 2, width=4, pooling="top:0.1").eval()
        opaque = ResNeXt50(2, 2, width=16).eval()
    return {"gp-unet": vx.Model(own, card()), "resnext50": vx.Model(opaque, card())}


@pytest.fixture(scope="module")
def stack() -> Stack:
    random = np.random.default_rng(3)
    data = random.normal(100, 10, (2, 40, 44, 5)).astype(np.float32)
    truth = np.zeros((40, 44, 5), dtype=int)
    truth[10:14, 10:14, 1] = 1
    truth[8:18, 10:20, 3] = 1
    data[0][truth > 0] += 60
    grid = vx.Grid((40, 44, 5), np.diag([-2.0, -2, 2, 1]))
    scan = vx.Scan(data, grid, ("flair", "t1"))
    return Stack("P1", "P1", lambda: scan, lambda: Labels(truth, grid), grade="HGG")


def test_the_slice_with_the_largest_tumour_is_shown_as_the_network_reads_it(models, stack) -> None:
    shown = one_slice(stack, models["gp-unet"])
    assert shown.label == "tumour"
    assert shown.scan.grid.shape == (40, 44, 1)
    assert np.count_nonzero(shown.mask.data) == 100
    flair = stack.scan().data[0].astype(np.float64)
    np.testing.assert_allclose(shown.scan.data[0, :, :, 0], ((flair - flair.mean()) / flair.std())[:, :, 3], atol=1e-4)
    # The network says the same of the slice alone as of the slice in its scan.
    whole = vx.HeatMap()(models["gp-unet"], stack.scan(), target=vx.ClassScore("tumour"), compute=CPU)
    alone = vx.HeatMap()(reading_as_it_is(models["gp-unet"]), shown.scan, target=vx.ClassScore("tumour"), compute=CPU)
    np.testing.assert_allclose(alone.total[..., 0], whole.total[..., 3], atol=1e-5)


def test_windows_are_counted_in_pixels_of_the_network(stack) -> None:
    occlusion = methods(stack.scan())["occlusion"]
    assert (occlusion.partition, occlusion.stride) == ("cubes:32", 16.0)


def test_agreement_and_pictures(models, stack, tmp_path: Path) -> None:
    lines, pictures = compare(models, [stack], compute=CPU)
    rows = set(zip(lines.network, lines.method, lines.metric, strict=True))
    own = {("gp-unet", name, metric) for name in ("occlusion", "guided-backprop") for metric in _METRICS}
    opaque = {("resnext50", name, "Dice") for name in ("occlusion", "guided-backprop")}
    assert rows == own | opaque | {("gp-unet", "heat-map", "Dice")}
    maps = pictures[0]["maps"]
    inside = pictures[0]["slice"].scan.foreground()
    heat, guided = (np.maximum(maps[name].total[inside], 0) for name in ("heat-map", "guided-backprop"))
    found = lines.set_index(["network", "method", "metric"]).value
    if np.ptp(heat) and np.ptp(guided):
        assert found["gp-unet", "guided-backprop", "agreement"] == pytest.approx(spearmanr(heat, guided)[0], abs=1e-6)
        count = round(0.02 * heat.size)
        both = set(np.argsort(-heat, kind="stable")[:count]) & set(np.argsort(-guided, kind="stable")[:count])
        assert found["gp-unet", "guided-backprop", "top overlap"] == pytest.approx(len(both) / count)
    means = {(row, metric): value for _, row, metric, _, value, *_ in summary_rows(lines, seed=0)}
    assert means["gp-unet/heat-map", "Dice"] == pytest.approx(found["gp-unet", "heat-map", "Dice"])
    maps_of_slice(pictures, tmp_path / "maps.png")
    post_hoc(pictures, tmp_path / "post-hoc.png")
    for name in ("maps.png", "post-hoc.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 200
            assert np.ptp(np.asarray(picture.convert("L"))) > 100


_METRICS = ("Dice", "agreement", "top overlap")


def test_histograms_and_confusion_matrices_are_drawn_also_without_maps(tmp_path: Path) -> None:
    lines = pd.DataFrame({"network": ["a", "a", "b"], "row": "heat-map/otsu", "dice": [0.2, 0.7, np.nan]})
    histograms(lines, tmp_path / "dice.png")
    histograms(lines.iloc[:0], tmp_path / "nothing.png")
    slices = pd.DataFrame({"network": "a", "label": ["x", "y", "y"], "predicted": ["x", "y", "x"]})
    confusions(slices, ("x", "y"), tmp_path / "confusion.png")
    assert (tmp_path / "dice.png").is_file()
    assert (tmp_path / "confusion.png").is_file()
    assert not (tmp_path / "nothing.png").exists()
