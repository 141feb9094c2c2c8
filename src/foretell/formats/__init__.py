"""External checkpoint layouts, one file each; `LAYOUTS` is the list the command line goes by."""

from foretell.formats import (  # noqa: F401 - each enters its layouts
    deepseek_v3,
    eagle,
    eagle3,
    glm4_moe,
    huggingface,
    medusa,
    mimo,
    qwen,
    vllm,
)
from foretell.formats.base import LAYOUTS, Layout
from foretell.formats.contract import Contract
from foretell.formats.exporting import Exported, export, upload
from foretell.formats.files import Checkpoint
from foretell.formats.fitting import head_for, require_layout
from foretell.formats.importing import Imported, import_heads
from foretell.formats.registry import layout, layouts_for, recognise

__all__ = [
    "LAYOUTS",
    "Checkpoint",
    "Contract",
    "Exported",
    "Imported",
    "Layout",
    "export",
    "head_for",
    "import_heads",
    "layout",
    "layouts_for",
    "recognise",
    "require_layout",
    "upload",
]
