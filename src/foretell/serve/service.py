"""From a request to a row of the engine: prompts, limits and stops."""

import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from foretell.data.conversations import asked as asked_text
from foretell.data.tokenization import prompt_ids
from foretell.decoding import Drafter, Stop, StopStrings, StopTokens
from foretell.decoding.constraints import undrawn
from foretell.errors import InputError
from foretell.model import MTPModel
from foretell.serve.engine import Engine
from foretell.serve.errors import ApiError
from foretell.serve.limits import Limits
from foretell.serve.metrics import Metrics
from foretell.serve.reading import Reading, RowRequest
from foretell.serve.schema import ChatRequest, CompletionRequest, Models, ServedModel


@dataclass
class Service:
    """A model being served.

    Attributes:
        model: that decodes.
        tokenizer: the model's.
        name: that requests call it by.
        drafter: what proposes tokens, unless a request wants none.
        drafter_name: what it is called.
        limits: what is refused.
        api_key: that requests must bring; None lets everybody in.
        origins: of web pages elsewhere that may ask, as their browsers name them; * is any.
        auto_length: whether every step drafts as far as brings most tokens per second.
        metrics: where is counted what happens.
        aliases: other names that requests may call it by.
    """

    model: MTPModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    drafter: Drafter
    drafter_name: str
    limits: Limits = field(default_factory=Limits)
    api_key: str | None = None
    origins: Sequence[str] = ()
    auto_length: bool = False
    metrics: Metrics = field(default_factory=Metrics)
    aliases: Collection[str] = ()

    def __post_init__(self) -> None:
        undrawn(self.model.lm)  # what cannot be decoded is refused now
        self.engine = Engine(
            self.model, self.drafter, self.limits, self.metrics, auto_length=self.auto_length
        )
        self.created = int(time.time())
        ends = {*self.model.stop_tokens, self.tokenizer.eos_token_id} - {None}
        self._ends = StopTokens(ends)

    @property
    def max_prompt_tokens(self) -> int:
        """Of a prompt, so that one token has room after it."""
        context = self.model.backbone.max_length
        most = self.limits.max_prompt_tokens
        return most if context is None else min(most, context - 1)

    def models(self) -> Models:
        """What is served."""
        served = ServedModel(
            id=self.name,
            created=self.created,
            drafter=self.drafter_name,
            depth=self.drafter.longest,
            max_prompt_tokens=self.max_prompt_tokens,
            max_tokens=self.limits.max_tokens,
            chat=bool(self.tokenizer.chat_template),
        )
        return Models(data=[served])

    def is_called(self, name: str) -> bool:
        """Whether requests mean this model by that name."""
        return name == self.name or name in self.aliases

    def rows(self, asked: CompletionRequest | ChatRequest) -> list[RowRequest]:
        """What is to be decoded, a row for each prompt. Tokenizes: not for the server's loop.

        Raises:
            ApiError: another model, or a prompt or number of tokens over the limits.
            InputError: something else that cannot be used.
        """
        if not self.is_called(asked.model):
            raise ApiError(
                404,
                f"the model {asked.model!r} is not served here; {self.name!r} is.",
                param="model",
                code="model_not_found",
            )
        if isinstance(asked, ChatRequest):
            prompts = [self._chat(asked)]
        else:
            self._check_number(len(asked.prompts))
            prompts = [self._completion(prompt) for prompt in asked.prompts]
        for ids in prompts:
            self._check(ids)
        stops: list[Stop] = [self._ends]
        if texts := asked.stops or list(self.model.stop_strings):
            stops.append(StopStrings(texts, self.tokenizer))
        return [
            RowRequest(
                prompt=ids,
                settings=asked.settings(),
                max_new_tokens=self._room(asked.wanted, len(ids)),
                seed=secrets.randbits(63) if asked.seed is None else asked.seed,
                stops=stops,
                texts=texts,
                tokenizer=self.tokenizer,
            )
            for ids in prompts
        ]

    def read(self, rows: Sequence[RowRequest]) -> Reading:
        """Have them decoded. In the server's loop.

        Raises:
            QueueFull: too many requests wait.
            Closed: the server is stopping.
        """
        reading = Reading(rows)
        self.engine.submit(*reading.jobs)
        return reading

    def _completion(self, prompt: str | list[int]) -> list[int]:
        return prompt_ids(self.tokenizer, prompt) if isinstance(prompt, str) else prompt

    def _chat(self, asked: ChatRequest) -> list[int]:
        if not self.tokenizer.chat_template:
            raise InputError(f"the model {self.name!r} has no chat template; use /v1/completions.")
        text = asked_text(asked.turns, self.tokenizer, "messages")
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _check_number(self, prompts: int) -> None:
        if prompts > (most := self.limits.max_queue):
            message = f"{prompts} prompts were given; at most {most} are taken at once."
            raise ApiError(400, message, "prompt")

    def _check(self, ids: list[int]) -> None:
        if not ids:
            raise ApiError(400, "the prompt is empty; give at least one token.", "prompt")
        if len(ids) > self.max_prompt_tokens:
            raise ApiError(
                400,
                f"the prompt has {len(ids)} tokens; at most {self.max_prompt_tokens} are taken.",
                code="context_length_exceeded",
            )
        if max(ids) >= (size := self.model.backbone.vocab_size):
            raise ApiError(
                400, f"the prompt has token ids outside the vocabulary of {size}.", "prompt"
            )

    def _room(self, wanted: int | None, prompt: int) -> int:
        """How many tokens are written at most: what the context has room for, of what is asked."""
        most = self.limits.max_tokens
        if wanted is not None and wanted > most:
            raise ApiError(400, f"max_tokens is {wanted}; at most {most} are given.", "max_tokens")
        context = self.model.backbone.max_length
        wanted = wanted or most
        return wanted if context is None else min(wanted, context - prompt)
