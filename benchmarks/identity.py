"""Greedy output against transformers' `generate`: every family × every head × 20 prompts, float32.

    python benchmarks/identity.py

The backbones are tiny and random (`tests/families.py`), the prompts random tokens. So that drafts
are accepted as well as rejected, each head is first fitted for a moment to the backbone's outputs.
`tokens_per_forward` shows that they are: it says nothing about real models.
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers.utils import logging

from foretell import BackboneError, MTPModel, ParallelHeads, SequentialHeads
from foretell.decoding import LookupDrafter, NoDrafter
from foretell.heads import HeadConfig
from foretell.results import write_result
from foretell.results.benchmarks import Identity
from foretell.results.provenance import provenance

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from families import FAMILIES, build

HEADS: dict[str, HeadConfig | None] = {
    "plain": None,
    "prompt-lookup": None,
    "parallel": ParallelHeads.Config(depth=3),
    "sequential": SequentialHeads.Config(depth=3),
    "sequential shared": SequentialHeads.Config(depth=3, shared=True),
}

DRAFTERS = {"plain": NoDrafter, "prompt-lookup": lambda: LookupDrafter(8)}
"""Those that need no head."""


def fit(model: MTPModel, rows: torch.Tensor, steps: int) -> None:
    """Fit the heads to `rows` (B, T), the backbone frozen."""
    model.freeze_backbone()
    optimizer = torch.optim.AdamW(model.require_head().parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        model(rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def measure(
    family: str, prompts: int, new_tokens: int, steps: int, device: str = "cpu"
) -> list[Identity]:
    """One row per way to draft."""
    lm = build(family).to(device)
    generator = torch.Generator().manual_seed(0)
    vocabulary = lm.config.get_text_config().vocab_size
    lengths = torch.randint(1, 40, (prompts,), generator=generator).tolist()
    texts = [torch.randint(vocabulary, (1, n), generator=generator).to(device) for n in lengths]
    expected = [
        lm.generate(
            text,
            attention_mask=torch.ones_like(text),
            do_sample=False,
            max_new_tokens=new_tokens,
            pad_token_id=0,
        )
        for text in texts
    ]
    rows: list[Identity] = []
    for name, config in HEADS.items():
        torch.manual_seed(0)
        model = MTPModel(lm, config)
        if config is not None:
            fit(model, torch.cat([row[:, -new_tokens:] for row in expected]), steps)
        drafter = DRAFTERS[name]() if config is None else None
        results = [model.decode(t, max_new_tokens=new_tokens, drafter=drafter) for t in texts]
        forwards = sum(result.forwards for result in results)
        same = sum(torch.equal(r.sequences, e) for r, e in zip(results, expected, strict=True))
        rows.append(
            Identity(
                family=family,
                method=name,
                depth=model.depth,
                prompts=prompts,
                identical=same,
                tokens=prompts * new_tokens,
                forwards=forwards,
                tokens_per_forward=prompts * new_tokens / forwards,
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--fit-steps", type=int, default=60)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=Path("results/identity.json"))
    arguments = parser.parse_args()
    logging.set_verbosity_error()

    rows: list[Identity] = []
    refused: dict[str, str] = {}
    for family in arguments.families:
        try:
            rows += measure(
                family,
                arguments.prompts,
                arguments.new_tokens,
                arguments.fit_steps,
                arguments.device,
            )
        except BackboneError as error:
            refused[family] = str(error)
            print(f"{family:<14} refused: {error}", flush=True)
            continue
        for row in rows[-len(HEADS) :]:
            print(
                f"{family:<14} {row.method:<18} identical {row.identical} of "
                f"{row.prompts}, {row.tokens_per_forward:.2f} tokens per forward",
                flush=True,
            )
    wrong = sum(row.prompts - row.identical for row in rows)
    print(f"{len(rows)} rows, {wrong} mismatches, {len(refused)} families refused")
    if arguments.json:
        settings = {**vars(arguments), "refused": refused}
        write_result(
            arguments.json,
            "identity",
            settings,
            rows,
            provenance(0, arguments.device, torch.float32),
        )


if __name__ == "__main__":
    main()
