"""Losses against arithmetic."""

import math

import pytest
import torch

from voxplain.losses import PerturbationLoss, blob_loss, normalised_dice_loss

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


# One item of 2 x 2 x 2 voxels, two of which are lesion; and one without any.
PROBABILITY = torch.tensor([[0.9, 0.6, 0.2, 0.1, 0.0, 0.3, 0.0, 0.0], [0.5, 0, 0, 0, 0, 0, 0, 0.25]]).reshape(
    2, 2, 2, 2
)
REFERENCE = torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0], [0] * 8]).reshape(2, 2, 2, 2).bool()


def test_the_normalised_dice_by_arithmetic() -> None:
    hits, false_positives, missed = 1.5, 0.6, 0.5
    kappa = 2 / 6 * (1 / 0.1 - 1)
    expected = 1 - (2 * hits + 1) / (2 * hits + kappa * false_positives + missed + 1)
    found = normalised_dice_loss(PROBABILITY[:1], REFERENCE[:1], load=0.1)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    # Where nothing is lesion, false positives weigh as they are.
    empty = 1 - 1 / (0.75 + 1)
    both = normalised_dice_loss(PROBABILITY, REFERENCE, load=0.1)
    assert float(both) == pytest.approx((expected + empty) / 2, rel=1e-5)


def test_at_the_stated_load_the_normalised_dice_is_the_plain_one() -> None:
    hits, predicted, size = 1.5, 2.1, 2
    plain = 1 - (2 * hits + 1) / (predicted + size + 1)
    assert float(normalised_dice_loss(PROBABILITY[:1], REFERENCE[:1], load=0.25)) == pytest.approx(plain, rel=1e-5)


def test_false_positives_weigh_no_less_than_they_must() -> None:
    hits, false_positives, missed = 1.5, 0.6, 0.5
    # 2 / 6 x (1 / 0.9 - 1) = 0.037 would be the weight.
    expected = 1 - (2 * hits + 1) / (2 * hits + 0.5 * false_positives + missed + 1)
    found = normalised_dice_loss(PROBABILITY[:1], REFERENCE[:1], load=0.9, lightest=0.5)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    one = blob_loss(PROBABILITY[:1], REFERENCE[:1].long(), load=0.9, lightest=0.5)
    assert float(one) == pytest.approx(expected, rel=1e-5)
    for lightest, heaviest in ((-0.1, None), (2.0, 1.0), (math.nan, None)):
        with pytest.raises(ValueError, match="lightest is a weight"):
            normalised_dice_loss(PROBABILITY, REFERENCE, lightest=lightest, heaviest=heaviest)


def test_false_positives_weigh_no_more_than_they_may() -> None:
    hits, false_positives, missed = 1.5, 0.6, 0.5
    # 2 / 6 x 99 = 33 would be the weight.
    expected = 1 - (2 * hits + 1) / (2 * hits + 1.5 * false_positives + missed + 1)
    found = normalised_dice_loss(PROBABILITY[:1], REFERENCE[:1], load=0.01, heaviest=1.5)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    blobs = torch.tensor([1, 1, 0, 2, 0, 0, 0, 0]).reshape(1, 2, 2, 2)
    first = 1 - (2 * 1.5 + 1) / (1.5 + 1.5 * 0.5 + 2 + 1)
    second = 1 - (2 * 0.1 + 1) / (0.1 + 1.5 * 0.5 + 1 + 1)
    found = blob_loss(PROBABILITY[:1], blobs, load=0.01, heaviest=1.5)
    assert float(found) == pytest.approx((first + second) / 2, rel=1e-5)


def test_the_blob_loss_by_arithmetic() -> None:
    blobs = torch.tensor([[1, 1, 0, 2, 0, 0, 0, 0], [0] * 8]).reshape(2, 2, 2, 2)
    outside = 0.2 + 0.3
    first = 1 - (2 * 1.5 + 1) / (1.5 + outside + 2 + 1)
    second = 1 - (2 * 0.1 + 1) / (0.1 + outside + 1 + 1)
    # The item without blobs takes no part.
    assert float(blob_loss(PROBABILITY, blobs)) == pytest.approx((first + second) / 2, rel=1e-5)


def test_the_blob_loss_with_the_normalised_dice_by_arithmetic() -> None:
    blobs = torch.tensor([1, 1, 0, 2, 0, 0, 0, 0]).reshape(1, 2, 2, 2)
    outside = 0.2 + 0.3
    # The other blob is no background: five voxels are.
    first = 1 - (2 * 1.5 + 1) / (1.5 + 2 / 5 * 9 * outside + 2 + 1)
    second = 1 - (2 * 0.1 + 1) / (0.1 + 1 / 5 * 9 * outside + 1 + 1)
    assert float(blob_loss(PROBABILITY[:1], blobs, load=0.1)) == pytest.approx((first + second) / 2, rel=1e-5)


def test_what_another_blob_holds_does_not_move_a_blobs_own_loss() -> None:
    blobs = torch.tensor([1, 1, 0, 2, 2, 0, 0, 0]).reshape(1, 2, 2, 2)
    probability = PROBABILITY[:1].double().requires_grad_()
    (gradient,) = torch.autograd.grad(blob_loss(probability, blobs), probability)
    # Voxels of blobs pull upwards alone, those outside of all push down.
    assert (gradient.flatten()[[0, 1, 3, 4]] < 0).all()
    assert (gradient.flatten()[[2, 5, 6, 7]] > 0).all()


def test_losses_of_empty_references_are_finite_and_have_gradients() -> None:
    nothing = torch.zeros(1, 2, 2, 2)
    assert float(normalised_dice_loss(nothing, nothing.bool())) == 0
    assert float(blob_loss(nothing, nothing.long())) == 0
    probability = PROBABILITY[1:].clone().requires_grad_()
    loss = normalised_dice_loss(probability, nothing.bool()) + blob_loss(probability, nothing.long())
    loss.backward()
    assert probability.grad is not None
    assert torch.isfinite(probability.grad).all()
    assert (probability.grad > 0).all()  # less lesion is better


def test_a_perfect_prediction_costs_nothing() -> None:
    perfect = REFERENCE[:1].double()
    assert float(normalised_dice_loss(perfect, REFERENCE[:1])) == pytest.approx(0, abs=1e-12)
    assert float(blob_loss(perfect, REFERENCE[:1].long())) == pytest.approx(0, abs=1e-12)
    full = torch.ones(1, 2, 2, 2, dtype=torch.float64)
    assert float(normalised_dice_loss(full, full.bool())) == pytest.approx(0, abs=1e-12)


def test_shapes_and_loads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a reference of shape"):
        normalised_dice_loss(PROBABILITY, REFERENCE[:1])
    with pytest.raises(ValueError, match="heaviest is a weight"):
        normalised_dice_loss(PROBABILITY, REFERENCE, heaviest=0)
    with pytest.raises(ValueError, match="load is a share"):
        blob_loss(PROBABILITY, REFERENCE.long(), load=1)
