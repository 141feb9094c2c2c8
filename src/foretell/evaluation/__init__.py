"""Evaluation: predictions by depth on held-out text, and decoding speed side by side."""

from foretell.evaluation.depths import DepthTable, measure_heads, measure_marginals
from foretell.evaluation.loops import loop_start
from foretell.evaluation.methods import Foretell, Transformers
from foretell.evaluation.speed import SpeedTable, acceptance_by_depth, compare

__all__ = [
    "DepthTable",
    "Foretell",
    "SpeedTable",
    "Transformers",
    "acceptance_by_depth",
    "compare",
    "loop_start",
    "measure_heads",
    "measure_marginals",
]
