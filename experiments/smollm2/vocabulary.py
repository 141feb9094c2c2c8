"""How many tokens the heads should draft: the same heads with smaller and larger vocabularies.

    python experiments/smollm2/vocabulary.py --prompts held-out.jsonl

Each size holds the most frequent tokens of `answers.jsonl.xz`. What the model itself says to the
prompts, plainly, tells how much of it they cover. All sizes take turns, prompt by prompt.
"""

import argparse
from pathlib import Path

import torch
from bundle import answered

import foretell as ft
from foretell.data import read_prompts
from foretell.data.vocabulary import most_frequent
from foretell.evaluation import Foretell, compare
from foretell.evaluation.methods import Continuation
from foretell.formatting import aligned
from foretell.results import write_result
from foretell.results.benchmarks import DraftVocabularySize
from foretell.results.provenance import provenance

SIZES = (1024, 2048, 4096, 8192, 16384, 32768, 49152)


class Drafting(Foretell):
    """The heads, told before every text what they may draft."""

    def __init__(self, model: ft.MTPModel, tokens: torch.Tensor) -> None:
        self.tokens = tokens
        super().__init__(model, f"{len(tokens)}", drafter=model.drafter_named("heads"))

    def __call__(
        self, prompts: torch.Tensor, count: int, mask: torch.Tensor | None = None
    ) -> Continuation:
        self.model.require_head().draft_only(self.tokens)
        return super().__call__(prompts, count, mask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/draft-vocabulary.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = ft.MTPModel.from_pretrained("smollm2-mtp", dtype=torch.float32)
    tokenizer = ft.load_tokenizer("smollm2-mtp")
    counts = answered(model.backbone.vocab_size)
    chosen = [most_frequent(counts, size, model.stop_tokens) for size in SIZES]
    prompts = read_prompts(arguments.prompts, tokenizer, 256, arguments.count, 0)
    plain = Foretell(model, plain=True)
    table = compare(
        [plain, *[Drafting(model, tokens) for tokens in chosen]], prompts,
        max_new_tokens=arguments.max_new_tokens, repeats=arguments.repeats,
    )  # fmt: skip
    said = torch.tensor([
        token for prompt in prompts for token in plain(prompt, arguments.max_new_tokens).rows[0]
    ])  # fmt: skip
    nothing = torch.tensor([], dtype=torch.long)
    rows = [
        DraftVocabularySize(
            size=len(tokens), coverage=float(torch.isin(said, tokens).double().mean()),
            prompts=row.prompts, identical=row.identical or 0, tokens=row.tokens,
            forwards=row.forwards, tokens_per_forward=row.tokens_per_forward,
            tokens_per_second=row.tokens_per_second, speedup=row.speedup,
        )
        for tokens, row in zip([nothing, *chosen], table.speeds, strict=True)
    ]  # fmt: skip
    header = ("tokens drafted", "coverage", "tokens per forward", "tokens/s", "speed-up")
    print("\n".join(aligned(header, [
        (f"{row.size:,}", f"{row.coverage:.1%}", f"{row.tokens_per_forward:.2f}",
         f"{row.tokens_per_second:.1f}", f"{row.speedup:.2f}×") for row in rows
    ])))  # fmt: skip
    settings = {name: value for name, value in vars(arguments).items() if name != "out"}
    settings["prompts"] = Path(arguments.prompts).name
    origin = provenance(0, "cpu", "float32")
    write_result(arguments.out, "draft-vocabulary", settings, rows, origin)


if __name__ == "__main__":
    main()
