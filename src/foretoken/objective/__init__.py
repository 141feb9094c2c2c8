"""The training objective: what each depth learns, how the depths are weighted, and the order in
which their gradients are computed."""

from foretoken.objective.config import ObjectiveConfig
from foretoken.objective.gradients import depth_by_depth
from foretoken.objective.loss import Lesson, Soft, lesson_loss, marginal_soft, backbone_soft

__all__ = ["ObjectiveConfig", "Lesson"]
