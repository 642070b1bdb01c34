"""voxplain explains networks that read 3D medical images, and turns the explanations into segmentations."""

from voxplain import lesions, refine, segment
from voxplain.checks.check import check
from voxplain.compute import Compute
from voxplain.errors import InputError
from voxplain.explain import (
    LIME,
    RISE,
    GradCAM,
    GradCAMPlusPlus,
    GuidedBackprop,
    HeatMap,
    HiResCAM,
    InstanceGradCAMPlusPlus,
    InstanceSmoothGrad,
    KernelSHAP,
    LayerCAM,
    Occlusion,
    RelevanceMap,
    ScoreCAM,
)
from voxplain.explain.explainer import Explainer
from voxplain.explain.replaying import replay
from voxplain.explanation import Explanation, Region
from voxplain.grid import Grid
from voxplain.io.bundle import load_model, save_model, shipped_models
from voxplain.io.image import read_image
from voxplain.io.nifti import read, read_labels, save
from voxplain.model import Card, Model
from voxplain.report.page import report
from voxplain.scan import Labels, Scan
from voxplain.target import ClassScore, PredictedClass, RegionScore, Target

__all__ = [
    "LIME",
    "RISE",
    "Card",
    "ClassScore",
    "Compute",
    "Explainer",
    "Explanation",
    "GradCAM",
    "GradCAMPlusPlus",
    "Grid",
    "GuidedBackprop",
    "HeatMap",
    "HiResCAM",
    "InputError",
    "InstanceGradCAMPlusPlus",
    "InstanceSmoothGrad",
    "KernelSHAP",
    "Labels",
    "LayerCAM",
    "Model",
    "Occlusion",
    "PredictedClass",
    "Region",
    "RegionScore",
    "RelevanceMap",
    "Scan",
    "ScoreCAM",
    "Target",
    "check",
    "lesions",
    "load_model",
    "read",
    "read_image",
    "read_labels",
    "refine",
    "replay",
    "report",
    "save",
    "save_model",
    "segment",
    "shipped_models",
]
