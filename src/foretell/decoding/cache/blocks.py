"""Whether a block of a head can have a past of its own beside the backbone's.

Shapes: B rows, W tokens of a pass.
"""

import torch

from foretell.backbone import Backbone, ability
from foretell.backbone.discovery import near
from foretell.decoding.cache.past import new_past
from foretell.errors import BackboneError

ODD = "a copy of its last block gives something else than the last block"


@ability
def keeps_blocks(backbone: Backbone, ahead: bool) -> str | None:
    """Whether a copy of the last block, with a past of its own, gives what the last block gives.

    Tried over two passes, the second of which continues the first. The copy is called as the pass
    called the last block; `ahead`: as rehearsed before the pass, see `Backbone.block_call`.
    """
    tokens = torch.arange(8, device=backbone.device).remainder(backbone.vocab_size).view(1, 8)
    last, block = backbone.num_layers - 1, backbone.new_block("copy")
    try:
        past = new_past(backbone, 1, 8)
    except BackboneError:  # it is not decoded in drafts, and there is no past to keep
        output = backbone(tokens, layers=(last, last + 1))
        again = output.call(block, output.states[last])
        return None if near(again, output.states[last + 1]) else ODD
    cache = past.beside()
    for begin, end in ((0, 5), (5, 8)):
        window, positions = tokens[:, begin:end], torch.arange(begin, end, device=backbone.device)
        given = past.enter(end - begin)
        mask = given.get("attention_mask")
        call = backbone.block_call(window, positions[None], cache, mask) if ahead else None
        output = backbone(window, layers=(last, last + 1), **given)
        again = (call or output.call)(block, output.states[last], cache)
        if not near(again, output.states[last + 1]):
            return ODD
        past.keep([end])
    return None
