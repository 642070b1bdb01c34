"""What is measured on: networks of the papers' sizes, a scan cut to a size, and the parts it falls into."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import DenseNet169
from torch import nn

import voxplain as vx
from voxplain.compute import Compute
from voxplain.datasets import brats, phantom
from voxplain.engine.probe import Probe
from voxplain.networks.resnet import resnet
from voxplain.partition import supervoxels
from voxplain.preparation import prepare

Shape = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and a scan it reads as it is: z-scored over the brain, its background exactly 0."""

    name: str
    model: vx.Model
    scan: vx.Scan

    @property
    def input(self) -> torch.Tensor:
        """The scan as peers want it, (1, C, X, Y, Z)."""
        return torch.from_numpy(self.scan.data.copy())[None]

    def parts(self, segments: int = 100) -> vx.Labels:
        """SLIC supervoxels of the brain, with voxplain's own defaults."""
        return supervoxels(self.scan.data, self.scan.grid, segments=segments, mask=self.scan.foreground())

    def probe(self, compute: Compute) -> Probe:
        """The model at work on the scan."""
        (prepared,) = prepare(self.scan, self.model.card)
        return Probe(self.model, prepared, vx.ClassScore("tumour"), 0, compute)


@cache
def _whole(data: Path | None, patient: int, spacing: float) -> vx.Scan:
    if data is None:
        return phantom.glioma(seed=patient, spacing=spacing).scan
    return brats.cases(data)[patient].scan()


def head(data: Path | None, shape: Shape, *, patient: int = 0, spacing: float = 1.0) -> vx.Scan:
    """A brain with a tumour, cut to a shape around its middle, z-scored per sequence, background 0.

    A real scan where `data` holds BraTS patients of 1 mm; else a phantom.
    """
    whole = _whole(data, patient, 2.0 if spacing >= 2 else 1.0)
    if spacing != whole.grid.spacing[0]:
        whole = whole.on(whole.grid.with_spacing([spacing] * 3))
    corners = [np.flatnonzero(whole.foreground().any(axis=axes))[[0, -1]] for axes in ((1, 2), (0, 2), (0, 1))]
    start = [int(corner.sum() + 1 - size) // 2 for corner, size in zip(corners, shape, strict=True)]
    cut = whole.on(whole.grid.window(start, shape))
    brain, values = cut.foreground(), cut.data.copy()
    for channel in values:
        channel[brain] = (channel[brain] - channel[brain].mean()) / channel[brain].std()
    return vx.Scan(values, cut.grid, cut.channels)


def settled(network: nn.Module, scan: vx.Scan) -> nn.Module:
    """Random weights that say something: batch norms take their statistics from the scan, scores end up around 0."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm3d)]
    inputs = torch.from_numpy(scan.data.copy())[None]
    with torch.no_grad():
        for norm in norms:
            # A tenth of the untrained variance stays, so that maps that are almost empty are not blown up.
            norm.momentum = 0.9
        network.train()(inputs)
        network.eval()
        last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        last.bias -= network(inputs)[0]
    return network


def subject(name: str, scan: vx.Scan, *, width: int = 64) -> Subject:
    """A scan, and a network ("resnet50" or "densenet169") with random weights of seed 0.

    `width` is the number of features after the stem; 64 in the papers, fewer in smoke runs.
    """
    torch.manual_seed(0)
    builders = {
        "resnet50": lambda: resnet(50, width=width),
        "densenet169": lambda: DenseNet169(3, 4, 1, init_features=width, growth_rate=width // 2),
    }
    card = vx.Card(name=name, channels=scan.channels, classes=("tumour",))
    return Subject(name, vx.Model(settled(builders[name](), scan), card), scan)


def trained(data: Path | None) -> Subject:
    """The shipped hemisphere network, and the half with the tumour of a scan of 2 mm as it reads it."""
    model = vx.load_model("tumour-hemisphere")
    scan = phantom.glioma(seed=1).scan if data is None else brats.cases(data.parent / "glioma_2mm")[0].scan()
    halves = prepare(scan, model.card)
    probes = [Probe(model, half, vx.ClassScore(model.card.classes[0]), 0, Compute(device="cpu")) for half in halves]
    half = max(zip(probes, halves, strict=True), key=lambda pair: pair[0].logit)[1].input
    card = vx.Card(name=model.card.name, channels=half.channels, classes=("tumour",))
    return Subject(model.card.name, vx.Model(model.network, card), half)


def real_scans() -> Path | None:
    """The folder of real scans at 1 mm, where there is one."""
    folder = Path(os.environ.get("VOXPLAIN_DATA", Path(__file__).parents[2] / "shared" / "data")) / "glioma_1mm"
    return folder if folder.is_dir() else None
