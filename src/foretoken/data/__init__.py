"""From text of any kind to blocks of tokens."""

from foretoken.data.documents import Document, read_documents
from foretoken.data.packing import PackedBlocks, held_out_split
from foretoken.data.stdlib import HELD_OUT, standard_library

__all__ = [
    "HELD_OUT",
    "Document",
    "PackedBlocks",
    "held_out_split",
    "read_documents",
    "standard_library",
]
