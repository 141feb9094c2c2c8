"""Drafters, one file each: anything that proposes tokens."""

from foretell.decoding.drafters.base import DRAFT_LENGTH, NAMED, OF_HEADS, Committed, Drafter
from foretell.decoding.drafters.heads import drafter_for
from foretell.decoding.drafters.lookup import LookupDrafter
from foretell.decoding.drafters.model import ModelDrafter
from foretell.decoding.drafters.named import drafter_named, require_trees
from foretell.decoding.drafters.none import NoDrafter
from foretell.decoding.drafters.parallel import ParallelDrafter
from foretell.decoding.drafters.rollout import RolloutDrafter
from foretell.decoding.drafters.sequential import SequentialDrafter

__all__ = [
    "DRAFT_LENGTH",
    "NAMED",
    "OF_HEADS",
    "Committed",
    "Drafter",
    "LookupDrafter",
    "ModelDrafter",
    "NoDrafter",
    "ParallelDrafter",
    "RolloutDrafter",
    "SequentialDrafter",
    "drafter_for",
    "drafter_named",
    "require_trees",
]
