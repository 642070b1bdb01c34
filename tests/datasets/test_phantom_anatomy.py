import numpy as np
import pytest

from voxplain.datasets.phantom_anatomy import (
    FLUID,
    GREY,
    WHITE,
    Anatomy,
    make_anatomy,
    smooth_noise,
    template_grid,
    world,
)


@pytest.fixture(scope="module")
def brains() -> list[Anatomy]:
    return [make_anatomy(np.random.default_rng(seed), 2) for seed in range(4)]


def test_shares_of_tissue(brains: list[Anatomy]) -> None:
    for anatomy in brains:
        tissues = anatomy.tissues()
        assert np.allclose(tissues.sum(axis=0), 1, atol=1e-5)
        shares = tissues[:, anatomy.brain].mean(axis=1)
        assert 0.35 < shares[GREY] < 0.6
        assert 0.28 < shares[WHITE] < 0.5
        assert 0.04 < shares[FLUID] < 0.25
        # Most voxels are decidedly one tissue: an average of heads, which the template is, would not be.
        assert (tissues[:, anatomy.brain].max(axis=0) > 0.7).mean() > 0.7


def test_patients_differ(brains: list[Anatomy]) -> None:
    x, y, z = world(brains[0].grid)
    middle = (np.abs(x) < 36) & (np.abs(y + 12) < 45) & (np.abs(z - 12) < 18)
    ventricles = [np.sum(brain.tissues()[FLUID][middle & (brain.deep > 0.9)]) * 0.008 for brain in brains]
    assert max(ventricles) > 1.2 * min(ventricles)
    volumes = [np.count_nonzero(brain.brain) * 0.008 for brain in brains]
    assert max(volumes) > 1.05 * min(volumes)
    both = brains[0].brain & brains[1].brain
    # Folds are the patient's own: elsewhere the cortex of two patients does not coincide.
    surface = both & (brains[0].deep < 0.8) & (brains[0].deep > 0.1)
    white = [brain.tissues()[WHITE][surface] for brain in brains[:2]]
    assert np.corrcoef(*white)[0, 1] < 0.75


def test_the_mid_sagittal_plane_stays_in_place(brains: list[Anatomy]) -> None:
    for anatomy in brains:
        brain = anatomy.brain
        mirrored = brain[::-1]
        assert anatomy.grid.world((49, 0, 0))[0] == 0
        assert 2 * np.count_nonzero(brain & mirrored) / (2 * np.count_nonzero(brain)) > 0.9


@pytest.mark.parametrize("scale", [4, 17, 75])
def test_noise_is_anchored_in_the_world(scale: float) -> None:
    fine, coarse = (smooth_noise(np.random.default_rng(3), template_grid(spacing), scale) for spacing in (1, 2))
    assert np.allclose(fine[::2, ::2, ::2], coarse, atol=1e-4)
    assert fine.std() == pytest.approx(1, abs=0.35 if scale > 50 else 0.1)
