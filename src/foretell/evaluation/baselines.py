"""Simpler ways to draft beside heads, from a probe of the same text."""

from pathlib import Path

from foretell.errors import InputError
from foretell.results import read_result
from foretell.results.tables import Baseline, ScoredByDepth

KEPT = (
    "model", "method", "depth", "positions", "top1", "top5", "nll", "agreement", "acceptance",
)  # fmt: skip


def probed_baselines(path: Path, data: str) -> list[Baseline]:
    """The depths of a probe of the same text.

    Args:
        path: a result file of `foretell probe`.
        data: the text, as it was named there.

    Raises:
        InputError: it is another result file, or of another text.
    """
    result = read_result(path)
    if result.command != "probe":
        raise InputError(f"{path} is of `foretell {result.command}`; give one of `foretell probe`.")
    if (other := result.settings.get("data")) != data:
        raise InputError(f"{path} was measured on {other}, not on {data}; probe the same data.")
    return [
        Baseline(**{name: getattr(row, name) for name in KEPT})
        for row in result.table(ScoredByDepth)
    ]
