"""The view on an unmodified causal language model."""

from foretell.backbone.abilities import (
    Ability,
    ability,
    forget_abilities,
    isolates_documents,
    rehearses,
)
from foretell.backbone.anatomy import Scale
from foretell.backbone.calls import BackboneOutput, BlockCall
from foretell.backbone.context import warn_longer
from foretell.backbone.view import Backbone, fingerprint
from foretell.backbone.weights import require_usable

__all__ = [
    "Ability",
    "Backbone",
    "BackboneOutput",
    "BlockCall",
    "Scale",
    "ability",
    "fingerprint",
    "forget_abilities",
    "isolates_documents",
    "rehearses",
    "require_usable",
    "warn_longer",
]
