"""The probe: what a model already knows about its future tokens, before any training."""

from foretell.probe.branches import require_branches
from foretell.probe.classes import TokenClasses
from foretell.probe.marginal import Marginal, marginalize
from foretell.probe.methods import (
    DraftModel,
    Marginalization,
    Method,
    NGrams,
    PromptLookup,
    RepeatLast,
)
from foretell.probe.ngram import NGram
from foretell.probe.run import Journal, measure

__all__ = [
    "DraftModel",
    "Journal",
    "Marginal",
    "Marginalization",
    "Method",
    "NGram",
    "NGrams",
    "PromptLookup",
    "RepeatLast",
    "TokenClasses",
    "marginalize",
    "measure",
    "require_branches",
]
