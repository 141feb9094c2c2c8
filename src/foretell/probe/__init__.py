"""The probe: what a model already knows about its future tokens, before any training."""

from foretell.probe.branches import require_branches
from foretell.probe.classes import TokenClasses
from foretell.probe.marginal import Marginal, marginalize
from foretell.probe.methods import (
    DraftModel,
    Marginalization,
    NGrams,
    Predictor,
    PromptLookup,
    RepeatLast,
)
from foretell.probe.ngram import NGram
from foretell.probe.run import Journal, measure
from foretell.probe.texts import Texts, read_texts
from foretell.probe.whole import ProbeOptions, ProbeResult, journal_of, probe_model

__all__ = [
    "DraftModel",
    "Journal",
    "Marginal",
    "Marginalization",
    "NGram",
    "NGrams",
    "Predictor",
    "ProbeOptions",
    "ProbeResult",
    "PromptLookup",
    "RepeatLast",
    "Texts",
    "TokenClasses",
    "journal_of",
    "marginalize",
    "measure",
    "probe_model",
    "read_texts",
    "require_branches",
]
