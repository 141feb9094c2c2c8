"""Train the tokenizer of the tiny models: byte-level BPE on the standard library's train split.

    python experiments/tiny/tokenizer.py --vocab-size 1024 --out experiments/tiny/out/tokenizer

Text is cut before merging so that code stays predictable. A run of line breaks and the indentation
after it is one piece, so "\\n        " can become one token and the word after it is spelled the
same at every depth. Words take one space before them, digits go in groups of three at most, and
punctuation runs stay together. Every byte has a token, so any text survives encoding and decoding;
the script checks that on the held-out split before it saves.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from foretell.data.stdlib import standard_library
from foretell.errors import InputError

END_OF_TEXT = "<|endoftext|>"
"""The one special token, id 0: begins, ends, separates and pads documents."""

PIECES = (
    r"[^\S\r\n]*[\r\n]+[^\S\r\n]*"  # line breaks, with the blanks around them
    r"| ?\p{L}+"
    r"| ?\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+"
    r"|\s+"
)

_SMALLEST_VOCABULARY = 257  # every byte and the special token


def train_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of exactly `vocab_size` tokens on the train split."""
    if vocab_size < _SMALLEST_VOCABULARY:
        raise InputError(
            f"vocabulary of {vocab_size} tokens is too small: "
            f"bytes and {END_OF_TEXT} need {_SMALLEST_VOCABULARY}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        (document.text for document in standard_library("train")), trainer=trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def check_round_trip(tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    """Check that every held-out file survives, and return the split's size in bytes and tokens."""
    total_bytes = total_tokens = 0
    for document in standard_library("held-out"):
        ids = tokenizer.encode(document.text, add_special_tokens=False)
        if tokenizer.decode(ids) != document.text:
            raise InputError(f"{document.source} does not survive encoding and decoding")
        total_bytes += len(document.text.encode("utf-8"))
        total_tokens += len(ids)
    return total_bytes, total_tokens


def main() -> None:
    """Train, check, save and load again."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the tokenizer to")
    arguments = parser.parse_args()

    train_tokenizer(arguments.vocab_size).save_pretrained(arguments.out)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.out)
    if len(tokenizer) != arguments.vocab_size or tokenizer.eos_token_id != 0:
        raise InputError(
            f"{arguments.out} has {len(tokenizer)} tokens and end of text "
            f"{tokenizer.eos_token_id}: expected {arguments.vocab_size} and 0"
        )
    total_bytes, total_tokens = check_round_trip(tokenizer)
    print(
        f"{arguments.out}: {len(tokenizer)} tokens, "
        f"{total_bytes / total_tokens:.3f} bytes per token on {total_bytes} held-out bytes"
    )


if __name__ == "__main__":
    main()
