"""Drafts from one distribution per depth: a chain, or a tree of the likeliest ways.

Heads that read no drafted token give one distribution per depth, whatever came before. A way's
joint probability is then the product of its tokens' own.

Shapes: B rows, K depths, V vocabulary, N drafted tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor

from foretell.decoding.acceptance import draw
from foretell.decoding.draft import Draft
from foretell.decoding.sampling import Sampler
from foretell.decoding.transfer import to_device
from foretell.errors import InputError


@dataclass(frozen=True)
class TreeShape:
    """What a draft looks like.

    Attributes:
        widths: of a static tree: at depth k each node has `widths[k-1]` children, the likeliest.
        nodes: of a dynamic tree: this many nodes, those with the highest joint probability.
    """

    widths: tuple[int, ...] = ()
    nodes: int = 0

    def __post_init__(self) -> None:
        if bool(self.widths) == bool(self.nodes):
            raise InputError("a tree has either widths by depth or a number of nodes.")
        if self.nodes < 0 or min(self.widths, default=1) < 1:
            raise InputError("a tree needs at least one node at each depth.")

    @classmethod
    def parse(cls, text: str) -> "TreeShape":
        """`4,2,1` → children by depth, `12` → this many nodes.

        Raises:
            InputError: it is neither.
        """
        try:
            numbers = [int(part) for part in text.split(",")]
        except ValueError:
            raise InputError(
                f"--tree {text}: give children by depth, such as 4,2,1, or a number of nodes, such "
                "as 12."
            ) from None
        if min(numbers) < 1:
            raise InputError(f"--tree {text}: every number is at least 1.")
        return cls(widths=tuple(numbers)) if len(numbers) > 1 else cls(nodes=numbers[0])

    def __str__(self) -> str:
        """`4,2,1` (widths by depth) or `12` (nodes), as commands take it."""
        return ",".join(map(str, self.widths)) or str(self.nodes)

    @property
    def size(self) -> int:
        """How many nodes a draft has at most, below its root."""
        return self.nodes or sum(accumulate(self.widths, mul))

    def check(self, vocab_size: int, length: int) -> None:
        """Raise where a tree is wider than the vocabulary, or deeper than drafts are long."""
        if (deepest := len(self.widths)) > length:
            raise InputError(
                f"the tree is {deepest} tokens deep, drafts are {length} long; make it "
                "shallower, or drafts longer."
            )
        if (widest := max(self.widths, default=1)) > vocab_size:
            raise InputError(
                f"the tree is {widest} wide, the vocabulary has {vocab_size} tokens; make it "
                "narrower."
            )


def chain(logits: Tensor, sampler: Sampler, uniforms: Tensor | None) -> Draft:
    """One token per depth, drawn as the backbone's will be: (B, K, V) → K tokens.

    Args:
        logits: of the depths.
        sampler: how tokens are drawn.
        uniforms: (B, K) in [0, 1), to draw them by; None takes the likeliest ones.
    """
    if uniforms is None:
        return Draft(logits.argmax(-1))
    probabilities = sampler.warped(logits).softmax(-1, dtype=torch.float32)
    return Draft(draw(probabilities, uniforms), probabilities=probabilities)


def tree(logits: Tensor, shape: TreeShape, reach: Sequence[int]) -> Draft:
    """The likeliest tokens as a tree, (B, K, V).

    Args:
        logits: (B, K, V), of every depth.
        shape: widths by depth, or how many nodes in all.
        reach: how deep each row's draft can count. What a row drafts within it is the same
            whatever the others' reach is, and however many depths there are.
    """
    if shape.widths:
        return _static(logits, shape.widths)
    return _dynamic(logits, shape.nodes, reach)


def comb(logits: Tensor, shape: TreeShape, reach: Sequence[int]) -> Draft:
    """The chain of likeliest tokens, and at every depth the next likeliest as leaves beside it.

    For drafters whose depths read the token before: only the chain's own logits are known. A
    dynamic tree takes as much of the chain as it has nodes for, then the leaves of highest joint
    probability.

    The arguments are those of `tree`, `logits` along the chain.
    """
    depth, vocab = logits.shape[1:]
    if shape.widths:
        widths = [*shape.widths[:depth], *[1] * (depth - len(shape.widths))]
        width = max(shape.widths)
        tokens = _likeliest(logits, width)
        places = [level * width + rank for level, w in enumerate(widths) for rank in range(w)]
        order = to_device(places, logits.device).expand(len(logits), -1)
    else:
        width = min(shape.nodes, vocab)
        tokens = _likeliest(logits, width)
        logs = logits.log_softmax(-1, dtype=torch.float32)
        values = logs.gather(-1, tokens)  # (B, K, width)
        before = values[..., :1].cumsum(1) - values[..., :1]  # (B, K, 1), of the chain
        joint = values + before
        beside = (torch.arange(width, device=logits.device) > 0).long()
        order = _best(joint, reach, beside)[:, : shape.nodes].sort(1).values
    level = order // width  # (B, N)
    place = torch.zeros(len(order), depth * width, dtype=torch.long, device=order.device)
    count = torch.arange(1, order.shape[1] + 1, device=order.device).expand_as(order)
    place.scatter_(1, order, count)
    parents = torch.where(level > 0, place.gather(1, (level - 1).clamp(min=0) * width), 0)
    return Draft(tokens.flatten(1).gather(1, order), parents)


def _best(joint: Tensor, reach: Sequence[int], later: Tensor | int = 0) -> Tensor:
    """The order in which ways are taken, (B, K, width) → (B, K * width).

    Those within a row's reach come first, then deeper ones, depth by depth; among them those that
    are not `later` (0 or 1), then the likeliest. Of equal ones the first: so a beginning comes
    before what goes on from it, and it does not matter how many ways there are.
    """
    depths = torch.arange(1, joint.shape[1] + 1, device=joint.device)
    beyond = (depths - to_device(reach, joint.device).unsqueeze(1)).clamp(min=0)
    turn = (2 * beyond.unsqueeze(-1) + later).expand_as(joint).flatten(1)  # (B, K·width)
    order = joint.flatten(1).sort(dim=1, descending=True, stable=True).indices
    return order.gather(1, turn.gather(1, order).sort(dim=1, stable=True).indices)


def _likeliest(logits: Tensor, count: int) -> Tensor:
    """The likeliest tokens, best first, (…, V) → (…, count); of equal ones that of `argmax` is it.

    `topk` alone may break a tie otherwise, and the chain has gone on from `argmax`.
    """
    best = logits.argmax(-1, keepdim=True)
    return logits.scatter(-1, best, torch.inf).topk(count).indices


def _static(logits: Tensor, widths: tuple[int, ...]) -> Draft:
    best = logits[:, : len(widths)].topk(max(widths), dim=-1).indices
    depths, ranks, parents = _layout(widths[: logits.shape[1]])
    tokens = best[:, depths, ranks]
    return Draft(tokens, to_device(parents, tokens.device).expand(len(tokens), -1))


@lru_cache
def _layout(widths: tuple[int, ...]) -> tuple[list[int], list[int], list[int]]:
    """Depth (from 0), rank and parent of every node of a full tree, level by level."""
    depths: list[int] = []
    ranks: list[int] = []
    parents: list[int] = []
    level = [0]
    for depth, width in enumerate(widths):
        following = []
        for parent in level:
            for rank in range(width):
                depths.append(depth)
                ranks.append(rank)
                parents.append(parent)
                following.append(len(depths))
        level = following
    return depths, ranks, parents


def _dynamic(logits: Tensor, nodes: int, reach: Sequence[int]) -> Draft:
    """The `nodes` ways of highest joint probability, which contain all their beginnings.

    Li et al. 2024, "EAGLE-2" (arXiv 2406.16858), section 4, for independent depths.
    """
    logs = logits.log_softmax(-1, dtype=torch.float32)
    rows, depth, vocab = logs.shape
    width = min(nodes, vocab)
    scores, tokens = logs[:, 0].topk(width)  # (B, width), ways of this depth, best first
    parents = torch.full_like(tokens, -1)
    all_scores, all_tokens, all_parents = [scores], [tokens], [parents]
    for level in range(1, depth):
        values, candidates = logs[:, level].topk(width)
        joint = (scores.unsqueeze(-1) + values.unsqueeze(1)).flatten(1)  # (B, width·width)
        scores, index = joint.topk(width)
        parents = (level - 1) * width + index // width
        tokens = candidates.gather(1, index % width)
        all_scores.append(scores)
        all_tokens.append(tokens)
        all_parents.append(parents)
    order = _best(torch.stack(all_scores, dim=1), reach)[:, :nodes]
    place = torch.zeros(rows, depth * width, dtype=torch.long, device=order.device)
    place.scatter_(
        1, order, torch.arange(1, order.shape[1] + 1, device=order.device).expand(rows, -1)
    )
    before = torch.cat(all_parents, dim=1).gather(1, order)
    found = torch.where(before < 0, 0, place.gather(1, before.clamp(min=0)))
    return Draft(torch.cat(all_tokens, dim=1).gather(1, order), found)
