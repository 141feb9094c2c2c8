"""Every row in slots of its own: position p of a row lies in slot p, whatever the other rows do.

Nothing has to be removed when a draft is rejected, because a slot is seen only from positions
after it, and is written again before the row gets there. That serves rows that accept different
lengths, and trees, whose accepted nodes move to the slots of their positions. Sliding windows are
in the mask, since what a window has dropped could not be brought back.

Shapes: B rows, W nodes of a pass, S slots, D hidden.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from foretell.backbone import Ability, Backbone, ability
from foretell.backbone.masks import added_masks, last_threshold, sights, thresholds
from foretell.backbone.trying import near
from foretell.decoding.cache.extent import Extent
from foretell.decoding.cache.restoring import NOTHING_KEPT, recurrent_layers
from foretell.decoding.compiling import varying
from foretell.decoding.draft import Draft
from foretell.decoding.transfer import to_device
from foretell.errors import BackboneError

MASKED = ("eager", "sdpa")
"""transformers' implementations of attention that take a mask of any form."""
FIXED_SLOTS = 256
"""Slots are set aside in multiples of this for passes of one width, which look at all of them: so
few shapes occur. Where more are needed than were set aside, that many are added."""
AT_FIRST = 1024
"""Slots per row that are set aside at first, and doubled whenever they are used up: few texts
become as long as they may."""
STAGES = {"cpu": (16, 16), "cuda": (256, 4)}
"""A compiled pass sees a multiple of this many slots, by device, or of that part of them where
there are many: attention over slots that nobody has written costs as much as over others, and each
new number of them a check of PyTorch's guards, or a CUDA graph."""


@dataclass
class Slots:
    """What the layers of a past know of it. They do not hold the past itself, which holds them: in
    a cycle the memory of a batch would be kept until Python looks for cycles.

    Attributes:
        capacity: S, slots per row.
        where: those that a pass writes: a stretch, or rows (B, 1) and slots (B, W).
        visible: (S',) those that the pass can see: the first ones.
        length: how many tokens transformers is told there are; where no mask is given, it makes one
            for tokens after these.
        version: counts how often a layer went on with another tensor.
    """

    capacity: int
    where: tuple[Tensor, Tensor] | slice = field(default_factory=lambda: slice(0))
    visible: Tensor = field(default_factory=lambda: torch.arange(0))
    length: int = 0
    version: int = 0

    @property
    def reached(self) -> tuple[Any, Tensor]:
        """What a pass is told: `where` it writes, and the slots that are `visible`."""
        return self.where, self.visible

    @reached.setter
    def reached(self, reached: tuple[Any, Tensor]) -> None:
        self.where, self.visible = reached

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
        capacity: S, slots that a row is expected to need at most.
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
        self.expected = capacity
        capacity = -(-capacity // FIXED_SLOTS) * FIXED_SLOTS if fixed else min(capacity, AT_FIRST)
        self.fixed, self.compiled, self.staged = fixed or compiled, compiled, compiled and not fixed
        capacity += self.staged  # one that no pass sees: torch would compile "all slots" apart
        self.rows, self.slots, self.device = rows, Slots(capacity), backbone.device
        self.dtype, self.sights = backbone.dtype, sights(backbone.config)
        self.last = (backbone.max_length or sys.maxsize) - 1
        self.read = [0] * rows
        self.extent = Extent(backbone, rows)
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

    def enter(
        self, width: int, draft: Draft | None = None, stands: Sequence[int] | None = None
    ) -> dict[str, Any]:
        self._move()
        stands = stands or [read + width for read in self.read]
        self.extent.enter(self.read, stands)
        return self._enter(width, self.read, draft, stands)

    def reenter(self, width: int, begin: Sequence[int]) -> dict[str, Any]:
        return self._enter(width, begin, None, [start + width for start in begin])

    def _enter(
        self, width: int, read: Sequence[int], draft: Draft | None, stands: Sequence[int]
    ) -> dict[str, Any]:
        self.width, start, slots = width, read[0], self.slots
        self._reserve(max(read) + width + self.staged)
        first = not any(read)
        slots.visible = self._visible(max(read) + width, first)
        slots.length = 0 if self.fixed else max(read)
        steps = torch.arange(width, device=self.device)
        if len(set(read)) == 1 and (first or not self.fixed):
            slots.where = slice(start, start + width)
            places = (steps + start).expand(self.rows, -1)
        else:
            begin = to_device(read, self.device).unsqueeze(1)
            places = begin + steps
            slots.where = varying(self._rows(), 0), varying(places, 0)
        tree = draft is not None and draft.parents is not None
        if tree:
            assert draft is not None
            positions = places[:, :1] + draft.depths
        else:
            positions = places
        drafted = 0 if draft is None else draft.size
        given = {
            "cache": self.cache,
            "position_ids": positions.clamp(max=self.last),
            **self.extent.rotation(positions, stands, drafted),
        }
        if first:
            return given  # a causal pass from the start: each row's filling is behind its tokens
        if width == self.rows == 1 and not self.fixed:
            return given  # one token sees everything
        given["attention_mask"] = self._mask(places[:, :1], positions, draft if tree else None)
        return given

    def _visible(self, needed: int, first: bool) -> Tensor:
        """The slots that a pass sees, which needs as many."""
        if first or not self.fixed:
            seen = needed
        elif self.staged:
            few, part = STAGES.get(self.device.type, STAGES["cpu"])
            step = max(few, (1 << needed.bit_length()) // part)
            seen = min(-(-needed // step) * step, self.slots.capacity - 1)
        else:
            seen = self.slots.capacity
        visible = torch.arange(seen, device=self.device)
        return varying(visible, 0) if self.staged else visible

    def keep(self, read: Sequence[int], path: Tensor | None = None) -> None:
        if path is not None:
            begin = to_device(self.read, self.device).unsqueeze(1)
            to = begin + torch.arange(path.shape[1], device=self.device)
            self._moves = torch.stack([begin + path, to])
        self.read = self.extent.keep(read)

    def assume(self) -> None:
        self.read = [read + self.width for read in self.read]

    def select(self, places: Sequence[int]) -> None:
        self.rows, self.read = len(places), [self.read[place] for place in places]
        self.extent.select(places)
        for layer in self.layers:
            layer.select(places)
        if self._moves is not None:
            self._moves = self._moves[:, list(places)]

    def _reserve(self, slots: int) -> None:
        if slots > self.slots.capacity:
            twice = min(2 * self.slots.capacity, self.expected + self.staged)
            self.slots.capacity = max(slots + FIXED_SLOTS, twice)
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
        return added_masks(self.sights, visible, positions, places, self.dtype, self._as_compiled)

    def _as_compiled(self, mask: Tensor) -> Tensor:
        return varying(mask, 3) if self.staged else mask


class SlottedLayer(CacheLayerMixin):
    """Keys and values of one block. `Cache` asks it as it asks its own layers.

    Attributes:
        keys, values: (B, H, S, D), by heads H.
        indexer_keys: (B, 1, S, D), by which a sparse attention picks what it sees.
    """

    is_sliding = False
    keys: Tensor | None
    values: Tensor | None

    def __init__(self, slots: Slots) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.slots = slots
        self.indexer_keys: Tensor | None = None

    @property
    def stored(self) -> dict[str, Tensor]:
        """By name, what there is."""
        parts = {"keys": self.keys, "values": self.values, "indexer_keys": self.indexer_keys}
        return {name: tensor for name, tensor in parts.items() if tensor is not None}

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Each is made when something is put into it."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return self._put("keys", key_states), self._put("values", value_states)

    def update_indexer(self, indexer_key_states: Tensor) -> Tensor:
        return self._put("indexer_keys", indexer_key_states.unsqueeze(1)).squeeze(1)

    def _put(self, name: str, new: Tensor) -> Tensor:
        """Write a pass's (B, H, W, D) to its slots; what it can see then, (B, H, S', D)."""
        if getattr(self, name) is None:
            (batch, heads, _, size), slots = new.shape, self.slots.capacity
            self._store(name, new.new_zeros(batch, heads, slots, size))
            self.is_initialized = True
        stored, where = getattr(self, name), self.slots.where
        if isinstance(where, slice):
            stored[:, :, where] = new
        else:
            rows, places = where
            stored[rows, :, places] = new.transpose(1, 2)
        return cast(Tensor, stored[:, :, : self.slots.seen])

    def _store(self, name: str, tensor: Tensor) -> None:
        """Go on with another tensor; any number of rows, and of slots."""
        setattr(self, name, varying(tensor, 0, 2))
        self.slots.version += 1

    def grow(self, capacity: int) -> None:
        """Make room for more slots."""
        for name, stored in self.stored.items():
            self._store(name, pad(stored, (0, 0, 0, capacity - stored.shape[2])))

    def select(self, places: Sequence[int]) -> None:
        """Keep some rows alone; one that is not where it was comes from after those that stay.

        After what the last pass saw no row has anything that stands or is still to be moved.
        """
        seen = self.slots.seen
        for name, stored in self.stored.items():
            for place, before in enumerate(places):
                if place != before:
                    stored[place, :, :seen] = stored[before, :, :seen]
            self._store(name, stored[: len(places)])

    def move(self, rows: Tensor, source: Tensor, target: Tensor) -> None:
        """Copy slots `source` (B, W) of each of `rows` (B, 1) to its slots `target` (B, W)."""
        for stored in self.stored.values():
            stored[rows, :, target] = stored[rows, :, source]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots.seen, 0

    def get_seq_length(self) -> int:
        return self.slots.length

    def get_max_length(self) -> int:
        return self.slots.capacity


@ability
def _obeys_masks(backbone: Backbone, length: int) -> str | None:
    """Two rows on either side of `length`, and a tree of two branches after each, must give what
    each way through them gives by itself.
    """
    if kinds := recurrent_layers(backbone):
        return f"it keeps {' and '.join(kinds)}, which no mask reaches"
    if (used := backbone.config._attn_implementation) not in MASKED:
        return f"its attention {used!r} takes none; use {' or '.join(MASKED)}"
    # Far apart, so that what goes by slots is far off; but on the same side of what comes next.
    switch = None if backbone.rotary is None else backbone.rotary.switch
    named = (*thresholds(backbone.config), backbone.max_length, switch)
    ends = [n for n in named if n and n > length]
    first, second = max(length + 5, min([length + 40, *(n - 4 for n in ends)])), abs(length - 3)
    tokens = torch.arange(2 * (first + 3), device=backbone.device)
    tokens = tokens.remainder(backbone.vocab_size).view(2, -1)
    past = SlottedPast(backbone, 2, first + 4)
    parents = to_device([[0, 0, 2], [0, 1, 0]], backbone.device)
    ways = [[[0, 1], [0, 2, 3]], [[0, 1, 2], [0, 3]]]  # nodes from the first to a leaf
    draft = Draft(tokens[:, 1:4], parents)
    backbone(tokens[:, :first], **past.enter(first))
    past.keep([first, second])
    if not any(layer.stored for layer in past.layers):
        return NOTHING_KEPT
    found = backbone(tokens[:, :4], **past.enter(4, draft)).final
    if not bool(torch.isfinite(found).all()):
        raise BackboneError("the model's states are not finite; check its weights and type.")
    for row, leaves in enumerate(ways):
        for way in leaves:
            whole = torch.cat([tokens[row, : past.read[row]], tokens[row, way]])
            alone = backbone(whole.unsqueeze(0)).final
            if not _agree(found[row, way[-1]], alone[0, -1]):
                seen = f" behind {length} tokens" if length else ""
                return f"its attention does not obey it{seen}"
    return None


def _agree(found: Tensor, alone: Tensor) -> bool:
    """Whether they differ by rounding only.

    Over the families of the tests, on a processor whose kernels differ from shape to shape,
    rounding makes up to 0.018 of a state in bfloat16 and 0.004 in float16, and what goes by slots
    0.059 and 0.029 at least. The limits, 0.039 and 0.010, lie between.
    """
    eps = torch.finfo(found.dtype).eps
    if torch.finfo(found.dtype).bits >= 32:
        return near(found, alone)
    return bool((found - alone).float().norm() <= eps ** (2 / 3) * alone.float().norm())


def takes_masks(backbone: Backbone, length: int | None = None) -> Ability:
    """Whether rows of a batch, and branches of a tree, can be told apart by a mask of ours.

    Tried out, not looked up, on rows that are longer than what changes attention: its windows and
    chunks. What lies beyond `length` tokens, by default the model's context, does not matter.
    """
    short = _obeys_masks(backbone, 0)
    threshold = last_threshold(backbone.config, length)
    return _obeys_masks(backbone, threshold) if short and threshold else short
