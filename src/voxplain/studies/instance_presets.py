"""How much of paper instance (004) is done: the paper's numbers, what two cores do in an hour, and a smoke run."""

from __future__ import annotations

from dataclasses import dataclass

from voxplain.errors import InputError
from voxplain.explain.explainer import Explainer
from voxplain.explain.grad_cam_plus_plus import InstanceGradCAMPlusPlus
from voxplain.explain.instance import InstanceSmoothGrad
from voxplain.explain.occlusion import Occlusion
from voxplain.explain.relevance import RelevanceMap

_EVERY_MM = tuple(float(mm) for mm in range(26))


@dataclass(frozen=True)
class InstancePreset:
    """How much is done.

    Attributes:
        explainer: the method of the paper.
        most: lesions of a class that are explained of each real patient, drawn at random; None takes all.
        most_made: the same of each made patient.
        placed: patients in whom a lesion is moved.
        context: lesions of each set and patient whose surroundings are hidden.
        distances: in mm, so much of which is shown.
        cheap: methods that explain the same lesions.
        costly: methods that explain `few` TP and FP of each patient.
        few: how many of each.
        phantoms: made patients beside the real ones.
        spacing: their voxels, in mm.
    """

    explainer: InstanceSmoothGrad
    most: int | None
    placed: int
    context: int
    distances: tuple[float, ...]
    cheap: tuple[Explainer, ...]
    costly: tuple[Explainer, ...]
    few: int
    phantoms: int
    most_made: int | None = None
    spacing: float = 1.0


PRESETS = {
    # 004, 2.3 and 2.5: 50 copies, all voxels (up to 512 here), every lesion, ten patients whose lesion is moved.
    "paper": InstancePreset(
        InstanceSmoothGrad(copies=50, sigma=0.05, most_voxels=512),
        most=None,
        placed=10,
        context=1000,
        distances=_EVERY_MM,
        cheap=(InstanceGradCAMPlusPlus(),),
        costly=(Occlusion(partition="cubes:10", stride=5, passes=200), RelevanceMap(partition="cubes:10")),
        few=20,
        phantoms=20,
    ),
    "small": InstancePreset(
        InstanceSmoothGrad(copies=5, sigma=0.05, most_voxels=32),
        most=40,
        placed=2,
        context=8,
        distances=_EVERY_MM,
        cheap=(InstanceGradCAMPlusPlus(),),
        costly=(Occlusion(partition="cubes:10", stride=5, passes=40), RelevanceMap(partition="cubes:20")),
        few=4,
        phantoms=12,
        most_made=10,
    ),
    # Numbers that mean nothing, in seconds.
    "quick": InstancePreset(
        InstanceSmoothGrad(copies=1, sigma=0.05, most_voxels=2),
        most=2,
        placed=1,
        context=1,
        distances=(0.0, 5.0, 25.0),
        cheap=(InstanceGradCAMPlusPlus(),),
        costly=(Occlusion(partition="cubes:40", stride=20, passes=2), RelevanceMap(partition="cubes:60")),
        few=1,
        phantoms=0,
        most_made=2,
        spacing=2.0,
    ),
}


def preset(name: str) -> InstancePreset:
    """The preset of a name.

    Raises:
        InputError: no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"--preset is one of {', '.join(PRESETS)}; got {name!r}")
    return PRESETS[name]
