"""How often decoding in drafts, or in batches, changes a token because of rounding.

    python benchmarks/near_ties.py

Greedy decoding takes the larger of two logits. A pass over several tokens, or several rows, adds in
another order than a pass over one token, and where the two largest logits are almost equal the
choice can flip. Each prompt is decoded one token at a time by the same model in the same type, and
then in other ways; only tokens up to the first change are compared, since after it the two texts
differ anyway.

Rows of the result: one per type and way (`tokens` compared, `changed`, `identical` prompts), then
one for each change, with `gap`, the distance between the two largest logits of the one-token pass
there. Rows with a `pass_width` compare decoding in passes of that width with plain decoding in the
same: no token may change. `settings` tells how many of the one-token passes have a gap as small as
the widest of those.
"""

import argparse
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from foretell.data import read_prompts
from foretell.decoding import Draft, Drafter, Exact, NoDrafter, Verdict, drafter_for
from foretell.decoding.cache import takes_masks
from foretell.model import MTPModel
from foretell.ready import load_model, tokenizer_of
from foretell.results import write_result
from foretell.results.benchmarks import NearTies, TokenChange
from foretell.results.provenance import provenance

DATA = "stdlib:held-out"


class Watching(Exact):
    """`Exact`, which keeps the gap between the two largest logits of every pass."""

    def __init__(self) -> None:
        self.gaps: list[float] = []

    def __call__(self, draft: Draft, logits: Tensor, uniforms: Tensor | None = None) -> Verdict:
        first, second = logits[0, 0].float().topk(2).values.tolist()
        self.gaps.append(first - second)
        return super().__call__(draft, logits, uniforms)


@dataclass
class Reference:
    """What one-token passes make of a prompt: the tokens, and the gap before each."""

    tokens: list[int]
    gaps: list[float]


@dataclass
class Found:
    """How a way of decoding differs from one-token passes."""

    tokens: int = 0
    identical: int = 0
    gaps: list[float] = field(default_factory=list)  # of the changes

    def compare(self, reference: Reference, tokens: list[int]) -> None:
        pairs = enumerate(zip(tokens, reference.tokens, strict=True))
        place = next((place for place, (token, own) in pairs if token != own), None)
        self.tokens += len(tokens) if place is None else place + 1
        self.identical += place is None
        if place is not None:
            self.gaps.append(reference.gaps[place])


def reference(model: MTPModel, prompt: Tensor, count: int, width: int | None = None) -> Reference:
    """Decode one token at a time, in passes of one token or of some width."""
    rule = Watching()
    result = model.decode(
        prompt,
        max_new_tokens=count,
        stop_tokens=(),
        drafter=NoDrafter(),
        rule=rule,
        pass_width=width,
    )
    return Reference(result.new_tokens, rule.gaps)


def together(prompts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Prompts (1, T) as a batch padded in front, and its mask."""
    width = max(prompt.shape[1] for prompt in prompts)
    rows = [pad(prompt, (width - prompt.shape[1], 0)) for prompt in prompts]
    masks = [pad(torch.ones_like(prompt), (width - prompt.shape[1], 0)) for prompt in prompts]
    return torch.cat(rows), torch.cat(masks)


def measure(
    model: MTPModel,
    prompts: list[Tensor],
    expected: list[Reference],
    count: int,
    batch: int,
    pass_width: int | None = None,
) -> dict[str, Found]:
    """Decode with and without heads, `batch` rows at once."""
    head = model.require_head()
    ways: dict[str, Drafter] = {head.config.kind: drafter_for(model.backbone, head)}
    if batch > 1:
        ways["plain"] = NoDrafter()
    found = {name: Found() for name in ways}
    for name, drafter in ways.items():
        for start in range(0, len(prompts), batch):
            rows, mask = together(prompts[start : start + batch])
            result = model.decode(
                rows,
                mask,
                max_new_tokens=count,
                stop_tokens=(),
                drafter=drafter,
                pass_width=pass_width,
            )
            for own, tokens in zip(expected[start:], result.continuations, strict=False):
                found[name].compare(own, tokens)
    return found


def by_type(
    arguments: argparse.Namespace, dtype: str
) -> tuple[list[NearTies], list[TokenChange], dict[str, Any]]:
    """All ways in one type: their rows, a row for each change, and how usual such gaps are."""
    model = load_model(arguments.model, arguments.device, dtype, by_columns=False)
    tokenizer, count = tokenizer_of(arguments.model, model), arguments.max_new_tokens
    prompts = read_prompts(
        DATA, tokenizer, arguments.prompt_tokens, arguments.count, arguments.seed
    )
    prompts = [prompt.to(model.backbone.device) for prompt in prompts]
    expected = [reference(model, prompt, count) for prompt in prompts]
    rows: list[NearTies] = []
    changes: list[TokenChange] = []
    width = arguments.pass_width
    steady = [reference(model, prompt, count, width) for prompt in prompts]
    ways = ((1, None, expected), (arguments.batch_size, None, expected), (1, width, steady))
    for batch, pass_width, own in ways:
        for method, found in measure(model, prompts, own, count, batch, pass_width).items():
            way = {
                "model": arguments.model, "dtype": dtype, "method": method, "batch": batch,
                "pass_width": pass_width,
            }  # fmt: skip
            row = NearTies(
                **way,
                prompts=len(prompts),
                identical=found.identical,
                tokens=found.tokens,
                changed=len(found.gaps),
            )
            rows.append(row)
            changes += [TokenChange(**way, gap=gap) for gap in sorted(found.gaps)]
            show(row, found.gaps)
    gaps = [gap for own in expected for gap in own.gaps]
    widest = max((change.gap for change in changes), default=None)
    usual = {
        "rows_share_a_pass": bool(takes_masks(model.backbone)),
        "passes": len(gaps),
        "median_gap": statistics.median(gaps),
        "exact_ties": gaps.count(0.0),
        "widest_changed_gap": widest,
        "as_close": 0 if widest is None else sum(gap <= widest for gap in gaps),
    }
    return rows, changes, usual


def show(row: NearTies, gaps: list[float]) -> None:
    width = f", {row.pass_width} wide" if row.pass_width is not None else ""
    print(
        f"{row.dtype:<9} {row.method:<10} batch {row.batch}{width}: {row.changed} of "
        f"{row.tokens} tokens changed, {row.identical} of {row.prompts} prompts "
        f"identical; gaps {', '.join(f'{gap:.3g}' for gap in sorted(gaps)) or 'none'}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="tiny-mtp")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--pass-width", type=int, default=4)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/near-ties.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    found = {dtype: by_type(arguments, dtype) for dtype in arguments.dtypes}
    ways = [row for rows, _, _ in found.values() for row in rows]
    changes = [row for _, rows, _ in found.values() for row in rows]
    settings = {
        **{name: value for name, value in vars(arguments).items() if name != "out"},
        "prompts": DATA,
        "gaps": {dtype: usual for dtype, (_, _, usual) in found.items()},
    }
    origin = provenance(arguments.seed, arguments.device, "see rows")
    write_result(arguments.out, "near-ties", settings, [*ways, *changes], origin)
    print(f"Result file: {arguments.out}")


if __name__ == "__main__":
    main()
