"""Evaluation: predictions by depth on held-out text, and decoding speed side by side."""

from foretell.evaluation.baselines import probed_baselines
from foretell.evaluation.depths import DepthTable, measure_heads, measure_marginals
from foretell.evaluation.loops import loop_start
from foretell.evaluation.methods import Foretell, Transformers, methods_of
from foretell.evaluation.seen import describe_seen, seen_in_training
from foretell.evaluation.speed import SpeedTable, acceptance_by_depth, compare
from foretell.evaluation.verdict import (
    Verdict,
    verdict_of_depths,
    verdict_of_heads,
    verdict_of_speed,
    verdicts_of_speed,
)

__all__ = [
    "DepthTable",
    "Foretell",
    "SpeedTable",
    "Transformers",
    "Verdict",
    "acceptance_by_depth",
    "compare",
    "describe_seen",
    "loop_start",
    "measure_heads",
    "measure_marginals",
    "methods_of",
    "probed_baselines",
    "seen_in_training",
    "verdict_of_depths",
    "verdict_of_heads",
    "verdict_of_speed",
    "verdicts_of_speed",
]
