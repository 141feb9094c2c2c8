"""The training objective: what each depth learns, how much it counts, and in which order the
gradients are computed.
"""

from foretell.objective.config import ObjectiveConfig
from foretell.objective.gradients import Objective, all_depths, depth_by_depth
from foretell.objective.loss import BackboneTarget, MarginalTarget, Target, depth_loss

__all__ = [
    "BackboneTarget",
    "MarginalTarget",
    "Objective",
    "ObjectiveConfig",
    "Target",
    "all_depths",
    "depth_by_depth",
    "depth_loss",
]
