"""The probe: what a model already knows about its future tokens, before any training."""

from foretoken.probe.classes import TokenClasses
from foretoken.probe.marginal import Marginal, marginalize
from foretoken.probe.methods import (
    DraftModel,
    Marginalization,
    Method,
    NGrams,
    PromptLookup,
    RepeatLast,
)
from foretoken.probe.ngram import NGram
from foretoken.probe.run import Journal, measure

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
]
