"""Taps: which hidden state of the backbone a head reads.

A tap is written `"final"` (after the final norm, what the output head reads), `"trunk"` (the
residual stream before the last block: Gloeckle et al. 2024, section 2, where the model's own last
block is the next-token head), or an integer `l` (the residual stream entering block `l`; `l = L`
leaves the last block, before the final norm).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from foretoken.errors import HeadError, InputError


@dataclass(frozen=True)
class Tap:
    """A resolved tap: the residual stream entering `layer`, or the final hidden state (None)."""

    layer: int | None

    @classmethod
    def resolve(cls, name: str | int, num_layers: int) -> "Tap":
        """Find `name` in a backbone of `num_layers` blocks."""
        match check_tap(name):
            case "final":
                return cls(None)
            case "trunk":
                return cls(num_layers - 1)
            case layer if int(layer) <= num_layers:
                return cls(int(layer))
            case layer:
                raise HeadError(
                    f"tap {layer} lies past the backbone's last layer: it has {num_layers} blocks."
                )

    @property
    def layers(self) -> tuple[int, ...]:
        """The residual states that the backbone has to keep for this tap."""
        return () if self.layer is None else (self.layer,)

    def read(self, final: Tensor, states: Mapping[int, Tensor]) -> Tensor:
        """(B, T, D) of this tap from one pass of the backbone."""
        return final if self.layer is None else states[self.layer]


def check_tap(name: str | int) -> str | int:
    """Return `name` if it is written like a tap, else raise `InputError`."""
    if name in ("final", "trunk") or (
        isinstance(name, int) and not isinstance(name, bool) and name >= 0
    ):
        return name
    raise InputError(f"tap {name!r} is unknown; use 'final', 'trunk' or a layer number from 0.")
