"""Methods of explanation; `__all__` is the list that the command line and the contract suite read."""

from voxplain.explain.cam import GradCAM
from voxplain.explain.evidence import HeatMap
from voxplain.explain.grad_cam_plus_plus import GradCAMPlusPlus, InstanceGradCAMPlusPlus
from voxplain.explain.gradient import GuidedBackprop
from voxplain.explain.hires_cam import HiResCAM
from voxplain.explain.instance import InstanceSmoothGrad
from voxplain.explain.kernel_shap import KernelSHAP
from voxplain.explain.layer_cam import LayerCAM
from voxplain.explain.lime import LIME
from voxplain.explain.occlusion import Occlusion
from voxplain.explain.relevance import RelevanceMap
from voxplain.explain.rise import RISE
from voxplain.explain.score_cam import ScoreCAM

__all__ = [
    "LIME",
    "RISE",
    "GradCAM",
    "GradCAMPlusPlus",
    "GuidedBackprop",
    "HeatMap",
    "HiResCAM",
    "InstanceGradCAMPlusPlus",
    "InstanceSmoothGrad",
    "KernelSHAP",
    "LayerCAM",
    "Occlusion",
    "RelevanceMap",
    "ScoreCAM",
]
