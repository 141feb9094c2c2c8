"""What every head is: a module that turns tapped hidden states into one prediction per depth.

A head knows nothing of Hugging Face. It is built from `Parts` (how to make a block and a norm that
suit the backbone) and its blocks are run by the caller's `RunBlock`, which knows masks, positions
and caches. Adding a design is adding one file with a `Head` and its `Config`.

Shapes: B batch, T time, K depths, D hidden.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

from torch import Tensor, nn

from foretoken.errors import InputError
from foretoken.heads.taps import check_tap


class RunBlock(Protocol):
    """Runs a decoder block of the head."""

    def __call__(self, block: nn.Module, hidden: Tensor, depth: int) -> Tensor:
        """(B, T, D) → (B, T, D); `depth` (1…K) says whose past the block continues."""
        ...


EmbedAhead = Callable[[int], Tensor]
"""`embed_ahead(k)` is Emb(x_{t+k}) at every position t, (B, T, D)."""


@dataclass(frozen=True)
class Parts:
    """What a head is made of, cut to the backbone's measure.

    Attributes:
        hidden_size: D.
        block: makes a decoder block.
        norm: makes a norm like the backbone's final one.
    """

    hidden_size: int
    block: Callable[[], nn.Module]
    norm: Callable[[], nn.Module]


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What all heads can be told.

    Attributes:
        depth: K ≥ 1, how many tokens beyond the next one are predicted.
        tap: which hidden state is read, see `foretoken.heads.taps`.
        init: weights of new blocks: `"fresh"` or a `"copy"` of the backbone's last block.
    """

    kind: ClassVar[str]
    depth: int
    tap: str | int = "final"
    init: Literal["fresh", "copy"] = "fresh"

    def __post_init__(self) -> None:
        if isinstance(self.depth, bool) or not isinstance(self.depth, int) or self.depth < 1:
            raise InputError(f"depth is {self.depth!r}; a head predicts at least depth 1.")
        if self.init not in ("fresh", "copy"):
            raise InputError(f"init is {self.init!r}; use 'fresh' or 'copy'.")
        check_tap(self.tap)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the head's kind under `kind`."""
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict` on a known class; unknown names are errors."""
        known = {name: value for name, value in values.items() if name != "kind"}
        try:
            return cls(**known)
        except TypeError as error:
            raise InputError(f"head config of kind {cls.kind!r}: {error}.") from None


class Head(nn.Module, ABC):
    """Predicts depths 1…K."""

    Config: ClassVar[type[HeadConfig]]

    def __init__(self, config: HeadConfig, parts: Parts) -> None:
        super().__init__()
        self.config = config

    @property
    def depth(self) -> int:
        """K."""
        return self.config.depth

    @abstractmethod
    def forward(self, tapped: Tensor, embed_ahead: EmbedAhead, run: RunBlock) -> Iterator[Tensor]:
        """Yield, for depth 1…K, what the backbone's output head reads, (B, T, D) each.

        Args:
            tapped: (B, T, D), the tap.
            embed_ahead: embeddings of the tokens ahead, for heads that read them.
            run: runs a block.
        """
