"""Decoding: drafters, acceptance rules, and the loop that joins them."""

from foretoken.decoding.acceptance import AcceptanceRule, Exact, Verdict
from foretoken.decoding.drafters import Drafter, NoDrafter, drafter_for
from foretoken.decoding.loop import Generation, Step, decode

__all__ = [
    "AcceptanceRule",
    "Drafter",
    "Exact",
    "Generation",
    "NoDrafter",
    "Step",
    "Verdict",
    "decode",
    "drafter_for",
]
