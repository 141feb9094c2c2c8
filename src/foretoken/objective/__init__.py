"""The training objective: cross-entropy per depth, and how the depths are weighted."""

from foretoken.objective.loss import cross_entropy
from foretoken.objective.weights import DepthWeights

__all__ = ["DepthWeights", "cross_entropy"]
