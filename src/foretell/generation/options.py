"""The types of what `MTPModel`'s methods for decoding are told, for editors and type checkers."""

from collections.abc import Collection, Sequence
from typing import Any, Literal, Required, TypedDict

from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedTokenizerBase
from transformers.generation.stopping_criteria import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from foretell.decoding import AcceptanceRule, Drafter, Sampling

UNSET: Any = type("Unset", (), {"__repr__": lambda self: "unset"})()
"""Of an argument that was not given, where None says something: in transformers `top_k=None` takes
out what the generation config says of it."""


class StreamOptions(TypedDict, total=False):
    """Of `MTPModel.stream` and `MTPModel.decode`, which explains them."""

    max_new_tokens: Required[int | Sequence[int]]
    stop_tokens: int | Collection[int] | None
    stop_strings: str | Sequence[str] | None
    tokenizer: PreTrainedTokenizerBase | None
    sampling: Sampling | None
    drafter: Drafter | str | None
    draft_length: int | Literal["auto"] | None
    rule: AcceptanceRule | str | None
    pass_width: int | None
    compiled: bool


class GenerateOptions(TypedDict, total=False):
    """Of `MTPModel.generate`, which explains them."""

    max_new_tokens: int | None
    max_length: int | None
    min_new_tokens: int | None
    min_length: int | None
    max_time: float | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    bad_words_ids: Sequence[Sequence[int]] | None
    suppress_tokens: Sequence[int] | None
    eos_token_id: int | Sequence[int] | None
    pad_token_id: int | None
    stop_strings: str | Sequence[str] | None
    tokenizer: PreTrainedTokenizerBase | None
    generation_config: GenerationConfig | None
    streamer: BaseStreamer | None
    num_return_sequences: int | None
    logits_processor: Sequence[LogitsProcessor] | None
    stopping_criteria: Sequence[StoppingCriteria] | None
    use_cache: bool | None
    token_type_ids: Tensor | None
    seed: int | Sequence[int] | None
    drafter: Drafter | str | None
    draft_length: int | Literal["auto"] | None
    rule: AcceptanceRule | str | None
    compiled: bool
    pass_width: int | None
