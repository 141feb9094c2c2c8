"""Masks of our own: which token sees which, as attention adds it to its scores.

transformers hands a mask of four dimensions on as it is, so that what its own masks would have
contained, windows and chunks, has to be in it. `takes_masks` (decoding) tries whether models obey.

Shapes: B rows, W tokens of a pass, S tokens that can be seen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

THRESHOLDS = ("window", "chunk", "topk", "scale")
"""In the names of a config's numbers: from how many tokens on attention goes another way."""


@dataclass(frozen=True)
class Sight:
    """How far back a kind of attention layers sees.

    Attributes:
        window: this many tokens, each itself included; None: any number.
        chunk: not beyond the last multiple of this; None: anywhere.
    """

    window: int | None = None
    chunk: int | None = None

    def __call__(self, visible: Tensor, places: Tensor, seen: Tensor) -> Tensor:
        """`visible` (B, W, S) without what is too far: `seen` (B, 1, S), from `places` (B, W)."""
        places = places.unsqueeze(-1)
        if self.window is not None:
            visible = visible & (places - seen < self.window)
        if self.chunk is not None:
            visible = visible & (places // self.chunk == seen // self.chunk)
        return visible


def sights(config: Any) -> dict[str, Sight]:
    """By kind of attention layers, as the decoder wants its masks; one alone under any name."""
    window = Sight(window=getattr(config, "sliding_window", None))
    chunk = Sight(chunk=getattr(config, "attention_chunk_size", None))
    limited = {"sliding_attention": window, "chunked_attention": chunk}
    kinds = sorted(set(getattr(config, "layer_types", None) or ()))
    return {kind: limited.get(kind, Sight()) for kind in kinds} or {"all": window}


def added_masks(
    kinds: dict[str, Sight],
    visible: Tensor,
    places: Tensor,
    seen: Tensor,
    dtype: torch.dtype,
    finish: Callable[[Tensor], Tensor] = lambda mask: mask,
) -> Any:
    """What is added to attention's scores: (B, 1, W, S), by kind of layer where there are several.

    Args:
        kinds: how far each sees.
        visible: (B, W, S), what each token may see, however far it is away.
        places: (B, W) positions of the tokens.
        seen: (B, 1, S) or (1, 1, S) positions of what they see.
        dtype: of the mask.
        finish: done to each.
    """
    masks = {}
    for kind, sight in kinds.items():
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        hidden = ~sight(visible, places, seen)
        masks[kind] = finish(mask.masked_fill_(hidden, torch.finfo(dtype).min).unsqueeze(1))
    return masks if len(masks) > 1 else next(iter(masks.values()))


def thresholds(config: Any) -> list[int]:
    """The numbers of tokens at which attention goes another way.

    The config names them, each in its own words: windows, chunks, how many tokens a sparse
    attention picks, where a temperature sets in.
    """
    return [
        value
        for name, value in vars(config).items()
        if type(value) is int and any(word in name for word in THRESHOLDS)
    ]


def last_threshold(config: Any, length: int | None = None) -> int:
    """The last threshold below `length`, by default below the model's context; 0: there is none."""
    limit = getattr(config, "max_position_embeddings", None) if length is None else length
    return max((n for n in thresholds(config) if limit is None or n < limit), default=0)
