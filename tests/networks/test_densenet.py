import pytest
import torch
from monai.networks.nets import DenseNet169
from torch import nn

from voxplain.networks.densenet import densenet
from voxplain.networks.pooling import GlobalPooling


def test_it_is_the_network_of_the_paper() -> None:
    network = densenet()
    assert sum(weight.numel() for weight in network.parameters()) == 18_613_571
    theirs = DenseNet169(spatial_dims=3, in_channels=4, out_channels=3, dropout_prob=0.2)
    ours = network.state_dict()
    assert list(ours) == list(theirs.state_dict())
    theirs.load_state_dict(ours)
    network.eval()
    theirs.eval()
    image = torch.randn(1, 4, 32, 40, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(image), theirs(image))


def test_dropout_stands_after_every_layer_and_in_every_transition() -> None:
    network = densenet(blocks=(2, 3, 1), growth=4, width=8, dropout=0.2)
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Dropout3d)]
    assert sum("denselayer" in name for name in names) == 6
    assert [name for name in names if "transition" in name] == [
        "features.transition1.dropout",
        "features.transition2.dropout",
    ]
    assert all(module.p == 0.2 for module in network.modules() if isinstance(module, nn.Dropout3d))
    assert not [module for module in densenet(dropout=0).modules() if isinstance(module, nn.Dropout3d)]


def test_the_last_grid_of_the_paper_is_3_4_3() -> None:
    network = densenet(in_channels=1, blocks=(1, 1, 1, 1), growth=1, width=1, dropout=0).eval()
    shapes = {}
    for name in ("denseblock1", "denseblock4"):
        network.features.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: shapes.update({name: tuple(output.shape[2:])})
        )
    with torch.no_grad():
        network(torch.zeros(1, 1, 120, 148, 120))
    assert shapes == {"denseblock1": (30, 37, 30), "denseblock4": (3, 4, 3)}


@pytest.mark.parametrize("classes", [1, 3])
def test_one_score_per_class(classes: int) -> None:
    network = densenet(in_channels=2, classes=classes, blocks=(1, 1), growth=2, width=4).eval()
    assert network(torch.zeros(2, 2, 32, 32, 32)).shape == (2, classes)


def test_other_poolings_leave_everything_else_as_it_is() -> None:
    size = {"in_channels": 1, "blocks": (1, 1), "growth": 2, "width": 4, "dropout": 0.0}
    network = densenet(**size, pooling="log-sum-exp:4").eval()
    network.load_state_dict(densenet(**size).state_dict())
    image = torch.randn(2, 1, 48, 64, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = torch.relu(network.features(image)).double()
        pooled = (4 * features).exp().mean(dim=(2, 3, 4)).log() / 4
        torch.testing.assert_close(network(image), network.class_layers.out(pooled.float()))
    with pytest.raises(ValueError, match="got 'middle'"):
        densenet(pooling="middle")


@pytest.mark.parametrize("pooling", ["max", "top:0.1", "log-sum-exp:4"])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
def test_pooling_keeps_the_kind_of_number(pooling: str, kind: torch.dtype) -> None:
    features = torch.rand(1, 2, 3, 4, 5, dtype=kind)
    assert GlobalPooling(pooling)(features).dtype == kind
    assert GlobalPooling(pooling).shares(features).dtype == kind
