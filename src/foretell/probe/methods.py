"""What is measured at the same positions: the backbone's marginals, and simpler ways to draft.

    marginalization   reads x_≤t; what parallel heads can know at best
    n-gram            reads x_≤t; what followed its last tokens in another text
    repeat-last       reads x_≤t; its last token again
    prompt-lookup     reads x_≤t+1, as a drafter does; copies what followed there before
    draft-model       reads x_≤t+1 and what it drafted; a smaller model

Shapes: P positions, T row length, K depths, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from foretell.backbone import Backbone
from foretell.decoding import LookupDrafter
from foretell.decoding.drafters.model import require_vocabulary
from foretell.probe.branches import ReadRow, greedy_chains
from foretell.probe.marginal import check_widths, marginalize_row
from foretell.probe.ngram import NGram
from foretell.probe.scores import Scorer, Scores, Truth

Scored = Iterator[tuple[int, Scores]]
"""By depth."""


@dataclass(frozen=True)
class Place:
    """Positions of one row, and what follows them.

    Attributes:
        row: as the backbone read it.
        positions: (P,).
        targets: of depths 0…K.
    """

    row: ReadRow
    positions: Tensor
    targets: Sequence[Truth]

    @classmethod
    def read(cls, backbone: Backbone, tokens: Tensor, positions: Tensor, depth: int) -> "Place":
        """One pass over `tokens` (1, T), and the backbone's own continuation of each position.

        Every position has a token in the row at depth `depth`.
        """
        row = ReadRow(backbone, tokens, depth)
        own = row.distribution(positions).argmax(-1)
        chains = greedy_chains(row, positions, own, depth)
        return cls(
            row,
            positions,
            [
                Truth(tokens[0, positions + k + 1], row.distribution(positions + k), chains[:, k])
                for k in range(depth + 1)
            ],
        )

    @property
    def depth(self) -> int:
        """K."""
        return len(self.targets) - 1


class Predictor(Protocol):
    """A way to predict several tokens ahead."""

    name: str

    def __call__(self, place: Place) -> Scored:
        """Score its predictions depth by depth."""
        ...


class Marginalization:
    """Sums over `width` strings, see `foretell.probe.marginal`."""

    name = "marginalization"

    def __init__(self, depth: int, width: int | Sequence[int]) -> None:
        self.width = check_widths(depth, width)

    def __call__(self, place: Place) -> Scored:
        scorer = Scorer()
        for found in marginalize_row(place.row, place.positions, place.depth, self.width):
            target = place.targets[found.depth]
            scores = scorer.distribution(found.depth, found.covered, target, missing=found.missing)
            scores["covered_mass"] = found.covered_mass
            if found.depth:
                scores["own_speculative_min"] = found.stands_min
                scores["own_speculative_max"] = found.stands_max
            yield found.depth, scores


class NGrams:
    """Counts of a text."""

    name = "n-gram"

    def __init__(self, counts: NGram) -> None:
        self.counts = counts

    def __call__(self, place: Place) -> Scored:
        scorer, tokens = Scorer(), place.row.tokens[0].cpu().numpy()
        for depth, target in enumerate(place.targets):
            rows = [self.counts.distribution(tokens[: t + 1], depth) for t in place.positions]
            chances = torch.from_numpy(np.stack(rows)).to(target.chances.dtype)
            chances = chances.to(target.chances.device)
            yield depth, scorer.distribution(depth, chances, target)


class RepeatLast:
    """The last token, however far ahead."""

    name = "repeat-last"

    def __call__(self, place: Place) -> Scored:
        scorer, last = Scorer(), place.row.tokens[0, place.positions]
        for depth, target in enumerate(place.targets):
            yield depth, scorer.tokens(depth, last, last, target)


class PromptLookup:
    """What followed the last tokens where they stood before in the same text."""

    name = "prompt-lookup"

    def __call__(self, place: Place) -> Scored:
        if not place.depth:
            return
        tokens, first = place.row.tokens[0], place.targets[0]
        assert first.chain is not None
        scorer, lookup = Scorer(), LookupDrafter(place.depth)
        drafts = [
            torch.stack(
                [
                    _padded(
                        lookup.continuation(torch.cat([tokens[: t + 1], n]), place.depth), place
                    )
                    for t, n in zip(place.positions.tolist(), following.split(1), strict=True)
                ]
            )
            for following in (first.tokens, first.chain)
        ]
        for depth in range(1, place.depth + 1):
            behind_text, behind_chain = (draft[:, depth - 1] for draft in drafts)
            yield depth, scorer.tokens(depth, behind_text, behind_chain, place.targets[depth])


class DraftModel:
    """What another model with the same vocabulary would draft."""

    name = "draft-model"

    def __init__(self, backbone: Backbone, vocab_size: int) -> None:
        require_vocabulary(backbone, vocab_size)
        self.backbone = backbone

    def __call__(self, place: Place) -> Scored:
        chain = place.targets[0].chain
        assert chain is not None
        row = ReadRow(self.backbone, place.row.tokens, place.depth)
        drafted = greedy_chains(row, place.positions, chain, place.depth)
        scorer = Scorer()
        for depth in range(1, place.depth + 1):
            chances = row.distribution(place.positions + depth)
            target = place.targets[depth]
            yield depth, scorer.distribution(depth, chances, target, drafted=drafted[:, depth])


def _padded(tokens: Tensor, place: Place) -> Tensor:
    """(≤ K,) → (K,), -1 where nothing is drafted."""
    return torch.nn.functional.pad(tokens, (0, place.depth - len(tokens)), value=-1)
