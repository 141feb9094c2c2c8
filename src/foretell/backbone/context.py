"""How long a text can be: by tables of positions, and by what a config says.

Rotary embeddings can be computed for any position. Learned positions, and some that are computed
once, are rows of a table: after its end there is nothing. Which table that is no name tells, so a
small pass with peculiar positions is watched for lookups at just these places.

Shapes: T positions.
"""

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from foretell.backbone.anatomy import Anatomy
from foretell.backbone.trying import evaluating

log = logging.getLogger(__name__)
aten = torch.ops.aten
POSITIONS = (3, 0, 7, 1, 5)
"""No range looks like these, nor the order that something is sorted in."""
STATED = ("max_position_embeddings", "n_positions", "max_seq_len")
"""What configs call the length of text that a model was built for."""


class Lookups(TorchDispatchMode):
    """Sees tables that are read at `positions` (T,), from any row on.

    Attributes:
        rooms: for how many positions each has a row.
        ends: how long that is whose last T parts are taken: biases by distance are, and other
            things.
    """

    def __init__(self, positions: Tensor, learned_alone: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.positions, self.learned_alone = positions, learned_alone
        self.rooms: list[int] = []
        self.ends: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten.embedding.default:
            self._note(args[0].shape[0], args[1])
        elif not self.learned_alone and func in (aten.index_select.default, aten.gather.default):
            self._note(args[0].shape[args[1]], args[2])
        elif not self.learned_alone and func is aten.index.Tensor and args[1][0] is not None:
            self._note(args[0].shape[0], args[1][0])
        elif func is aten.slice.Tensor and len(args) == 4:
            size = args[0].shape[args[1]]
            if args[2] in (size - len(self.positions), -len(self.positions)) and args[3] >= size:
                self.ends.append(size)
        return func(*args, **(kwargs or {}))

    def _note(self, size: int, index: Tensor) -> None:
        count = len(self.positions)
        if index.is_floating_point() or index.dtype == torch.bool or index.numel() % count:
            return
        places = index.reshape(count, -1)
        first = places[0, 0] - self.positions[0]
        expected = (self.positions + first).unsqueeze(1).expand_as(places)
        if size > count and torch.equal(places, expected):
            self.rooms.append(size - int(first))


def room(parts: Anatomy) -> int | None:
    """For how many positions the model has a row in each of its tables; None: for any number."""
    positions = torch.tensor(POSITIONS, device=parts.device)
    tokens = positions.remainder(parts.vocab_size).flip(0).unsqueeze(0)
    given = Lookups(positions, learned_alone=False)
    own = Lookups(torch.arange(len(positions), device=parts.device), learned_alone=True)
    with evaluating(parts.model):
        with given:
            parts.decoder(input_ids=tokens, position_ids=positions.unsqueeze(0), use_cache=False)
        with own:  # some families count for themselves
            parts.decoder(input_ids=tokens, use_cache=False)
    biases = [size for size in own.ends if size == stated(parts.config)]
    return min([*given.rooms, *own.rooms, *biases], default=None)


@cache
def warn_longer(name: str, context: int) -> None:
    """Say once that a text is longer than a model was built for."""
    log.warning(
        "the text is longer than the %d tokens that %s was built for; it goes on, and may become "
        "worse.",
        context,
        name,
    )


def stated(config: Any) -> int | None:
    """The longest text that the model was built for, in tokens; None where its config says none.

    Rotary embeddings may be scaled to more than `max_position_embeddings`, by a factor over what
    the model was first trained on (YaRN, as Qwen documents it).
    """
    named = next((n for name in STATED if (n := getattr(config, name, None)) is not None), None)
    if named is None:
        return None
    scaling = getattr(config, "rope_parameters", None) or {}
    by_layer = [part for part in scaling.values() if isinstance(part, dict)]
    lengths = [
        part.get("original_max_position_embeddings", named) * part.get("factor", 1.0)
        for part in by_layer or [scaling]
    ]
    return int(max(named, *lengths))
