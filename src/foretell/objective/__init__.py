"""The training objective: what each depth learns, how much it counts, in which order the gradients
are computed, and the loss of a backbone and its head over a batch.
"""

from foretell.objective.config import ObjectiveConfig
from foretell.objective.gradients import Objective, all_depths, depth_by_depth
from foretell.objective.joint import JointLoss, MTPOutput, depth_hidden
from foretell.objective.loss import BackboneTarget, MarginalTarget, Readout, Target, depth_loss

__all__ = [
    "BackboneTarget",
    "JointLoss",
    "MTPOutput",
    "MarginalTarget",
    "Objective",
    "ObjectiveConfig",
    "Readout",
    "Target",
    "all_depths",
    "depth_by_depth",
    "depth_hidden",
    "depth_loss",
]
