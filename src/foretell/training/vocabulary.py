"""Which tokens new heads draft, where they do not draft all: the most frequent in what is learned.

Shapes: V the model's tokens, V' those that are drafted.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foretell.data import PackedBlocks, StreamedBlocks
from foretell.data.vocabulary import coverage, learned_tokens, most_frequent
from foretell.errors import InputError
from foretell.files import local_path
from foretell.model import MTPModel


def choose_vocabulary(model: MTPModel, blocks: PackedBlocks | StreamedBlocks) -> float | None:
    """Have heads draft what is frequent in `blocks`, if nobody has said what they draft.

    Returns:
        the share of what is learned that they can draft; None where they draft any token.
    """
    vocabulary = None if model.head is None else model.head.vocabulary
    if vocabulary is None:
        return None
    counts = learned_tokens(blocks, model.backbone.vocab_size)
    if not vocabulary.chosen:
        vocabulary.choose(most_frequent(counts, len(vocabulary), model.stop_tokens))
    return coverage(counts, vocabulary.tokens.cpu())


def read_vocabulary(path: str | Path, vocab_size: int, needed: Collection[int]) -> Tensor:
    """The tokens (V',) that a file lists: JSON, one list of ids.

    Args:
        path: the file.
        vocab_size: V.
        needed: the tokens that end a text, without which no draft ever does.

    Raises:
        InputError: it is no such list, or leaves one of them out.
    """
    try:
        tokens: Any = json.loads(local_path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error}).") from None
    if not isinstance(tokens, list) or not tokens or any(type(one) is not int for one in tokens):
        raise InputError(f"{path}: must be a list of token ids.")
    if outside := [token for token in tokens if not 0 <= token < vocab_size]:
        raise InputError(f"{path}: the model has no token {outside[0]}; it has {vocab_size}.")
    if missing := sorted({token for token in needed if 0 <= token < vocab_size} - set(tokens)):
        raise InputError(f"{path}: leaves out {missing[0]}, which ends a text; add it.")
    return torch.tensor(sorted(set(tokens)))
