"""`foretell generate`: stream a continuation."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.color import ColorSystem
from rich.style import Style
from transformers import PreTrainedTokenizerBase

from foretell.cli import common, drafting
from foretell.cli.commands.generate import Generate
from foretell.data import Document, read_prompt
from foretell.data.prompts import as_message, holds_records
from foretell.data.tokenization import given_prompt, prompt_ids
from foretell.decoding import Detokenizer, Step
from foretell.decoding.constraints import obeyed
from foretell.errors import InputError
from foretell.evaluation.methods import method_name
from foretell.evaluation.speed import share_by_length
from foretell.generation.steps import counted, shown_steps
from foretell.ready import tokenizer_of
from foretell.results.tables import Generated

DEPTH_STYLES = ("", "black on green", "black on cyan", "black on yellow", "black on magenta")
"""Colours of accepted tokens by the depth that drafted them; the last serves all deeper ones."""


def generate(asked: Generate) -> None:
    """Do what `asked` says."""
    document = _prompt(asked.prompt, asked.prompt_file)
    shape = drafting.parse_tree(asked.tree, asked.pass_width)
    length = drafting.parse_length(asked.draft_length)
    accept = drafting.parse_rule(asked.rule)
    sampling = drafting.sampling(
        asked.temperature,
        asked.seed,
        top_k=asked.top_k,
        top_p=asked.top_p,
        min_p=asked.min_p,
        repetition_penalty=asked.repetition_penalty,
    )
    loaded = common.load_model(
        asked.model,
        asked.device,
        asked.dtype,
        asked.backbone,
        by_columns=asked.pass_width is None,
        quantize=asked.quantize,
    )
    tokenizer = tokenizer_of(asked.model, loaded)
    chats = bool(tokenizer.chat_template and document.text) and _typed(asked) and not asked.raw
    if chats:
        document = as_message(document)
    given = given_prompt(document, tokenizer)
    text = document.text if given is None else str(tokenizer.decode(given))
    ids = torch.tensor([given or prompt_ids(tokenizer, text)], dtype=torch.long)
    if ids.shape[1] == 0:
        raise InputError("the prompt is empty; give at least one token.")
    name = drafting.drafter_name(asked.drafter, loaded, plain=asked.plain)
    stream = loaded.stream(
        ids,
        torch.ones_like(ids),
        max_new_tokens=asked.max_new_tokens,
        stop_tokens={*loaded.stop_tokens, tokenizer.eos_token_id} - {None},
        stop_strings=asked.stop or None,
        tokenizer=tokenizer,
        sampling=sampling,
        drafter=drafting.drafter(name, loaded, length, shape),
        draft_length="auto" if length == "auto" else None,
        rule=accept,
        pass_width=asked.pass_width,
        compiled=asked.compiled,
    )
    printer = _Printer(tokenizer, ids[0].tolist(), asked.show_drafts)
    steps: list[Step] = []
    for (step,) in stream:
        if not steps:  # not earlier: a prompt that is refused is not repeated
            _write("" if chats else text)
        steps.append(step)
        printer.add(step)
    printer.finish()
    row = Generated(
        model=asked.model,
        method=method_name(name, loaded),
        **counted(steps),
        batch=1,
        temperature=asked.temperature,
        compiled=asked.compiled,
        drafter=name,
        tree=asked.tree,
        draft_length=length,
        pass_width=asked.pass_width,
    )
    common.console.stderr = True  # the text stays alone on standard output
    common.console.print(
        f"{row.tokens} tokens in {len(steps)} forward passes, "
        f"{row.tokens_per_forward:.2f} per forward "
        f"({drafting.describe(accept, asked.temperature)})",
    )
    for line in drafting.describe_config(loaded, sampling):
        common.console.print(line)
    if loaded.backbone.max_length == ids.shape[1] + row.tokens:
        common.console.print(
            f"the text ends with the model's last position, {loaded.backbone.max_length}."
        )
    lengths = [step.drafted for step in steps[1:]]
    if length == "auto" and lengths:
        common.console.print(drafting.describe_lengths(share_by_length(lengths)))
    shown = shown_steps(steps, tokenizer, ids[0].tolist())
    settings = {
        "prompt": text,
        "max_new_tokens": asked.max_new_tokens,
        "stop": asked.stop or list(loaded.stop_strings),
        "top_k": asked.top_k,
        "top_p": asked.top_p,
        "min_p": asked.min_p,
        "repetition_penalty": asked.repetition_penalty,
        "generation_config": obeyed(loaded.lm),
        "quantize": asked.quantize,
        "rule": asked.rule or "speculative",
        "lossless": accept.lossless,
        "text": "".join(piece for step in shown for piece in step["pieces"]),
        "token_ids": [token for step in steps for token in step.tokens],
        "draft_lengths": lengths,
        "steps": shown,
    }
    drawn = None if sampling.greedy else asked.seed
    common.save_json(asked.json, "generate", loaded, drawn, settings, [row])


class _Printer:
    """Writes text as it becomes whole, coloured by depth on request."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], colour: bool
    ) -> None:
        self.text, self.colour = Detokenizer(tokenizer, prompt), colour

    def add(self, step: Step) -> None:
        """Write a step's tokens; depth k drafted the k-th accepted one."""
        for index, token in enumerate(step.tokens):
            if text := self.text.add(token):
                self._write(text, index + 1 if index < step.accepted else 0)

    def finish(self) -> None:
        """Write what is left, and end the line."""
        self._write(self.text.finish(), 0)
        _write("\n")

    def _write(self, text: str, depth: int) -> None:
        style = DEPTH_STYLES[min(depth, len(DEPTH_STYLES) - 1)] if self.colour else ""
        console = common.console
        plain = console.color_system is None or console.no_color
        system = None if plain else ColorSystem.STANDARD
        _write(Style.parse(style).render(text, color_system=system))


def _write(text: str) -> None:
    """Write text as it is, where rich would wrap lines and replace tabs."""
    common.console.file.write(text)
    common.console.file.flush()


def _typed(asked: Generate) -> bool:
    """Whether the prompt is text, and no record that says itself what it is."""
    return asked.prompt_file is None or not holds_records(asked.prompt_file)


def _prompt(prompt: str | None, file: Path | None) -> Document:
    if (prompt is None) == (file is None):
        raise InputError("give the text to continue with --prompt or --prompt-file, one of them.")
    if file is not None:
        return read_prompt(file)
    return Document(sys.stdin.read() if prompt == "-" else str(prompt), "--prompt")
