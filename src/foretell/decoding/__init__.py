"""Decoding: drafters, acceptance rules, and the loop that joins them."""

from foretell.decoding.acceptance import (
    RULES,
    AcceptanceRule,
    Distance,
    Exact,
    MinimumBlock,
    SpeculativeSampling,
    TopK,
    Typical,
    Verdict,
)
from foretell.decoding.batch import Batch, Step
from foretell.decoding.columns import store_by_columns, store_by_rows
from foretell.decoding.draft import Draft
from foretell.decoding.drafters import (
    Committed,
    Drafter,
    LookupDrafter,
    ModelDrafter,
    NoDrafter,
    drafter_for,
    drafter_named,
)
from foretell.decoding.length import AutoLength, Measured
from foretell.decoding.loop import Generation, decode
from foretell.decoding.options import DecodeOptions
from foretell.decoding.rules import rule_named
from foretell.decoding.sampling import Sampler, Sampling
from foretell.decoding.stops import Stop, StopStrings, StopTokens
from foretell.decoding.text import Detokenizer
from foretell.decoding.tree import TreeShape

__all__ = [
    "RULES",
    "AcceptanceRule",
    "AutoLength",
    "Batch",
    "Committed",
    "DecodeOptions",
    "Detokenizer",
    "Distance",
    "Draft",
    "Drafter",
    "Exact",
    "Generation",
    "LookupDrafter",
    "Measured",
    "MinimumBlock",
    "ModelDrafter",
    "NoDrafter",
    "Sampler",
    "Sampling",
    "SpeculativeSampling",
    "Step",
    "Stop",
    "StopStrings",
    "StopTokens",
    "TopK",
    "TreeShape",
    "Typical",
    "Verdict",
    "decode",
    "drafter_for",
    "drafter_named",
    "rule_named",
    "store_by_columns",
    "store_by_rows",
]
