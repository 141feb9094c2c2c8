"""The loss of one depth, computed in chunks of positions, so that logits never exist as a whole.

The unembedding is a function (the backbone's own, with its scaling and soft-capping), not a weight.

Shapes: B batch, T time, N = B·T positions, D hidden, V vocabulary, C positions of a chunk,
P positions with a soft target.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from foretell.errors import BackboneError
from foretell.objective.divergences import Divergence, divergence
from foretell.targets import IGNORE, places_ahead

CHUNK_ELEMENTS = 1 << 24
"""Logits held at once: 64 MiB in float32."""

Unembed = Callable[[Tensor], Tensor]
"""(N, D) → (N, V)."""


@dataclass(frozen=True)
class Readout:
    """What turns hidden states into logits.

    Attributes:
        unembed: (N, D) → (N, V).
        size: V.
    """

    unembed: Unembed
    size: int

    def __call__(self, hidden: Tensor) -> Tensor:
        """(N, D) → (N, V).

        Raises:
            BackboneError: heads cannot learn through the output head.
        """
        logits = self.unembed(hidden)
        if torch.is_grad_enabled() and hidden.requires_grad and not logits.requires_grad:
            raise BackboneError(
                "the model's output head passes no gradients on, as where it quantises what it "
                "reads, so that heads cannot learn; leave it unquantised, or quantise its weights "
                "alone."
            )
        return logits


class SoftTarget(Protocol):
    """A teacher's distributions."""

    @property
    def size(self) -> int | None:
        """At how many positions there is one; None: wherever there is a label."""
        ...

    def divergence(self, logits: Tensor, places: Tensor) -> Tensor:
        """Sum of how far the student is from the teacher, over a chunk of positions.

        Args:
            logits: (C, V) float32, the student's.
            places: (C,) rising: which of the N positions these are.
        """
        ...


@dataclass(frozen=True)
class Target:
    """What one depth has to learn: M of the N positions have something to predict.

    Attributes:
        places: (M,) rising: which ones. Logits of others are not computed.
        labels: (M,) the token that stands there, as its place among those that can be predicted.
        count: by what the sum over positions is divided: how many labels there are, over all
            processes and accumulated batches that make up a step. None counts `labels`.
        soft: a teacher, or None.
        soft_share: how much of the loss is the teacher's, 0…1.
    """

    places: Tensor
    labels: Tensor
    count: Tensor | None = None
    soft: SoftTarget | None = None
    soft_share: float = 0.0

    @classmethod
    def of(
        cls,
        labels: Tensor,
        count: Tensor | None = None,
        soft: SoftTarget | None = None,
        soft_share: float = 0.0,
    ) -> "Target":
        """Of labels (N,), `IGNORE` where there is none."""
        places = (labels != IGNORE).nonzero().squeeze(1)
        return cls(places, labels[places], count, soft, soft_share)

    def losses(self, logits: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """What a chunk adds to the loss, and to the mean of -log p(label), both in nats.

        Args:
            logits: (C, V), of the positions `places[start : start + C]`.
        """
        logits, here = logits.float(), slice(start, start + len(logits))
        count = max(1, len(self.labels)) if self.count is None else self.count
        nll = F.cross_entropy(logits, self.labels[here], reduction="sum") / count
        if self.soft is None:
            return nll, nll.detach()
        divergence = self.soft.divergence(logits, self.places[here])
        divergence = divergence / (count if self.soft.size is None else max(1, self.soft.size))
        return torch.lerp(nll, divergence, self.soft_share), nll.detach()


@dataclass(frozen=True)
class BackboneTarget:
    """What the backbone predicts at the place itself, having read the true tokens in between.

    Attributes:
        final: (B, T, D), its final hidden states; all depths hold the same ones.
        distance: how far ahead of a position the place is, in its row.
        unembed: its output head.
        temperature: of both distributions; the loss grows with its square (Hinton et al. 2015,
            "Distilling the Knowledge in a Neural Network", section 2).
        kind: of divergence.
    """

    final: Tensor
    distance: int
    unembed: Unembed
    temperature: float = 1.0
    kind: Divergence = "kl"
    size = None

    def divergence(self, logits: Tensor, places: Tensor) -> Tensor:
        with torch.no_grad():
            there = places_ahead(places, self.distance, self.final.shape[1])
            teacher = self.unembed(self.final.flatten(0, 1)[there]).float()  # (C, V)
            teacher = (teacher / self.temperature).log_softmax(-1)
        student = (logits / self.temperature).log_softmax(-1)
        return divergence(self.kind, teacher, student).sum() * self.temperature**2


@dataclass(frozen=True)
class MarginalTarget:
    """What the backbone predicts without the tokens in between, at some positions.

    Attributes:
        positions: (P,) rising: which of the N.
        probabilities: (P, V).
        size: by what the sum over them is divided: how many there are in all the passes of a step.
    """

    positions: Tensor
    probabilities: Tensor
    size: int

    def divergence(self, logits: Tensor, places: Tensor) -> Tensor:
        # (R, V) each, for those R of the P positions that lie in the chunk
        rows = torch.isin(places, self.positions.to(places.device))
        taught = torch.isin(self.positions.to(places.device), places)
        student, teacher = logits[rows].log_softmax(-1), self.probabilities[taught]
        return F.kl_div(student, teacher, reduction="sum")


def chunks(
    length: int, vocab_size: int, hidden_size: int, chunk_elements: int
) -> Iterator[tuple[int, int]]:
    """Stretches of `length` positions whose logits, and states, fit into `chunk_elements`.

    There is at least one, if need be empty: what learns has a gradient then, of zeros.
    """
    rows = max(1, chunk_elements // max(vocab_size, hidden_size))
    for start in range(0, max(1, length), rows):
        yield start, min(start + rows, length)


def depth_loss(
    hidden: Tensor,
    target: Target,
    readout: Readout,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """The loss of one depth, by autograd: each chunk's logits are computed again for its gradient.

    Args:
        hidden: (N, D).
        target: what to learn.
        readout: gives the logits.
        chunk_elements: how many logits may exist at once.

    Returns:
        The loss and the mean of -log p(label), scalars in float32; 0 where there is no label.
    """

    def piece(part: Tensor, start: int) -> tuple[Tensor, Tensor]:
        return target.losses(readout(part), start)

    hidden = hidden[target.places]
    stretches = list(chunks(len(hidden), readout.size, hidden.shape[-1], chunk_elements))
    if len(stretches) <= 1:
        return piece(hidden, 0)
    pieces = [
        checkpoint(piece, hidden[start:stop], start, use_reentrant=False)
        for start, stop in stretches
    ]
    losses, nlls = zip(*pieces, strict=True)
    return torch.stack(losses).sum(), torch.stack(nlls).sum()
