"""Ways to continue a prompt that are compared: our loop, and transformers' own; all of a model's.

Shapes: B rows of a batch, T prompt.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig

from foretell.backbone.trying import generating
from foretell.decoding import (
    Drafter,
    LookupDrafter,
    ModelDrafter,
    NoDrafter,
    Sampling,
    Step,
    TreeShape,
)
from foretell.decoding.constraints import undrawn
from foretell.decoding.drafters.lookup import MATCH
from foretell.errors import InputError
from foretell.model import MTPModel

PROMPT_LOOKUP = 10
"""Tokens that prompt lookup drafts, ours and transformers'; its documentation uses 10."""


@dataclass(frozen=True)
class Continuation:
    """What a method made of a batch of prompts.

    Attributes:
        rows: the new tokens of each.
        forwards: passes of the backbone.
        steps: what each pass drafted and accepted in each row, where the method tells.
        draft_lengths: how many tokens deep each pass drafted, over time, where the method tells.
    """

    rows: list[list[int]]
    forwards: int
    steps: Sequence[Step] = ()
    draft_lengths: Sequence[int] = ()

    @property
    def row_forwards(self) -> int:
        """Passes, counted once for every row that they continued."""
        return len(self.steps) or self.forwards * len(self.rows)


class Method(Protocol):
    """A way to continue prompts by exactly `count` tokens.

    Attributes:
        name: its `method` in a result file.
        facts: more fields for its row there: drafter, tree, compiled, temperature.
    """

    name: str
    facts: Mapping[str, Any]

    def __call__(self, prompts: Tensor, count: int, mask: Tensor | None = None) -> Continuation:
        """Continue (B, T); the mask (B, T) is 0 where a prompt is padded, None: nowhere."""
        ...


class Foretell:
    """Our loop: with the model's heads, `plain` with no drafter, or with a given drafter.

    Args:
        model: that decodes.
        name: by default `plain`, or the kind of the heads.
        plain: propose nothing.
        drafter: in place of the heads.
        draft_length: `"auto"` chooses it while decoding; a number is the drafter's own, for the
            result file.
        sampling: greedy by default.
        pass_width: of every pass, whatever is drafted.
        compiled: whether the step is.
        source: where drafts come from, for the result file; by default `heads` or `none`.
        tree: their shape, for the result file.
    """

    def __init__(
        self,
        model: MTPModel,
        name: str | None = None,
        *,
        plain: bool = False,
        drafter: Drafter | None = None,
        draft_length: int | Literal["auto"] | None = None,
        sampling: Sampling | None = None,
        pass_width: int | None = None,
        compiled: bool = False,
        source: str | None = None,
        tree: str | None = None,
    ) -> None:
        self.model, self.compiled = model, compiled
        self.pass_width, self.draft_length = pass_width, draft_length
        self.drafter = NoDrafter() if plain else drafter
        self.sampling = sampling or Sampling()
        self.name = name or ("plain" if plain else model.require_head().config.kind)
        self.facts: Mapping[str, Any] = {
            "drafter": source or ("none" if plain else "heads"),
            "tree": tree,
            "draft_length": draft_length,
            "pass_width": pass_width,
            "compiled": compiled,
            "temperature": self.sampling.temperature,
        }

    @property
    def auto(self) -> bool:
        """Whether draft lengths are chosen while decoding."""
        return self.draft_length == "auto"

    def compile(self) -> "Foretell":
        """The same with a compiled step."""
        other = copy(self)
        other.name, other.compiled = f"{self.name}-compiled", True
        other.facts = {**self.facts, "compiled": True}
        return other

    def __call__(self, prompts: Tensor, count: int, mask: Tensor | None = None) -> Continuation:
        result = self.model.decode(
            prompts,
            torch.ones_like(prompts) if mask is None else mask,
            max_new_tokens=count,
            stop_tokens=(),
            stop_strings=(),
            drafter=self.drafter,
            draft_length="auto" if self.auto else None,
            sampling=self.sampling,
            pass_width=self.pass_width,
            compiled=self.compiled,
        )
        lengths = result.draft_lengths if self.auto else ()
        return Continuation(result.continuations, result.forwards, result.row_steps, lengths)


class Transformers:
    """transformers' own `generate`, alone, with its prompt lookup or with a draft model.

    It is told to draft what ours drafts: as many tokens, after as many that match, whatever the
    draft model's confidence. Both obey the model's generation config but for where it ends texts
    and how it draws. What differs: it drafts after the prompt already, ours after the
    first token; and of several matches its prompt lookup copies from the first, ours from the last.

    Args:
        model: that decodes.
        lookup: how many tokens its prompt lookup drafts.
        draft: a draft model, its name, and how many tokens it drafts. Both this and lookup take one
            prompt at a time.
        sampling: of which it takes the temperature and the first seed; greedy by default.
    """

    def __init__(
        self,
        model: MTPModel,
        lookup: int | None = None,
        *,
        draft: tuple[MTPModel, str, int] | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        self.lm, self.lookup, self.draft = model.lm, lookup, draft
        self.sampling = sampling or Sampling()
        kind = "-draft-model" if draft else "" if lookup is None else "-prompt-lookup"
        self.name = f"transformers{kind}"
        self.facts: Mapping[str, Any] = {
            "drafter": draft[1] if draft else "none" if lookup is None else "lookup",
            "tree": None,
            "compiled": False,
            "temperature": self.sampling.temperature,
        }

    def __call__(self, prompts: Tensor, count: int, mask: Tensor | None = None) -> Continuation:
        forwards = 0

        def tally(*_: Any) -> None:
            nonlocal forwards
            forwards += 1

        assistant = {} if self.draft is None else {"assistant_model": self.draft[0].lm}
        with ExitStack() as stack:
            # Not the models' own config: `generate` would take an end-of-sequence token from it.
            config = self._config(count)
            for lm in (self.lm, *assistant.values()):
                stack.enter_context(generating(lm, config))
            stack.enter_context(_seeded(self.sampling, prompts.device))
            stack.callback(self.lm.register_forward_pre_hook(tally).remove)
            output = self.lm.generate(  # type: ignore[operator]
                prompts,
                attention_mask=torch.ones_like(prompts) if mask is None else mask,
                **assistant,
            )
        return Continuation(output[:, prompts.shape[1] :].tolist(), forwards)

    def _config(self, count: int) -> GenerationConfig:
        asked: dict[str, Any] = {"max_new_tokens": count, "pad_token_id": 0}
        asked |= {"eos_token_id": None, "stop_strings": None}
        if not self.sampling.greedy:
            temperature = self.sampling.temperature
            asked |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if self.lookup is not None:
            asked["prompt_lookup_num_tokens"] = self.lookup
            asked["max_matching_ngram_size"] = MATCH
        if self.draft is not None:
            asked["num_assistant_tokens"] = self.draft[2]
            asked["num_assistant_tokens_schedule"] = "constant"
            asked["assistant_confidence_threshold"] = 0.0
        config = undrawn(self.lm)
        config.update(**asked)
        return config


@contextmanager
def _seeded(sampling: Sampling, device: torch.device) -> Iterator[None]:
    """Random numbers that begin at the first seed, and leave those of others as they were."""
    if sampling.greedy:
        yield
        return
    seeds = sampling.seeds
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seeds if isinstance(seeds, int) else seeds[0])
        yield


def method_name(drafter: str, model: MTPModel) -> str:
    """The `method` of result files: what a drafter of `MTPModel.drafter_named` is called there."""
    if drafter == "heads":
        return str(model.require_head().config.kind)
    return {"none": "plain", "lookup": "prompt-lookup"}.get(drafter, "draft-model")


def methods_of(
    model: MTPModel,
    *,
    sampling: Sampling | None = None,
    compiled: bool = False,
    draft_model: str | None = None,
    tree: TreeShape | None = None,
    draft_length: int | Literal["auto"] | None = None,
    pass_width: int | None = None,
    batch_size: int = 1,
) -> list[Method]:
    """Everything that can decode with this model, plain first: what `foretell bench` compares.

    Args:
        model: that decodes.
        sampling: greedy by default.
        compiled: show ours with a compiled step too.
        draft_model: a smaller model by name, see `MTPModel.draft_model`.
        tree: a shape, to draft trees from the heads too.
        draft_length: to draft this many tokens from the heads too, or `"auto"`.
        pass_width: of every pass of ours, whatever is drafted.
        batch_size: with more than 1, transformers drafts nothing.

    Raises:
        InputError: a tree or a draft length for heads that are not there, or that they cannot
            draft; no such draft model.
    """
    for asked, name in ((tree, "--tree"), (draft_length, "--draft-length")):
        if asked is not None and model.head is None:
            raise InputError(f"{name} is for heads, and the model has none; leave it out.")
    small = None if draft_model is None else model.draft_model(draft_model)
    ours = [Foretell(model, plain=True, sampling=sampling, pass_width=pass_width)]

    def add(name: str, drafter: Drafter, **facts: Any) -> None:
        ours.append(
            Foretell(
                model, name, drafter=drafter, sampling=sampling, pass_width=pass_width, **facts
            )
        )

    if model.head is not None:
        kind = method_name("heads", model)
        add(kind, model.drafter_named("heads"))
        if tree is not None:
            add(f"{kind}-tree", model.drafter_named("heads", shape=tree), tree=str(tree))
        if draft_length is not None:
            longest = None if draft_length == "auto" else draft_length
            drafter = model.drafter_named("heads", longest)
            add(f"{kind}-{draft_length}", drafter, draft_length=draft_length)
    add("prompt-lookup", LookupDrafter(PROMPT_LOOKUP), source="lookup")
    theirs = [Transformers(model, sampling=sampling)]
    if batch_size == 1:
        theirs.append(Transformers(model, lookup=PROMPT_LOOKUP, sampling=sampling))
    if draft_model is not None and small is not None:
        drafter = ModelDrafter(model.backbone, small.backbone)
        add("draft-model", drafter, source=draft_model)
        if batch_size == 1:
            draft = small, draft_model, drafter.length
            theirs.append(Transformers(model, draft=draft, sampling=sampling))
    if compiled:
        ours += [method.compile() for method in ours]
    return [*ours, *theirs]
