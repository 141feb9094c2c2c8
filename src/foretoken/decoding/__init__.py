"""Decoding: drafters, acceptance rules, and the loop that joins them."""

from foretoken.decoding.acceptance import (
    AcceptanceRule,
    Distance,
    Exact,
    MinimumBlock,
    SpeculativeSampling,
    TopK,
    Typical,
    Verdict,
)
from foretoken.decoding.batch import Batch, Step, Stop, StopStrings, StopTokens
from foretoken.decoding.draft import Draft
from foretoken.decoding.drafters import (
    Committed,
    Drafter,
    LookupDrafter,
    ModelDrafter,
    NoDrafter,
    drafter_for,
)
from foretoken.decoding.layout import store_by_columns, store_by_rows
from foretoken.decoding.length import AutoLength, Measured
from foretoken.decoding.loop import Generation, decode
from foretoken.decoding.sampling import Sampler, Sampling
from foretoken.decoding.text import Detokenizer
from foretoken.decoding.tree import TreeShape

__all__ = [
    "AcceptanceRule",
    "AutoLength",
    "Batch",
    "Committed",
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
    "store_by_columns",
    "store_by_rows",
]
