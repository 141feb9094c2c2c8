"""100,000 sampled continuations of every drafter and rule against exact enumeration.

    python benchmarks/draws.py --jobs 2

The toy of `tests/test_sampling.py` (five tokens, three drawn, temperature and top-p on), decoded in
batches of several sizes: `p_value` is that of a chi-square test. Each row draws with a seed of its
own, so that batches of any size should draw the very same: `identical` counts on how many of the
seeds they draw what batches of a thousand do.

Batches of one take hours, and where tokens are chosen, not drawn, only the first rule is measured
there: `SpeculativeSampling` is `Exact` then. The result file is written after every measurement,
and what it holds already is not measured again; move it away to begin anew. The commits of all runs
are among its settings.
"""

import argparse
import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from foretell.results import read_result, write_result
from foretell.results.benchmarks import Draws
from foretell.results.provenance import provenance

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import test_sampling as toy  # noqa: E402
from test_acceptance import p_value  # noqa: E402

LARGE = 1000
"""The batch size with which others are compared."""


def continuations(name: str, rule: str, draws: int, batch: int) -> Tensor:
    """(draws, LENGTH), with seeds 0, 1, … in batches of `batch`."""
    kind, found = name.split()[0], []
    owner = toy.model(kind if kind in toy.HEADS else "parallel")
    for first in range(0, draws, batch):
        result = owner.decode(
            torch.tensor([toy.PROMPT]).expand(min(batch, draws - first), -1),
            max_new_tokens=toy.LENGTH,
            sampling=replace(toy.SAMPLED, seeds=first),
            drafter=toy.drafter(name),
            rule=toy.RULES[rule],
        )
        found.append(result.sequences[:, len(toy.PROMPT) :])
    return torch.cat(found)


def measure(task: tuple[str, str, int, int]) -> Draws:
    name, rule, draws, batch = task
    found = continuations(*task)
    p = p_value(toy.numbered(found), toy.exact())
    large = found if batch == LARGE else continuations(name, rule, draws, LARGE)
    return Draws(
        drafter=name,
        rule=rule,
        batch=batch,
        draws=draws,
        p_value=p,
        identical=int((found == large).all(1).sum()),
    )


def place(row: Draws) -> tuple[int, int, int]:
    """Of a measurement in the result file."""
    return -row.batch, toy.DRAFTERS.index(row.drafter), list(toy.RULES).index(row.rule)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[LARGE, 5, 1])
    parser.add_argument(
        "--drafters",
        nargs="+",
        default=toy.DRAFTERS,
        choices=toy.DRAFTERS,
        metavar="NAME",
        help="of tests/test_sampling.py; default: all",
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("results/draws.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    origin = provenance(0, "cpu", torch.float32)
    settings = {
        "temperature": toy.TEMPERATURE, "top_p": toy.TOP_P, "length": toy.LENGTH,
        "draws": arguments.draws,
    }  # fmt: skip
    rows: list[Draws] = []
    commits = {str(origin["git_sha"])}
    if arguments.out.exists():
        earlier = read_result(arguments.out)
        commits |= set(earlier.settings.pop("commits", []))
        if earlier.settings != settings:
            parser.error(f"{arguments.out} has other settings: move it away, or give another --out")
        rows = earlier.table(Draws)
    made = {(row.drafter, row.rule, row.batch) for row in rows}
    tasks = [
        (name, rule, arguments.draws, batch)
        for batch in arguments.batch_sizes
        for name in arguments.drafters
        for rule in (toy.RULES if batch > 1 or toy.draws_tokens(name) else ["speculative"])
        if (name, rule, batch) not in made
    ]
    settings["commits"] = sorted(commits)
    workers = multiprocessing.get_context("spawn").Pool(arguments.jobs, torch.set_num_threads, [1])
    with workers:
        for number, row in enumerate(workers.imap_unordered(measure, tasks), start=1):
            rows = sorted([*rows, row], key=place)
            write_result(arguments.out, "draws", settings, rows, origin)
            print(f"{number} of {len(tasks)}: {row.flat()}", flush=True)
    print(f"Least p-value of {len(rows)}: {min(row.p_value for row in rows):.4f}")
    apart = sum(row.draws - row.identical for row in rows)
    print(f"Draws that depend on the size of the batch: {apart}")


if __name__ == "__main__":
    main()
