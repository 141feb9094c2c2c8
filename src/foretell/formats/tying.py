"""A backbone's embedding and output head as engines read them.

Where the two are one matrix, a checkpoint holds it under either name (`safetensors.save_model`
keeps the first one by the alphabet, `lm_head.weight`), and transformers ties whichever is there.
vLLM goes by `tie_word_embeddings` alone: it reads the matrix as the embedding, and leaves out what
is called an output head.
"""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from foretell.formats.files import Checkpoint

INSIDE = "language_model."
"""What stands before the names of a language model in a model of several kinds of input."""


def as_engines_read(base: Checkpoint, lm: PreTrainedModel) -> Checkpoint:
    """`base`, which `lm` was loaded from, or itself where an engine reads what transformers does.

    A shared matrix has the embedding's name; two matrices that the config calls one are called two.
    """
    embedding, output = _names(lm)
    if embedding is None or output is None:
        return base
    if lm.get_parameter(embedding) is lm.get_parameter(output):
        last = embedding.removeprefix(lm.base_model_prefix + ".")
        nested = embedding.replace("model.", "model." + INSIDE, 1)
        known = (embedding, last, nested)
        if output not in base.files or any(name in base.files for name in known):
            return base
        inside = any(name.startswith("model." + INSIDE) for name in base.files)
        return base.renamed({output: nested if inside else embedding})
    claimed = getattr(lm.config, "tie_word_embeddings", False)
    return base.with_config(_untied(base)) if claimed else base


def _names(lm: PreTrainedModel) -> tuple[str | None, str | None]:
    """What the weights of the embedding and the output head are called in `lm`."""
    names = {id(module): name for name, module in lm.named_modules()}

    def of(module: nn.Module | None) -> str | None:
        return None if module is None else f"{names[id(module)]}.weight"

    return of(lm.get_input_embeddings()), of(lm.get_output_embeddings())


def _untied(base: Checkpoint) -> dict[str, Any]:
    """The config without the claim that embedding and output head are one matrix."""
    config = {**base.config, "tie_word_embeddings": False}
    if base.text_config is not base.config:
        config["text_config"] = {**base.text_config, "tie_word_embeddings": False}
    return config
