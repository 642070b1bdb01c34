import numpy as np
import pytest
from scipy import ndimage

from voxplain.datasets.phantom_anatomy import FLUID, GREY, WHITE, Anatomy, make_anatomy
from voxplain.datasets.phantom_lesions import grow_glioma, scatter_lesions


@pytest.fixture(scope="module")
def brain() -> Anatomy:
    return make_anatomy(np.random.default_rng(0), 2)


def test_the_tumour_pushes_tissue_away_from_itself(brain: Anatomy) -> None:
    """Tissue is followed: marks (coordinates carried as odds) show where what lies around the tumour came from."""
    import dataclasses

    index = np.indices(brain.grid.shape).reshape(3, -1).T
    places = brain.grid.world(index).T.reshape(3, *brain.grid.shape).astype(np.float32)
    carried = dataclasses.replace(brain, odds=places)
    growth = [np.random.default_rng(4) for _ in range(2)]
    tumour = grow_glioma(growth[0], brain, -1, "HGG")
    came_from = grow_glioma(growth[1], carried, -1, "HGG").anatomy.odds
    core = np.isin(tumour.labels, (1, 4))
    centre = np.array([places[axis][core].mean() for axis in range(3)])
    outward = places - centre.reshape(3, 1, 1, 1)
    distance = np.sqrt((outward**2).sum(axis=0))
    moved = ((places - came_from) * outward).sum(axis=0) / np.maximum(distance, 1)
    from_core = ndimage.distance_transform_edt(~core) * 2
    near = brain.brain & (from_core > 2) & (from_core < 6) & (brain.deep > 0.7)
    further = brain.brain & (from_core > 30) & (from_core < 40)
    assert np.median(moved[near]) > 1.5
    assert np.median(moved[near]) > 3 * abs(np.median(moved[further]))
    assert np.abs(places - came_from)[:, distance > 90].max() == 0
    # The skull does not move.
    assert tumour.anatomy.brain is brain.brain
    assert np.abs(moved[brain.brain & (brain.deep < 0.02) & (from_core > 10)]).max() < 3


def test_a_ventricle_beside_the_tumour_is_narrower(brain: Anatomy) -> None:
    halves = []
    for seed in range(4):
        tumour = grow_glioma(np.random.default_rng(seed), brain, 1, "HGG")
        free = tumour.labels == 0
        fluid = [odds.tissues()[FLUID] * (brain.deep > 0.9) * free for odds in (brain, tumour.anatomy)]
        halves.append(fluid[1][50:].sum() / fluid[0][50:].sum())
    assert np.median(halves) < 0.97


def test_oedema_follows_white_matter(brain: Anatomy) -> None:
    tumour = grow_glioma(np.random.default_rng(1), brain, 1, "LGG")
    oedema = tumour.labels == 2
    around = brain.brain & (ndimage.distance_transform_edt(tumour.labels == 0) == 0) | ndimage.binary_dilation(
        oedema, iterations=5
    )
    grey, white, fluid = tumour.anatomy.tissues()
    tissue_shares = {
        "in": [t[oedema].mean() for t in (grey, white, fluid)],
        "out": [t[around & (tumour.labels == 0) & brain.brain].mean() for t in (grey, white, fluid)],
    }
    assert tissue_shares["in"][WHITE] > 1.3 * tissue_shares["out"][WHITE]
    assert tissue_shares["in"][GREY] < tissue_shares["out"][GREY]
    assert tissue_shares["in"][FLUID] < 0.5 * tissue_shares["out"][FLUID]
    assert ((tumour.oedema >= 0) & (tumour.oedema <= 1)).all()


def test_lesions_lie_around_the_ventricles_mostly(brain: Anatomy) -> None:
    mask = scatter_lesions(np.random.default_rng(0), brain, brain)
    parts, count = ndimage.label(mask, ndimage.generate_binary_structure(3, 2))
    fluid = (brain.tissues()[FLUID] > 0.5) & (brain.deep > 0.9)
    from_ventricle = ndimage.distance_transform_edt(~fluid) * 2
    nearest = ndimage.minimum(from_ventricle, parts, range(1, count + 1))
    assert np.mean(np.asarray(nearest) < 10) > 0.5
    assert brain.brain[mask].all()
    volumes = np.bincount(parts.ravel())[1:] * 0.008
    assert volumes.max() > 5 * np.median(volumes)
