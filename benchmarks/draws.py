"""100,000 sampled continuations of every drafter and rule against exact enumeration.

    python benchmarks/draws.py

The toy of `tests/test_sampling.py` (five tokens, three drawn, temperature and top-p on), decoded a
thousand rows at a time: `p_value` is that of a chi-square test. Each row draws with a seed of its
own, so that batches of 1 and 5 should draw the very same: `identical` counts on how many of
`prompts` seeds they do. `pytest -m long tests/test_sampling.py` draws all of it in batches of 1 and
5 too, which takes hours.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foretoken.provenance import provenance, write_result

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import test_sampling as toy  # noqa: E402
from test_acceptance import p_value  # noqa: E402


def continuations(name: str, rule: str, seeds: range, rows: int) -> Tensor:
    """(len(seeds), LENGTH) drawn in batches of `rows`."""
    kind = name.split()[0]
    owner, found = toy.model(kind if kind in toy.HEADS else "parallel"), []
    prompts = torch.tensor([toy.PROMPT]).expand(rows, -1)
    for first in seeds[::rows]:
        result = owner.generate(
            prompts,
            max_new_tokens=toy.LENGTH,
            sampling=replace(toy.SAMPLED, seeds=first),
            drafter=toy.drafter(name),
            rule=toy.RULES[rule],
        )
        found.append(result.sequences[:, len(toy.PROMPT) :])
    return torch.cat(found)


def measure(name: str, rule: str, draws: int, again: int) -> dict[str, Any]:
    large = continuations(name, rule, range(draws), 1000)
    number = (large * toy.V ** torch.arange(toy.LENGTH - 1, -1, -1)).sum(1)
    p = p_value(torch.bincount(number, minlength=toy.V**toy.LENGTH), toy.exact())
    same = torch.ones(again, dtype=torch.bool)
    for rows in (1, 5):
        same &= (continuations(name, rule, range(again), rows) == large[:again]).all(1)
    return {
        "drafter": name, "rule": rule, "draws": draws, "p_value": p,
        "prompts": again, "identical": int(same.sum()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--again", type=int, default=1000, help="seeds drawn in small batches too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/draws.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for name in toy.DRAFTERS:
        for rule in toy.RULES:
            rows.append(measure(name, rule, arguments.draws, arguments.again))
            print(rows[-1], flush=True)
    settings = {
        **{k: v for k, v in vars(arguments).items() if k != "out"},
        "temperature": toy.TEMPERATURE, "top_p": toy.TOP_P, "length": toy.LENGTH,
    }  # fmt: skip
    write_result(arguments.out, "draws", settings, rows, provenance(0, "cpu", torch.float32))
    print(f"Least p-value of {len(rows)}: {min(row['p_value'] for row in rows):.4f}")


if __name__ == "__main__":
    main()
