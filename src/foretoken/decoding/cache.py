"""What has been read: keys and values of B rows, from whose ends tokens can be taken back.

`SlottedPast` keeps every row in slots of its own: position p of a row lies in slot p, whatever the
other rows do. Nothing has to be removed when a draft is rejected, because a slot is seen only from
positions behind it, and is written again before the row gets there. That serves rows that accept
different lengths, and trees, whose accepted nodes move to the slots of their positions. Sliding
windows are in the mask, since what a window has dropped could not be brought back.

`RestoringPast` is transformers' own cache for one row and chains: for recurrent layers, whose state
is put back where it was, and for backbones that take no mask of ours.

Shapes: B rows, W nodes of a pass, S slots, D hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, LinearAttentionCacheLayerMixin

from foretoken.backbone import Backbone
from foretoken.backbone.discovery import evaluating, same
from foretoken.decoding.compiling import varying
from foretoken.decoding.draft import Draft
from foretoken.errors import BackboneError, ForetokenError

FIXED_SLOTS = 256
"""Slots are set aside in multiples of this, so that few shapes occur."""
FIXED_SEEN = 64
"""A compiled pass sees a multiple of so many slots, of more where there are many: attention over
slots that nobody has written costs as much as over others, and few shapes should occur."""


class Past(Protocol):
    """What the rows of a batch have read.

    Attributes:
        cache: the backbone's.
        read: how many tokens of each row; the next pass begins there.
        compiled: whether what runs over its passes is compiled.
    """

    cache: Cache
    read: list[int]
    compiled: bool

    def beside(self) -> Cache:
        """The cache of one more block, which is always as far as this one."""
        ...

    def enter(self, width: int, draft: Draft | None = None) -> dict[str, Any]:
        """Arguments of a pass over `width` more tokens: `cache`, positions and mask.

        The tokens are a chain, or the nodes of `draft`.
        """
        ...

    def reenter(self, width: int, begin: Sequence[int]) -> dict[str, Any]:
        """The same for a block that is behind: over `width` tokens from positions `begin` on."""
        ...

    def keep(self, read: Sequence[int], path: Tensor | None = None) -> None:
        """Take back all but the first `read` tokens of each row; it may take back some more.

        `path` (B, W) are the nodes of the last pass, if it was a tree, that come first.
        """
        ...

    def assume(self) -> None:
        """Go on behind what was entered last; the next `keep` may still take all of it back."""
        ...

    def select(self, places: Sequence[int]) -> None:
        """Go on with the rows at some places alone, in that order."""
        ...


# -- rows in slots --------------------------------------------------------------------------------


@dataclass
class Slots:
    """What the layers of a past know of it. They do not hold the past itself, which holds them: in
    a cycle the memory of a batch would be kept until Python looks for cycles.

    Attributes:
        capacity: S, slots per row.
        where: those that a pass writes: a stretch, or rows (B, 1) and slots (B, W).
        visible: (S',) those that the pass can see: the first ones.
        length: what transformers is told that there is; positions are given in any case.
    """

    capacity: int
    where: tuple[Tensor, Tensor] | slice = field(default_factory=lambda: slice(0))
    visible: Tensor = field(default_factory=lambda: torch.arange(0))
    length: int = 0

    @property
    def seen(self) -> int:
        """How many slots from the first on the pass can see.

        It is the shape of a tensor, so that one compiled pass serves for all numbers.
        """
        return self.visible.shape[0]


class SlottedPast:
    """For attention, any number of rows, chains and trees.

    Args:
        backbone: whose cache it is.
        rows: B.
        capacity: S, slots per row to begin with.
        fixed: every pass looks at all slots, so that passes of one width have one shape.
        compiled: what runs over its passes is compiled; unless `fixed`, they look at few empty
            slots, in stages.
    """

    def __init__(
        self,
        backbone: Backbone,
        rows: int,
        capacity: int,
        *,
        fixed: bool = False,
        compiled: bool = False,
    ) -> None:
        self.fixed, self.compiled, self.staged = fixed or compiled, compiled, compiled and not fixed
        if self.fixed:
            capacity = -(-capacity // FIXED_SLOTS) * FIXED_SLOTS
        capacity += self.staged  # one that no pass sees: torch would compile "all slots" apart
        self.rows, self.slots, self.device = rows, Slots(capacity), backbone.device
        self.dtype, self.windows = backbone.dtype, _windows(backbone)
        self.context = backbone.max_length or capacity
        self.read = [0] * rows
        self.layers: list[SlottedLayer] = []
        self.width = 0
        self._moves: Tensor | None = None  # (2, B, W), from where to where
        self.cache = self._new_cache(backbone.num_layers)

    def beside(self) -> Cache:
        return self._new_cache(1)

    def _new_cache(self, layers: int) -> Cache:
        fresh = [SlottedLayer(self.slots) for _ in range(layers)]
        self.layers += fresh
        return Cache(layers=list(fresh))

    def enter(self, width: int, draft: Draft | None = None) -> dict[str, Any]:
        self._move()
        return self._enter(width, self.read, draft)

    def reenter(self, width: int, begin: Sequence[int]) -> dict[str, Any]:
        return self._enter(width, begin, None)

    def _enter(self, width: int, read: Sequence[int], draft: Draft | None) -> dict[str, Any]:
        self.width, start, slots = width, read[0], self.slots
        self._reserve(max(read) + width + self.staged)
        first = not any(read)
        slots.visible = self._visible(max(read) + width, first)
        slots.length = 0 if self.fixed else max(self.read)
        steps = torch.arange(width, device=self.device)
        if len(set(read)) == 1 and (first or not self.fixed):
            slots.where = slice(start, start + width)
            places = (steps + start).expand(self.rows, -1)
        else:
            begin = torch.tensor(read, device=self.device).unsqueeze(1)
            places = begin + steps
            slots.where = varying(self._rows(), 0), varying(places, 0)
        tree = draft is not None and draft.parents is not None
        if tree:
            assert draft is not None
            positions = places[:, :1] + draft.depths
        else:
            positions = places
        given = {"cache": self.cache, "position_ids": positions.clamp(max=self.context - 1)}
        if first:
            return given  # a causal pass from the start: each row's filling is behind its tokens
        if width == self.rows == 1 and not self.fixed:
            return given  # one token sees everything
        given["attention_mask"] = self._mask(places[:, :1], positions, draft if tree else None)
        return given

    def _visible(self, needed: int, first: bool) -> Tensor:
        """The slots that a pass sees, which needs as many."""
        if self.staged and not first:
            step = max(FIXED_SEEN, (1 << needed.bit_length()) >> 4)
            seen = min(-(-needed // step) * step, self.slots.capacity - 1)
            return varying(torch.arange(seen, device=self.device), 0)
        seen = self.slots.capacity if self.fixed and not first else needed
        return torch.arange(seen, device=self.device)

    def keep(self, read: Sequence[int], path: Tensor | None = None) -> None:
        if path is not None:
            begin = torch.tensor(self.read, device=self.device).unsqueeze(1)
            to = begin + torch.arange(path.shape[1], device=self.device)
            self._moves = torch.stack([begin + path, to])
        self.read = list(read)

    def assume(self) -> None:
        self.read = [read + self.width for read in self.read]

    def select(self, places: Sequence[int]) -> None:
        self.rows, self.read = len(places), [self.read[place] for place in places]
        for layer in self.layers:
            layer.select(places)
        if self._moves is not None:
            self._moves = self._moves[:, list(places)]

    def _reserve(self, slots: int) -> None:
        if slots > self.slots.capacity:
            self.slots.capacity = slots + FIXED_SLOTS
            for layer in self.layers:
                layer.grow(self.slots.capacity)

    def _move(self) -> None:
        """Bring the nodes on the accepted path to the slots of their positions."""
        if self._moves is not None:
            for layer in self.layers:
                layer.move(self._rows(), *self._moves)
            self._moves = None

    def _rows(self) -> Tensor:
        """(B, 1)"""
        return torch.arange(self.rows, device=self.device).unsqueeze(1)

    def _mask(self, begin: Tensor, positions: Tensor, tree: Draft | None) -> Any:
        """What each token sees, added to attention's scores: (B, 1, W, S'), by kind of layer."""
        slots = self.slots.visible
        if tree is None:
            visible = slots <= positions.unsqueeze(-1)
            places = slots.view(1, 1, -1)
        else:
            node = (slots - begin).clamp(max=self.width - 1)  # (B, S'), negative before the pass
            index = node.clamp(min=0)
            branch = tree.ancestors.gather(2, index.unsqueeze(1).expand(-1, self.width, -1)) & (
                slots - begin < self.width
            ).unsqueeze(1)
            visible = branch | (node < 0).unsqueeze(1)
            places = torch.where(node < 0, slots, positions.gather(1, index)).unsqueeze(1)
        masks = {}
        for kind, window in self.windows.items():
            near = visible
            if window is not None:
                near = visible & (positions.unsqueeze(-1) - places < window)
            mask = torch.zeros(near.shape, dtype=self.dtype, device=self.device)
            mask = mask.masked_fill_(~near, torch.finfo(self.dtype).min).unsqueeze(1)
            masks[kind] = varying(mask, 3) if self.staged else mask
        return masks if len(masks) > 1 else next(iter(masks.values()))


class SlottedLayer(CacheLayerMixin):
    """Keys and values of one block. `Cache` asks it as it asks its own layers."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, slots: Slots) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        def empty(states: Tensor) -> Tensor:
            rows, heads, _, size = states.shape
            return states.new_zeros(rows, heads, self.slots.capacity, size)

        self._store(empty(key_states), empty(value_states))
        self.is_initialized = True

    def _store(self, keys: Tensor, values: Tensor) -> None:
        """Go on with other tensors; any number of rows."""
        self.keys, self.values = varying(keys, 0), varying(values, 0)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        where, seen = self.slots.where, self.slots.seen
        found = []
        for stored, new in ((self.keys, key_states), (self.values, value_states)):
            if isinstance(where, slice):
                stored[:, :, where] = new
            else:
                rows, places = where
                stored[rows, :, places] = new.transpose(1, 2)
            found.append(stored[:, :, :seen])
        return found[0], found[1]

    def grow(self, capacity: int) -> None:
        """Make room for more slots."""
        if self.is_initialized:
            missing = (0, 0, 0, capacity - self.keys.shape[2])
            self._store(pad(self.keys, missing), pad(self.values, missing))

    def select(self, places: Sequence[int]) -> None:
        """Keep some rows alone, moving those of them that are not where they were."""
        if self.is_initialized:
            if moved := [place for place, before in enumerate(places) if place != before]:
                for stored in (self.keys, self.values):
                    stored[moved] = stored[[places[place] for place in moved]]
            self._store(self.keys[: len(places)], self.values[: len(places)])

    def move(self, rows: Tensor, source: Tensor, target: Tensor) -> None:
        """Copy slots `source` (B, W) of each of `rows` (B, 1) to its slots `target` (B, W)."""
        if self.is_initialized:
            for stored in (self.keys, self.values):
                stored[rows, :, target] = stored[rows, :, source]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots.seen, 0

    def get_seq_length(self) -> int:
        return self.slots.length

    def get_max_length(self) -> int:
        return self.slots.capacity


def _windows(backbone: Backbone) -> dict[str, int | None]:
    """The kinds of attention layers, and how far back each of them sees."""
    config = backbone.config
    window = getattr(config, "sliding_window", None)
    kinds = sorted(set(getattr(config, "layer_types", None) or ()))
    if len(kinds) > 1:
        return {kind: window if kind == "sliding_attention" else None for kind in kinds}
    return {"all": None if kinds == ["full_attention"] else window}


_takes_masks: "WeakKeyDictionary[Any, bool]" = WeakKeyDictionary()


def takes_masks(backbone: Backbone) -> bool:
    """Whether rows of a batch, and branches of a tree, can be told apart by a mask of ours.

    Tried out, not looked up: two rows of different lengths, then a tree of two branches, must give
    what each way gives by itself.
    """
    if backbone.model not in _takes_masks:
        _takes_masks[backbone.model] = _try_masks(backbone)
    return _takes_masks[backbone.model]


@torch.inference_mode()
def _try_masks(backbone: Backbone) -> bool:
    config = backbone.config
    if recurrent_layers(backbone) or config._attn_implementation not in ("eager", "sdpa"):
        return False
    # Not tried out: windows and chunks are longer than what is tried.
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    if not {"full_attention", "sliding_attention", "global"}.issuperset(kinds or ()):
        return False
    tokens = torch.arange(2 * 8, device=backbone.device).remainder(backbone.vocab_size).view(2, 8)
    past = SlottedPast(backbone, 2, 16)
    parents = torch.tensor([[0, 0, 2], [0, 1, 0]], device=backbone.device)
    ways = [[[0, 1], [0, 2, 3]], [[0, 1, 2], [0, 3]]]  # nodes from the first to a leaf
    draft = Draft(tokens[:, 1:4], parents)
    try:
        with evaluating(backbone.model):
            backbone(tokens[:, :5], **past.enter(5))
            past.keep([5, 3])
            found = backbone(tokens[:, :4], **past.enter(4, draft)).final
            for row, leaves in enumerate(ways):
                for way in leaves:
                    whole = torch.cat([tokens[row, : past.read[row]], tokens[row, way]])
                    alone = backbone(whole.unsqueeze(0)).final
                    if not same(found[row, way[-1]], alone[0, -1]):
                        return False
    except (ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError):
        return False
    return True


# -- transformers' cache --------------------------------------------------------------------------


class RestoringPast:
    """For one row and chains, on transformers' own cache.

    From keys and values the end is cut off. A recurrent state cannot be shortened: it is put back
    to where it was before the first pass since `keep`, and what stands is read again with the next.

    Raises:
        BackboneError: a layer's state cannot be taken back, by name.
    """

    cache: Cache
    compiled = False

    def __init__(self, backbone: Backbone) -> None:
        require_rollback(backbone)
        self.config, self.device = backbone.config, backbone.device
        self.recurrent = bool(recurrent_layers(backbone))
        self.read, self.started, self.entered, self.assumed = [0], 0, 0, False
        self.cache = DynamicCache(config=self.config) if self.recurrent else DynamicCache()
        self.states: list[tuple[Any, dict[str, Any]]] = []  # layers, and what they were
        self.others: list[Cache] = []

    def beside(self) -> Cache:
        cache: Cache = DynamicCache()
        if self.recurrent:  # a block like the last one keeps what the last one keeps
            (last,) = DynamicCache(config=self.config).layers[-1:]
            attends = isinstance(last, DynamicLayer)
            cache = Cache(layers=[last]) if attends else RecurrentCache(self, last)
        self.others.append(cache)
        return cache

    def enter(self, width: int, draft: Draft | None = None) -> dict[str, Any]:
        for layer, state in self.states if self.read[0] < self.entered else ():
            layer.__dict__.update(_copied(state))
        layers: list[Any] = [
            layer for cache in (self.cache, *self.others) for layer in cache.layers
        ]
        for layer in layers:
            if isinstance(layer, DynamicLayer):
                layer.crop(min(0, self.read[0] - layer.get_seq_length()))
        self.entered = self.read[0] + width
        if not self.assumed:
            self.started = self.read[0]
            recurrent = [x for x in layers if isinstance(x, LinearAttentionCacheLayerMixin)]
            self.states = [(layer, _copied(layer.__dict__)) for layer in recurrent]
        return {"cache": self.cache}

    def reenter(self, width: int, begin: Sequence[int]) -> dict[str, Any]:
        positions = torch.arange(begin[0], begin[0] + width, device=self.device)
        return {"position_ids": positions.unsqueeze(0)}

    def keep(self, read: Sequence[int], path: Tensor | None = None) -> None:
        if path is not None or len(read) != 1:
            raise ForetokenError("this cache holds one row and chains")
        whole, self.assumed = read[0] == self.entered, False
        moved = any(any(layer.has_previous_state.values()) for layer, _ in self.states)
        self.read = [self.started] if moved and not whole else list(read)

    def assume(self) -> None:
        self.read, self.assumed = [self.entered], True

    def select(self, places: Sequence[int]) -> None:
        """It holds one row."""


class RecurrentCache(Cache):
    """Of one recurrent block. A decoder asks its cache for lengths, which such a layer has not."""

    def __init__(self, past: RestoringPast, layer: Any) -> None:
        super().__init__(layers=[layer])
        self.past = past

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.past.read[0]

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.past.read[0]

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.past.read[0] + query_length, 0


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
    """Refuse a backbone that keeps a state from which tokens cannot be taken back, by name."""
    if (kinds := recurrent_layers(backbone)) and not _restores(backbone):
        raise BackboneError(
            f"{type(backbone.model).__name__} cannot be decoded in drafts: its cache has "
            f"{', '.join(kinds)}, whose state cannot be restored when a draft is rejected; "
            "use transformers' generate."
        )


_restoring: "WeakKeyDictionary[Any, bool]" = WeakKeyDictionary()


def _restores(backbone: Backbone) -> bool:
    """Whether the cache brings recurrent states back: tried out on a rejected draft."""
    if backbone.model not in _restoring:
        _restoring[backbone.model] = _try_restoring(backbone)
    return _restoring[backbone.model]


@torch.inference_mode()
def _try_restoring(backbone: Backbone) -> bool:
    tokens = torch.arange(12, device=backbone.device).remainder(backbone.vocab_size).unsqueeze(0)
    _restoring[backbone.model] = True  # or `RestoringPast` would refuse to be tried
    try:
        with evaluating(backbone.model):
            past = RestoringPast(backbone)
            for length, drafted, accepted in ((5, 0, 0), (6, 3, 1), (8, 2, 2), (11, 1, 1)):
                draft = tokens[:, length : length + drafted].clone()
                draft[:, accepted:] = tokens[:, :1]  # wrong
                window = torch.cat([tokens[:, past.read[0] : length], draft], dim=1)
                first = window.shape[1] - drafted - 1
                given = past.enter(window.shape[1], Draft(draft))
                found = backbone(window, **given).final[:, first + accepted]
                past.keep([length + accepted])
                alone = backbone(tokens[:, : length + accepted]).final[:, -1]
                # A state with rejected tokens in it is far off. Rounding is not, but more than sums
                # in another order: whole prompts and single tokens run through different formulas.
                tolerance = torch.finfo(alone.dtype).eps ** 0.5
                if not (found - alone).norm() <= tolerance * alone.norm():
                    return False
    except (ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError):
        return False
    return True


def new_past(
    backbone: Backbone, rows: int, capacity: int, *, fixed: bool = False, compiled: bool = False
) -> Past:
    """The past of `rows` rows of up to `capacity` tokens; see `SlottedPast`.

    Raises:
        BackboneError: the backbone's rows cannot share a batch, or no draft can be taken back.
    """
    if takes_masks(backbone):
        return SlottedPast(backbone, rows, capacity, fixed=fixed, compiled=compiled)
    if rows > 1:
        raise BackboneError(
            f"{type(backbone.model).__name__} takes no attention mask that tells rows of different "
            "lengths apart; decode its rows one by one."
        )
    if fixed or compiled:
        raise BackboneError(
            f"{type(backbone.model).__name__} cannot be decoded in passes of one shape, compiled "
            "or of one width: it takes no attention mask that lets them see pasts of any length."
        )
    return RestoringPast(backbone)
