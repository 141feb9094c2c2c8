"""Passes of one width: a token's numbers do not depend on how much is drafted around it.

Arithmetic rounds, and the order of a sum depends on the shape of the matrices: a pass over four
tokens gives slightly other logits than four passes over one, and where two logits are almost tied
the larger one can change. With one width, one number of rows and one number of slots for every
pass, a token that is drafted fourth goes through the same sums as one that stands first and has
filling after it. Then what is drafted cannot change the output, in any type.

That rests on the kernels and on the model: a mixture of experts sorts the tokens of a pass into
matrices whose shapes depend on all of them. So it is tried out, bit by bit: a check, not a proof.

Shapes: B rows, W tokens of a pass, V vocabulary.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad

from foretell.backbone import Backbone
from foretell.backbone.trying import evaluating
from foretell.decoding.cache import SlottedPast
from foretell.decoding.cache.slotted import FIXED_SLOTS
from foretell.decoding.kernels import Kernels
from foretell.errors import BackboneError

_found: "WeakKeyDictionary[Any, dict[tuple[int, ...], bool]]" = WeakKeyDictionary()


def require_invariance(backbone: Backbone, rows: int, width: int, capacity: int) -> None:
    """Refuse a backbone whose numbers depend on the other tokens of a pass, even of one shape.

    Args:
        backbone: that is tried out, once for every shape; it takes masks.
        rows: B.
        width: W, of every pass.
        capacity: slots per row that every pass sees.

    Raises:
        BackboneError: it does.
    """
    capacity = -(-capacity // FIXED_SLOTS) * FIXED_SLOTS  # as many as there will be
    shape, found = (rows, width, capacity), _found.setdefault(backbone.model, {})
    if shape not in found:
        found[shape] = _try_out(backbone, *shape)
    if not found[shape]:
        raise BackboneError(
            f"{type(backbone.model).__name__} cannot be decoded in passes of one width: what it "
            "computes for a token depends on the other tokens of the pass; leave out pass_width, "
            "or decode plainly, one prompt at a time."
        )


@torch.inference_mode()
def _try_out(backbone: Backbone, rows: int, width: int, capacity: int) -> bool:
    """Whether W tokens have the same logits in one pass as in W passes."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(backbone.vocab_size, (rows, 1 + width), generator=generator)
    tokens = tokens.to(backbone.device)

    def logits(size: int) -> Tensor:
        """(B, W, V), `size` tokens in every pass and filling after them."""
        past, found = SlottedPast(backbone, rows, capacity, fixed=True), []
        backbone(tokens[:, :1], **past.enter(1))
        for begin in range(1, 1 + width, size):
            past.keep([begin] * rows)
            window = pad(tokens[:, begin : begin + size], (0, width - size))
            final = backbone(window, **past.enter(width)).final
            found.append(backbone.unembed(final)[:, :size])
        return torch.cat(found, dim=1)

    with evaluating(backbone.model), Kernels(backbone).chosen():
        return torch.equal(logits(width), logits(1))
