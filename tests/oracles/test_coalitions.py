"""LIME and KernelSHAP against their definitions in a few lines, against scikit-learn, and against Captum."""

import dataclasses
import itertools
from collections.abc import Callable
from math import comb, factorial

import numpy as np
import pytest
import torch
from captum._utils.models.linear_model import SkLearnRidge
from captum.attr import FeatureAblation, KernelShap, Lime
from sklearn.linear_model import LinearRegression, Ridge
from torch import nn

import voxplain as vx
from voxplain.explain.kernel_shap import shapley_coalitions, shapley_values
from voxplain.explain.lime import closeness, halves, ridge_regression

CPU = vx.Compute(device="cpu", threads=1, batch_size=8)
SHAPE = (12, 9, 8)
GRID = vx.Grid(SHAPE, np.diag([2.0, 2, 2, 1]))
CARD = vx.Card(name="small", channels=("flair", "t1ce"), classes=("tumour",))


def model(seed: int = 0, **card: object) -> vx.Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv3d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv3d(6, 4, 3, stride=2), nn.Tanh(), nn.Flatten(),
            nn.Linear(4 * 5 * 4 * 3, 1),
        ).eval().requires_grad_(False)  # fmt: skip
    return vx.Model(network, dataclasses.replace(CARD, **card))


def scan(seed: int = 0) -> vx.Scan:
    """Tissue in all but the first planes, whose parts are blank already."""
    data = np.random.default_rng(seed).normal(3, 1, (2, *SHAPE))
    data[:, :5] = 0
    return vx.Scan(data, GRID, ("flair", "t1ce"))


def value_of(one: vx.Model, image: vx.Scan, parts: np.ndarray, scale: str) -> Callable[[set[int]], float]:
    """The score with the labels of a set kept, and all others filled with 0."""

    def value(kept: set[int]) -> float:
        changed = np.where(np.isin(parts, [*kept, 0]), image.data, 0).astype(np.float32)
        logit = float(one.network(torch.tensor(changed[None]))[0, 0])
        return logit if scale == "logit" else 1 / (1 + np.exp(-logit))

    return value


def brute_force(value: Callable[[set[int]], float], labels: list[int]) -> dict[int, float]:
    """Shapley values by their definition: the mean marginal gain over all orders."""
    known = {
        frozenset(kept): value(set(kept))
        for size in range(len(labels) + 1)
        for kept in itertools.combinations(labels, size)
    }
    found = dict.fromkeys(labels, 0.0)
    for label in labels:
        for kept in known:
            if label not in kept:
                share = factorial(len(kept)) * factorial(len(labels) - len(kept) - 1) / factorial(len(labels))
                found[label] += share * (known[kept | {label}] - known[kept])
    return found


def from_captum(attribution: torch.Tensor, parts: np.ndarray) -> np.ndarray:
    """One value per label 1..N from a map of Captum."""
    return np.array([float(attribution[0, 0].numpy()[parts == label][0]) for label in range(1, parts.max() + 1)])


def for_captum(one: vx.Model, image: vx.Scan, parts: np.ndarray, **settings: object) -> dict[str, object]:
    """Captum's arguments for the same parts: features count from 0, every voxel has one."""
    assert (parts > 0).all()
    mask = torch.from_numpy(parts.astype(np.int64) - 1)[None, None].expand(1, 2, *SHAPE)
    return {"inputs": torch.tensor(image.data[None]), "baselines": 0, "feature_mask": mask} | settings


class TestKernelSHAP:
    @pytest.mark.parametrize("scale", ["probability", "logit"])
    def test_all_coalitions_give_the_shapley_values_of_their_definition(self, scale: str) -> None:
        one, image = model(), scan()
        why = vx.KernelSHAP(partition="cubes:8", mask="none", scale=scale, samples=300)(one, image, compute=CPU)
        parts = why.parts.data
        # 3 x 3 x 2 cubes of 8 mm, the first row of which is blank already: too many, so of these half are joined.
        assert parts.max() == 18
        tissue = sorted({int(label) for label in np.unique(parts[image.foreground()])})
        assert len(tissue) == 12
        assert not why.provenance["facts"]["whole"]["exact"]
        few = vx.KernelSHAP(partition="cubes:10", mask="none", scale=scale, samples=300)(one, image, compute=CPU)
        labels = sorted({int(label) for label in np.unique(few.parts.data[image.foreground()])})
        assert len(labels) == 8
        expected = brute_force(value_of(one, image, few.parts.data, scale), labels)
        values = np.array([expected.get(label, 0.0) for label in range(1, few.parts.data.max() + 1)])
        np.testing.assert_allclose(few.scores, values, rtol=0, atol=1e-6 * np.abs(values).max())
        facts = few.provenance["facts"]["whole"]
        assert facts["exact"]
        assert facts["coalitions"] == 2**8 - 2
        assert few.provenance["passes"]["forward"] == 2**8
        assert facts["sum_of_values"] == pytest.approx(facts["score_difference"], abs=1e-12)
        blank = value_of(one, image, few.parts.data, scale)(set())
        assert facts["score_all_filled"] == pytest.approx(blank, abs=1e-6)

    def test_draws_come_close_to_the_shapley_values_and_closer_with_more(self) -> None:
        one, image = model(), scan()
        exact = vx.KernelSHAP(partition="cubes:8", samples=4094)(one, image, compute=CPU)
        assert exact.provenance["facts"]["whole"]["exact"]
        errors = []
        for samples in (60, 400, 2000):
            found = [
                vx.KernelSHAP(partition="cubes:8", samples=samples)(one, image, seed=seed, compute=CPU).scores
                for seed in range(3)
            ]
            errors.append(np.sqrt(np.mean((np.array(found) - exact.scores) ** 2)) / np.abs(exact.scores).max())
        assert errors[0] < 0.05
        assert errors[2] < errors[1] < errors[0]

    def test_agrees_with_captum_as_far_as_captum_agrees_with_itself(self) -> None:
        one, image = model(), vx.Scan(np.where(scan().data == 0, 1.0, scan().data), GRID, ("flair", "t1ce"))
        why = vx.KernelSHAP(partition="cubes:12", scale="logit", samples=300)(one, image, compute=CPU)
        assert why.provenance["facts"]["whole"]["exact"]
        arguments = for_captum(one, image, why.parts.data, n_samples=4000, perturbations_per_eval=8)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            first, second = (
                from_captum(KernelShap(one.network).attribute(**arguments), why.parts.data) for _ in range(2)
            )
        largest = np.abs(why.scores).max()
        own_error = np.abs(first - second).max() / largest
        assert own_error < 0.1
        assert np.abs(why.scores - (first + second) / 2).max() <= max(own_error, 0.01) * largest

    @pytest.mark.parametrize(("count", "samples"), [(9, 60), (12, 500), (40, 300), (101, 1000)])
    def test_agrees_with_a_heavily_weighted_regression(self, count: int, samples: int) -> None:
        """Both ends as ordinary samples of an enormous weight, as Captum and others write it."""
        rng = np.random.default_rng(count)
        coalitions, weights = shapley_coalitions(count, samples, rng)
        gains = coalitions @ rng.normal(0, 1, count) + rng.normal(0, 0.3, len(coalitions))
        found = shapley_values(coalitions, weights, gains, 1.7)
        design = np.concatenate([coalitions, np.ones((1, count))])
        heavy = np.append(weights, 1e7)
        fit = LinearRegression(fit_intercept=False).fit(design, np.append(gains, 1.7), heavy)
        np.testing.assert_allclose(found, fit.coef_, atol=1e-5)
        assert found.sum() == pytest.approx(1.7, abs=1e-10)

    @pytest.mark.parametrize("count", [2, 3, 6, 7, 10])
    def test_all_coalitions_weigh_what_the_kernel_says(self, count: int) -> None:
        coalitions, weights = shapley_coalitions(count, 2**count - 2, np.random.default_rng(0))
        assert len(np.unique(coalitions, axis=0)) == len(coalitions) == 2**count - 2
        sizes = coalitions.sum(axis=1)
        kernel = np.array([(count - 1) / (comb(count, s) * s * (count - s)) for s in sizes.tolist()])
        np.testing.assert_allclose(weights, kernel / kernel.sum())

    @pytest.mark.parametrize(("count", "samples"), [(11, 200), (30, 200), (100, 1000), (250, 2000)])
    def test_drawn_coalitions_weigh_what_the_kernel_says_on_average(self, count: int, samples: int) -> None:
        size = np.arange(1, count)
        kernel = 1 / (size * (count - size))
        kernel /= kernel.sum()
        mass, single = np.zeros(count + 1), np.zeros(count)
        for seed in range(20):
            coalitions, weights = shapley_coalitions(count, samples, np.random.default_rng(seed))
            assert len(np.unique(coalitions, axis=0)) == len(coalitions) <= samples
            assert set(map(bytes, coalitions)) == set(map(bytes, ~coalitions)), "complements come together"
            sizes = coalitions.sum(axis=1)
            assert sizes.min() >= 1
            assert sizes.max() <= count - 1
            mass += np.bincount(sizes, weights, count + 1) / 20
            single += weights @ coalitions / 20
            # The smallest and largest are all there, and weigh exactly what they should.
            assert weights[sizes == 1].sum() == pytest.approx(kernel[0])
        assert np.abs(np.cumsum(mass[1:-1]) - np.cumsum(kernel)).max() < 0.02
        np.testing.assert_allclose(single, 0.5, atol=1e-9)

    def test_one_part_gets_the_whole_difference(self) -> None:
        why = vx.KernelSHAP(partition="cubes:1000", mask="none", scale="logit")(model(), scan(), compute=CPU)
        facts = why.provenance["facts"]["whole"]
        assert why.scores == pytest.approx([facts["score_difference"]])
        assert why.provenance["passes"]["forward"] == 2


class TestLIME:
    OPTIONS = {"partition": "cubes:6", "samples": 300}  # noqa: RUF012

    def design(self, why: vx.Explanation, image: vx.Scan, samples: int, seed: int) -> tuple[list[int], np.ndarray]:
        labels = [label for label in range(1, why.parts.data.max() + 1) if image.data[:, why.parts.data == label].any()]
        return labels, halves(samples, len(labels), np.random.default_rng(seed))

    @pytest.mark.parametrize(("kernel_width", "ridge"), [(0.25, 1.0), (1.0, 0.0), (0.1, 30.0)])
    def test_agrees_with_scikit_learn_on_the_same_design(self, kernel_width: float, ridge: float) -> None:
        one, image = model(), scan()
        explain = vx.LIME(**self.OPTIONS, mask="none", kernel_width=kernel_width, ridge=ridge)
        why = explain(one, image, seed=3, compute=CPU)
        labels, kept = self.design(why, image, 300, 3)
        assert 20 < len(labels) < why.parts.data.max()
        value = value_of(one, image, why.parts.data, "probability")
        scores = np.array([value({label for label, on in zip(labels, row, strict=True) if on}) for row in kept])
        cosine = kept.sum(axis=1) / (np.sqrt(kept.sum(axis=1)) * np.sqrt(len(labels)))
        weights = np.sqrt(np.exp(-((1 - cosine) ** 2) / kernel_width**2))  # as in lime/lime_image.py
        fit = Ridge(alpha=ridge).fit(kept, scores, sample_weight=weights)
        expected = np.zeros(why.parts.data.max())
        expected[np.array(labels) - 1] = fit.coef_
        np.testing.assert_allclose(why.scores, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        facts = why.provenance["facts"]["whole"]
        assert facts["r_squared"] == pytest.approx(fit.score(kept, scores, sample_weight=weights), abs=1e-5)
        assert facts["intercept"] == pytest.approx(fit.intercept_, abs=1e-6)
        assert (facts["samples"], facts["ridge"], facts["kernel_width"]) == (300, ridge, kernel_width)
        # The clean input is the first sample.
        assert why.provenance["passes"]["forward"] == 300

    @pytest.mark.parametrize("scale", ["logit", "probability"])
    def test_agrees_with_captum_on_the_same_samples(self, scale: str) -> None:
        one, image = model(), vx.Scan(np.where(scan().data == 0, 1.0, scan().data), GRID, ("flair", "t1ce"))
        why = vx.LIME(**self.OPTIONS, scale=scale)(one, image, seed=8, compute=CPU)
        count = int(why.parts.data.max())
        kept = halves(300, count, np.random.default_rng(8))
        rows = iter(torch.from_numpy(kept.astype(np.int64)))

        def similarity(original: object, perturbed: object, sample: torch.Tensor, **_: object) -> float:
            return float(closeness(sample.numpy().astype(bool), 0.25)[0])

        network = one.network if scale == "logit" else nn.Sequential(one.network, nn.Sigmoid())
        theirs = Lime(
            network,
            interpretable_model=SkLearnRidge(alpha=1.0),
            similarity_func=similarity,
            perturb_func=lambda original, **_: next(rows)[None],
        ).attribute(**for_captum(one, image, why.parts.data, n_samples=300))
        expected = from_captum(theirs, why.parts.data)
        np.testing.assert_allclose(why.scores, expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    def test_of_a_linear_network_finds_what_ablation_finds(self) -> None:
        """Where the score is linear, LIME without ridge, KernelSHAP and leaving one out are one and the same."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            network = nn.Sequential(nn.Flatten(), nn.Linear(2 * 12 * 9 * 8, 1)).eval().requires_grad_(False)
        one, image = vx.Model(network, CARD), vx.Scan(scan().data + 0.1, GRID, ("flair", "t1ce"))
        shared = {"partition": "cubes:6", "scale": "logit"}
        maps = {
            "lime": vx.LIME(**shared, samples=300, ridge=0.0)(one, image, compute=CPU),
            "shap": vx.KernelSHAP(**shared, samples=300)(one, image, compute=CPU),
            "one out": vx.RelevanceMap(**shared, effect="signed")(one, image, compute=CPU),
        }
        theirs = FeatureAblation(network).attribute(**for_captum(one, image, maps["lime"].parts.data), target=0)
        for why in maps.values():
            expected = theirs[0, 0].numpy()
            np.testing.assert_allclose(why.total, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
        assert maps["lime"].provenance["facts"]["whole"]["r_squared"] == pytest.approx(1, abs=1e-6)

    def test_a_score_that_never_moves_is_fitted_by_zeros(self) -> None:
        kept = halves(50, 7, np.random.default_rng(0))
        coefficients, intercept, r_squared = ridge_regression(kept, np.zeros(50), closeness(kept, 0.25), 0.0)
        assert not coefficients.any()
        assert (intercept, r_squared) == (0, 1)

    def test_keeping_nothing_is_as_far_as_can_be(self) -> None:
        ends = np.array([[True] * 4, [False] * 4])
        np.testing.assert_allclose(closeness(ends, 0.5), [1, np.exp(-2)])
