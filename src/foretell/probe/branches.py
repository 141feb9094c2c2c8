"""What a model says after continuations of one row, all hanging on the row's one pass.

Every position is a row of a batch that begins with a copy of the prefix's keys and values; its
continuations are the nodes of a tree after it, and a node sees the prefix up to its position, its
own ancestors and itself (tree attention: Miao et al. 2024, "SpecInfer", arXiv 2305.09781).

Shapes: P positions, M nodes per position, T row length, S cached tokens, D hidden, V vocabulary.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from foretell.backbone import Backbone
from foretell.backbone.masks import added_masks, sights
from foretell.decoding.cache import new_layers, takes_masks
from foretell.errors import BackboneError

BUDGET = 1 << 25
"""Numbers that the branches of one chunk of positions may take up: 128 MiB in float32."""
ARRAYS = 8
"""How many tensors as large as a chunk's distributions exist at once: logits, joint probabilities
and such."""


def require_branches(backbone: Backbone, length: int | None = None) -> None:
    """Refuse a backbone that cannot follow many strings at once, after one another in `length`.

    Raises:
        BackboneError: it does not obey a mask that tells them apart; the message says why.
    """
    if not (masked := takes_masks(backbone, length)):
        raise BackboneError(
            f"{type(backbone.model).__name__} cannot be marginalized: it takes no attention mask "
            f"that tells strings apart ({masked.lacking})."
        )


class ReadRow:
    """One row, read once.

    Args:
        backbone: the model.
        tokens: (1, T).
        reserve: how many tokens continuations will be long.

    Attributes:
        final: (T, D), what the output head reads.
        past: what every block keeps of it.

    Raises:
        BackboneError: see `require_branches`.
    """

    def __init__(self, backbone: Backbone, tokens: Tensor, reserve: int) -> None:
        require_branches(backbone, tokens.shape[1] + reserve)
        self.backbone, self.tokens = backbone, tokens
        self.past = Cache(layers=new_layers(backbone.config))
        self.final = backbone(tokens, cache=self.past).final[0]

    def distribution(self, positions: Tensor) -> Tensor:
        """What follows each of `positions` (P,) in the row: (P, V)."""
        return distribution(self.backbone.unembed, self.final[positions])

    def chunks(self, positions: Tensor, depth: int, width: int) -> list[Tensor]:
        """`positions` in parts whose branches fit into the budget: (P,) → (≤ P,) each."""
        length = self.tokens.shape[1]
        kept = [part for layer in self.past.layers for part in vars(layer).values()]
        per_token = sum(part.numel() for part in kept if isinstance(part, Tensor)) // length
        per_position = ARRAYS * width * self.backbone.vocab_size
        per_position += (length + depth * width) * per_token
        return list(positions.split(max(1, BUDGET // per_position)))

    def prefix(self, length: int, rows: int) -> Cache:
        """What the blocks keep of the first `length` tokens, in each of this many rows."""
        layers: list[Any] = [copy.copy(layer) for layer in self.past.layers]
        for layer in layers:
            layer.crop(length - self.tokens.shape[1])
            layer.batch_repeat_interleave(rows)
        return Cache(layers=layers)

    def branches(self, positions: Tensor) -> "Branches":
        """A tree at each of `positions` (P,), with nothing but its root."""
        return Branches(self, positions)


class Branches:
    """Trees that grow by one depth at a time."""

    def __init__(self, row: ReadRow, positions: Tensor) -> None:
        self.backbone, self.positions, self.depth = row.backbone, positions, 0
        self.extent = row.tokens.shape[1]  # their prefix was read in a pass over this many tokens
        length = int(positions.max()) + 1
        self.cache = row.prefix(length, len(positions))
        self.places = torch.arange(length, device=positions.device).expand(len(positions), -1)
        # (P, M, S), root first
        self.visible = (self.places <= positions.unsqueeze(1)).unsqueeze(1)

    def extend(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Add a depth.

        Args:
            tokens: (P, M).
            parents: (P, M), which nodes of the depth before they follow.

        Returns:
            (P, M, V), what follows each of them.

        Raises:
            BackboneError: see `require_branches`; or the backbone's logits are not finite.
        """
        self.depth += 1
        count = tokens.shape[1]
        positions = (self.positions + self.depth).unsqueeze(1).expand(-1, count)
        seen = parents.unsqueeze(-1).expand(-1, -1, self.visible.shape[-1])  # (P, M, S)
        itself = torch.eye(count, dtype=torch.bool, device=tokens.device)
        itself = itself.expand(len(tokens), -1, -1)  # (P, M, M)
        self.visible = torch.cat([self.visible.gather(1, seen), itself], dim=-1)  # (P, M, S + M)
        require_branches(self.backbone, self.visible.shape[-1])
        self.places = torch.cat([self.places, positions], dim=1)  # (P, S + M)
        mask = added_masks(
            sights(self.backbone.config),
            self.visible,
            positions,
            self.places.unsqueeze(1),
            self.backbone.dtype,
        )
        output = self.backbone(
            tokens,
            attention_mask=mask,
            position_ids=positions,
            cache=self.cache,
            rotation=self.backbone.rotation(positions, (positions + 1).clamp(min=self.extent)),
        )
        return distribution(self.backbone.unembed, output.final)


def distribution(unembed: Callable[[Tensor], Tensor], final: Tensor) -> Tensor:
    """(…, D) → (…, V), in float32 or better.

    Args:
        unembed: gives the logits.
        final: the states that it reads.

    Raises:
        BackboneError: it is none.
    """
    logits = unembed(final)
    probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
    if not bool(torch.isfinite(probabilities).all()):
        raise BackboneError("the model's logits are not finite; check its weights and type.")
    return probabilities


@torch.inference_mode()
def greedy_chains(row: ReadRow, positions: Tensor, first: Tensor, depth: int) -> Tensor:
    """The model's own continuation: (P,) positions, (P,) tokens after them → (P, depth + 1).

    `first`, and then the likeliest token, `depth` times.
    """
    chains = []
    chunks = row.chunks(positions, depth, 1)
    for chunk, begin in zip(chunks, first.split([len(part) for part in chunks]), strict=True):
        branches, tokens = row.branches(chunk), [begin.unsqueeze(1)]
        root = torch.zeros_like(tokens[0])
        for _ in range(depth):
            tokens.append(branches.extend(tokens[-1], root).argmax(-1))
        chains.append(torch.cat(tokens, dim=1))
    return torch.cat(chains)
