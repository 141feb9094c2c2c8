"""Drafting with sequential heads: each depth reads the token that the depth before it drafted.

At position i depth k reads x_{i+k}. For the last K-1 positions that token was still a draft one
round ago, so every round computes those positions again, with the tokens that now stand, before it
drafts from the last one. All depths run over this same window, so that they share one mask and one
rotary embedding, and what they compute is exactly what training computed.

Shapes: B rows, S positions kept, W positions of the window, K depths, D hidden, V' tokens that can
be drafted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foretell.backbone import Backbone, BlockCall
from foretell.decoding.cache import READ_AGAIN, Past, new_past
from foretell.decoding.compiling import compile_fixed
from foretell.decoding.draft import Draft
from foretell.decoding.drafters.base import Committed, Drafter
from foretell.decoding.drafters.output import HeadOutput
from foretell.decoding.drafters.states import KeptStates, at
from foretell.decoding.sampling import WIDEST, Sampler
from foretell.decoding.transfer import to_device
from foretell.decoding.tree import TreeShape, chain, comb
from foretell.errors import InputError
from foretell.heads import FINAL, SequentialHeads


class ModuleDrafter(Drafter):
    """What drafters of sequential heads share.

    Args:
        backbone: that the heads belong to.
        head: the chain.
        length: how many tokens are drafted; by default as many as the heads have depths. A shared
            module can be applied further than it was trained.
        shape: of a tree, which branches off the chain; None drafts the chain alone.

    Raises:
        InputError: a chain of that length, or a tree of that width or depth, cannot be drafted.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: SequentialHeads,
        length: int | None = None,
        shape: TreeShape | None = None,
    ) -> None:
        length = head.depth if length is None else length
        if length < 1 or (length > head.depth and len(head.chain) > 1):
            raise InputError(
                f"draft length {length}: these heads draft 1 to {head.depth} tokens; only a shared "
                "module goes further than it was trained."
            )
        if length >= WIDEST:
            raise InputError(f"draft length {length}: a draft is at most {WIDEST - 1} tokens long.")
        if shape is not None:
            shape.check(head.config.vocabulary or backbone.vocab_size, length)
            length = min(length, shape.nodes or length)
        self.backbone, self.head, self.length, self.shape = backbone, head, length, shape

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return (self.head,)

    @property
    def layers(self) -> tuple[int, ...]:
        return self.head.layers

    @property
    def longest(self) -> int:
        return self.length

    past: Past
    tapped: KeptStates
    output: HeadOutput

    def select(self, places: Sequence[int]) -> None:
        self.past.select(places)
        self.tapped.select(places)


class SequentialDrafter(ModuleDrafter, of_heads="sequential"):
    """Drafts from a chain of modules, depth by depth as in training."""

    def start(self, past: Past, sampler: Sampler, rows: int, capacity: int) -> None:
        self.sampler, self.output = sampler, HeadOutput(self.backbone, self.head)
        self.past = new_past(self.backbone, rows, capacity, compiled=past.compiled)
        self.caches = [self.past.beside() for _ in range(self.length)]
        self.read = [0] * rows
        self.tapped = KeptStates()
        # Of the class: a method bound to `self` would keep it, and its past, in a cycle.
        drafted = SequentialDrafter._drafted
        self._steady = compile_fixed(drafted, self.backbone) if past.compiled else drafted

    def draft(self, committed: Committed, limit: int) -> Draft:
        states = {FINAL: committed.output.final, **committed.output.states}
        self.tapped.add(self.head.tap(states, 1), committed.begin, committed.path)
        if limit < 1:
            return Draft.nothing(len(committed.last), committed.last.device)
        stands = [max(0, read - self.length + 1) for read in self.read]
        self.read = [length - 1 for length in committed.lengths]
        if steady := self._can_be_steady(stands):
            stands = [read - self.steady_width for read in self.read]
        self.past.keep(stands)
        if max(again := self._behind(stands)) > READ_AGAIN:  # the blocks keep a recurrent state
            window = self._enter(max(again), committed.tokens, committed.lengths)
            hidden = window.hidden
            for depth in range(1, self.length + 1):
                hidden = self._step(window, depth, hidden, window.tokens)
            self.past.keep(stands)
        behind = self._behind(self.read)
        window = self._enter(max(behind), committed.tokens, committed.lengths)
        # A row that has ended may have nothing new to read, and its draft is of no account.
        ends = (to_device(behind, committed.last.device) - 1).clamp(min=0).unsqueeze(1)
        uniforms = None if self.shape else self.sampler.draft_uniforms(0, self.length)
        run = self._steady if steady else SequentialDrafter._drafted
        draft, logits = run(self, window, ends, uniforms)
        if self.shape is not None:
            return self.output.named(comb(logits[:, :limit], self.shape, committed.reach))
        return draft.cut(limit)

    @property
    def steady_width(self) -> int:
        """W of windows of one shape: as many tokens as one round adds at most, and those before
        them that are read again.
        """
        return 2 * self.length

    def _can_be_steady(self, stands: Sequence[int]) -> bool:
        """Whether windows may reach back as far as that, where the first `stands` tokens of each
        row need not be read again.
        """
        return self.past.compiled and all(
            end - stand <= self.steady_width < end
            for end, stand in zip(self.read, stands, strict=True)
        )

    def _behind(self, stands: Sequence[int]) -> list[int]:
        """How many of the first `stands` tokens the modules have not read, by row."""
        return [end - start for end, start in zip(stands, self.past.read, strict=True)]

    def _enter(self, width: int, tokens: Tensor, stands: Sequence[int]) -> "Window":
        """The next `width` positions of `tokens` (B, S), of which this many stand in each row."""
        starts = to_device(self.past.read, tokens.device).unsqueeze(1)
        places = starts + torch.arange(width + self.length, device=starts.device)
        read = tokens.gather(1, places.clamp(max=tokens.shape[1] - 1))
        places = places[:, :width]
        hidden, given = self.tapped[places], self.past.enter(width, stands=stands)
        call = self.backbone.block_call(
            read[:, :width],
            places.clamp(max=(self.backbone.max_length or 1 << 62) - 1),
            self.caches[0],
            given.get("attention_mask"),
            given.get("rotation"),
        )
        return Window(places, read, hidden, call)

    def _drafted(
        self, window: "Window", ends: Tensor, uniforms: Tensor | None
    ) -> tuple[Draft, Tensor]:
        """A chain after places `ends` (B, 1) of a window, and its logits (B, K, V').

        All depths run, or the deeper ones' caches had gaps.

        Args:
            uniforms: (B, K), see `chain`.
        """
        drafts, logits = [], []
        hidden, tokens = window.hidden, window.tokens
        for depth in range(1, self.length + 1):
            hidden = self._step(window, depth, hidden, tokens)
            last = self.head.module(depth).norm(at(hidden, ends))
            logits.append(self.output.logits(last))
            drawn = None if uniforms is None else uniforms[:, depth - 1 : depth]
            drafts.append(self.output.named(chain(logits[-1], self.sampler, drawn)))
            if depth < self.length:
                tokens = tokens.scatter(1, ends + 1 + depth, drafts[-1].tokens)
        return Draft.joined(drafts), torch.cat(logits, dim=1)

    def _step(self, window: "Window", depth: int, hidden: Tensor, tokens: Tensor) -> Tensor:
        """The states of a depth, (B, W, D), from those of the one before.

        `tokens` (B, W+K) are the window's, with what was drafted so far.
        """
        places = window.places
        ahead = self.backbone.embed(tokens[:, depth : depth + places.shape[1]])
        if depth == 1 and self.head.zero_first:
            ahead = ahead.masked_fill((places == 0).unsqueeze(-1), 0.0)
        if depth > 1:
            hidden = self.head.hand_on(hidden, depth - 1)

        def run(block: nn.Module, hidden: Tensor, depth: int) -> Tensor:
            return window.call(block, hidden, self.caches[depth - 1])

        return self.head.step(hidden, ahead, depth, run)

    def select(self, places: Sequence[int]) -> None:
        super().select(places)
        self.read = [self.read[place] for place in places]


@dataclass(frozen=True)
class Window:
    """Positions that the modules read, depth by depth.

    Attributes:
        places: (B, W), the positions.
        tokens: (B, W+K), those at the positions and after them; filling where a draft will be.
        hidden: (B, W, D), the tapped states.
        call: runs a block over the window.
    """

    places: Tensor
    tokens: Tensor
    hidden: Tensor
    call: BlockCall
