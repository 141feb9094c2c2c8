"""How far the pass would reach in which `generate` reads each token, and what follows from that.

It reads a prompt in one pass, and then one token in each. Where a backbone rotates tokens by how
far a pass reaches (see `foretell.backbone.rotary`), drafts and other rows must not count, and some
families read a row anew when it has become longer than a switch.

Shapes: B rows, W nodes of a pass.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from foretell.backbone import Backbone
from foretell.decoding.transfer import to_device


class Extent:
    """Of the rows of a past.

    Attributes:
        begun: how many tokens of each row stood when it was read from its first token on.
    """

    def __init__(self, backbone: Backbone, rows: int) -> None:
        self.backbone, self.begun = backbone, [0] * rows

    def enter(self, read: Sequence[int], stands: Sequence[int]) -> None:
        """A pass begins after the first `read` tokens of each row, of which this many stand."""
        rows = zip(read, stands, self.begun, strict=True)
        self.begun = [before if begin else end for begin, end, before in rows]

    def rotation(
        self, positions: Tensor, stands: Sequence[int], drafted: int = 0
    ) -> dict[str, Any]:
        """An argument of a pass over tokens at `positions` (B, W); nothing where it needs none.

        Args:
            positions: (B, W).
            stands: how many tokens of each row stand.
            drafted: how many may follow; what is further is filling.
        """
        if self.backbone.rotary is None:
            return {}
        first, last = to_device([self.begun, [end + drafted for end in stands]], positions.device)
        extent = (positions + 1).clamp(first.unsqueeze(1), last.unsqueeze(1))
        return {"rotation": self.backbone.rotation(positions, extent)}

    def keep(self, read: Sequence[int]) -> list[int]:
        """What stays read where `read` tokens would: nothing of a row that is read anew."""
        switch = self.backbone.reread_behind
        if switch is None:
            return list(read)
        rows = zip(read, self.begun, strict=True)
        return [0 if begun <= switch < end + 1 else end for end, begun in rows]

    def select(self, places: Sequence[int]) -> None:
        """Go on with the rows at some places alone."""
        self.begun = [self.begun[place] for place in places]
