"""The three GP networks: sizes, poolings and resamplings computed another way, and maps that add up."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.signal import resample
from torch import nn
from torch.nn import functional

import voxplain as vx
from voxplain.networks.gp_reconresnet import GPReconResNet
from voxplain.networks.gp_shuffleunet import GPShuffleUNet, _shuffled
from voxplain.networks.gp_unet import GPUNet
from voxplain.networks.self_explaining import SelfExplaining, blocks, fourier_resample

SMALL: dict[str, Callable[..., SelfExplaining]] = {
    "GPUNet": lambda **options: GPUNet(4, 3, width=4, **options),
    "GPReconResNet": lambda **options: GPReconResNet(4, 3, width=4, blocks=2, **options),
    "GPShuffleUNet": lambda **options: GPShuffleUNet(4, 3, width=4, **options),
}
POOLINGS = ("max", "top:0.03", "top:1", "log-sum-exp:4")


def seeded(name: str, **options: object) -> SelfExplaining:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return SMALL[name](**options).eval()


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("build", "weights"), [(GPUNet, 1_740_675), (GPReconResNet, 17_272_918), (GPShuffleUNet, 26_371_587)]
)
def test_numbers_of_weights(build: type[SelfExplaining], weights: int) -> None:
    with torch.device("meta"):
        network = build()
    assert sum(parameter.numel() for parameter in network.parameters()) == weights


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(24, 16), (19, 14), (21, 17), (16, 16, 8), (11, 13, 9)], ids=str)
def test_maps_lie_on_the_inputs_own_grid(name: str, size: tuple[int, ...]) -> None:
    network, x = seeded(name, spatial_dims=len(size)), images(2, 4, *size)
    with torch.inference_mode():
        assert network(x).shape == (2, 3)
        for found in (network.heat_map(x), network.contributions(x)):
            assert found.shape == (2, 3, *size)
            assert found.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_the_papers_size(name: str) -> None:
    with torch.inference_mode():
        assert seeded(name).heat_map(images(1, 4, 240, 240)).shape == (1, 3, 240, 240)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("size", [(17, 14), (9, 10, 12)], ids=str)
def test_contributions_and_bias_add_up_to_the_score(name: str, pooling: str, size: tuple[int, ...]) -> None:
    network, x = seeded(name, spatial_dims=len(size), pooling=pooling), images(2, 4, *size)
    with torch.inference_mode():
        total = network.contributions(x).flatten(2).sum(dim=2) + network.head.bias
        torch.testing.assert_close(total, network(x), rtol=1e-4, atol=1e-5)


def pooled(values: np.ndarray, pooling: str) -> float:
    """One feature of one image, (pixels,), pooled."""
    kind, _, number = pooling.partition(":")
    if kind == "max":
        return float(np.sort(values)[-1])
    if kind == "top":
        count = max(1, round(float(number) * len(values)))
        return float(np.sort(values)[::-1][:count].mean())
    sharpness = float(number)
    return float(np.log(np.exp(sharpness * values).mean()) / sharpness)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_score_is_the_last_convolution_of_what_was_pooled(name: str, pooling: str) -> None:
    network, x = seeded(name, pooling=pooling), images(2, 4, 18, 15)
    with torch.inference_mode():
        features, found = network.features(x).double().numpy(), network(x).numpy()
    weight, bias = (value.detach().double().numpy() for value in (network.head.weight[:, :, 0, 0], network.head.bias))
    by_hand = [[pooled(feature.ravel(), pooling) for feature in image] for image in features]
    np.testing.assert_allclose(found, np.array(by_hand) @ weight.T + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_the_heat_map_is_the_same_convolution_of_every_pixel(name: str) -> None:
    network, x = seeded(name), images(1, 4, 18, 15)
    with torch.inference_mode():
        features, found = network.features(x)[0].numpy(), network.heat_map(x)[0].numpy()
    weight, bias = network.head.weight[:, :, 0, 0].detach().numpy(), network.head.bias.detach().numpy()
    np.testing.assert_allclose(
        found, np.einsum("kf,fxy->kxy", weight, features) + bias[:, None, None], rtol=1e-4, atol=1e-5
    )


def test_a_share_below_one_pixel_is_one_pixel() -> None:
    network, same = seeded("GPUNet", pooling="top:0.0001"), seeded("GPUNet")
    x = images(1, 4, 16, 16)
    with torch.inference_mode():
        assert torch.equal(network(x), same(x))


@pytest.mark.parametrize(
    "pooling",
    [
        *("", "mean", "max:2", "top", "top:0", "top:1.5", "top:x", "top:nan"),
        *("log-sum-exp", "log-sum-exp:0", "log-sum-exp:-1", "log-sum-exp:inf"),
    ],
)
@pytest.mark.parametrize("name", SMALL)
def test_other_poolings_are_refused(name: str, pooling: str) -> None:
    with pytest.raises(ValueError, match='pooling is "max", "top:SHARE"'):
        seeded(name, pooling=pooling)


def test_other_options_are_refused() -> None:
    with pytest.raises(ValueError, match="normalisation is one of none, batch; got 'group'"):
        GPUNet(normalisation="group")
    for build in (GPUNet, GPReconResNet):
        with pytest.raises(ValueError, match="upsampling is fourier or linear; got 'nearest'"):
            build(width=4, upsampling="nearest")


@pytest.mark.parametrize(
    ("name", "options"),
    [("GPUNet", {"normalisation": "batch"}), ("GPUNet", {"upsampling": "linear"}), ("GPUNet", {"levels": 2}),
     ("GPReconResNet", {"upsampling": "linear"}), ("GPShuffleUNet", {"levels": 2})],
)  # fmt: skip
@pytest.mark.parametrize("size", [(19, 14), (11, 13, 9)], ids=str)
def test_our_variants_run(name: str, options: dict[str, object], size: tuple[int, ...]) -> None:
    network = seeded(name, spatial_dims=len(size), **options)
    with torch.inference_mode():
        found = network.heat_map(images(1, 4, *size))
    assert found.shape == (1, 3, *size)
    assert found.isfinite().all()
    normed = any(isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d) for module in network.modules())
    assert normed == (options.get("normalisation") == "batch" or name == "GPShuffleUNet")


@pytest.mark.parametrize("before", [(6, 7), (7, 6), (1, 2), (8, 8), (5, 6, 7)], ids=str)
@pytest.mark.parametrize("more", [0, 1, 2, 5, 9])
def test_fourier_resampling_is_scipys(before: tuple[int, ...], more: int) -> None:
    x = images(2, 3, *before).double()
    after = tuple(size + more for size in before)
    expected = x.numpy()
    for axis, size in enumerate(after, start=2):
        expected = resample(expected, size, axis=axis)
    np.testing.assert_allclose(fourier_resample(x, after).numpy(), expected, rtol=0, atol=1e-6)


def test_fourier_resampling_keeps_the_values_at_the_old_places_and_the_precision() -> None:
    x = images(1, 2, 9, 8)
    torch.testing.assert_close(fourier_resample(x, (27, 16))[:, :, ::3, ::2], x, rtol=0, atol=1e-5)
    assert fourier_resample(x.bfloat16(), (18, 16)).dtype == torch.bfloat16
    assert fourier_resample(x, (9, 8)) is x


def test_fourier_resampling_refuses_to_shrink() -> None:
    with pytest.raises(ValueError, match="axis 1 would go from 8 to 7"):
        fourier_resample(images(1, 2, 9, 8), (18, 7))


def test_pixel_shuffles_are_pytorchs_in_2d_and_inverses_in_3d() -> None:
    x = images(2, 8, 6, 10)
    assert torch.equal(blocks(x, 2), functional.pixel_unshuffle(x, 2))
    assert torch.equal(_shuffled(x), functional.pixel_shuffle(x, 2))
    volume = images(2, 3, 4, 6, 8)
    small = blocks(volume, 2)
    assert small.shape == (2, 24, 2, 3, 4)
    assert torch.equal(_shuffled(small), volume)
    # A block of 2 x 2 x 2 voxels is the eight features of one, the last axis running fastest.
    assert torch.equal(small[1, 8:16, 1, 2, 3], volume[1, 1, 2:4, 4:6, 6:8].flatten())


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_has_a_finite_gradient(name: str) -> None:
    network = seeded(name).train()
    network(images(2, 4, 24, 16)).square().sum().backward()
    for label, parameter in network.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.isfinite().all(), label


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_and_bfloat16(name: str) -> None:
    network, x = seeded(name), images(2, 4, 24, 17)
    with torch.inference_mode():
        expected = network.heat_map(x)
        last = network.to(memory_format=torch.channels_last)
        torch.testing.assert_close(
            last.heat_map(x.to(memory_format=torch.channels_last)), expected, rtol=1e-3, atol=1e-4
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = network.heat_map(x).float()
    assert np.corrcoef(rough.numpy().ravel(), expected.numpy().ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("name", "factory", "arguments"),
    [
        ("GPUNet", "voxplain.networks.gp_unet:GPUNet", {"width": 4}),
        ("GPReconResNet", "voxplain.networks.gp_reconresnet:GPReconResNet", {"width": 4, "blocks": 2}),
        ("GPShuffleUNet", "voxplain.networks.gp_shuffleunet:GPShuffleUNet", {"width": 4}),
    ],
)
def test_a_folder_gives_it_back(name: str, factory: str, arguments: dict[str, int], tmp_path) -> None:
    network = seeded(name, pooling="top:0.03")
    card = vx.Card(
        name=name, channels=("flair", "t1", "t1ce", "t2"), classes=("hgg", "lgg", "healthy"), activation="softmax",
        spatial_dims=2, factory=factory,
        arguments={"in_channels": 4, "classes": 3, "pooling": "top:0.03", **arguments},
    )  # fmt: skip
    back = vx.load_model(vx.save_model(network, card, tmp_path / "model"))
    assert isinstance(back.network, SelfExplaining)
    x = images(1, 4, 16, 18)
    with torch.inference_mode():
        assert torch.equal(back.network.eval().contributions(x), network.contributions(x))


STRIDES = [(2, (16, 12)), (2, (19, 14)), (3, (17, 22)), (4, (21, 9)), (4, (5, 6)), (2, (11, 13, 9)), (3, (7, 12, 8))]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("stride", "size"), STRIDES, ids=str)
def test_maps_of_a_coarse_grid_lie_on_the_inputs_and_add_up(stride: int, size: tuple[int, ...], pooling: str) -> None:
    network = seeded("GPUNet", spatial_dims=len(size), stride=stride, pooling=pooling, levels=2, upsampling="linear")
    x = images(2, 4, *size)
    with torch.inference_mode():
        assert network.features(x).shape[2:] == tuple(-(-length // stride) for length in size)
        heat, added, score = network.heat_map(x), network.contributions(x), network(x)
    assert heat.shape == added.shape == (2, 3, *size)
    torch.testing.assert_close(added.flatten(2).sum(dim=2) + network.head.bias, score, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("stride", "size"), STRIDES, ids=str)
def test_a_place_of_a_coarse_grid_is_its_own_block(stride: int, size: tuple[int, ...]) -> None:
    """What lies in one block of the input is shown there, also beside a last block that is not whole."""
    network = seeded("GPUNet", spatial_dims=len(size), stride=stride, levels=2)
    corner = [(length - 1) // stride for length in size]
    middle = [place // 2 for place in corner]
    shape = (1, network.head.in_channels, *(place + 1 for place in corner))
    for places in (corner, middle):
        features = torch.zeros(shape)
        features[(0, slice(None), *places)] = 1
        network.features = lambda x, features=features: features  # type: ignore[method-assign]
        with torch.inference_mode():
            x = images(1, 4, *size)
            added = network.contributions(x)[0]
            shown = (network.heat_map(x)[0] - network.head.bias.reshape(-1, *[1] * len(size))).abs().sum(dim=0)
        inside = np.zeros(size, dtype=bool)
        inside[tuple(slice(stride * place, stride * (place + 1)) for place in places)] = True
        assert (added.numpy()[:, inside] == added.numpy()[:, inside][:, :1]).all()
        assert not added.numpy()[:, ~inside].any()
        # Between the middles of blocks the map is linear, and flat beyond those at the edges.
        expected = np.ones(())
        for place, length, last in zip(places, size, corner, strict=True):
            where = (np.arange(length) + 0.5) / stride - 0.5
            expected = np.multiply.outer(expected, np.interp(where, np.arange(last + 1), np.arange(last + 1) == place))
        np.testing.assert_allclose(shown / shown.sum(), expected / expected.sum(), atol=1e-6)


def test_a_stride_of_one_changes_nothing_and_a_stride_below_is_refused() -> None:
    x = images(1, 4, 18, 15)
    with torch.inference_mode():
        assert torch.equal(seeded("GPUNet", stride=1).heat_map(x), seeded("GPUNet").heat_map(x))
    with pytest.raises(ValueError, match="stride is how many pixels an axis make a place, at least 1; got 0"):
        GPUNet(stride=0)


@pytest.mark.parametrize("build", [GPUNet, GPReconResNet, GPShuffleUNet])
@pytest.mark.parametrize("pooling", ["max", "top:0.1", "log-sum-exp:3"])
def test_positive_evidence_only_speaks_for_a_class(build: type[SelfExplaining], pooling: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        network = build(2, 3, width=4, evidence="positive", pooling=pooling).eval()
    x = images(2, 2, 16, 24)
    with torch.no_grad():
        maps, added, scores = network.heat_map(x), network.contributions(x), network(x)
        by_hand = torch.einsum("kc,bcxy->bkxy", network.head.weight[:, :, 0, 0].abs(), network.features(x))
    assert network.head.bias is None
    torch.testing.assert_close(maps, by_hand, atol=1e-5, rtol=1e-4)
    assert float(maps.min()) >= 0
    torch.testing.assert_close(added.flatten(2).sum(dim=2), scores, atol=1e-4, rtol=1e-4)


def test_another_evidence_is_refused() -> None:
    with pytest.raises(ValueError, match="evidence is signed or positive"):
        GPUNet(1, 2, width=4, evidence="negative")
