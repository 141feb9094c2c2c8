"""From text of any kind to blocks of tokens."""

from foretell.data.corpus import held_out_split, read_corpus
from foretell.data.documents import read_documents
from foretell.data.packing import PackedBlocks
from foretell.data.prompts import read_prompt, read_prompts
from foretell.data.records import REFUSED, Bad, Document
from foretell.data.sketch import Sketch
from foretell.data.stdlib import HELD_OUT, standard_library
from foretell.data.streaming import StreamedBlocks

__all__ = [
    "HELD_OUT",
    "REFUSED",
    "Bad",
    "Document",
    "PackedBlocks",
    "Sketch",
    "StreamedBlocks",
    "held_out_split",
    "read_corpus",
    "read_documents",
    "read_prompt",
    "read_prompts",
    "standard_library",
]
