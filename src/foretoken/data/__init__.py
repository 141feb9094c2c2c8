"""From text of any kind to blocks of tokens."""

from foretoken.data.corpus import held_out_split, read_corpus
from foretoken.data.documents import Document, read_documents
from foretoken.data.packing import PackedBlocks
from foretoken.data.stdlib import HELD_OUT, standard_library
from foretoken.data.streaming import StreamedBlocks

__all__ = [
    "HELD_OUT",
    "Document",
    "PackedBlocks",
    "StreamedBlocks",
    "held_out_split",
    "read_corpus",
    "read_documents",
    "standard_library",
]
