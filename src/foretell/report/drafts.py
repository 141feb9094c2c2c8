"""Continuations as text that shows which tokens were drafted, and which stand.

`foretell generate --json` writes `settings.steps`: for each forward pass what was drafted and
accepted, and the text of its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from foretell.errors import InputError
from foretell.report.sources import Source
from foretell.results.tables import Generated

DEPTHS = 4
"""Depths that have a look of their own; deeper ones share the last."""


@dataclass(frozen=True)
class ShownPiece:
    """The text of one token, or of several that make a character together.

    Attributes:
        text: may be empty.
        look: `depth-1`, `depth-2`, …, or `own`, `corrected` for the backbone's own tokens.
    """

    text: str
    look: str


@dataclass(frozen=True)
class ShownText:
    """One prompt, and what followed.

    Attributes:
        title: model, method and file.
        prompt: as given.
        pieces: the continuation.
        summary: how many tokens were drafted and stand, in words.
        depths: the deepest look that occurs.
    """

    title: str
    prompt: str
    pieces: list[ShownPiece]
    summary: str
    depths: int


def continuations(sources: list[Source]) -> list[ShownText]:
    """What result files of `generate` hold; older ones tell no steps and are left to the tables."""
    found = [(source, row) for source in sources for row in source.table(Generated)[:1]]
    return [_read(source, row) for source, row in found if _steps(source)]


def _steps(source: Source) -> list[dict[str, Any]]:
    steps = source.result.settings.get("steps") or []
    if not isinstance(steps, list) or not all(map(_is_step, steps)):
        raise InputError(f"{source.name}: 'steps' is not what `foretell generate` writes.")
    return steps


def _is_step(step: object) -> bool:
    return (
        isinstance(step, dict)
        and isinstance(step.get("drafted"), int)
        and isinstance(step.get("accepted"), int)
        and isinstance(step.get("pieces"), list)
        and all(isinstance(piece, str) for piece in step["pieces"])
    )


def _read(source: Source, row: Generated) -> ShownText:
    steps = _steps(source)
    drafted, accepted = (sum(step[name] for step in steps) for name in ("drafted", "accepted"))
    tokens = sum(len(step["pieces"]) for step in steps)
    summary = (
        f"{tokens} tokens in {len(steps)} forward passes, {tokens / len(steps):.2f} per forward: "
        f"{accepted} of {drafted} drafted tokens stand, and {tokens - accepted} are the "
        "backbone's own."
    )
    who = ", ".join(filter(None, (row.model, row.method)))
    pieces = [piece for step in steps for piece in _pieces(step)]
    deepest = max(min(step["accepted"], DEPTHS) for step in steps)
    prompt = str(source.result.settings.get("prompt", ""))
    return ShownText(who, prompt, pieces, summary, deepest)


def _pieces(step: dict[str, Any]) -> Iterator[ShownPiece]:
    """Depth k drafted the k-th accepted token; after them comes the backbone's own."""
    for index, text in enumerate(step["pieces"]):
        if index < step["accepted"]:
            look = f"depth-{min(index + 1, DEPTHS)}"
        else:
            look = "corrected" if step["drafted"] > step["accepted"] else "own"
        yield ShownPiece(text, look)
