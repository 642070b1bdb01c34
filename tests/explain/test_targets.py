"""Which method takes which target: every one is run with every other, and the page says what came of it."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

import voxplain as vx
from voxplain import explain
from voxplain.networks.self_explaining import SelfExplaining

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "lesions.md"
GRID = vx.Grid((10, 12, 8), np.eye(4))
SCAN = vx.Scan(np.random.default_rng(0).uniform(1, 2, (2, *GRID.shape)), GRID, ("flair", "t1"))
REGION = np.zeros(GRID.shape, int)
REGION[3:6, 4:8, 2:5] = 1
TARGETS = {
    "ClassScore": vx.ClassScore("b"),
    "PredictedClass": vx.PredictedClass(),
    "RegionScore": vx.RegionScore("b", vx.Labels(REGION, GRID)),
}
# Small enough for a network that is one layer deep.
SETTINGS: dict[str, dict[str, object]] = {
    "occlusion": {"partition": "cubes:4", "stride": 4},
    "lime": {"samples": 30, "segments": 8},
    "kernel-shap": {"samples": 30, "segments": 8},
    "rise": {"cell": 4.0, "samples": 30},
    "relevance-map": {"segments": 8},
    "instance-smoothgrad": {"copies": 2},
}


class Network(nn.Module):
    """Features of two sequences, and the score of two classes: of all of them, or in every voxel."""

    def __init__(self, segments: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(2, 3, 3, padding=1), nn.ReLU())
        self.head = nn.Conv3d(3, 2, 1)
        self.segments = segments

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        scores = self.head(self.body(inputs))
        return scores if self.segments else scores.flatten(2).mean(dim=2)


class Evident(SelfExplaining):
    def __init__(self) -> None:
        super().__init__(3, 2, spatial_dims=3, pooling="top:1")
        self.body = nn.Sequential(nn.Conv3d(2, 3, 3, padding=1), nn.ReLU())

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.body(inputs)


def takes(kind: type[vx.Explainer], target: str) -> bool:
    """Whether the method explains the target; a network is made that has what both ask for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        segments = target == "RegionScore"
        network = Evident() if kind.needs == "self-explaining" and not segments else Network(segments)
        # What is there speaks for the second class, so that no map is zero.
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.abs_()
            network.head.weight[0] = 0
    card = vx.Card(name="tiny", channels=("flair", "t1"), classes=("a", "b"), activation="softmax")
    layer = {"layer": "body"} if "layer" in {option.name for option in dataclasses.fields(kind)} else {}
    explainer = kind(**(layer | SETTINGS.get(kind.name, {})))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            why = explainer(vx.Model(network.eval(), card), SCAN, target=TARGETS[target], compute=vx.Compute("cpu"))
    except vx.InputError as error:
        if f"{kind.name} explains" not in str(error):
            raise
        return False
    assert why.map.any()
    assert why.provenance["target"]["kind"] == target
    return True


def table() -> str:
    """The table of the page."""
    lines = [f"| method | {' | '.join(f'`{name}`' for name in TARGETS)} |", "| --- |" + " --- |" * len(TARGETS)]
    kinds = sorted((getattr(explain, name) for name in explain.__all__), key=lambda kind: kind.name)
    for kind in kinds:
        lines.append(f"| `{kind.name}` | {' | '.join('yes' if takes(kind, name) else '–' for name in TARGETS)} |")
    return "\n".join(lines)


def test_the_page_says_which_method_takes_which_target() -> None:
    found = table()
    assert found in PAGE.read_text(encoding="utf-8"), f"docs/how-to/lesions.md should say:\n{found}"


def test_what_a_method_says_of_itself_is_so() -> None:
    for name in explain.__all__:
        kind = getattr(explain, name)
        for target, value in TARGETS.items():
            assert takes(kind, target) == isinstance(value, kind.takes), (kind.name, target)
