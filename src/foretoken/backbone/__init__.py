"""The view on an unmodified causal language model."""

from foretoken.backbone.calls import BackboneOutput, BlockCall
from foretoken.backbone.discovery import Scale
from foretoken.backbone.view import Backbone, BlockInit, BlockKind, fingerprint

__all__ = [
    "Backbone",
    "BackboneOutput",
    "BlockCall",
    "BlockInit",
    "BlockKind",
    "Scale",
    "fingerprint",
]
