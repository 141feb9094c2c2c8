"""Loading a draft model: a smaller one with the same vocabulary."""

from typing import TYPE_CHECKING, TypeVar, cast

from torch import Tensor

from foretell.checkpoints import load_tokenizer
from foretell.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from foretell.generation.generating import Generating

Model = TypeVar("Model", bound="Generating")


def load_draft_model(name: str, model: Model) -> Model:
    """A draft model on the device and in the type of the model that it drafts for.

    Where their tokenizers agree and their vocabularies differ in size all the same, the rows of one
    embedding are padded further than those of the other (Qwen2.5 has 151,936 or 152,064 of them, by
    size): the draft model's are cut, or filled up with their mean.

    Raises:
        InputError: there is no such model, their tokenizers give a token different numbers, or do
            not show that vocabularies of different sizes are the same.
    """
    backbone = model.backbone
    draft = type(model).from_pretrained(name, dtype=backbone.dtype, device=backbone.device)
    size = draft.backbone.vocab_size
    own, its = _numbers(model), _numbers(draft)
    apart = next((token for token in own if its.get(token, own[token]) != own[token]), None)
    if apart is not None:
        raise InputError(
            f"{name}: token {apart!r} has number {its[apart]} there and {own[apart]} in the model; "
            "a draft model needs the same vocabulary."
        )
    if size != backbone.vocab_size:
        if not own or own != its:
            raise InputError(
                f"{name} has a vocabulary of {size} tokens, the model one of "
                f"{backbone.vocab_size}, and no tokenizers show that the difference is padding."
            )
        _resize(draft, backbone.vocab_size)
    return draft


def _resize(draft: "Generating", size: int) -> None:
    """Give it so many rows of embeddings; its heads do not fit any more."""
    rows = draft.backbone.vocab_size
    draft.merge_adapters()
    draft.head = None
    draft.lm.resize_token_embeddings(size, mean_resizing=False)  # that mean takes a covariance
    for table in (draft.backbone.embedding, draft.backbone.output):
        weight = cast(Tensor, table.weight).data
        weight[rows:] = weight[:rows].mean(0)


def _numbers(model: "Generating") -> dict[str, int]:
    """Of the tokens of the tokenizer beside a model, if there is one, but not of those added."""
    if model.tokenizer_path is None:
        return {}
    try:
        tokenizer = load_tokenizer(model.tokenizer_path)
    except CheckpointError:
        return {}
    added = tokenizer.get_added_vocab()
    return {token: n for token, n in tokenizer.get_vocab().items() if token not in added}
