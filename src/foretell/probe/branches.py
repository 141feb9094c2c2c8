"""What a model says after continuations of one row, all hanging on the row's one pass.

Every position is a row of a batch that begins with a copy of the prefix's keys and values; its
continuations are the nodes of a tree behind it, and a node sees the prefix up to its position, its
own ancestors and itself (tree attention: Miao et al. 2024, "SpecInfer", arXiv 2305.09781).

Shapes: P positions, M nodes per position, T row length, S cached tokens, D hidden, V vocabulary.
"""

from typing import cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from foretell.backbone import Backbone
from foretell.decoding.cache import recurrent_layers
from foretell.errors import BackboneError, InputError

BUDGET = 1 << 25
"""Numbers that the branches of one chunk of positions may take up: 128 MiB in float32."""
ARRAYS = 8
"""As large as a chunk's distributions are so many at once: logits, joint probabilities and such."""


class Row:
    """One row, read once.

    Args:
        backbone: the model.
        tokens: (1, T).
        reserve: how many tokens continuations will be long.

    Attributes:
        final: (T, D), what the output head reads.
        past: keys and values of every block.

    Raises:
        InputError: the row with its continuations is longer than a sliding window.
        BackboneError: the backbone's cache is no attention cache.
    """

    def __init__(self, backbone: Backbone, tokens: Tensor, reserve: int) -> None:
        if kinds := recurrent_layers(backbone):
            raise BackboneError(
                f"{type(backbone.model).__name__} cannot be marginalized: its cache has "
                f"{', '.join(kinds)}, which cannot follow many strings at once."
            )
        _require_whole_window(backbone, tokens.shape[1] + reserve)
        self.backbone, self.tokens, cache = backbone, tokens, DynamicCache()
        self.final = backbone(tokens, cache=cache).final[0]
        layers = cast(list[DynamicLayer], cache.layers)
        self.past = [(cast(Tensor, layer.keys), cast(Tensor, layer.values)) for layer in layers]

    def distribution(self, positions: Tensor) -> Tensor:
        """What follows each of `positions` (P,) in the row: (P, V)."""
        return distribution(self.backbone, self.final[positions])

    def chunks(self, positions: Tensor, depth: int, width: int) -> list[Tensor]:
        """`positions` in parts whose branches fit into the budget: (P,) → (≤ P,) each."""
        per_token = sum(part[0, :, 0].numel() for layer in self.past for part in layer)
        per_position = ARRAYS * width * self.backbone.vocab_size
        per_position += (self.tokens.shape[1] + depth * width) * per_token
        return list(positions.split(max(1, BUDGET // per_position)))

    def branches(self, positions: Tensor) -> "Branches":
        """A tree at each of `positions` (P,), with nothing but its root."""
        return Branches(self, positions)


class Branches:
    """Trees that grow by one depth at a time."""

    def __init__(self, row: Row, positions: Tensor) -> None:
        self.backbone, self.positions, self.depth = row.backbone, positions, 0
        length = int(positions.max()) + 1
        self.cache = DynamicCache()
        for number, layer in enumerate(row.past):
            keys, values = (
                part[:, :, :length].expand(len(positions), -1, -1, -1) for part in layer
            )
            self.cache.update(keys, values, number)
        places = torch.arange(length, device=positions.device)
        self.visible = (places <= positions.unsqueeze(1)).unsqueeze(1)  # (P, M, S), root first

    def extend(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Add a depth.

        Args:
            tokens: (P, M).
            parents: (P, M), which nodes of the depth before they follow.

        Returns:
            (P, M, V), what follows each of them.

        Raises:
            BackboneError: the backbone takes no mask of its own, or its logits are not finite.
        """
        self.depth += 1
        count = tokens.shape[1]
        seen = parents.unsqueeze(-1).expand(-1, -1, self.visible.shape[-1])
        itself = torch.eye(count, dtype=torch.bool, device=tokens.device)
        itself = itself.expand(len(tokens), -1, -1)
        self.visible = torch.cat([self.visible.gather(1, seen), itself], dim=-1)
        try:
            output = self.backbone(
                tokens,
                attention_mask=_as_mask(self.visible, self.backbone),
                position_ids=(self.positions + self.depth).unsqueeze(1).expand(-1, count),
                cache=self.cache,
            )
        except ValueError:  # Falcon builds its ALiBi from a mask of ones and zeros
            raise BackboneError(
                f"{type(self.backbone.model).__name__} cannot be marginalized: "
                "it takes no attention mask of one row per token."
            ) from None
        return distribution(self.backbone, output.final)


def distribution(backbone: Backbone, final: Tensor) -> Tensor:
    """(…, D) → (…, V), in float32 or better.

    Raises:
        BackboneError: it is none.
    """
    logits = backbone.unembed(final)
    probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
    if not bool(torch.isfinite(probabilities).all()):
        raise BackboneError("the model's logits are not finite; check its weights and type.")
    return probabilities


@torch.inference_mode()
def greedy_chains(row: Row, positions: Tensor, first: Tensor, depth: int) -> Tensor:
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


def _as_mask(visible: Tensor, backbone: Backbone) -> Tensor:
    """(P, M, S) → (P, 1, M, S) additive, which every attention implementation understands."""
    mask = torch.zeros(visible.shape, dtype=backbone.dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(backbone.dtype).min).unsqueeze(1)


def _require_whole_window(backbone: Backbone, length: int) -> None:
    """A mask given whole knows no sliding window: rows must fit into it."""
    window = getattr(backbone.config, "sliding_window", None)
    if window is not None and length > window:
        raise InputError(
            f"rows of {length} tokens are longer than the model's sliding window of {window}; "
            "use shorter blocks."
        )
