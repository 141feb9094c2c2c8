"""Whether heads are measured on what they were trained on."""

from foretell.data import Sketch
from foretell.model import MTPModel

NOTABLE = 0.05
"""A share of documents that were trained on, below which nothing is said: copies of a licence and
the like are in every corpus."""


def seen_in_training(model: MTPModel, measured: Sketch) -> float | None:
    """The share of the documents measured on that the heads learned from, 0…1, as far as known.

    None without heads, or where they do not say what they learned from.

    Args:
        model: with the heads.
        measured: of the documents.

    Raises:
        CheckpointError: what the heads say of it cannot be read.
    """
    if model.head is None or not model.trained_on:
        return None
    return measured.share_in(Sketch.from_dict(model.trained_on))


def describe_seen(share: float | None) -> str | None:
    """What readers of a figure have to know; None where the text is new to the heads."""
    if share is None or share < NOTABLE:
        return None
    return (
        f"Measured on the data it was trained on ({100 * share:.0f} % of the documents): new text "
        "will be worse."
    )
