"""What transformers' `generate` is told, in our words.

Values count in the order that they have there: an argument, the generation config that is given,
the model's own, transformers' defaults. What drafts cannot follow is refused by name.

Shapes: B prompts, R rows (B times the sequences asked for of each), T prompt.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import signature
from math import ceil, isfinite
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from foretell.decoding import Sampling, Stop, StopTokens
from foretell.decoding.batch import require_rows
from foretell.decoding.constraints import DRAWN, undrawn
from foretell.decoding.numbers import whole
from foretell.errors import InputError

_ONE = "drafts continue each text in one way"
_TWICE = "every token would be read a second time without the prompt"
_KEPT = "a pass verifies several tokens and keeps none of it; call the model on the sequences"
_PAST = "decoding has a cache of its own, in which drafts can be taken back"

SEARCHES = {
    "num_beams": _ONE,
    "num_beam_groups": _ONE,
    "constraints": _ONE,
    "force_words_ids": _ONE,
    "penalty_alpha": _ONE,
    "dola_layers": "every token would be read from several layers",
    "guidance_scale": _TWICE,
    "token_healing": "the prompt stands as it is",
}
"""What drafts cannot follow, wherever it is asked for, and why."""
UNREAD = {
    "assistant_model": 'name a draft model, drafter="owner/name" or its directory',
    "assistant_tokenizer": "a draft model needs the same vocabulary",
    "is_assistant": "nobody asks here how sure each token was",
    "assistant_early_exit": 'the heads draft; drafter="none" for no drafts',
    "prompt_lookup_num_tokens": 'say drafter="lookup" and draft_length',
    "use_mtp": "the heads draft anyway",
    "custom_generate": "this is a loop of its own",
    "trust_remote_code": "code from a repository is not run",
    "negative_prompt_ids": _TWICE,
    "negative_prompt_attention_mask": _TWICE,
    "output_scores": _KEPT,
    "output_logits": _KEPT,
    "output_attentions": _KEPT,
    "output_hidden_states": _KEPT,
    "past_key_values": _PAST,
    "cache": _PAST,
    "cache_params": _PAST,
    "cache_implementation": _PAST,
    "cache_config": _PAST,
    "inputs_embeds": "drafters read tokens; give input_ids",
    "position_ids": "positions are counted from the attention mask",
    "prefill_chunk_size": "a prompt is read in one pass",
    "continuous_batching_config": "the server batches: `foretell serve`",
    "synced_gpus": "every process decodes by itself",
}
"""What a call cannot ask for, and why. In the model's own config it changes no token."""
OURS = ("seed", "drafter", "draft_length", "rule", "compiled", "pass_width")
READ = (
    *("input_ids", "inputs", "attention_mask", "token_type_ids", "tokenizer", "generation_config"),
    *("streamer", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn"),
)
"""Arguments that are no fields of a generation config."""


@dataclass(frozen=True)
class Request:
    """A call of `generate`.

    Attributes:
        input_ids: (R, T) the prompts, each as often as it is continued.
        attention_mask: (R, T), or None where nothing is padded.
        max_new_tokens: of every row.
        stops: where any row ends earlier.
        row_stops: where each does besides.
        sampling: how tokens are chosen.
        config: what is obeyed besides.
        fill: what rows that have ended are filled up with.
        streamer: that is shown the tokens.
        as_dict: return a `Generation`, not its sequences.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    max_new_tokens: int
    stops: list[Stop]
    row_stops: list[list[Stop]]
    sampling: Sampling
    config: GenerationConfig
    fill: int
    streamer: BaseStreamer | None
    as_dict: bool


@dataclass(frozen=True)
class ByCriteria:
    """Where transformers' stopping criteria end a row, asked for one token after another.

    Args:
        criteria: see a row as `generate` shows it, alone.
        prompt: (T,) as it was given, padding and all.
    """

    criteria: StoppingCriteriaList
    prompt: Tensor

    def __call__(self, before: Sequence[int], new: Sequence[int]) -> int | None:
        row = torch.cat([self.prompt, self.prompt.new_tensor([*before, *new])]).unsqueeze(0)
        first = row.shape[1] - len(new)
        for count in range(1, len(new) + 1):
            if bool(self.criteria(cast(Any, row[:, : first + count]), cast(Any, None))):
                return count
        return None


def translated(lm: PreTrainedModel, told: Mapping[str, Any]) -> Request:
    """What a call of `generate` asks for.

    Args:
        lm: the model, whose generation config counts.
        told: the arguments by name, without those of `OURS` but for the seed; None counts as
            something that was said.

    Raises:
        InputError: something in it is unknown, cannot be honoured or makes no sense.
    """
    config = _config(lm, told)
    _refuse(lm, config, told)
    prompts, mask = _prompts(config, told)
    length, ends = prompts.shape[1], stop_tokens(config)
    padding = config.pad_token_id
    if mask is None:
        mask = inferred_mask(prompts, padding, ends)
    times = config.num_return_sequences or 1
    if whole("num_return_sequences", times) < 1:
        raise InputError(f"num_return_sequences is {times}; ask for at least 1.")
    rows = prompts.repeat_interleave(times, dim=0)
    criteria = _criteria(lm, config, told)
    return Request(
        rows,
        None if mask is None else mask.repeat_interleave(times, dim=0),
        _new_tokens(lm, config, told, length),
        [StopTokens(ends)],
        [[ByCriteria(criteria, row)] if criteria else [] for row in rows],
        _sampling(lm, config, told, mask, rows),
        config,
        filling(padding, ends),
        told.get("streamer"),
        bool(config.return_dict_in_generate),
    )


def stop_tokens(config: GenerationConfig | None) -> tuple[int, ...]:
    """The end-of-sequence tokens of a generation config.

    Raises:
        InputError: they are no numbers.
    """
    ids = getattr(config, "eos_token_id", None)
    if ids is None:
        return ()
    try:
        return tuple(torch.as_tensor(ids).flatten().tolist())
    except (TypeError, ValueError):
        raise InputError(
            f"eos_token_id of the generation config is {ids!r}; it must be a token id or a list of "
            "them."
        ) from None


def filling(padding: int | None, ends: Collection[int]) -> int:
    """What rows that have ended are filled up with."""
    return next(iter([int(padding)] if padding is not None else ends), 0)


def inferred_mask(prompts: Tensor, padding: int | None, ends: Collection[int]) -> Tensor | None:
    """The attention mask of prompts without one, as transformers infers it.

    Raises:
        InputError: the prompts are no tensor, or the padding token stands inside one.
    """
    if not hasattr(prompts, "ndim"):
        raise InputError(
            "the prompts are not a tensor; give rows of tokens, (B, T), as a tokenizer returns "
            "them with return_tensors='pt'."
        )
    if padding is None or padding in ends or prompts.ndim != 2:
        return None
    mask = prompts != padding
    if bool((mask.int().diff(dim=1).abs().sum(1) > 1).any()):
        raise InputError(
            f"a prompt has the padding token {padding} in its middle, where transformers would not "
            "read it; give the attention mask."
        )
    return mask


def _config(lm: PreTrainedModel, told: Mapping[str, Any]) -> Any:
    """The generation config of a call, by transformers' own order."""
    fields = vars(GenerationConfig()).keys()
    for name in told.keys() - fields - UNREAD.keys() - SEARCHES.keys() - set(READ) - set(OURS):
        near = get_close_matches(name, [*fields, *READ, *OURS], 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise InputError(f"generate has no argument {name}{hint}")
    if not isinstance(own := told.get("generation_config"), GenerationConfig | None):
        raise InputError(
            f"generation_config is a {type(own).__name__}, not a GenerationConfig of transformers; "
            "give its values as arguments."
        )
    given = {name: value for name, value in told.items() if name in fields}
    prepare: Any = GenerationMixin._prepare_generation_config
    try:
        config, _ = prepare(lm, own, **given)
    except (ValueError, TypeError) as error:  # what it makes of impossible values
        raise InputError(" ".join(str(error).split())) from None
    return config


def _refuse(lm: PreTrainedModel, config: Any, told: Mapping[str, Any]) -> None:
    """Raise for the first thing that cannot be honoured."""
    model = getattr(lm, "generation_config", None) or GenerationConfig()
    own = told.get("generation_config") or model  # a copy of the model's asks for nothing new
    said = {name: v for name, v in vars(own).items() if v != getattr(model, name, None)}
    said |= told
    asked = {name: getattr(config, name, None) for name in SEARCHES}
    asked |= {name: said.get(name) for name in UNREAD}
    for name, value in asked.items():
        if not _neutral(name, value):
            reason = SEARCHES.get(name) or UNREAD[name]
            shown = f" {value!r}" if isinstance(value, bool | int | float | str) else ""
            raise InputError(
                f"{name}{shown} cannot be honoured: {reason}. Leave it out, or use "
                "model.lm.generate."
            )
    undrawn(cast(Any, None), config)  # refuses what other searches there may be
    types = told.get("token_type_ids")
    if types is not None and bool(torch.as_tensor(types).any()):
        raise InputError("token_type_ids other than 0 cannot be honoured: leave them out.")
    if types is not None and "token_type_ids" in signature(lm.forward).parameters:
        raise InputError(
            f"token_type_ids cannot be honoured: {type(lm).__name__} adds something to each token "
            "for them, even for 0. Leave them out, or use model.lm.generate."
        )
    if config.do_sample and config.watermarking_config is not None:
        raise InputError(
            "watermarking_config cannot be honoured with do_sample: its scores come after the cuts "
            "there, and before them here. Leave one out, or use model.lm.generate."
        )


def _neutral(name: str, value: Any) -> bool:
    """Whether it says what would be so anyway."""
    if value is None or value is False:
        return True
    plain = {"guidance_scale": 1, "penalty_alpha": 0, "num_beams": 1, "num_beam_groups": 1}
    return name in plain and value == plain[name]


def _prompts(config: Any, told: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """(B, T) and its mask, by whatever name they were given."""
    prompts, other = told.get("input_ids"), told.get("inputs")
    if prompts is not None and other is not None:
        raise InputError("input_ids and inputs are the same; give one of them.")
    prompts, mask = other if prompts is None else prompts, told.get("attention_mask")
    if prompts is None:
        if config.bos_token_id is None:
            raise InputError("no input_ids were given, and the model has no token to begin with.")
        return torch.tensor([[int(config.bos_token_id)]]), None
    if not isinstance(prompts, Tensor) or prompts.is_floating_point():
        kind = type(prompts).__name__
        raise InputError(
            f"the prompts are a {kind}, not a tensor of token ids: give "
            '**tokenizer(texts, return_tensors="pt").'
        )
    require_rows(prompts, mask)
    return prompts, mask


def _new_tokens(lm: PreTrainedModel, config: Any, told: Mapping[str, Any], length: int) -> int:
    """How many tokens follow a prompt of `length`, padding counted, as transformers reckons."""
    if config.max_new_tokens is not None:
        most: float = config.max_new_tokens
        if not isfinite(most):
            raise InputError(f"max_new_tokens is {most}; give a whole number.")
        return ceil(most)
    own, model = told.get("generation_config"), getattr(lm, "generation_config", None)
    stated = (told.get("max_length"), *(getattr(each, "max_length", None) for each in (own, model)))
    longest = int(config.max_length)
    if all(each is None for each in stated):
        warnings.warn(
            f"Using the default length of {longest} new tokens; give max_new_tokens.",
            UserWarning,
            stacklevel=5,
        )
        room = getattr(lm.config, "max_position_embeddings", None)
        longest = longest + length if room is None else min(longest + length, room)
    if longest <= length:
        raise InputError(
            f"max_length is {longest} and the prompt has {length} tokens already; give "
            "max_new_tokens."
        )
    return longest - length


def _criteria(
    lm: PreTrainedModel, config: Any, told: Mapping[str, Any]
) -> StoppingCriteriaList | None:
    """What ends rows besides their length and their end-of-sequence tokens."""
    strings, tokenizer = config.stop_strings, told.get("tokenizer")
    if strings and tokenizer is None:
        shown = ", ".join(map(repr, [strings] if isinstance(strings, str) else strings))
        raise InputError(f"stop strings ({shown}) need the tokenizer too.")
    rest = deepcopy(config)
    rest.max_length = rest._eos_token_tensor = None
    rest.is_assistant, rest.stop_strings = False, strings or None
    given = StoppingCriteriaList(told.get("stopping_criteria") or ())
    found = GenerationMixin._get_stopping_criteria(cast(Any, lm), rest, given, tokenizer)
    return found or None


def _sampling(
    lm: PreTrainedModel, config: Any, told: Mapping[str, Any], mask: Tensor | None, rows: Tensor
) -> Sampling:
    """How tokens are chosen; without a seed by torch's own random numbers."""
    processors = list(told.get("logits_processor") or ())
    if (allowed := told.get("prefix_allowed_tokens_fn")) is not None:
        processors.append(cast(LogitsProcessor, PrefixConstrainedLogitsProcessor(allowed, 1)))
    if processors and mask is not None and not bool(mask.all()):
        raise InputError(
            "logits_processor cannot be honoured beside padding, which it would be shown as part "
            "of the text: decode prompts of one length, or one at a time."
        )
    if not config.do_sample:
        return Sampling(processors=processors)
    seed = told.get("seed")
    if seed is None:
        seed = torch.randint(2**62, (len(rows),)).tolist()
    temperature = 1.0 if config.temperature is None else float(config.temperature)
    if not temperature > 0:
        raise InputError(
            f"temperature is {temperature} with do_sample: give one over 0, or do_sample=False, "
            "which takes the likeliest token."
        )
    drawn = {name: getattr(config, name, None) for name in DRAWN if name != "temperature"}
    try:
        cuts = GenerationMixin._get_logits_processor(
            cast(Any, lm),
            GenerationConfig(do_sample=True, **drawn),
            logits_processor=LogitsProcessorList(),
            device=str(rows.device),
        )
    except ValueError as error:  # a top_p of 2
        raise InputError(" ".join(str(error).split())) from None
    return Sampling(temperature=temperature, cuts=tuple(cuts), processors=processors, seeds=seed)
