"""Networks by what they compute: shapes, and the local classifier's score by hand."""

import numpy as np
import pytest
import torch

from voxplain.networks.local import LocalClassifier


@pytest.mark.parametrize("classes", [1, 3])
def test_the_local_classifier_is_for_minus_against_at_the_strongest_places(classes: int) -> None:
    torch.manual_seed(0)
    network = LocalClassifier(in_channels=2, classes=classes, places=4).eval()
    image = torch.randn(3, 2, 12, 10, 8)
    with torch.inference_mode():
        score = network(image)
        evidence = network.evidence(network.body(image)).numpy().reshape(3, 2 * classes, -1)
    assert score.shape == (3, classes)
    highest = np.sort(evidence, axis=2)[:, :, -4:].mean(axis=2)
    np.testing.assert_allclose(score.numpy(), highest[:, :classes] - highest[:, classes:], rtol=1e-5)


def test_every_option_of_a_layer_counts() -> None:
    network = LocalClassifier(widths=(4, 6, 8), kernels=(5, 3, 1), strides=(1, 2, 1), places=1).eval()
    body = [(layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0])
            for layer in network.body if isinstance(layer, torch.nn.Conv3d)]  # fmt: skip
    assert body == [(4, 4, 5, 1), (4, 6, 3, 2), (6, 8, 1, 1)]
    with torch.inference_mode():
        assert network.body(torch.zeros(1, 4, 8, 8, 8)).shape == (1, 8, 4, 4, 4)
        assert network(torch.zeros(1, 4, 8, 8, 8)).shape == (1, 1)
