"""What has been read: keys and values of the rows, from whose ends tokens can be taken back."""

from foretell.decoding.cache.blocks import keeps_blocks
from foretell.decoding.cache.past import Past, decodes, new_past, require_decoding, require_steps
from foretell.decoding.cache.restoring import (
    READ_AGAIN,
    RestoringPast,
    new_layers,
    recurrent_layers,
    require_rollback,
)
from foretell.decoding.cache.slotted import SlottedPast, takes_masks

__all__ = [
    "READ_AGAIN",
    "Past",
    "RestoringPast",
    "SlottedPast",
    "decodes",
    "keeps_blocks",
    "new_layers",
    "new_past",
    "recurrent_layers",
    "require_decoding",
    "require_rollback",
    "require_steps",
    "takes_masks",
]
