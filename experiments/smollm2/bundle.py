"""The bundled model `smollm2-mtp`: trained heads, and the tokens that they draft.

    python experiments/smollm2/bundle.py HEADS [--vocabulary 8192]

The tokens are the most frequent ones in `answers.jsonl.xz`, which is what the heads learned from.
How many is measured by `vocabulary.py`.
"""

import argparse
import json
import lzma
from dataclasses import replace
from pathlib import Path

import torch
from answers import ANSWERS

import foretell as ft
from foretell.checkpoints import read_heads, write_heads
from foretell.data.vocabulary import coverage, most_frequent

OUT = Path("src/foretell/bundled/smollm2-mtp")
BACKBONE = "models/SmolLM2-135M-Instruct"


def answered(vocab_size: int) -> torch.Tensor:
    """How often each token was written, (V,)."""
    counts = torch.zeros(vocab_size, dtype=torch.long)
    with lzma.open(ANSWERS, "rt", encoding="utf-8") as lines:
        for line in lines:
            counts += torch.bincount(torch.tensor(json.loads(line)["answer"]), minlength=vocab_size)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("heads", type=Path, help="directory of heads, saved without a backbone")
    parser.add_argument("--vocabulary", type=int, default=8192)
    arguments = parser.parse_args()
    model = ft.MTPModel.from_pretrained(arguments.heads, backbone=BACKBONE)
    head, counts = model.require_head(), answered(model.backbone.vocab_size)
    head.draft_only(most_frequent(counts, arguments.vocabulary, model.stop_tokens))
    assert head.vocabulary is not None
    stored = read_heads(arguments.heads)
    reference = replace(stored.backbone, path=BACKBONE)
    OUT.mkdir(parents=True, exist_ok=True)
    write_heads(OUT, replace(stored, head=head.config.to_dict(), backbone=reference,
                             tensors=head.state_dict()))  # fmt: skip
    print(f"{coverage(counts, head.vocabulary.tokens):.1%} of the answers can be drafted")


if __name__ == "__main__":
    main()
