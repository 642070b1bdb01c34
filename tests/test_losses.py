"""Losses against arithmetic."""

import math

import pytest
import torch

from voxplain.losses import PerturbationLoss

CLEAN, PERTURBED = torch.tensor([0.5, 0.9, 0.2]), torch.tensor([0.25, 0.9, 0.7])


def test_the_papers_loss_by_arithmetic() -> None:
    eps = 1e-3
    expected = (1 / (0.25 + eps) + 1 / eps + 1 / (0.5 + eps)) / 3
    assert float(PerturbationLoss(eps)(CLEAN, PERTURBED)) == pytest.approx(expected, rel=1e-5)


def test_nothing_changed_is_finite_by_default() -> None:
    assert PerturbationLoss().eps == 1e-6
    assert float(PerturbationLoss()(CLEAN.double(), CLEAN.double())) == pytest.approx(1e6)


def test_the_logarithm_by_arithmetic() -> None:
    eps = 1e-3
    expected = -(math.log(0.25 + eps) + math.log(eps) + math.log(0.5 + eps)) / 3
    assert float(PerturbationLoss(eps, "logarithm")(CLEAN, PERTURBED)) == pytest.approx(expected, rel=1e-5)


def test_the_difference_by_arithmetic() -> None:
    assert float(PerturbationLoss(form="difference")(CLEAN, PERTURBED)) == pytest.approx((0.75 + 1 + 0.5) / 3)


@pytest.mark.parametrize(("form", "power"), [("reciprocal", 2), ("logarithm", 1), ("difference", 0)])
def test_its_gradient_grows_as_stated(form: str, power: int) -> None:
    changes = torch.tensor([0.1, 0.001], dtype=torch.float64)
    perturbed = (0.5 - changes).requires_grad_()
    PerturbationLoss(1e-9, form)(torch.full_like(changes, 0.5), perturbed).backward()
    large, small = perturbed.grad.abs().tolist()
    assert small / large == pytest.approx(100**power, rel=1e-3)


@pytest.mark.parametrize("wrong", [{"form": "square"}, {"eps": 0.0}, {"eps": float("nan")}])
def test_refuses_what_it_does_not_know(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="form is reciprocal, logarithm or difference"):
        PerturbationLoss(**wrong)
