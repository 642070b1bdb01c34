"""Occlusion against two plain loops, against Captum, and against MONAI."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from captum.attr import Occlusion as CaptumOcclusion
from monai.visualize import OcclusionSensitivity
from torch import nn

import voxplain as vx
from voxplain.explain.occlusion import windows

CPU = vx.Compute(device="cpu", threads=1, batch_size=6)
SHAPE = (13, 12, 9)
GRID = vx.Grid(SHAPE, np.diag([2.0, 2, 3, 1]))
CARD = vx.Card(name="small", channels=("flair", "t1ce"), classes=("tumour",))


def model(seed: int = 0) -> vx.Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 13 * 12 * 9, 1)
        ).eval().requires_grad_(False)  # fmt: skip
    return vx.Model(network, CARD)


def scan(seed: int = 0) -> vx.Scan:
    rng = np.random.default_rng(seed)
    index = np.moveaxis(np.indices(SHAPE), 0, -1)
    brain = (((index - np.array(SHAPE) / 2) / (np.array(SHAPE) * 0.45)) ** 2).sum(axis=-1) < 1
    return vx.Scan(np.where(brain, rng.normal(0, 1, (2, *SHAPE)) + 3.0, 0), GRID, ("flair", "t1ce"))


def plain_loop(
    score: Callable[[np.ndarray], float], data: np.ndarray, size: tuple[int, ...], step: tuple[int, ...],
    inside: np.ndarray, value: Callable[[np.ndarray, np.ndarray], float], effect: str,
) -> np.ndarray:  # fmt: skip
    """Every window covered in turn, and then every voxel the mean over the windows that cover it."""
    starts = [range(0, max(1, n - w + s), s) for n, w, s in zip(SHAPE, size, step, strict=True)]
    clean, falls = score(data), {}
    for corner in np.ndindex(*map(len, starts)):
        box = tuple(slice(axis[c], axis[c] + w) for axis, c, w in zip(starts, corner, size, strict=True))
        changed = data.copy()
        for channel in range(len(data)):
            covered = inside[box]
            if covered.any():
                changed[channel][box][covered] = value(data[channel], data[channel][box][covered])
        fall = clean - score(changed)
        falls[corner] = (box, abs(fall) if effect == "absolute" else fall)
    found = np.zeros(SHAPE)
    for voxel in np.ndindex(SHAPE):
        mine = [fall for box, fall in falls.values() if all(b.start <= v < b.stop for b, v in zip(box, voxel))]  # noqa: B905
        found[voxel] = np.mean(mine) * inside[voxel]
    return found


def probability(network: nn.Module) -> Callable[[np.ndarray], float]:
    return lambda data: float(torch.sigmoid(network(torch.tensor(data[None])).double()))


VALUES = {
    ("blank", "region"): lambda channel, window: 0.0,
    ("min", "region"): lambda channel, window: window.min(),
    ("max", "region"): lambda channel, window: window.max(),
    ("min", "sequence"): lambda channel, window: channel.min(),
    ("max", "sequence"): lambda channel, window: channel.max(),
}


@pytest.mark.parametrize("mask", ["brain", "none"])
@pytest.mark.parametrize("effect", ["signed", "absolute"])
@pytest.mark.parametrize(("fill", "scope"), VALUES)
def test_agrees_with_two_plain_loops(fill: str, scope: str, effect: str, mask: str) -> None:
    one, image = model(), scan()
    explain = vx.Occlusion(partition="cubes:8", stride=6.0, fill=fill, scope=scope, effect=effect, mask=mask)
    why = explain(one, image, compute=CPU)
    inside = image.foreground() if mask == "brain" else np.ones(SHAPE, dtype=bool)
    # 8 mm are 4 x 4 x 3 voxels of 2 x 2 x 3 mm, 6 mm are 3 x 3 x 2.
    expected = plain_loop(
        probability(one.network), image.data, (4, 4, 3), (3, 3, 2), inside, VALUES[fill, scope], effect
    )
    np.testing.assert_allclose(why.total, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert why.signed == (effect == "signed")
    facts = why.provenance["facts"]["whole"]
    assert (facts["windows"], facts["window_voxels"], facts["stride_voxels"]) == (4 * 4 * 4, [4, 4, 3], [3, 3, 2])


@pytest.mark.parametrize(("edge", "stride"), [(8.0, 2.0), (6.0, 6.0), (9.0, 4.0), (100.0, 50.0)])
def test_agrees_with_captum(edge: float, stride: float) -> None:
    one, image = model(), scan(2)
    explain = vx.Occlusion(partition=f"cubes:{edge}", stride=stride, scale="logit", mask="none")
    why = explain(one, image, compute=CPU)
    size, step = (
        [min(n, max(1, round(length / s))) for n, s in zip(SHAPE, GRID.spacing, strict=True)]
        for length in (edge, stride)
    )
    theirs = CaptumOcclusion(one.network).attribute(
        torch.tensor(image.data[None]), sliding_window_shapes=(2, *size), strides=(2, *step), baselines=0, target=0
    )
    expected = theirs[0, 0].numpy()
    np.testing.assert_allclose(why.total, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    # Windows that do not overlap are parts.
    assert (why.parts is None) == (edge != stride)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
@pytest.mark.parametrize(("overlap", "stride"), [(0.0, 8.0), (0.5, 4.0)])
def test_agrees_with_monai_where_its_quirks_are_undone(overlap: float, stride: float) -> None:
    """MONAI gives the score itself, low where it matters, and activates by the number of input channels (trap 1)."""
    one, image = model(), vx.Scan(scan(3).data[:, :12, :12, :9], vx.Grid((12, 12, 9), GRID.affine), CARD.channels)

    class Padded(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return one.network(nn.functional.pad(inputs, (0, 0, 0, 0, 0, 1)))

    padded = Padded().eval()
    # Its windows lie as those of a sliding-window inference, whose overlap is a share of the window.
    occlusion = OcclusionSensitivity(
        padded, mask_size=(4, 4, 3), mode=0.0, overlap=overlap, activate=False, verbose=False, n_batch=4
    )
    try:
        found, _ = occlusion(torch.tensor(image.data[None]))
    except (IndexError, RuntimeError) as error:
        pytest.skip(f"this MONAI's occlusion does not run on this torch: {error}")
    clean = float(padded(torch.tensor(image.data[None])))
    expected = clean - np.asarray(found[0, 0])
    explain = vx.Occlusion(partition="cubes:8", stride=stride, scale="logit", mask="none")
    why = explain(vx.Model(padded, CARD), image, compute=CPU)
    np.testing.assert_allclose(why.total, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_of_supervoxels_is_the_signed_relevance_map() -> None:
    one, image = model(), scan()
    why = vx.Occlusion(partition="slic", segments=30)(one, image, compute=CPU)
    same = vx.RelevanceMap(segments=30, effect="signed")(one, image, compute=CPU)
    np.testing.assert_array_equal(why.map, same.map)
    np.testing.assert_array_equal(why.scores, same.scores)


def test_a_window_that_changes_nothing_costs_no_pass() -> None:
    one, image = model(), scan()
    why = vx.Occlusion(partition="cubes:4", stride=3.9, mask="none")(one, image, compute=CPU)
    boxes = windows(SHAPE, [2, 2, 1], [2, 2, 1])
    tissue = sum(bool(image.foreground()[box].any()) for box in boxes)
    assert tissue < len(boxes)
    assert why.provenance["passes"]["forward"] == 1 + tissue


def test_windows_cover_every_voxel_and_end_where_the_volume_ends() -> None:
    for size, step in (([4, 4, 3], [3, 3, 2]), ([2, 5, 9], [1, 5, 4]), ([30, 30, 30], [7, 15, 30])):
        count = np.zeros(SHAPE, dtype=int)
        for box in windows(SHAPE, size, step):
            assert all(0 <= b.start < b.stop <= n for b, n in zip(box, SHAPE, strict=True))
            count[box] += 1
        assert count.min() >= 1


def test_the_stride_is_half_the_edge_by_default() -> None:
    one, image = model(), scan()
    default = vx.Occlusion(partition="cubes:8")
    stated = dataclasses.replace(default, stride=4.0)
    np.testing.assert_array_equal(default(one, image, compute=CPU).map, stated(one, image, compute=CPU).map)


def test_a_budget_for_all_windows_gives_the_whole_map_and_less_comes_close() -> None:
    one, image = model(), scan()
    explain = vx.Occlusion(partition="cubes:8", stride=2.0, scale="logit")
    full = explain(one, image, compute=CPU)
    facts = full.provenance["facts"]["whole"]
    assert facts["windows_covered"] == facts["windows_that_change"] == full.provenance["passes"]["forward"] - 1
    assert facts["interpolation_error"] is None
    many = dataclasses.replace(explain, passes=facts["windows_that_change"])(one, image, compute=CPU)
    np.testing.assert_array_equal(many.map, full.map)
    errors = []
    for share in (0.2, 0.5, 0.8):
        passes = int(share * facts["windows_that_change"])
        fewer = dataclasses.replace(explain, passes=passes)(one, image, compute=CPU)
        # Besides the clean input, one pass for the gradient that guides the choice of windows.
        assert fewer.provenance["passes"]["forward"] == passes + 2
        assert fewer.provenance["facts"]["whole"]["windows_covered"] == passes
        errors.append(float(np.sqrt(np.mean((fewer.map - full.map) ** 2)) / np.abs(full.map).max()))
    assert errors == sorted(errors, reverse=True)
    # The weights of this network are random from voxel to voxel, which nothing can interpolate well.
    assert errors[0] < 0.1
