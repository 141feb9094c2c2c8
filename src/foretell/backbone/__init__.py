"""The view on an unmodified causal language model."""

from foretell.backbone.calls import BackboneOutput, BlockCall
from foretell.backbone.discovery import Scale
from foretell.backbone.view import Backbone, BlockInit, BlockKind, fingerprint

__all__ = [
    "Backbone",
    "BackboneOutput",
    "BlockCall",
    "BlockInit",
    "BlockKind",
    "Scale",
    "fingerprint",
]
