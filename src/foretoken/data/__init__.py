"""From text of any kind to blocks of tokens."""

from foretoken.data.documents import Document, read_documents
from foretoken.data.packing import PackedBlocks, draw_held_out, held_out_split
from foretoken.data.stdlib import HELD_OUT, standard_library
from foretoken.data.streaming import StreamedBlocks

__all__ = [
    "HELD_OUT",
    "Document",
    "PackedBlocks",
    "StreamedBlocks",
    "draw_held_out",
    "held_out_split",
    "read_documents",
    "standard_library",
]
