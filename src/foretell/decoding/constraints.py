"""What a model's generation config does to scores, as transformers' `generate` does it.

A checkpoint can ask for a repetition penalty, forbid words or force a first token, and `generate`
obeys even when it decodes greedily. So does our loop: the processors are those that transformers
builds from the config, one list for each row.
"""

import json
from collections.abc import Hashable, Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers.generation.configuration_utils import GenerationMode

from foretell.decoding.batch import Batch, BatchRow
from foretell.decoding.sampling import BY_PLACE, Sampling, require_local
from foretell.decoding.stops import StopTokens
from foretell.errors import InputError

DRAWN = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)
"""Fields about how tokens are drawn. Ours are drawn only as `Sampling` says."""
OBEYED = (
    "sequence_bias",
    "encoder_repetition_penalty",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "min_length",
    "min_new_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
    "watermarking_config",
)
"""Fields that change what is written, however tokens are chosen; to name them to users."""
UNASKED = {
    "num_return_sequences": 1,
    "prompt_lookup_num_tokens": None,
    "return_dict_in_generate": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_logits": False,
    "output_scores": False,
    "max_time": None,
}
"""Fields about what `generate` gives back and how it gets there: here tokens, all of them."""


def undrawn(lm: PreTrainedModel, asked: GenerationConfig | None = None) -> GenerationConfig:
    """A copy of a generation config that draws nothing, and gives one row of tokens back.

    Args:
        lm: the model.
        asked: in place of the model's own config.

    Raises:
        InputError: it asks for a search (beams, contrastive, …) that drafts cannot follow.
    """
    config = deepcopy(asked or getattr(lm, "generation_config", None)) or GenerationConfig()
    config.do_sample = False
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.ASSISTED_GENERATION):
        raise InputError(
            f"the model's generation config asks for {mode.value.replace('_', ' ')}, which drafts "
            "cannot follow; take it out of model.lm.generation_config (generation_config.json), or "
            "use transformers' generate."
        )
    for name in DRAWN:
        if hasattr(config, name):
            setattr(config, name, None)
    config.update(**UNASKED)
    return config


def obeyed(lm: PreTrainedModel) -> dict[str, Any]:
    """What the model's generation config says that changes what is written."""
    return _said(lm, OBEYED)


def left_out(lm: PreTrainedModel) -> dict[str, Any]:
    """What it says about drawing, which nobody here follows."""
    asked = getattr(getattr(lm, "generation_config", None), "do_sample", None)
    return _said(lm, ("do_sample", *DRAWN)) if asked else {}


def _said(lm: PreTrainedModel, names: Sequence[str]) -> dict[str, Any]:
    config = getattr(lm, "generation_config", None)
    said = {} if config is None else json.loads(config.to_json_string())  # without objects
    return {name: said[name] for name in names if said.get(name) is not None}


def constraints(
    lm: PreTrainedModel, batch: Batch, sampling: Sampling, asked: GenerationConfig | None = None
) -> list[list[LogitsProcessor]]:
    """The processors of each row that look at what was written: the config's, then `sampling`'s.

    In `sampling` a repetition penalty takes the place of the config's, and a processor of one class
    that of the config's, as in transformers. Lengths are those of a row without its padding.
    `asked` is a generation config in place of the model's own. Rows for which the config means the
    same share one list, and are scored together.

    Raises:
        InputError: one of them depends on more than a row's tokens.
    """
    require_local(sampling.processors, len(batch))
    config: Any = undrawn(lm, asked)
    if sampling.repetition_penalty is not None:
        config.repetition_penalty = sampling.repetition_penalty
    shared: dict[Hashable, list[LogitsProcessor]] = {}
    found = []
    for row, tokens in zip(batch.rows, batch.tokens.split(1), strict=True):
        alike = row.length + row.room, row.prompt_length, frozenset(_ends(row))
        if (own := shared.get(alike)) is None:
            own = _of_row(lm, config, row, tokens[:, : row.prompt_length], sampling.processors)
            if not sampling.processors and not any(isinstance(one, BY_PLACE) for one in own):
                shared[alike] = own
        found.append(own)
    return found


def _ends(row: BatchRow) -> set[int]:
    """The tokens at which it stops."""
    return {token for stop in row.stops if isinstance(stop, StopTokens) for token in stop.tokens}


class ByRow(LogitsProcessor):
    """The processors of each row in transformers' `generate`, where prompts are padded on the left.

    Each sees its row without the padding, which else would be penalized and counted with it.

    Args:
        processors: of each row, as `constraints` makes them.
        padding: how many tokens of it each row has.
    """

    def __init__(
        self, processors: Sequence[Sequence[LogitsProcessor]], padding: Sequence[int]
    ) -> None:
        self.rows = list(zip(processors, padding, strict=True))

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """The scores of all rows, (B, V)."""
        found = scores.clone()
        for row, (processors, padding) in enumerate(self.rows):
            for processor in processors:
                tokens, score = input_ids[row : row + 1, padding:], found[row : row + 1]
                found[row : row + 1] = processor(tokens, score)
        return found


def _of_row(
    lm: PreTrainedModel,
    config: Any,
    row: BatchRow,
    prompt: Tensor,
    given: Sequence[LogitsProcessor],
) -> list[LogitsProcessor]:
    ends = _ends(row)
    # What `generate` has made of the config by then.
    config.max_length = row.length + row.room
    config._eos_token_tensor = torch.tensor(sorted(ends), device=prompt.device) if ends else None
    try:
        if config.min_new_tokens is not None:
            config.min_length = row.prompt_length + config.min_new_tokens
        found = GenerationMixin._get_logits_processor(
            cast(Any, lm),
            config,
            input_ids_seq_length=row.prompt_length,
            encoder_input_ids=cast(Any, prompt),
            logits_processor=LogitsProcessorList(given),
            device=str(prompt.device),
        )
    except (TypeError, ValueError) as error:  # a penalty of 0
        reason = " ".join(str(error).split())
        raise InputError(f"the generation config cannot be obeyed: {reason}") from None
    require_local(found, rows=1)
    return list(found)
