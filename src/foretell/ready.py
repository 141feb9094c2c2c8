"""What work begins with: a model by its name, its tokenizer, and text as the model can read it.

Shapes: T prompt or block.
"""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from foretell.backbone import isolates_documents
from foretell.checkpoints import load_tokenizer
from foretell.data import REFUSED, Bad, PackedBlocks, Sketch, read_documents, read_prompts
from foretell.data.tokenization import Tokenized, tokenize_all
from foretell.decoding import store_by_columns
from foretell.errors import InputError
from foretell.hardware import pick_device, pick_dtype
from foretell.model import MTPModel


def load_model(
    name: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    backbone: str | None = None,
    *,
    by_columns: bool = True,
    quantized: bool = False,
) -> MTPModel:
    """A model on its device, ready to decode.

    Args:
        name: a directory, a Hub id, or a bundled model.
        device: see `foretell.hardware.pick_device`.
        dtype: see `foretell.hardware.pick_dtype`.
        backbone: where the backbone of heads lies, if not where they say.
        by_columns: store weights as is fastest for a few rows; passes of one width want them by
            rows, where what is computed for a row does not depend on its place.
        quantized: round its weights to 8 bits, see `MTPModel.quantize`.

    Raises:
        InputError: there is no such model, device or type.
        BackboneError: see `MTPModel.quantize`.
        CheckpointError: see `MTPModel.from_pretrained`.
    """
    where = pick_device(device)
    weights = pick_dtype(dtype, where)
    model = MTPModel.from_pretrained(name, backbone=backbone, dtype=weights, device=where)
    if quantized:
        model.quantize()
    if by_columns:
        store_by_columns(model)
    return model


def tokenizer_of(name: str, model: MTPModel) -> PreTrainedTokenizerBase:
    """The tokenizer beside the model of that name, checked against its vocabulary.

    Special tokens that the model does not know (Gemma 3 1B: one for images) may be there; a text
    that has them is refused.

    Raises:
        InputError: it has more tokens than the model.
        CheckpointError: there is none, or it is broken.
    """
    tokenizer, size = load_tokenizer(model.tokenizer_path or name), model.backbone.vocab_size
    added = tokenizer.added_tokens_decoder.items()
    beyond = sum(token.special for number, token in added if number >= size)
    if len(tokenizer) - beyond > size:
        raise InputError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens and the model {size}; they do not "
            "belong together."
        )
    return tokenizer


def read_blocks(
    data: str | Path,
    model: MTPModel,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    bad: Bad = REFUSED,
) -> PackedBlocks:
    """A corpus in blocks of T = `block_size` tokens, packed if the model keeps documents apart.

    Args:
        data: see `foretell.data.read_documents`.
        model: that is to read it.
        tokenizer: of the model.
        block_size: T.
        bad: what becomes of records that cannot be used.

    Raises:
        InputError: see `foretell.data.read_documents` and `PackedBlocks.from_documents`; the blocks
            are longer than the model's context.
    """
    pieces = tokenize_all(read_documents(data, bad), tokenizer, bad=bad)
    return pack(pieces, model, tokenizer, block_size)


def pack(
    pieces: Iterable[Tokenized],
    model: MTPModel,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
) -> PackedBlocks:
    """Documents in blocks of `block_size` tokens, packed if the model keeps them apart."""
    model.backbone.require_room(block_size, "blocks")
    return PackedBlocks.from_pieces(
        list(pieces),
        tokenizer,
        block_size,
        one_document_per_block=not isolates_documents(model.backbone, block_size),
    )


def prompts_with_room(
    path: str | Path,
    model: MTPModel,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    count: int,
    seed: int,
    *,
    max_new_tokens: int,
    bad: Bad = REFUSED,
    sketch: Sketch | None = None,
) -> list[Tensor]:
    """Prompts (1, T) on the model's device, each with room for `max_new_tokens` after it.

    The other arguments are those of `foretell.data.read_prompts`.

    Raises:
        InputError: see there; or all of them together do not fit.
    """
    backbone = model.backbone
    room = None if backbone.context is None else backbone.context - max_new_tokens
    prompts = read_prompts(path, tokenizer, length, count, seed, room=room, bad=bad, sketch=sketch)
    longest = max(prompt.shape[1] for prompt in prompts)
    backbone.require_room(longest + max_new_tokens, "prompts and their continuations")
    return [prompt.to(backbone.device) for prompt in prompts]
