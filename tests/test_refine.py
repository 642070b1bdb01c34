"""Masks that follow the scan's intensities: against plain loops, on made heads, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.stats import multivariate_normal

import voxplain as vx
from voxplain import refine
from voxplain.metrics.controls import random_map
from voxplain.metrics.overlap import dice

SHAPE = (32, 28, 20)
GRID = vx.Grid(SHAPE, np.diag([-2.0, -2.0, 2.0, 1]))
HALF = SHAPE[0] // 2


def head(seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> tuple[vx.Scan, np.ndarray]:
    """A head of tissue with a core of fluid, and a lesion, bright on FLAIR and T2, that crosses the midline."""
    x, y, z = np.indices(SHAPE)
    brain = ((x - 15.5) / 15) ** 2 + ((y - 13.5) / 13) ** 2 + ((z - 9.5) / 9) ** 2 < 1
    fluid = brain & (((x - 15.5) / 4) ** 2 + ((y - 20) / 3) ** 2 + ((z - 9.5) / 4) ** 2 < 1)
    lesion = brain & (((x - 13) / 6) ** 2 + ((y - 9) / 5) ** 2 + ((z - 9.5) / 5) ** 2 < 1)
    assert lesion[HALF:].sum() > 30
    flair = np.where(lesion, 5.0, np.where(fluid, 1.0, 3.0))
    t2 = np.where(lesion, 4.5, np.where(fluid, 6.0, 3.0))
    noise = np.random.default_rng(seed).normal(0, 0.3, (2, *SHAPE))
    data = np.where(brain, scale * (np.stack([flair, t2]) + noise) + shift, 0)
    return vx.Scan(data.astype(np.float32), GRID, ("flair", "t2")), lesion


def halves(probabilities: tuple[float, float] = (0.9, 0.3)) -> tuple[vx.Region, ...]:
    boxes = (((0, HALF), (0, SHAPE[1]), (0, SHAPE[2])), ((HALF, SHAPE[0]), (0, SHAPE[1]), (0, SHAPE[2])))
    return tuple(
        vx.Region(name, box, p, 0.0, p >= 0.5)
        for name, box, p in zip(("right", "left"), boxes, probabilities, strict=True)
    )


def explanation(values: np.ndarray, regions: tuple[vx.Region, ...] | None = None) -> vx.Explanation:
    return vx.Explanation(values[None], ("all",), GRID, True, "x", halves() if regions is None else regions)


def rough(lesion: np.ndarray) -> np.ndarray:
    """A map that knows roughly where: a blurred corner of the lesion, with noise elsewhere."""
    some = lesion & (np.indices(SHAPE)[0] < 13)
    return gaussian_filter(some.astype(float), 2) + np.random.default_rng(1).normal(0, 0.02, SHAPE)


def test_a_rough_map_gives_the_whole_lesion_across_the_midline() -> None:
    scan, lesion = head()
    why = explanation(rough(lesion))
    mask = refine.mixture(why, scan)
    assert mask.grid == scan.grid
    assert dice(mask.data > 0, lesion) > 0.75
    # The other half is called negative, and the lesion goes on there nevertheless.
    assert dice(mask.data[HALF:] > 0, lesion[HALF:]) > 0.6
    by_halves = vx.segment.otsu(why, mask=vx.Labels(scan.foreground(), GRID))
    assert dice(mask.data > 0, lesion) > dice(by_halves.data > 0, lesion) + 0.1


def test_random_maps_lose() -> None:
    scan, lesion = head()
    why = explanation(np.maximum(rough(lesion), 0))
    draws = [dice(refine.mixture(random_map(scan, why, seed=seed), scan).data > 0, lesion) for seed in range(5)]
    assert np.mean(draws) < dice(refine.mixture(why, scan).data > 0, lesion) - 0.2


def test_the_mixture_against_a_plain_loop() -> None:
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.normal((3, 2), 0.5, (60, 2)), rng.normal((0, 0), 1, (200, 2))]).T
    evidence = np.clip(np.concatenate([rng.uniform(0.3, 1, 60), rng.uniform(0, 0.4, 200)]), 0, 1)
    prior = 0.02 + 0.5 * evidence
    floor = 0.02 * np.diag(values.var(axis=1))
    bright = values[0] > np.median(values[0])
    members = [evidence, (1 - evidence) * bright, (1 - evidence) * ~bright]
    for _ in range(10):
        background = np.array([max(members[1].sum(), 1), max(members[2].sum(), 1)])
        background = background / background.sum()
        densities = []
        for weight in members:
            mean = np.average(values, axis=1, weights=weight)
            covariance = np.cov(values, aweights=weight, ddof=0) + floor
            densities.append(multivariate_normal(mean, covariance).pdf(values.T))
        joint = np.stack([prior, (1 - prior) * background[0], (1 - prior) * background[1]]) * np.stack(densities)
        members = list(joint / joint.sum(axis=0))
    np.testing.assert_allclose(refine.lesion_probability(values, evidence), members[0], atol=1e-6)


def test_many_voxels_are_fitted_by_a_part_of_them() -> None:
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(3, 0.5, (9_000, 1)), rng.normal(0, 1, (36_000, 1))]).T
    evidence = np.concatenate([np.full(9_000, 0.6), np.full(36_000, 0.1)])
    order = rng.permutation(45_000)
    found = refine.lesion_probability(values[:, order], evidence[order])
    assert found.shape == (45_000,)
    assert dice(found > 0.5, order < 9_000) > 0.9


@settings(max_examples=10, deadline=None)
@given(scale=st.floats(0.5, 1000), shift=st.floats(0, 50))
def test_the_unit_of_the_scan_and_of_the_map_does_not_matter(scale: float, shift: float) -> None:
    scan, lesion = head()
    other, _ = head(scale=scale, shift=shift)
    one = refine.mixture(explanation(rough(lesion)), scan).data
    again = refine.mixture(explanation(scale * rough(lesion)), other).data
    # Voxels half-way between two classes may fall either way by rounding; background of 0 is another distance away.
    assert dice(one > 0, again > 0) > 0.97


def test_evidence_by_hand() -> None:
    scan, lesion = head()
    inside = scan.foreground()
    values = np.where(lesion, 2.0, -1.0)
    found = refine.evidence_of(explanation(values), inside)
    # Full in the half of probability 0.9, a third of it in that of 0.3; what speaks against the class is none.
    np.testing.assert_allclose(found[:HALF][lesion[:HALF]], 1)
    np.testing.assert_allclose(found[HALF:][lesion[HALF:]], 0.3 / 0.9, rtol=1e-6)
    assert not found[~lesion].any()


def test_fused_by_hand() -> None:
    scan, _ = head()
    rng = np.random.default_rng(4)
    first, second = rng.uniform(-1, 1, SHAPE), rng.uniform(0, 5, SHAPE)
    why = refine.fused(explanation(first), explanation(second), scan)
    inside = scan.foreground()
    expected = np.ones(SHAPE)
    for values in (first, second):
        kept = np.where(inside, np.maximum(values, 0), 0)
        expected *= np.minimum(kept / np.quantile(kept[inside], 0.99), 1)
    np.testing.assert_allclose(why.total, np.sqrt(expected), atol=1e-6)
    assert len(why.provenance["fused"]) == 2


def test_nothing_is_marked_without_a_positive_region_or_evidence() -> None:
    scan, lesion = head()
    assert not refine.mixture(explanation(rough(lesion), halves((0.4, 0.3))), scan).data.any()
    assert not refine.mixture(explanation(np.zeros(SHAPE)), scan).data.any()
    assert not refine.mixture(explanation(np.where(lesion, -1.0, 0)), scan).data.any()
    # Evidence in the half that is called negative alone: none of a positive region.
    other = np.where(np.indices(SHAPE)[0] > 28, 1.0, 0)
    assert not refine.mixture(explanation(other * scan.foreground()), scan).data[:HALF].any()


def test_flat_and_empty_scans() -> None:
    scan, lesion = head()
    flat = vx.Scan(np.where(scan.data != 0, 7.0, 0).astype(np.float32), GRID, scan.channels)
    assert not (refine.mixture(explanation(rough(lesion)), flat).data[~scan.foreground()]).any()
    empty = vx.Scan(np.zeros_like(scan.data), GRID, scan.channels)
    assert not refine.mixture(explanation(rough(lesion)), empty).data.any()


def test_what_does_not_fit_is_refused() -> None:
    scan, lesion = head()
    why = explanation(rough(lesion))
    shifted = vx.Scan(scan.data, vx.Grid(SHAPE, np.diag([2.0, -2.0, 2.0, 1])), scan.channels)
    with pytest.raises(vx.InputError, match="another grid"):
        refine.mixture(why, shifted)
    with pytest.raises(vx.InputError, match="names none"):
        refine.mixture(dataclasses.replace(why, regions=()), scan)
    with pytest.raises(vx.InputError, match="adc"):
        refine.mixture(why, scan, channels=["adc"])
    with pytest.raises(vx.InputError, match="at least one of flair, t2"):
        refine.mixture(why, scan, channels=[])
    with pytest.raises(vx.InputError, match="different regions"):
        refine.fused(why, dataclasses.replace(why, regions=why.regions[:1]), scan)
    with pytest.raises(vx.InputError, match="another grid"):
        refine.fused(why, why, shifted)
