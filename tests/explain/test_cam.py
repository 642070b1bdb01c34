"""What class activation maps refuse, and what they say then."""

import numpy as np
import pytest
import torch
from torch import nn

import voxplain as vx

CPU = vx.Compute(device="cpu", threads=1)
CARD = vx.Card(name="tiny", channels=("t1",), classes=("c",))
SCAN = vx.Scan(np.random.default_rng(0).uniform(1, 2, (1, 9, 8, 7)), vx.Grid((9, 8, 7), np.eye(4)), ("t1",))


class Tiny(nn.Module):
    """Layers of every kind that can go wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv3d(3, 3, 3, padding=1))
        self.shared = nn.ReLU()
        self.unused = nn.Conv3d(1, 1, 1)
        self.aside = nn.Conv3d(1, 2, 1)
        self.pair = Pair()
        self.head = nn.Linear(3, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.aside(inputs)
        features, _ = self.pair(self.shared(self.body(self.shared(inputs))))
        return self.head(features.mean(dim=(2, 3, 4)))


class Pair(nn.Module):
    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs, inputs


class Detached(Tiny):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs).detach()


class WithoutGradients(Tiny):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return super().forward(inputs)


def tiny(build=Tiny) -> vx.Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return vx.Model(build().eval(), CARD)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layer5", r"no layer 'layer5'; it has body, shared, unused, aside, pair, head, body.0, body.1, body.2"),
        ("body.3", r"no layer 'body.3'; it has body"),
        ("", r"needs the name of a layer; this network has body"),
        ("shared", r"'shared' runs 2 times in one pass.*such as a block \(body"),
        ("unused", r"'unused' runs 0 times"),
        ("head", r"'head' gives no feature maps; name a convolution or a block"),
        ("pair", r"'pair' gives no feature maps"),
        ("aside", r"the score does not depend on layer 'aside'"),
    ],
)
def test_layers_without_a_map(layer: str, message: str) -> None:
    model = tiny()
    with pytest.raises(vx.InputError, match=message):
        vx.GradCAM(layer=layer)(model, SCAN, compute=CPU)
    assert not any(module._forward_hooks for module in model.network.modules())


@pytest.mark.parametrize("build", [Detached, WithoutGradients])
def test_a_network_that_lets_no_gradient_through(build: type[nn.Module]) -> None:
    with pytest.raises(vx.InputError, match="the score does not depend on layer 'body'"):
        vx.GradCAM(layer="body")(tiny(build), SCAN, compute=CPU)


@pytest.mark.parametrize("layer", ["body", "body.0", "body.2"])
def test_blocks_and_layers_inside_them(layer: str) -> None:
    why = vx.GradCAM(layer=layer)(tiny(), SCAN, compute=CPU)
    assert why.parts is None
    assert why.unit == "logit gradient x activation"
    with pytest.raises(vx.InputError, match="only maps of parts"):
        why.ranks()


def test_a_long_list_of_layers_is_cut() -> None:
    class Long(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.many = nn.Sequential(*(nn.Identity() for _ in range(60)))

    # body.0 to body.2 and many.0 to many.59, of which 40 are named.
    with pytest.raises(vx.InputError, match=r"many\.36, \.\.\. \(23 more\)$"):
        vx.GradCAM(layer="nowhere")(tiny(Long), SCAN, compute=CPU)


class Scriptable(nn.Module):
    """A convolution, its mean, and no Python that TorchScript could not read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 3)
        self.head = nn.Linear(2, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.conv(inputs)).mean(dim=[2, 3, 4]))


def test_torchscript_is_refused_for_layers_and_explained_by_calls(tmp_path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = Scriptable().eval()
    torch.jit.script(plain).save(str(tmp_path / "net.pt"))
    model = vx.load_model(tmp_path / "net.pt", CARD)
    with pytest.raises(vx.InputError, match=r"TorchScript network does not allow; .* calls only work: .*relevance-map"):
        vx.GradCAM(layer="conv")(model, SCAN, compute=CPU)
    explain = vx.RelevanceMap(segments=10)
    model.network.train()
    found = explain(model, SCAN, compute=CPU)
    assert all(module.training for module in model.network.modules())
    expected = explain(vx.Model(plain, CARD), SCAN, compute=CPU)
    np.testing.assert_allclose(found.map, expected.map, rtol=0, atol=1e-5 * expected.map.max())
    assert found.provenance["passes"] == expected.provenance["passes"]


def test_a_2d_network_on_a_volume_is_refused() -> None:
    flat = nn.Sequential(nn.Conv2d(1, 1, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    card = vx.Card(name="flat", channels=("t1",), classes=("c",), spatial_dims=2)
    with pytest.raises(vx.InputError, match="a 2D network reads images"):
        vx.GradCAM(layer="0")(vx.Model(flat, card), SCAN, compute=CPU)
    with pytest.raises(vx.InputError, match="made of Conv2d"):
        vx.Model(flat, CARD)
