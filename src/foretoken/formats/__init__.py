"""External checkpoint layouts, one file each; `LAYOUTS` is the list the command line goes by."""

from foretoken.formats.base import Layout
from foretoken.formats.contract import Contract
from foretoken.formats.exporting import Exported, export
from foretoken.formats.files import Checkpoint
from foretoken.formats.importing import Imported, import_heads
from foretoken.formats.registry import LAYOUTS, layout, recognise

__all__ = [
    "LAYOUTS",
    "Checkpoint",
    "Contract",
    "Exported",
    "Imported",
    "Layout",
    "export",
    "import_heads",
    "layout",
    "recognise",
]
