"""Where the peers go wrong (facts/peers.md), and that voxplain does not.

Each test first shows the trap with the peer itself, so that we learn when it is mended, then what voxplain gives.
"""

import dataclasses
import gc
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import torch
from captum.attr import GuidedBackprop as CaptumGuided
from monai.networks.nets import resnet10, resnet50
from monai.visualize import GradCAM as MonaiGradCAM
from monai.visualize import GuidedBackpropGrad, OcclusionSensitivity
from torch import nn

import voxplain as vx
from voxplain.networks.resnet import resnet
from voxplain.preparation import prepare
from voxplain.studies.hemispheres import PRESETS

CPU = vx.Compute(device="cpu", threads=1)
SEQUENCES = ("flair", "t1", "t1ce", "t2")


class BrightCorner(nn.Module):
    """One logit for four sequences: the mean of FLAIR in one corner. It sees nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(4, 1, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([1.0, 0, 0, 0]).reshape(1, 4, 1, 1, 1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.first(inputs)[:, :, :4, :4, :4].mean(dim=(2, 3, 4)) * 4 - 2


class TestTrap1SigmoidOrSoftmaxFromTheNumberOfInputChannels:
    """MONAI's occlusion takes the softmax over one logit when the input has four channels: 1.0 everywhere."""

    data = np.ones((4, 12, 12, 12), dtype=np.float32) * np.array([1, 2, 3, 4], dtype=np.float32)[:, None, None, None]

    @pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
    def test_monai_sees_nothing(self) -> None:
        occlusion = OcclusionSensitivity(BrightCorner().eval(), mask_size=4, mode=0.0, overlap=0.0, verbose=False)
        try:
            found, _ = occlusion(torch.from_numpy(self.data[None]))
        except (IndexError, RuntimeError) as error:
            pytest.skip(f"this MONAI's occlusion does not run on this torch: {error}")
        if np.ptp(found.numpy()) > 0.1:
            pytest.skip("this MONAI no longer has the trap")
        np.testing.assert_allclose(found.numpy(), 1.0)

    def test_voxplain_reads_the_card(self) -> None:
        card = vx.Card(name="corner", channels=SEQUENCES, classes=("bright",))
        scan = vx.Scan(self.data, vx.Grid((12, 12, 12), np.eye(4)), SEQUENCES)
        why = vx.RelevanceMap(partition="cubes:4")(vx.Model(BrightCorner().eval(), card), scan, compute=CPU)
        expected = np.zeros((12, 12, 12))
        # Without the corner the logit falls from 2 to -2.
        expected[:4, :4, :4] = 1 / (1 + np.exp(-2)) - 1 / (1 + np.exp(2))
        np.testing.assert_allclose(why.total, expected, rtol=0, atol=1e-6)

    def test_one_logit_with_a_softmax_is_a_constant_and_voxplain_is_told_by_the_card_alone(self) -> None:
        """The number of channels plays no part: the same network with one more class is a softmax of two."""
        card = vx.Card(name="corner", channels=SEQUENCES, classes=("dark", "bright"), activation="softmax")
        network = nn.Sequential(BrightCorner(), nn.Linear(1, 2, bias=False))
        with torch.no_grad():
            network[1].weight.copy_(torch.tensor([[0.0], [1.0]]))
        scan = vx.Scan(self.data, vx.Grid((12, 12, 12), np.eye(4)), SEQUENCES)
        why = vx.RelevanceMap(partition="cubes:4")(
            vx.Model(network.eval(), card), scan, target=vx.ClassScore("bright"), compute=CPU
        )
        assert why.total[0, 0, 0] == pytest.approx(1 / (1 + np.exp(-2)) - 1 / (1 + np.exp(2)))
        assert why.total[5:].max() == 0


def rectified_in_three_ways() -> dict[str, nn.Module]:
    """The same convolutions with LeakyReLU, PReLU, and a ReLU that is called as a function."""

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ModuleList([nn.Conv3d(1, 6, 3), nn.Conv3d(6, 6, 3)])
            self.head = nn.Linear(6, 1)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            for layer in self.body:
                inputs = nn.functional.relu(layer(inputs))
            return self.head(inputs.mean(dim=(2, 3, 4)))

    def modules(kind: type[nn.Module]) -> nn.Module:
        body = [nn.Conv3d(1, 6, 3), kind(), nn.Conv3d(6, 6, 3), kind()]
        return nn.Sequential(*body, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 1))

    with torch.random.fork_rng():
        torch.manual_seed(3)
        return {
            "LeakyReLU": modules(nn.LeakyReLU).eval(),
            "PReLU": modules(nn.PReLU).eval(),
            "functional": Functional().eval(),
        }


@pytest.mark.parametrize("name", ["LeakyReLU", "PReLU", "functional"])
class TestTrap2GuidedBackpropagationThatGuidesNothing:
    """Captum and MONAI guide modules of the type ReLU alone; elsewhere theirs is the plain gradient, unsaid."""

    inputs = torch.from_numpy(np.random.default_rng(5).normal(0, 1, (1, 1, 9, 8, 7)).astype(np.float32))

    def plain(self, network: nn.Module) -> np.ndarray:
        inputs = self.inputs.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(inputs).sum(), inputs)
        return gradient.numpy()

    def test_captums_is_the_plain_gradient(self, name: str) -> None:
        network = rectified_in_three_ways()[name]
        with pytest.warns(UserWarning, match="backward hooks"):
            found = CaptumGuided(network).attribute(self.inputs.clone().requires_grad_()).detach().numpy()
        if not np.allclose(found, self.plain(network), atol=1e-7):
            pytest.skip("this Captum no longer has the trap")

    def test_monais_is_the_plain_gradient(self, name: str) -> None:
        network = rectified_in_three_ways()[name]
        found = GuidedBackpropGrad(network)(self.inputs.clone(), index=0)
        if not np.allclose(np.asarray(found), self.plain(network), atol=1e-7):
            pytest.skip("this MONAI no longer has the trap")

    def test_voxplain_guides_them(self, name: str) -> None:
        network = rectified_in_three_ways()[name]
        scan = vx.Scan(self.inputs[0].numpy(), vx.Grid((9, 8, 7), np.eye(4)), ("t1",))
        why = vx.GuidedBackprop()(vx.Model(network, BLOB_CARD), scan, compute=CPU)
        plain = self.plain(network)[0]
        assert why.map.any()
        assert np.abs(why.map - plain).max() > 0.1 * np.abs(plain).max()
        # By hand: forward, keeping what arrives at each rectifier, then back through the transposed convolutions.
        first, second = [layer for layer in network.modules() if isinstance(layer, nn.Conv3d)]
        (head,) = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
        slope = {"LeakyReLU": 0.01, "PReLU": 0.25, "functional": 0.0}[name]
        with torch.no_grad():
            before = first(self.inputs)
            after = second(torch.where(before > 0, before, slope * before))
            gradient = head.weight[0].reshape(1, 6, 1, 1, 1).expand_as(after) / after[0, 0].numel()
            gradient = torch.where((after > 0) & (gradient > 0), gradient, 0)
            gradient = nn.functional.conv_transpose3d(gradient, second.weight)
            gradient = torch.where((before > 0) & (gradient > 0), gradient, 0)
            by_hand = nn.functional.conv_transpose3d(gradient, first.weight)[0].numpy()
        np.testing.assert_allclose(why.map, by_hand, rtol=0, atol=1e-6 * np.abs(by_hand).max())


class Blob(nn.Module):
    """Feature maps that light up at bright voxels, and their mean."""

    def __init__(self, channels: int = 1, inplace: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, 2, 3, padding=1)
        self.norm = nn.BatchNorm3d(2)
        self.act = nn.ReLU(inplace=inplace)
        self.head = nn.Linear(2, 1)
        with torch.no_grad():
            self.conv.weight.fill_(1 / 27)
            self.conv.bias.fill_(-1)
            self.norm.weight.copy_(torch.tensor([1.0, -1.0]))
            self.norm.bias.fill_(0.25)
            self.head.weight.copy_(torch.tensor([[3.0, -0.5]]))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.norm(self.conv(inputs))).mean(dim=(2, 3, 4)))


def bright_spot() -> tuple[vx.Scan, tuple[slice, ...]]:
    data = np.random.default_rng(0).uniform(0, 0.2, (1, 14, 12, 10)).astype(np.float32)
    spot = (slice(4, 7), slice(5, 8), slice(3, 6))
    data[0][spot] = 10
    return vx.Scan(data, vx.Grid((14, 12, 10), np.diag([2.0, 2, 3, 1])), ("t1",)), spot


BLOB_CARD = vx.Card(name="blob", channels=("t1",), classes=("spot",))


class TestTrap4Polarity:
    """MONAI's CAMs are scaled so that the most relevant voxel is 0."""

    def test_monai_is_inverted(self) -> None:
        scan, spot = bright_spot()
        found = MonaiGradCAM(Blob().eval(), "act")(torch.tensor(scan.data[None]), class_idx=0)[0, 0].detach().numpy()
        if found[spot].mean() > found.mean():
            pytest.skip("this MONAI no longer has the trap")
        assert found[5, 6, 4] == found.min() == 0

    @pytest.mark.parametrize("explain", [vx.GradCAM(layer="act"), vx.RelevanceMap(partition="cubes:6")])
    def test_high_is_important_in_voxplain(self, explain: vx.Explainer) -> None:
        scan, spot = bright_spot()
        why = explain(vx.Model(Blob().eval(), BLOB_CARD), scan, compute=CPU)
        assert why.total[5, 6, 4] == why.total.max() > 0
        assert why.total[spot].mean() > 3 * why.total.mean()
        # And so does the mask: it marks what is important.
        assert vx.segment.otsu(why, everywhere=True).data[5, 6, 4] == 1


class TestTrap5HookBeforeAnInPlaceActivation:
    """A hook on the norm layer sees what the in-place ReLU after it has written there, or raises."""

    def test_a_plain_hook_reads_overwritten_values(self) -> None:
        scan, _ = bright_spot()
        inputs = torch.tensor(scan.data[None])
        kept = {}
        for inplace in (False, True):
            network = Blob(inplace=inplace).eval()
            network.norm.register_forward_hook(lambda module, given, output, key=inplace: kept.update({key: output}))
            network(inputs)
        assert kept[False].min() < 0
        assert kept[True].min() >= 0

    def test_monai_raises_or_reads_them(self) -> None:
        inputs = torch.tensor(bright_spot()[0].data[None])
        expected = MonaiGradCAM(Blob().eval(), "norm", postprocessing=lambda x: x)(inputs, class_idx=0)
        try:
            found = MonaiGradCAM(Blob(inplace=True).eval(), "norm", postprocessing=lambda x: x)(inputs, class_idx=0)
        except RuntimeError as error:
            assert "inplace" in str(error)  # noqa: PT017
            return
        if torch.allclose(found, expected):
            pytest.skip("this MONAI no longer has the trap")

    def test_voxplain_reads_what_the_layer_gave(self) -> None:
        scan, _ = bright_spot()
        inputs = torch.tensor(scan.data[None])
        plain = Blob().eval()
        output = plain.norm(plain.conv(inputs)).detach().requires_grad_()
        plain.head(torch.relu(output).mean(dim=(2, 3, 4))).sum().backward()
        weights = output.grad.mean(dim=(2, 3, 4), keepdim=True)
        by_hand = torch.relu((weights * output).sum(dim=1))[0].detach().numpy()
        overwritten = torch.relu((weights * torch.relu(output)).sum(dim=1))[0].detach().numpy()
        assert np.abs(by_hand - overwritten).max() > 1e-3 * by_hand.max()
        for inplace in (False, True):
            model = vx.Model(Blob(inplace=inplace).eval(), BLOB_CARD)
            why = vx.GradCAM(layer="norm")(model, scan, compute=CPU)
            np.testing.assert_allclose(why.total, by_hand, rtol=0, atol=1e-6 * by_hand.max())

    @pytest.mark.parametrize("layer", ["bn1", "layer1.0.bn1", "layer1.0.bn2", "layer2.0.bn1"])
    def test_voxplain_on_every_norm_layer_of_monais_resnet(self, layer: str) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            network = resnet(depth=10, in_channels=1, classes=1, width=4).eval()
        card = dataclasses.replace(BLOB_CARD, name="resnet")
        data = np.random.default_rng(1).normal(0, 1, (1, 24, 20, 16))
        scan = vx.Scan(data, vx.Grid((24, 20, 16), np.eye(4)), ("t1",))
        assert any(module.inplace for module in network.modules() if isinstance(module, nn.ReLU))
        found = vx.GradCAM(layer=layer)(vx.Model(network, card), scan, compute=CPU)
        for module in network.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        expected = vx.GradCAM(layer=layer)(vx.Model(network, card), scan, compute=CPU)
        np.testing.assert_array_equal(found.map, expected.map)


class TestTrap7WhereTheMapLies:
    """Medcam writes uint8 under an identity affine, its axes swapped (not installed here, so only described)."""

    # No two axes alike, none along its own: x of the array runs down, y to the back, z to the left.
    affine = np.array([[0, 0, -1.2, 40], [0, -0.9, 0, 33], [-2.5, 0, 0, 60], [0, 0, 0, 1.0]])

    @pytest.mark.parametrize("explain", [vx.GradCAM(layer="act"), vx.RelevanceMap(partition="cubes:4")])
    def test_the_saved_map_lies_on_the_scans_own_grid(self, tmp_path, explain: vx.Explainer) -> None:
        scan, _ = bright_spot()
        nifti = nib.Nifti1Image(scan.data[0], self.affine)
        nifti.set_qform(self.affine, code=1)
        nifti.set_sform(self.affine, code=4)
        nib.save(nifti, tmp_path / "t1.nii.gz")
        read = vx.read(t1=tmp_path / "t1.nii.gz")
        why = explain(vx.Model(Blob().eval(), BLOB_CARD), read, compute=CPU)
        vx.save(why, tmp_path / "map.nii.gz")
        back = nib.load(tmp_path / "map.nii.gz")
        assert back.shape == (14, 12, 10)
        assert back.get_data_dtype() == np.float32
        np.testing.assert_allclose(back.affine, self.affine, atol=1e-5)
        np.testing.assert_allclose(back.get_qform(), self.affine, atol=1e-5)
        assert int(back.header["sform_code"]) == 4
        assert int(back.header["qform_code"]) == 1
        assert back.header.get_zooms() == pytest.approx((2.5, 0.9, 1.2))
        # The centre of the spot, in millimetres, by hand.
        values = back.get_fdata()
        centre = np.argwhere(values == values.max()).mean(axis=0)
        assert back.affine[:3, :3] @ centre + back.affine[:3, 3] == pytest.approx(
            (40 - 1.2 * 4, 33 - 0.9 * 6, 60 - 2.5 * 5), abs=4
        )
        np.testing.assert_array_equal(values, why.total)


class Read(nn.Module):
    """Keeps every input that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[np.ndarray] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.seen += [one.numpy().copy() for one in inputs]
        return inputs.mean(dim=(1, 2, 3, 4))[:, None]


class TestTrap8LIMEOnFourChannels:
    """The lime package wants colour images of three channels, and keeps whole copies (not installed here)."""

    def test_voxplain_explains_four_sequences_with_the_memory_of_a_batch(self) -> None:
        shape = (40, 32, 32)
        data = np.ones((4, *shape)) * np.array([1, 2, 3, 4])[:, None, None, None]
        scan = vx.Scan(data, vx.Grid(shape, np.eye(4)), SEQUENCES)
        card = vx.Card(name="corner", channels=SEQUENCES, classes=("bright",))
        explain = vx.LIME(partition="cubes:8", samples=200)
        gc.collect()
        tracemalloc.start()
        try:
            why = explain(vx.Model(BrightCorner().eval(), card), scan, compute=vx.Compute("cpu", batch_size=4))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert why.scores.argmax() == 0
        assert why.scores[0] > 20 * np.abs(why.scores[1:]).max()
        assert peak < 0.1 * 200 * scan.data.nbytes


class TestTrap9ZeroIsNotAbsent:
    """After normalisation the number 0 may stand for average tissue; what is blank is what the raw 0 became."""

    @staticmethod
    def scan() -> vx.Scan:
        """Two sequences whose raw background is 0; the second one has negative values, as subtraction images do."""
        rng = np.random.default_rng(2)
        data = np.zeros((2, 8, 8, 8))
        data[:, 2:6, 2:6, 2:6] = rng.normal(100, 20, (2, 4, 4, 4))
        data[1, 2:6, 2:6, 2:6] -= 110
        return vx.Scan(data, vx.Grid((8, 8, 8), np.eye(4)), ("t1", "difference"))

    def explained(self, normalisation: str, fill: str = "blank") -> tuple[Read, np.ndarray]:
        network = Read()
        card = vx.Card(name="read", channels=("t1", "difference"), classes=("c",), normalisation=normalisation)
        why = vx.RelevanceMap(partition="cubes:2", fill=fill)(vx.Model(network, card), self.scan(), compute=CPU)
        assert why.parts is not None
        return network, why.parts.data

    def test_in_a_plain_z_score_zero_is_the_mean_of_the_tissue(self) -> None:
        tissue = self.scan().data[0][2:6, 2:6, 2:6]
        whole = (self.scan().data[0] - tissue.mean()) / tissue.std()
        assert whole[0, 0, 0] < -3
        assert abs(whole[2:6, 2:6, 2:6].mean()) < 1e-5

    def test_min_max_background(self) -> None:
        raw = self.scan().data
        low, high = raw.min(axis=(1, 2, 3)), raw.max(axis=(1, 2, 3))
        expected = (0 - low) / (high - low)
        assert expected[0] == 0
        assert expected[1] > 0.3
        network, parts = self.explained("min-max")
        clean, _again, *perturbed = network.seen
        np.testing.assert_allclose(
            clean, (raw - low[:, None, None, None]) / (high - low)[:, None, None, None], rtol=1e-5
        )
        np.testing.assert_allclose(clean[:, 0, 0, 0], expected, rtol=1e-5)
        for label, image in enumerate(perturbed, start=1):
            inside = parts == label
            # A blank part looks like the outside of the head, and so do the corners of the volume.
            np.testing.assert_array_equal(image[:, inside], np.broadcast_to(clean[:, :1, 0, 0], (2, inside.sum())))

    def test_z_score_background(self) -> None:
        raw = self.scan().data
        network, parts = self.explained("z-score")
        clean, _again, *perturbed = network.seen
        tissue = raw[:, 2:6, 2:6, 2:6].reshape(2, -1)
        scored = (raw - tissue.mean(axis=1)[:, None, None, None]) / tissue.std(axis=1)[:, None, None, None]
        np.testing.assert_allclose(clean[:, 2:6, 2:6, 2:6], scored[:, 2:6, 2:6, 2:6], rtol=1e-4, atol=1e-5)
        for label, image in enumerate(perturbed, start=1):
            inside = parts == label
            np.testing.assert_array_equal(image[:, inside], np.broadcast_to(clean[:, :1, 0, 0], (2, inside.sum())))

    @pytest.mark.parametrize("normalisation", ["none", "min-max", "z-score"])
    @pytest.mark.parametrize("fill", ["blank", "min", "max"])
    def test_nothing_but_the_part_changes(self, normalisation: str, fill: str) -> None:
        """The normalisation is not computed again from what is left after a part is gone."""
        network, parts = self.explained(normalisation, fill)
        clean, _again, *perturbed = network.seen
        assert len(perturbed) == parts.max()
        for label, image in enumerate(perturbed, start=1):
            np.testing.assert_array_equal(image[:, parts != label], clean[:, parts != label])
            assert (image[:, parts == label] != clean[:, parts == label]).any()

    def test_what_is_cut_beyond_the_scan_is_background_too(self) -> None:
        card = vx.Card(
            name="c", channels=("t1", "difference"), classes=("c",), normalisation="min-max", shape=(12, 8, 6)
        )
        (prepared,) = prepare(self.scan(), card)
        corners = prepared.input.data[:, 0, 0, 0]
        np.testing.assert_allclose(corners, prepared.background, rtol=1e-5)
        np.testing.assert_allclose(prepared.input.data[:, 3, 0, 0], prepared.background, rtol=1e-5)


def stem_and_stage(network: nn.Module, shape: tuple[int, int, int], channels: int) -> tuple[list[int], list[int]]:
    """The shapes of the stem's output and of the first stage's."""
    shapes = {}
    for name in ("conv1", "layer1"):
        network.get_submodule(name).register_forward_hook(
            lambda module, given, output, name=name: shapes.update({name: list(output.shape[2:])})
        )
    with torch.inference_mode():
        network.eval()(torch.zeros(1, channels, *shape))
    return shapes["conv1"], shapes["layer1"]


def multiplications(network: nn.Module, shape: tuple[int, int, int], channels: int) -> int:
    """Multiplications of all convolutions in one pass: what the time goes into."""
    counts = []
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(
                lambda layer, given, output: counts.append(output[0].numel() * layer.weight[0].numel())
            )
    with torch.inference_mode():
        network.eval()(torch.zeros(1, channels, *shape))
    return sum(counts)


class TestTrap11StrideOfTheStem:
    """MONAI's 3D ResNets begin with a stride of 1, which costs several times as much."""

    def test_monais_default(self) -> None:
        network = resnet10(spatial_dims=3, n_input_channels=4, num_classes=1)
        if tuple(network.conv1.stride) != (1, 1, 1):
            pytest.skip("this MONAI no longer has the trap")
        assert stem_and_stage(network, (32, 32, 32), 4) == ([32, 32, 32], [16, 16, 16])

    @pytest.mark.parametrize("depth", [10, 18, 50])
    def test_voxplains_stem_halves_each_axis(self, depth: int) -> None:
        network = resnet(depth=depth, in_channels=4, classes=1, width=4)
        assert stem_and_stage(network, (32, 48, 40), 4) == ([16, 24, 20], [8, 12, 10])

    def test_the_stem_can_be_asked_for(self) -> None:
        network = resnet(depth=10, in_channels=4, classes=1, width=4, stem_stride=1)
        assert stem_and_stage(network, (32, 48, 40), 4) == ([32, 48, 40], [16, 24, 20])

    def test_it_costs_several_times_less(self) -> None:
        costs = {
            stride: multiplications(resnet(depth=10, in_channels=4, width=8, stem_stride=stride), (32, 32, 32), 4)
            for stride in (1, 2)
        }
        assert costs[1] > 6 * costs[2]

    def test_the_cards_state_it(self) -> None:
        residual = [preset.card for preset in PRESETS.values() if preset.card.factory.endswith(":resnet")]
        assert len(residual) == 3
        for card in residual:
            assert card.arguments["stem_stride"] == 2


def bottleneck_parameters(in_channels: int, classes: int) -> int:
    """A 3D ResNet-50 counted by hand (He 2016, table 1, with 7 x 7 x 7 and 3 x 3 x 3 kernels)."""
    total = in_channels * 64 * 7**3 + 2 * 64
    before = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            total += before * width + width * width * 27 + width * 4 * width  # three convolutions without bias
            total += 2 * (width + width + 4 * width)  # their normalisations
            if block == 0:
                total += before * 4 * width + CONVOLVED_SHORTCUT_BIAS * 4 * width + 2 * 4 * width
            before = 4 * width
    return total + before * classes + classes


# MONAI's shortcut convolutions keep a bias, which the normalisation after them makes idle.
CONVOLVED_SHORTCUT_BIAS = 1


class TestPresets:
    def test_small_network_has_3_629_441_parameters_and_ships_below_8_mb(self, tmp_path) -> None:
        card = PRESETS["small"].card
        network = resnet(**card.arguments)
        assert sum(parameter.numel() for parameter in network.parameters()) == 3_629_441
        vx.save_model(network, card, tmp_path, half_precision=True)
        size = sum(file.stat().st_size for file in tmp_path.iterdir())
        assert 7_000_000 < size < 8_000_000
        back = vx.load_model(tmp_path)
        assert all(value.dtype == torch.float32 for value in back.network.parameters())

    def test_papers_network_is_resnet_50_of_46_million_parameters(self) -> None:
        card = PRESETS["paper"].card
        assert card.shape == (128, 128, 128)
        assert card.normalisation == "min-max"
        assert len(card.channels) == 4
        network = resnet(**card.arguments)
        count = sum(parameter.numel() for parameter in network.parameters())
        theirs = resnet50(spatial_dims=3, n_input_channels=4, num_classes=1, conv1_t_stride=2)
        assert count == sum(parameter.numel() for parameter in theirs.parameters())
        assert count == bottleneck_parameters(4, 1)
        assert 46_000_000 < count < 47_000_000
        assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == {
            name: tuple(value.shape) for name, value in theirs.state_dict().items()
        }

    def test_papers_network_trains_one_step_and_gives_one_logit(self) -> None:
        """On an eighth of the edge of 128; the network is the paper's in full."""
        preset = PRESETS["paper"]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = resnet(**preset.card.arguments).train()
        assert preset.settings.optimiser == "adam"
        optimiser = torch.optim.Adam(network.parameters(), lr=preset.settings.learning_rate)
        inputs, labels = torch.rand(2, 4, 32, 32, 32), torch.tensor([[0.0], [1.0]])
        before = network.fc.weight.detach().clone()
        output = network(inputs)
        assert output.shape == (2, 1)
        loss = nn.functional.binary_cross_entropy_with_logits(output, labels)
        loss.backward()
        optimiser.step()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(parameter).all() for parameter in network.parameters())
        # Adam's first step is the learning rate wherever there is a gradient.
        moved = (network.fc.weight.detach() - before).abs()
        assert moved.max() == pytest.approx(0.01, rel=1e-2)
        assert network.eval()(torch.rand(1, 4, 64, 32, 32)).shape == (1, 1)
