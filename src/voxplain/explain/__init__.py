"""Methods of explanation; `__all__` is the list that the command line and the contract suite read."""

from voxplain.explain.cam import GradCAM
from voxplain.explain.evidence import HeatMap
from voxplain.explain.gradient import GuidedBackprop
from voxplain.explain.instance import InstanceSmoothGrad
from voxplain.explain.kernel_shap import KernelSHAP
from voxplain.explain.lime import LIME
from voxplain.explain.occlusion import Occlusion
from voxplain.explain.relevance import RelevanceMap
from voxplain.explain.rise import RISE

__all__ = [
    "LIME",
    "RISE",
    "GradCAM",
    "GuidedBackprop",
    "HeatMap",
    "InstanceSmoothGrad",
    "KernelSHAP",
    "Occlusion",
    "RelevanceMap",
]
