"""Methods of explanation; `__all__` is the list that the command line and the contract suite read."""

from voxplain.explain.cam import GradCAM
from voxplain.explain.relevance import RelevanceMap

__all__ = ["GradCAM", "RelevanceMap"]
