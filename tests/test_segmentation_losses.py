"""What segmentation networks learn, recomputed from its parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.nets import SegResNetVAE
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from voxplain.errors import InputError
from voxplain.losses import blob_loss, normalised_dice_loss
from voxplain.segmentation_losses import LesionSettings, TumourSettings, lesion_loss, tumour_loss

PARTS = [[1], [2], [3]]
REGIONS = [[3], [2, 3], [1, 2, 3]]


def test_the_loss_of_lesions_is_the_sum_of_its_parts() -> None:
    random = torch.Generator().manual_seed(0)
    output = torch.randn(2, 3, 4, 4, 4, generator=random)
    blobs = torch.zeros(2, 4, 4, 4, dtype=torch.int64)
    blobs[0, :2, 0, 0], blobs[0, 3, 3, 3] = 1, 2
    settings = LesionSettings(load=0.01, blob=2.0, cross_entropy=0.5)
    probability = output.softmax(dim=1)[:, 2]
    expected = normalised_dice_loss(probability, blobs > 0, load=0.01) + 2 * blob_loss(probability, blobs, load=0.01)
    expected = expected + 0.5 * cross_entropy(output, 2 * (blobs > 0).long())
    assert float(lesion_loss(output, blobs, 2, settings)) == pytest.approx(float(expected), rel=1e-6)
    alone = LesionSettings(load=0.01, blob=0)
    assert float(lesion_loss(output, blobs, 2, alone)) == pytest.approx(
        float(normalised_dice_loss(probability, blobs > 0, load=0.01))
    )
    # The class of background is the first that is not the lesion's.
    first = LesionSettings(load=0.01, blob=0, cross_entropy=1)
    expected = normalised_dice_loss(output.softmax(dim=1)[:, 0], blobs > 0, load=0.01)
    expected = expected + cross_entropy(output, (blobs == 0).long())
    assert float(lesion_loss(output, blobs, 0, first)) == pytest.approx(float(expected), rel=1e-6)


class Says(nn.Module):
    """A network whose output does not depend on the image."""

    def __init__(self, output: torch.Tensor, branch: torch.Tensor | None = None) -> None:
        super().__init__()
        self.output, self.branch = output, branch

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        return self.output if self.branch is None else (self.output, self.branch)


@pytest.mark.parametrize("channels", [PARTS, REGIONS])
def test_the_loss_of_tumours_is_the_sum_of_its_parts(channels: list[list[int]]) -> None:
    random = np.random.default_rng(0)
    scores, parts = random.normal(size=(2, 3, 4, 5, 6)), random.integers(0, 4, (2, 4, 5, 6))
    # Myronenko 2018, Eq. 2, channel by channel; MONAI adds 1e-5 above and below.
    losses, wanted = [], np.stack([np.isin(parts, values) for values in channels], axis=1).astype(float)
    for item in range(2):
        for channel in range(3):
            p, q = 1 / (1 + np.exp(-scores[item, channel])), wanted[item, channel]
            losses.append(1 - (2 * (p * q).sum() + 1e-5) / ((p**2).sum() + (q**2).sum() + 1e-5))
    output, images = torch.tensor(scores, dtype=torch.float32), torch.zeros(2, 4, 4, 5, 6)
    settings = TumourSettings(reconstruction=0.1, cross_entropy=0.5)
    crossed = float(binary_cross_entropy_with_logits(output, torch.tensor(wanted, dtype=torch.float32)))
    for branch, more in ((None, 0.0), (torch.tensor(3.0), 0.3)):
        found = tumour_loss(Says(output, branch), images, torch.tensor(parts), channels, settings)
        assert float(found) == pytest.approx(np.mean(losses) + 0.5 * crossed + more, rel=1e-5)
    plain = tumour_loss(Says(output), images, torch.tensor(parts), channels, TumourSettings())
    assert float(plain) == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_variational_branch_learns_in_the_fast_layout_too() -> None:
    """MONAI's own training fails there; inside, it gives mean squared error plus divergence."""
    network = SegResNetVAE(input_image_size=(16, 16, 16), init_filters=8, in_channels=4, out_channels=3)
    images = torch.randn(1, 4, 16, 16, 16).to(memory_format=torch.channels_last_3d)
    parts = torch.randint(0, 4, (1, 16, 16, 16))
    torch.manual_seed(0)
    loss = tumour_loss(network, images, parts, PARTS, TumourSettings(reconstruction=0.1))
    torch.manual_seed(0)
    without = tumour_loss(network, images, parts, PARTS, TumourSettings(reconstruction=0))
    torch.manual_seed(0)
    branch = network(images.contiguous())[1]
    assert float((loss - without).detach()) == pytest.approx(0.1 * float(branch.detach()), rel=1e-4)
    loss.backward()
    assert network.vae_fc1.weight.grad is not None


def test_what_does_not_fit_is_refused() -> None:
    settings = LesionSettings()
    with pytest.raises(InputError, match="a map per class on the patch's grid"):
        lesion_loss(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 8, 8, 8, dtype=torch.int64), 1, settings)
    parts = torch.zeros(1, 4, 4, 4, dtype=torch.int64)
    with pytest.raises(InputError, match="expected 3 maps on the patch's grid"):
        tumour_loss(Says(torch.zeros(1, 2, 4, 4, 4)), torch.zeros(1, 4, 4, 4, 4), parts, PARTS, TumourSettings())
    with pytest.raises(InputError, match="blob is a weight of at least 0"):
        LesionSettings(blob=-1.0)
    with pytest.raises(InputError, match="reconstruction is a weight of at least 0"):
        TumourSettings(reconstruction=-1.0)
