"""The decoding loop: draft → verify → accept → commit.

Plain decoding is the same loop with a drafter that proposes nothing.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from foretoken.backbone import Backbone
from foretoken.decoding.acceptance import AcceptanceRule
from foretoken.decoding.cache import new_cache, require_rollback, rollback
from foretoken.decoding.drafters import Committed, Drafter
from foretoken.errors import InputError


@dataclass(frozen=True)
class Step:
    """One forward pass of the backbone.

    Attributes:
        drafted: how many tokens were proposed to it.
        accepted: how many of them stand and were emitted.
        tokens: what it emitted: the accepted tokens and the backbone's own next one (cut after an
            end-of-sequence token).
    """

    drafted: int
    accepted: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Generation:
    """What `generate` returns.

    Attributes:
        sequences: (1, T) prompt and continuation.
        steps: one for each forward pass, the pass over the prompt included.
    """

    sequences: Tensor
    steps: list[Step]

    @property
    def new_tokens(self) -> list[int]:
        """The continuation."""
        return [token for step in self.steps for token in step.tokens]

    @property
    def forwards(self) -> int:
        """Passes of the backbone."""
        return len(self.steps)

    @property
    def tokens_per_forward(self) -> float:
        """New tokens per pass of the backbone; plain decoding has 1."""
        return len(self.new_tokens) / max(1, self.forwards)


def decode(
    backbone: Backbone,
    prompt: Tensor,
    drafter: Drafter,
    rule: AcceptanceRule,
    *,
    max_new_tokens: int,
    stop_tokens: Collection[int] = (),
) -> Iterator[Step]:
    """Continue `prompt` (1, T), yielding every step as it is committed.

    Exactly `max_new_tokens` tokens are emitted, fewer only where a stop token is among them or the
    model's context is full. A prompt that cannot be continued is refused at once, see
    `check_prompt`.
    """
    tokens, room = check_prompt(backbone, prompt, max_new_tokens)
    return _decode(backbone, tokens, drafter, rule, room, stop_tokens)


@torch.inference_mode()
def _decode(
    backbone: Backbone,
    tokens: Tensor,
    drafter: Drafter,
    rule: AcceptanceRule,
    room: int,
    stop_tokens: Collection[int],
) -> Iterator[Step]:
    cache = new_cache()
    window, draft = tokens, tokens.new_empty(0)
    while True:
        # Verify: one pass over what the backbone has not read yet, which ends with the draft.
        output = backbone(window, layers=drafter.layers, cache=cache)
        logits = backbone.unembed(output.final[0, -1 - len(draft) :])
        # Accept: the draft's beginning, and the backbone's own token after it.
        verdict = rule(draft, logits)
        emitted = [*draft[: verdict.accepted].tolist(), verdict.next_token]
        # Commit: the cache forgets what was rejected.
        rejected = len(draft) - verdict.accepted
        rollback(cache, rejected)
        tokens = torch.cat([tokens, tokens.new_tensor([emitted])], dim=1)
        emitted, stopped = cut_after(emitted, stop_tokens)
        counted = len(emitted) if stopped else len(draft)  # nothing counts behind a stop token
        yield Step(min(len(draft), counted), min(verdict.accepted, counted), tuple(emitted))
        room -= len(emitted)
        if stopped or room <= 0:
            return
        # Draft: what may follow. The backbone adds one token of its own, so leave it room.
        draft = drafter.draft(Committed(tokens, output, window.shape[1] - rejected), room - 1)
        window = torch.cat([tokens[:, -1:], draft.unsqueeze(0)], dim=1)


def check_prompt(backbone: Backbone, prompt: Tensor, max_new_tokens: int) -> tuple[Tensor, int]:
    """The prompt on the backbone's device, and how many tokens may follow it."""
    require_rollback(backbone)
    if prompt.ndim != 2 or prompt.shape[0] != 1:
        raise InputError(
            f"the prompt has shape {tuple(prompt.shape)}; give one row of tokens, (1, T)."
        )
    length = prompt.shape[1]
    if length == 0:
        raise InputError("the prompt is empty; give at least one token.")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}; ask for at least 1.")
    if not 0 <= int(prompt.min()) <= int(prompt.max()) < backbone.vocab_size:
        raise InputError(
            f"the prompt has token ids outside the model's vocabulary of {backbone.vocab_size}."
        )
    context = backbone.max_length
    if context is not None and length >= context:
        raise InputError(
            f"the prompt has {length} tokens and the model's context {context}; shorten the prompt."
        )
    room = max_new_tokens if context is None else min(max_new_tokens, context - length)
    return prompt.to(backbone.device), room


def cut_after(tokens: list[int], stop_tokens: Collection[int]) -> tuple[list[int], bool]:
    """`tokens` up to and with the first stop token, and whether there was one."""
    for index, token in enumerate(tokens):
        if token in stop_tokens:
            return tokens[: index + 1], True
    return tokens, False
