"""What the steps of a continuation came to, for result files and what shows them."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from foretell.decoding import Detokenizer, Step


def counted(steps: Sequence[Step]) -> dict[str, Any]:
    """Fields of a row: what came of the steps of one prompt."""
    count = sum(len(step.tokens) for step in steps)
    return {
        "tokens": count,
        "forwards": len(steps),
        "tokens_per_forward": count / len(steps),
    }


def shown_steps(
    steps: Sequence[Step], tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]
) -> list[dict[str, Any]]:
    """What `foretell report` colours: of every step what was drafted, accepted, and its text.

    `pieces` is the text of each token, where it became whole; what is left belongs to the last one.
    """
    text = Detokenizer(tokenizer, prompt)
    records: list[dict[str, Any]] = []
    for step in steps:
        pieces = [text.add(token) for token in step.tokens]
        records.append({"drafted": step.drafted, "accepted": step.accepted, "pieces": pieces})
    if records and records[-1]["pieces"]:
        records[-1]["pieces"][-1] += text.finish()
    return records
