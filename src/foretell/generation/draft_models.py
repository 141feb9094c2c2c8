"""Making sure that a draft model speaks the same vocabulary as the model that it drafts for."""

from typing import cast

from torch import Tensor

from foretell.backbone import Backbone
from foretell.checkpoints import load_tokenizer
from foretell.errors import CheckpointError, InputError


def require_same_tokens(
    name: str, draft: Backbone, tokenizer: str | None, model: Backbone, own_tokenizer: str | None
) -> None:
    """See to it that a draft model's tokens have the numbers that they have in the model.

    Args:
        name: of the draft model, for errors.
        draft: its backbone.
        tokenizer: where its tokenizer lies, if that is known.
        model: the backbone that it drafts for.
        own_tokenizer: where that one's lies.

    Raises:
        InputError: their tokenizers give a token different numbers, or do not show that
            vocabularies of different sizes are the same.
    """
    own, its = _numbers(own_tokenizer), _numbers(tokenizer)
    apart = next((token for token in own if its.get(token, own[token]) != own[token]), None)
    if apart is not None:
        raise InputError(
            f"{name}: token {apart!r} has number {its[apart]} there and {own[apart]} in the model; "
            "a draft model needs the same vocabulary."
        )
    if draft.vocab_size != model.vocab_size and (not own or own != its):
        raise InputError(
            f"{name} has a vocabulary of {draft.vocab_size} tokens, the model one of "
            f"{model.vocab_size}, and no tokenizers show that the difference is padding."
        )


def resize_vocabulary(draft: Backbone, size: int) -> None:
    """Give it `size` rows of embeddings: cut, or filled up with their mean."""
    rows = draft.vocab_size
    draft.model.resize_token_embeddings(size, mean_resizing=False)  # that mean takes a covariance
    for table in (draft.embedding, draft.output):
        weight = cast(Tensor, table.weight).data
        weight[rows:] = weight[:rows].mean(0)


def _numbers(path: str | None) -> dict[str, int]:
    """Of the tokens of the tokenizer at `path`, if there is one, but not of those added."""
    if path is None:
        return {}
    try:
        tokenizer = load_tokenizer(path)
    except CheckpointError:
        return {}
    added = tokenizer.get_added_vocab()
    return {token: n for token, n in tokenizer.get_vocab().items() if token not in added}
