"""Every augmentation keeps the shape, follows its seed, and changes what it says that it changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from voxplain.augmentation import AUGMENTATIONS, MixChannels, augmentation

SLICES = ("slices", "turns")


def image(kind: bool | str) -> torch.Tensor:
    """Two sequences with something that no turn or mirror hides, on zeros."""
    if kind in SLICES:
        found = torch.zeros(2, 40, 44)
        found[:, 12:28, 14:30] = 5
        found[1, 12:16, 14:20] = 9
        return found
    found = torch.zeros(2, 20, 24, 22)
    found[:, 6:14, 7:17, 6:16] = 5
    found[1, 6:8, 7:9, 6:9] = 9
    return found


def drawn(kind: bool | str, count: int = 12, seed: int = 7) -> list[np.ndarray]:
    transform = augmentation(kind)
    transform.set_random_state(seed=seed)
    return [np.asarray(transform(image(kind))) for _ in range(count)]


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_shape_type_and_seed(kind: bool | str) -> None:
    once, again, other = drawn(kind), drawn(kind), drawn(kind, seed=8)
    for one, same in zip(once, again, strict=True):
        np.testing.assert_array_equal(one, same)
        assert one.shape == tuple(image(kind).shape)
        assert one.dtype == np.float32
        assert np.isfinite(one).all()
    assert any((one != different).any() for one, different in zip(once, other, strict=True))
    assert len({one.tobytes() for one in once}) > 6


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_the_input_is_left_as_it_was(kind: bool | str) -> None:
    given = image(kind)
    transform = augmentation(kind)
    transform.set_random_state(seed=0)
    for _ in range(50):
        transform(given)
    assert torch.equal(given, image(kind))


@pytest.mark.parametrize("kind", [True, "gentle", "elastic", "turns"])
def test_zeros_stay_zero(kind: bool | str) -> None:
    for one in drawn(kind):
        assert (one[:, 0, 0] == 0).all()
        assert (one == 0).mean() > 0.4


def test_only_noise_falls_on_the_zeros_of_a_slice() -> None:
    corners = np.stack([one[:, :3, :3] for one in drawn("slices", count=60)])
    assert np.abs(corners).max() < 6 * 0.05
    silent = (corners == 0).all(axis=(1, 2, 3)).mean()
    assert 0.3 < silent < 0.7


def test_turns_keep_brightness_and_only_turn() -> None:
    for one in drawn("turns"):
        assert one.min() >= 0
        assert one.max() <= 9 + 1e-4
        # A square turned by whatever angle keeps its area to within what is interpolated at its edge.
        assert one[0].sum() == pytest.approx(float(image("turns")[0].sum()), rel=0.05)


def test_turns_reach_all_angles() -> None:
    bright = [np.argwhere(one[1] > 7) for one in drawn("turns", count=80)]
    centres = np.array([places.mean(axis=0) for places in bright if len(places)]) - np.array([19.5, 21.5])
    quadrants = {tuple(corner) for corner in (centres > 0).tolist()}
    assert len(quadrants) == 4


def test_slices_change_contrast_per_sequence() -> None:
    ratios = [np.median(one[0][one[0] > 1]) / np.median(one[1][one[1] > 1]) for one in drawn("slices", count=30)]
    assert np.std(ratios) > 0.02


def test_gentle_moves_nothing_but_by_mirrors() -> None:
    given = image("gentle")[0] > 0
    mirrored = {given.flip([axis for axis in range(3) if mask >> axis & 1]).numpy().tobytes() for mask in range(8)}
    for one in drawn("gentle"):
        assert (one[0] > 0).tobytes() in mirrored


def test_mixed_channels_are_sums_of_channels() -> None:
    random = np.random.default_rng(0)
    image = torch.from_numpy(random.normal(size=(3, 6, 6, 6)).astype(np.float32))
    mix = MixChannels(share=0.3, prob=1.0)
    mix.set_random_state(seed=1)
    mixed = mix(image)
    for channel in range(3):
        change = (mixed[channel] - image[channel]).flatten()
        shares = [
            float(change @ image[other].flatten() / (image[other] ** 2).sum()) for other in range(3) if other != channel
        ]
        # What was added is a share of one other channel and nothing else.
        fits = [
            torch.allclose(change, share * image[other].flatten(), atol=1e-5)
            for share, other in zip(shares, [other for other in range(3) if other != channel], strict=True)
        ]
        assert sum(fits) == 1
        assert abs(shares[fits.index(True)]) <= 0.3
    alone = image[:1]
    assert torch.equal(mix(alone), alone)
    assert torch.equal(MixChannels(share=0.3, prob=0.0)(image), image)
