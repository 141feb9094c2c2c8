"""transformers' own cache, for one row and chains.

It serves recurrent layers, whose state is put back where it was, and backbones that take no mask of
ours.

Shapes: B rows, W nodes of a pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from foretell.backbone import Ability, Backbone, ability
from foretell.backbone.anatomy import name_of
from foretell.backbone.trying import near, told
from foretell.decoding.cache.extent import Extent
from foretell.decoding.draft import Draft
from foretell.errors import BackboneError, ForetellError

READ_AGAIN = 16
"""Tokens that are read once more at most, with others after them that may be taken back. From then
on they are read for good, in a pass of their own: one of which all stands."""

NOTHING_KEPT = "it keeps nothing of what it has read in the cache that it is given"


class RestoringPast:
    """For one row and chains, on transformers' own cache.

    From keys and values the end is cut off. A recurrent state cannot be shortened: it is put back
    to where it was before the first pass since `keep`, and what stands is read again with the next;
    whoever enters passes sees to it that this does not become ever more (`READ_AGAIN`).

    Args:
        backbone: that reads one row.
        tried: whether `takes_back` holds; it is asked where this is not its own trial.

    Raises:
        BackboneError: tokens cannot be taken back, with the reason.
    """

    cache: Cache
    compiled = False

    def __init__(self, backbone: Backbone, *, tried: bool = True) -> None:
        if tried:
            require_rollback(backbone)
        self.config, self.device = backbone.config, backbone.device
        self.recurrent = bool(recurrent_layers(backbone))
        self.read, self.started, self.entered, self.assumed = [0], 0, 0, False
        self.extent = Extent(backbone, 1)
        self.cache = Cache(layers=new_layers(self.config))
        self.states: list[tuple[Any, dict[str, Any]]] = []  # layers, and what they were
        self.others: list[Cache] = []

    def beside(self) -> Cache:
        last = new_layers(self.config)[-1]  # a block like the last one keeps what it keeps
        attends = isinstance(last, CacheLayerMixin)
        cache = Cache(layers=[last]) if attends else LengthlessCache(self, last)
        self.others.append(cache)
        return cache

    def enter(
        self, width: int, draft: Draft | None = None, stands: Sequence[int] | None = None
    ) -> dict[str, Any]:
        for layer, state in self.states if self.read[0] < self.entered else ():
            layer.__dict__.update(_copied(state))
        layers: list[Any] = [
            layer for cache in (self.cache, *self.others) for layer in cache.layers
        ]
        for layer in layers:
            if isinstance(layer, DynamicLayer):
                # One with a state beside its keys refuses; its state is put back.
                crop = DynamicLayer.crop if _recurs(layer) else type(layer).crop
                crop(layer, min(0, self.read[0] - layer.get_seq_length()))
        self.entered = self.read[0] + width
        if not self.assumed:
            self.started = self.read[0]
            self.states = [(layer, _copied(layer.__dict__)) for layer in layers if _recurs(layer)]
        stands, drafted = stands or [self.entered], 0 if draft is None else draft.size
        self.extent.enter(self.read, stands)
        positions = self._positions(self.read[0], width)
        return {"cache": self.cache, **self.extent.rotation(positions, stands, drafted)}

    def reenter(self, width: int, begin: Sequence[int]) -> dict[str, Any]:
        positions = self._positions(begin[0], width)
        stands = [begin[0] + width]
        return {"position_ids": positions, **self.extent.rotation(positions, stands)}

    def _positions(self, begin: int, width: int) -> Tensor:
        """(1, W)"""
        return torch.arange(begin, begin + width, device=self.device).unsqueeze(0)

    def keep(self, read: Sequence[int], path: Tensor | None = None) -> None:
        if path is not None or len(read) != 1:
            raise ForetellError("this cache holds one row and chains")
        whole, self.assumed = read[0] == self.entered, False
        moved = any(any(layer.has_previous_state.values()) for layer, _ in self.states)
        self.read = [self.started] if moved and not whole else self.extent.keep(read)

    def assume(self) -> None:
        self.read, self.assumed = [self.entered], True

    def select(self, places: Sequence[int]) -> None:
        """It holds one row."""


class LengthlessCache(Cache):
    """Of one block without keys and values. A decoder asks for lengths, which it has not."""

    def __init__(self, past: RestoringPast, layer: Any) -> None:
        super().__init__(layers=[layer])
        self.past = past

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.past.read[0]

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.past.read[0]

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.past.read[0] + query_length, 0


def new_layers(config: Any) -> list[Any]:
    """An empty cache's layers, of the kinds that the model wants.

    Sliding layers are whole: what a window has dropped could not be brought back.
    """
    layers = DynamicCache(config=config).layers
    return [DynamicLayer() if type(one) is DynamicSlidingWindowLayer else one for one in layers]


def _recurs(layer: Any) -> bool:
    return isinstance(layer, LinearAttentionCacheLayerMixin)


def _holds_something(layer: Any) -> bool:
    parts = [part.values() if isinstance(part, dict) else [part] for part in vars(layer).values()]
    return any(isinstance(one, Tensor) for part in parts for one in part)


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """The recurrent part of a layer's state."""
    parts = (
        "conv_states",
        "recurrent_states",
        "has_previous_state",
        "is_conv_states_initialized",
        "is_recurrent_states_initialized",
    )
    return {
        name: {key: x.clone() if isinstance(x, Tensor) else x for key, x in state[name].items()}
        for name in parts
    }


def recurrent_layers(backbone: Backbone) -> list[str]:
    """The kinds of layers that keep a state in place of keys and values."""
    kinds = getattr(backbone.config, "layer_types", None) or ()
    recurrent = sorted({kind for kind in kinds if "attention" not in kind or "linear" in kind})
    if not recurrent and getattr(backbone.model, "_is_stateful", False):
        return ["a recurrent state"]
    return recurrent


def require_rollback(backbone: Backbone) -> None:
    """Refuse a backbone from whose cache tokens cannot be taken back, with the reason.

    Raises:
        BackboneError: it cannot be decoded in drafts.
    """
    refuse_unless(takes_back(backbone), backbone)


def refuse_unless(able: Ability, backbone: Backbone) -> None:
    """Refuse a backbone that is not able to be decoded in drafts, with the reason."""
    if not able:
        raise BackboneError(
            f"{name_of(backbone.model)} cannot be decoded in drafts: {able.lacking}; use "
            "transformers' generate."
        )


TRIED = 8
"""Tokens after a threshold, when `steps_as_it_reads` tries it."""


@ability
def steps_as_it_reads(backbone: Backbone, length: int) -> str | None:
    """Behind `length` tokens, steps on transformers' own cache must say what one pass says.

    That cache drops what is behind a window, and Moshi's passes look there. Where a sparse
    attention has exact ties (its scores are cut off at 0, and the fewer heads give them, the more
    are 0), each pass breaks them in its own way. Drafts are read in passes of several tokens: then
    there is nothing that they could be identical to.
    """
    tokens = torch.arange(length + TRIED, device=backbone.device).remainder(backbone.vocab_size)
    tokens, cache = tokens.unsqueeze(0), DynamicCache(config=backbone.config)
    backbone(tokens[:, :length], cache=cache)
    steps = [backbone(token, cache=cache).final for token in tokens[:, length:].split(1, dim=1)]
    if near(torch.cat(steps, dim=1), backbone(tokens).final[:, length:]):
        return None
    return f"behind {length} tokens it says one thing token by token, and another in one pass"


def takes_back(backbone: Backbone) -> Ability:
    """Whether tokens can be taken back from the cache, tried with drafts that are rejected."""
    if not (filled := _fills_the_cache(backbone)):
        return filled
    found = _takes_back(backbone)
    kinds = ", ".join(recurrent_layers(backbone)) or "keys and values"
    reason = f"its cache has {kinds}, which cannot be restored when a draft is rejected"
    return found or Ability(f"{reason} ({found.lacking})")


@ability
def _fills_the_cache(backbone: Backbone) -> str | None:
    """GPT has no cache, and some recurrent families keep what they read in one of their own."""
    past = RestoringPast(backbone, tried=False)
    token = torch.zeros(1, 1, dtype=torch.long, device=backbone.device)
    try:
        backbone(token, **past.enter(1))
    except Exception as error:  # of the model's own code, which wants another
        return f"it does not take transformers' common cache: {told(error)}"
    return None if any(map(_holds_something, past.cache.layers)) else NOTHING_KEPT


@ability
def _takes_back(backbone: Backbone) -> str | None:
    """Behind drafts that were rejected, the same is said as in a pass without them."""
    tokens = torch.arange(12, device=backbone.device).remainder(backbone.vocab_size).unsqueeze(0)
    past = RestoringPast(backbone, tried=False)
    for length, drafted, accepted in ((5, 0, 0), (6, 3, 1), (8, 2, 2), (11, 1, 1)):
        draft = tokens[:, length : length + drafted].clone()
        draft[:, accepted:] = tokens[:, :1]  # wrong
        window = torch.cat([tokens[:, past.read[0] : length], draft], dim=1)
        first = window.shape[1] - drafted - 1
        given = past.enter(window.shape[1], Draft(draft))
        found = backbone(window, **given).final[:, first + accepted]
        past.keep([length + accepted])
        alone = backbone(tokens[:, : length + accepted]).final[:, -1]
        if not near(found, alone):  # a state with rejected tokens in it is far off
            return "what it says behind a rejected draft differs"
    return None
