"""Evaluation: predictions by depth on held-out text, and decoding speed side by side."""

from foretoken.evaluation.depths import DepthTable, measure_heads, measure_marginals
from foretoken.evaluation.loops import loop_start
from foretoken.evaluation.methods import Foretoken, Transformers
from foretoken.evaluation.speed import SpeedTable, acceptance_by_depth, compare

__all__ = [
    "DepthTable",
    "Foretoken",
    "SpeedTable",
    "Transformers",
    "acceptance_by_depth",
    "compare",
    "loop_start",
    "measure_heads",
    "measure_marginals",
]
