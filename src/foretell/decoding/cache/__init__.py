"""What has been read: keys and values of the rows, from whose ends tokens can be taken back."""

from foretell.decoding.cache.blocks import keeps_blocks
from foretell.decoding.cache.past import Past, new_past
from foretell.decoding.cache.restoring import (
    READ_AGAIN,
    RestoringPast,
    recurrent_layers,
    require_rollback,
)
from foretell.decoding.cache.slotted import SlottedPast, takes_masks

__all__ = [
    "READ_AGAIN",
    "Past",
    "RestoringPast",
    "SlottedPast",
    "keeps_blocks",
    "new_past",
    "recurrent_layers",
    "require_rollback",
    "takes_masks",
]
