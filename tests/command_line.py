"""The command line in this process, and a small model and text for it."""

import contextlib
import io
import re
import sys
from dataclasses import dataclass

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from foretell.cli import main

CONTEXT = 128
TEXT = '''def mean(values):
    """Return the mean of some values, é and 日本 included."""
\ttotal = sum(values)
    return total / len(values)
'''


@dataclass
class Ran:
    status: int
    out: str
    err: str


def run(*arguments: object) -> Ran:
    """The command line in this process."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["foretell", *map(str, arguments)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as stop:
                status = int(stop.code or 0)
    return Ran(status, out.getvalue(), err.getvalue())


def fine(*arguments: object) -> str:
    ran = run(*arguments)
    assert ran.status == 0, ran.err
    return ran.out


def refused(*arguments: object) -> str:
    """One line on standard error and status 2; returns the line."""
    ran = run(*arguments)
    assert ran.status == 2, ran
    assert re.fullmatch(r"foretell: \S[^\n]*\n", ran.err), ran.err
    assert not ran.err.endswith("..\n")
    return ran.err


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and an end-of-sequence token 0."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|end|>": 0, **{c: number for number, c in enumerate(alphabet, start=1)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|end|>",
        clean_up_tokenization_spaces=False,
    )


TOKENIZER = byte_tokenizer()


def backbone(seed: int = 0, vocab_size: int = 257) -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            initializer_range=0.2,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
        return LlamaForCausalLM(config).eval()
