"""Self-distilled data: prompts with the backbone's own continuations.

Heads that are trained on what their backbone writes learn to predict it, and not what somebody else
once wrote (Cai et al. 2024, "Medusa", section 2.3.2; FastMTP, arXiv 2509.18362).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from foretell import decoding
from foretell.backbone.trying import generating
from foretell.data.records import REFUSED, Bad, Document
from foretell.data.tokenization import given_prompt, opening
from foretell.decoding.cache import takes_masks
from foretell.decoding.constraints import OBEYED, ByRow, constraints, obeyed, undrawn
from foretell.decoding.stops import stopped_at
from foretell.errors import InputError
from foretell.files import local_path, refusing, write_whole
from foretell.model import MTPModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_STRETCH = 16
"""Batches among which prompts are sorted by length: a batch is padded to its longest prompt."""


@dataclass(frozen=True, kw_only=True)
class DistillOptions:
    """How continuations are drawn.

    Attributes:
        max_new_tokens: of a continuation; it ends earlier with an end-of-sequence token, or with a
            stop string of the model's generation config.
        temperature: 0 is greedy.
        top_p: the smallest set of tokens with this probability is drawn from.
        batch_size: prompts continued at once.
        seed: of the draws; every batch has its own, made from this one.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise InputError("max_new_tokens and batch_size must be at least 1.")
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise InputError("temperature must be 0 or more, and top_p over 0 and at most 1.")


def prompts_of(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    prompt_tokens: int,
    max_new_tokens: int,
    bad: Bad = REFUSED,
) -> Iterator[list[int]]:
    """Token ids of the prompts in `documents`.

    A conversation gives one, up to where the assistant would answer for the last time. A text gives
    one of `prompt_tokens` for every `prompt_tokens + max_new_tokens` of its tokens, so that text
    and continuations cover as much; each stands after what the tokenizer puts before a text. `bad`
    says what becomes of documents that cannot be used; by default the first is an error.
    """
    prefix = opening(tokenizer)
    for document in documents:
        try:
            given = given_prompt(document, tokenizer, prompt_tokens)
        except InputError as error:
            bad(error)
            continue
        if given is not None:
            yield given
        else:
            ids = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
            for start in range(0, len(ids), prompt_tokens + max_new_tokens):
                yield prefix + ids[start : start + prompt_tokens]


def prompts_that_fit(
    documents: Iterable[Document],
    model: MTPModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt_tokens: int,
    max_new_tokens: int,
    count: int | None = None,
    bad: Bad = REFUSED,
) -> tuple[list[list[int]], int]:
    """Token ids of the first prompts, and how many were left out on the way because they are long.

    Args:
        documents: see `prompts_of`.
        model: in whose context a prompt and its continuation have to fit.
        tokenizer: of the model.
        prompt_tokens: of a prompt that is cut from a text.
        max_new_tokens: of a continuation.
        count: how many prompts at most; None: all.
        bad: what becomes of documents that cannot be used.

    Raises:
        InputError: a number is less than 1.
    """
    if prompt_tokens < 1:
        raise InputError(f"prompt_tokens is {prompt_tokens}; it must be at least 1.")
    if count is not None and count < 1:
        raise InputError(f"count is {count}; it must be at least 1.")
    room = (model.backbone.context or sys.maxsize) - max_new_tokens
    used: list[list[int]] = []
    too_long = 0
    for prompt in prompts_of(documents, tokenizer, prompt_tokens, max_new_tokens, bad):
        if len(prompt) > room:
            too_long += 1
            continue
        used.append(prompt)
        if len(used) == count:
            break
    return used, too_long


class Continuations:
    """A file of continuations, one JSON object per line, that is written batch by batch.

    A line has `tokens`, of which the first `prompt_tokens` are the prompt, and `text`. Killed at
    any moment and started again, it goes on after the last whole batch. Lines come in the order of
    the prompts, but sorted by length, the longest first, within every 16 batches.

    Args:
        path: the file. What it holds already stays; a note beside it tells with which settings it
            was begun.
        model: its backbone writes; heads play no part.
        tokenizer: of the model.
        prompts: token ids.
        sampling: how to draw.

    Raises:
        InputError: the file was begun with other settings, prompts or another model, is not one
            that was begun here, or cannot be written; a prompt is empty or leaves no room in the
            context.
    """

    def __init__(
        self,
        path: Path,
        model: MTPModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: list[list[int]],
        sampling: DistillOptions,
    ) -> None:
        self.path, self.model, self.tokenizer = local_path(path), model, tokenizer
        self.sampling = sampling
        stretch = _STRETCH * sampling.batch_size
        self.prompts = [
            prompt
            for start in range(0, len(prompts), stretch)
            for prompt in sorted(prompts[start : start + stretch], key=len, reverse=True)
        ]
        context = model.backbone.max_length
        for number, prompt in enumerate(prompts, start=1):
            if not prompt:
                raise InputError(f"prompt {number} is empty.")
            if context is not None and len(prompt) + sampling.max_new_tokens > context:
                raise InputError(
                    f"prompt {number} has {len(prompt)} tokens, and {sampling.max_new_tokens} more "
                    f"do not fit into the model's context of {context}; shorten either."
                )
        if not prompts:
            raise InputError("no prompts were given; give at least one.")
        self._claim()

    def _claim(self) -> None:
        """Make the file ours, or find it to be so already; forget a half-written batch."""
        digest = hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()[:16]
        settings = {
            "backbone": self.model.fingerprint(),
            "dtype": str(self.model.backbone.dtype),
            "prompts": digest,
            "generation_config": obeyed(self.model.lm),
            "ends": [*sorted(self._ends), *self.model.stop_strings],
            **asdict(self.sampling),
        }
        note = self.path.with_name(f"{self.path.name}.settings.json")
        text = json.dumps(settings, indent=2) + "\n"
        with refusing(self.path):
            self.done = self._keep_whole_batches() if self._was_begun(note, text) else 0
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not note.is_file():
                write_whole(note, text)
            with self.path.open("a"):
                pass  # it can be written to

    def _was_begun(self, note: Path, text: str) -> bool:
        """Whether the file is there and ours to go on with, by the note beside it."""
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"{self.path}: is not a file; name one to be written.")
        if note.is_file() and note.read_bytes() != text.encode():
            raise InputError(
                f"{self.path}: was begun with other settings, see {note.name} beside it; "
                "name another file."
            )
        if self.path.is_file() and not note.is_file():
            raise InputError(f"{self.path}: exists and was not begun here; name another file.")
        return self.path.is_file()

    def _keep_whole_batches(self) -> int:
        """Cut the file after its last whole batch; the number of prompts that are done."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        if len(lines) > len(self.prompts) or not all(map(_continues, lines, self.prompts)):
            raise InputError(
                f"{self.path}: holds something else than continuations of these prompts; "
                "name another file."
            )
        whole = [line for line in lines if line.endswith(b"\n")]
        size = self.sampling.batch_size
        done = len(whole) if len(whole) == len(self.prompts) else len(whole) // size * size
        if done < len(lines):
            with self.path.open("r+b") as file:
                file.truncate(sum(len(line) for line in whole[:done]))
        return done

    def write(self, progress: Callable[[float], None] | None = None) -> int:
        """Continue what is left; how many tokens were written now."""
        self.model.eval()
        size, written = self.sampling.batch_size, 0
        with self.path.open("a", encoding="utf-8") as file:
            for start in range(self.done, len(self.prompts), size):
                batch = self.prompts[start : start + size]
                torch.manual_seed(_seed(self.sampling.seed, start))
                for prompt, new in zip(batch, self._continue(batch), strict=True):
                    tokens = [*prompt, *new]
                    record = {
                        "tokens": tokens,
                        "prompt_tokens": len(prompt),
                        "text": self.tokenizer.decode(tokens),
                    }
                    file.write(json.dumps(record) + "\n")
                    written += len(new)
                file.flush()
                os.fsync(file.fileno())
                self.done = start + len(batch)
                if progress is not None:
                    progress(self.done / len(self.prompts))
        return written

    @torch.inference_mode()
    def _continue(self, prompts: list[list[int]]) -> list[list[int]]:
        """What the backbone writes after each prompt, up to and with what ends a text."""
        backbone, lm = self.model.backbone, cast(Any, self.model.lm)
        if len(set(map(len, prompts))) > 1 and not self._pads(len(prompts[0])):
            alike = [list(rows) for _, rows in groupby(prompts, len)]
            return [new for rows in alike for new in self._continue(rows)]
        stops, padding = sorted(self._ends), [max(map(len, prompts)) - len(p) for p in prompts]
        filler = stops[0] if stops else 0
        rows = torch.tensor([[filler] * n + p for n, p in zip(padding, prompts, strict=True)])
        mask = torch.tensor([[0] * n + [1] * len(p) for n, p in zip(padding, prompts, strict=True)])
        batch = decoding.Batch(
            backbone, rows, mask, self.sampling.max_new_tokens, [decoding.StopTokens(stops)]
        )
        by_row = ByRow(constraints(lm, batch, decoding.Sampling()), padding)
        drawn = {"temperature": self.sampling.temperature, "top_p": self.sampling.top_p, "top_k": 0}
        config = undrawn(lm)
        config.update(
            **dict.fromkeys(OBEYED),  # by each row, above
            max_new_tokens=self.sampling.max_new_tokens,
            do_sample=self.sampling.temperature > 0,
            eos_token_id=stops or None,
            pad_token_id=filler,
            stop_strings=None,
            **(drawn if self.sampling.temperature > 0 else {}),
        )
        with generating(lm, config):
            out = cast(
                Tensor,
                lm.generate(
                    rows.to(backbone.device),
                    attention_mask=mask.to(backbone.device),
                    logits_processor=[by_row],
                ),
            )
        return [self._until_stop(row) for row in out[:, rows.shape[1] :].tolist()]

    def _pads(self, longest: int) -> bool:
        """Whether a row says the same beside a longer one, after padding."""
        backbone = self.model.backbone
        length = longest + self.sampling.max_new_tokens
        return backbone.rotary is None and bool(takes_masks(backbone, length))

    def _until_stop(self, new: list[int]) -> list[int]:
        stops: list[decoding.Stop] = [decoding.StopTokens(self._ends)]
        if strings := self.model.stop_strings:
            stops.append(decoding.StopStrings(strings, self.tokenizer))
        return new[: stopped_at(stops, (), new)]

    @property
    def _ends(self) -> set[int]:
        """The tokens that end a text."""
        return {*self.model.stop_tokens, self.tokenizer.eos_token_id} - {None}


def _continues(line: bytes, prompt: list[int]) -> bool:
    """Whether a line, perhaps half-written, is a continuation of `prompt`."""
    begin = json.dumps({"tokens": prompt})[:-2].encode() + b","
    return line.startswith(begin) or begin.startswith(line)


def _seed(seed: int, start: int) -> int:
    digest = hashlib.sha256(f"{seed}:{start}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
