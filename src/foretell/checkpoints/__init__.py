"""Models on disk: heads beside a checkpoint or apart from it, backbones, and adapters."""

from foretell.checkpoints.adapters import Adapters, base_of_adapters, insert_adapters
from foretell.checkpoints.heads import (
    ADAPTERS_DIRECTORY,
    CONFIG_FILE,
    CONFIG_FILES,
    HEADS_FILE,
    BackboneReference,
    StoredHeads,
    config_file,
    is_foretell_directory,
    read_heads,
    write_heads,
)
from foretell.checkpoints.loading import (
    APART,
    BUNDLED,
    load_causal_lm,
    load_tokenizer,
    new_causal_lm,
    resolve,
)
from foretell.checkpoints.opening import Loading, Opened, fill_head, open_checkpoint
from foretell.checkpoints.reading import open_tensors, read_object
from foretell.checkpoints.saving import Assembled
from foretell.checkpoints.wording import LOADING

__all__ = [
    "ADAPTERS_DIRECTORY",
    "APART",
    "BUNDLED",
    "CONFIG_FILE",
    "CONFIG_FILES",
    "HEADS_FILE",
    "LOADING",
    "Adapters",
    "Assembled",
    "BackboneReference",
    "Loading",
    "Opened",
    "StoredHeads",
    "base_of_adapters",
    "config_file",
    "fill_head",
    "insert_adapters",
    "is_foretell_directory",
    "load_causal_lm",
    "load_tokenizer",
    "new_causal_lm",
    "open_checkpoint",
    "open_tensors",
    "read_heads",
    "read_object",
    "resolve",
    "write_heads",
]
