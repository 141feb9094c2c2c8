"""Whether a block of a head can have a past of its own beside the backbone's.

Shapes: B rows, W tokens of a pass, D hidden.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from foretell.backbone import Backbone, ability
from foretell.backbone.trying import near
from foretell.backbone.weights import cast_parameters
from foretell.decoding.cache.past import new_past
from foretell.errors import BackboneError


@ability
def keeps_blocks(backbone: Backbone, ahead: bool) -> str | None:
    """Whether a copy of the last block, with a past of its own, gives what the last block gives.

    Tried over two passes, the second of which continues the first. The copy is called as the pass
    called the last block; `ahead`: as rehearsed before the pass, see `Backbone.block_call`.

    Packed weights cannot be copied. There a new block must give what it gives in a single pass.
    """
    tokens = torch.arange(8, device=backbone.device).remainder(backbone.vocab_size).view(1, 8)
    packed = backbone.packed_by is not None
    block = backbone.new_block("fresh" if packed else "copy")
    if packed:
        cast_parameters(block, backbone.dtype)
    try:
        passes = list(zip(*_passes(backbone, block, tokens, ahead), strict=True))
    except IndexError:  # Zamba2 tells its blocks their place, which is their place in the past too
        return "its last block knows its place in the model's own past, and none in another"
    entered, left, again = (torch.cat(parts, dim=1) for parts in passes)
    if packed:
        at_once = backbone(tokens).call(block, entered)
        return None if near(again, at_once) else "a new block cannot continue what it has read"
    odd = "a copy of its last block gives something else than the last block"
    return None if near(again, left) else odd


def _passes(
    backbone: Backbone, block: nn.Module, tokens: Tensor, ahead: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of two passes: what entered the last block, what left it, and what `block` gives: (B, W, D).

    One pass where the backbone is not decoded in drafts, since there is no past to keep.
    """
    last = backbone.num_layers - 1
    layers = (last, last + 1)
    try:
        past = new_past(backbone, 1, 8)
    except BackboneError:
        output = backbone(tokens, layers=layers)
        yield output.states[last], output.states[last + 1], output.call(block, output.states[last])
        return
    cache = past.beside()
    for begin, end in ((0, 5), (5, 8)):
        window, positions = tokens[:, begin:end], torch.arange(begin, end, device=backbone.device)
        given = past.enter(end - begin)
        mask = given.get("attention_mask")
        call = backbone.block_call(window, positions[None], cache, mask) if ahead else None
        output = backbone(window, layers=layers, **given)
        again = (call or output.call)(block, output.states[last], cache)
        yield output.states[last], output.states[last + 1], again
        past.keep([end])
