"""Putting a head on a backbone: one that cannot run its blocks as drafting will is refused now."""

import logging

from foretell.backbone import Ability, Backbone, rehearses
from foretell.backbone.anatomy import name_of
from foretell.backbone.weights import cast_parameters
from foretell.decoding.cache import decodes, keeps_blocks
from foretell.errors import BackboneError, InputError
from foretell.heads import Head, HeadConfig, Parts, head_class

log = logging.getLogger(__name__)


def build_head(backbone: Backbone, config: HeadConfig) -> Head:
    """A new head of `config`, cut to the backbone's measure, on its device and of its type.

    Raises:
        BackboneError: its blocks cannot be run as the head has to run them.
        InputError: it drafts more tokens than there are.
    """
    if config.vocabulary is not None and config.vocabulary > backbone.vocab_size:
        raise InputError(
            f"head.vocabulary is {config.vocabulary}; {name_of(backbone.model)} has "
            f"{backbone.vocab_size} tokens."
        )
    parts = Parts(
        hidden_size=backbone.hidden_size,
        num_layers=backbone.num_layers,
        block=lambda: backbone.new_block(config.init, config.block),
        norm=backbone.new_norm,
        new_norm=backbone.fresh_norm,
    )
    head = head_class(config.kind)(config, parts).to(device=backbone.device)
    cast_parameters(head, backbone.dtype)
    if head.runs_blocks:
        _require_blocks(backbone, head)
    return head


def _require_blocks(backbone: Backbone, head: Head) -> None:
    rehearsed = rehearses(backbone)  # tried now, though some heads only ask when decoding
    able = rehearsed if head.runs_ahead else Ability()
    if able := able and keeps_blocks(backbone, head.runs_ahead):
        return
    other = "parallel or residual" if head.runs_ahead else "residual"
    raise BackboneError(
        f"{name_of(backbone.model)} cannot carry {head.config.kind} heads: {able.lacking}; "
        f"use {other} heads."
    )


def warn_if_not_decoded(backbone: Backbone) -> None:
    """Log a warning where a model can be trained with heads and not decoded in drafts."""
    if not (decoded := decodes(backbone)):
        log.warning(
            "%s can be trained with heads, but not decoded in drafts: %s",
            name_of(backbone.model),
            decoded.lacking,
        )
