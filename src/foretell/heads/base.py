"""What every head is: a module that turns states of the backbone into one prediction per depth.

A head knows nothing of Hugging Face. It is built from `Parts` (how to make a block and a norm that
suit the backbone) and its blocks are run by the caller's `RunBlock`, which knows masks, positions
and caches. Adding a design is adding one file with a `Head` and its `Config`, which carry its name,
its drafter, and what it asks of the backbone.

Shapes: B batch, T time, K depths, D hidden.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from foretell.config import BaseConfig, Count
from foretell.errors import InputError
from foretell.heads.taps import FINAL, States, check_tap, make_tap
from foretell.heads.vocabulary import DraftVocabulary

BlockInit = Literal["fresh", "copy"]
"""Weights of a new block: the model's own random initialisation, or a copy of its last block."""

BlockKind = Literal["same", "dense", "wide"]
"""What a new block is: the same, without experts, or with an attention that reads twice as much."""


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
        num_layers: L, blocks of the backbone.
        block: makes a decoder block.
        norm: makes a copy of the backbone's final norm.
        new_norm: makes a norm of the same kind that has learned nothing yet.
    """

    hidden_size: int
    num_layers: int
    block: Callable[[], nn.Module]
    norm: Callable[[], nn.Module]
    new_norm: Callable[[], nn.Module]


DEEPEST = 256
"""The deepest heads: far beyond what a model foresees, and as much as one pass can verify."""

DEPTH = 3
"""Of new heads, where no other depth is asked for."""


class HeadConfig(BaseConfig):
    """What all heads can be told. A design adds fields of its own in a subclass."""

    kind: ClassVar[str]
    blocks: ClassVar[tuple[BlockKind, ...]] = ("same", "dense")
    """What new blocks can be."""

    depth: Annotated[int, Field(ge=1, le=DEEPEST)]
    """How many tokens after the next one are predicted, K."""
    tap: str | int = "final"
    """Hidden state that heads read: `final`, `trunk`, `last`, `weighted`, `fused`, or a layer's
    number.

    See `foretell.heads.taps`.
    """
    init: BlockInit = "fresh"
    """Weights of new blocks: `fresh`, or a `copy` of the backbone's last block."""
    block: BlockKind = "same"
    """What new blocks are: the `same` as the backbone's last block; on a mixture of experts
    `dense`, with one feed-forward network of the active experts' size; or `wide`, with an attention
    that reads two states side by side (sequential heads)."""
    normalize: bool = Field(default_factory=lambda told: told.get("init") == "fresh")
    """Whether the tap scales residual states to a root mean square of 1; by default for fresh
    blocks, while copied ones expect states as the backbone has them."""

    vocabulary: Count | None = None
    """How many of the model's tokens can be drafted; by default all.

    Of new heads those most frequent in what is learned, and those that end a text. Fewer tokens
    make the output head of a draft, its largest cost, cheaper; the others are still emitted.
    """

    @classmethod
    def called(cls) -> str:
        return f"head config of kind {cls.kind!r}"

    @field_validator("tap", mode="before")
    @classmethod
    def _tap_exists(cls, tap: Any) -> str | int:
        return check_tap(tap)

    @model_validator(mode="after")
    def _block_is_possible(self) -> Self:
        if self.init == "copy" and self.block != "same":
            raise InputError(f"a {self.block} block cannot be a copy; use init 'fresh'.")
        if self.block not in self.blocks:
            able = [kind for kind, head in HEADS.items() if self.block in head.Config.blocks]
            raise InputError(
                f"a {self.block} block does not go with {self.kind} heads; use {' or '.join(able)} "
                "heads."
            )
        return self

    @property
    def modules(self) -> int:
        """How many modules with parameters of their own the head has, at least."""
        return self.depth

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the head's kind under `kind`."""
        return {"kind": self.kind, **super().to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict` on a known class."""
        return super().from_dict({name: told for name, told in values.items() if name != "kind"})


HEADS: dict[str, type["Head"]] = {}
"""Every design by its kind, which the command line, configs and checkpoints go by."""


class Head(nn.Module, ABC):
    """Predicts depths 1…K. A subclass is known by its config's `kind`, where that is its own."""

    Config: ClassVar[type[HeadConfig]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in vars(vars(cls).get("Config", object)):
            HEADS[cls.Config.kind] = cls

    def __init__(self, config: HeadConfig, parts: Parts) -> None:
        super().__init__()
        self.config = config
        depths = 1 if self.chained else config.depth
        self.tap = make_tap(
            config.tap, parts.num_layers, parts.hidden_size, depths, config.normalize
        )
        size = config.vocabulary
        self.vocabulary = None if size is None else DraftVocabulary(size)

    @property
    def depth(self) -> int:
        """K."""
        return self.config.depth

    def draft_only(self, tokens: Tensor | Collection[int] | None) -> None:
        """Draft these (V',) of the model's tokens alone from now on, or any (None).

        Heads read the model's own output head, so that they need no training for it.

        Raises:
            InputError: they are no token ids.
        """
        if tokens is None:
            self.config, self.vocabulary = self.config.replace(vocabulary=None), None
            return
        chosen = _token_ids(tokens)
        vocabulary = DraftVocabulary(len(chosen.unique()))
        vocabulary.choose(chosen)
        self.config = self.config.replace(vocabulary=len(vocabulary))
        self.vocabulary = vocabulary.to(next(self.parameters()).device)

    @property
    def chained(self) -> bool:
        """Whether a depth's state is computed from another depth's.

        Depths of a chain start from one tap and are differentiated together; others stand alone.
        """
        return False

    @property
    def drafter(self) -> str:
        """Which drafter drafts from it, see `foretell.decoding.drafters`."""
        return "parallel"

    @property
    def runs_blocks(self) -> bool:
        """Whether it runs decoder blocks."""
        return True

    @property
    def runs_ahead(self) -> bool:
        """Whether drafting runs its blocks where the backbone does not run at the same time."""
        return False

    @property
    def zero_first(self) -> bool:
        """Whether depth 1 reads zeros for the embedding at a document's first position."""
        return False

    @property
    def layers(self) -> tuple[int, ...]:
        """The residual states that the tap reads, without the final hidden state."""
        return tuple(layer for layer in self.tap.layers if layer != FINAL)

    @abstractmethod
    def forward(
        self, states: States, embed_ahead: EmbedAhead, run: RunBlock, depths: Sequence[int]
    ) -> list[Tensor]:
        """What the backbone's output head reads at `depths`, (B, T, D) each.

        Args:
            states: the tap's `layers` of one pass of the backbone.
            embed_ahead: embeddings of the tokens ahead, for heads that read them.
            run: runs a block.
            depths: which of 1…K, in rising order.
        """


def _token_ids(tokens: Tensor | Collection[int]) -> Tensor:
    try:
        ids = torch.as_tensor(tokens if isinstance(tokens, Tensor) else list(tokens))
    except (TypeError, ValueError, RuntimeError):  # texts, one number, lists of several lengths
        ids = None
    if ids is not None and ids.shape == (0,):
        return ids.long()
    if (
        ids is None
        or ids.dim() != 1
        or ids.dtype == torch.bool
        or ids.is_floating_point()
        or ids.is_complex()
    ):
        raise InputError("the tokens to draft are not token ids; give a list of whole numbers.")
    return ids
