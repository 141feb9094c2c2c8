"""What is done to a model before it is trained: attention, precision, compiling, checkpointing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from foretell.backbone import Backbone, isolates_documents
from foretell.backbone.weights import cast_parameters
from foretell.data import PackedBlocks, StreamedBlocks
from foretell.errors import BackboneError, InputError
from foretell.model import MTPModel


def check_blocks(model: MTPModel, blocks: PackedBlocks | StreamedBlocks) -> None:
    """Blocks must fit the context and the vocabulary, and keep documents apart where the backbone
    does not.
    """
    if isinstance(blocks, PackedBlocks):
        blocks.require_vocabulary(model.backbone.vocab_size)
    if not (blocks.one_document_per_block or isolates_documents(model.backbone, blocks.block_size)):
        raise BackboneError(
            f"{type(model.lm).__name__} lets packed documents attend to each other; "
            "make the blocks with one_document_per_block=True."
        )
    model.backbone.require_room(blocks.block_size, "blocks")


def check_loss(model: MTPModel) -> None:
    """The model's own loss, which its backbone goes on learning by, must be one that can be had."""
    model.backbone.auxiliary  # noqa: B018 - tried when it is first looked at


def set_attention(model: MTPModel, implementation: str) -> None:
    """Have the backbone and its heads attend with one of transformers' implementations."""
    try:
        model.lm.set_attn_implementation(implementation)
    except (ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"attention {implementation!r} cannot be used: {reason}") from None


def set_precision(model: MTPModel, precision: str) -> None:
    """What learns is float32, unless the optimiser keeps float32 copies (`bf16`)."""
    if precision == "bf16":
        if model.backbone.dtype != torch.bfloat16:
            _cast(model, torch.bfloat16)
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _cast(model: MTPModel, dtype: torch.dtype) -> None:
    """Cast the weights of a model that was loaded in another type, and see that it still runs."""
    cast_parameters(model, dtype)
    try:
        Backbone(model.lm)
    except (BackboneError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise BackboneError(
            f"{type(model.lm).__name__} does not run after a cast to {dtype} ({reason}); load it "
            "in that type."
        ) from None


@contextmanager
def compiled_blocks(model: MTPModel) -> Iterator[None]:
    """Blocks run compiled; their forward alone, because hooks look at how they are called."""
    kind = type(model.backbone.blocks[-1])
    blocks = [module for module in model.modules() if isinstance(module, kind)]
    for block in blocks:
        block.forward = torch.compile(block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def checkpoint_activations(model: MTPModel) -> None:
    """In the backbone's blocks, and in the heads' blocks as in those they were made like."""
    lm: Any = model.lm
    try:
        if hasattr(lm, "activation_checkpointing_enable"):  # its name since transformers 5.20
            lm.activation_checkpointing_enable({"use_reentrant": False})
        else:
            lm.gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise InputError(f"activations cannot be checkpointed: {error}") from None
    like: Any = model.backbone.blocks[-1]
    for block in model.head.modules() if model.head is not None else ():
        if isinstance(block, type(like)) and hasattr(like, "_gradient_checkpointing_func"):
            block.gradient_checkpointing = True
            block._gradient_checkpointing_func = like._gradient_checkpointing_func
