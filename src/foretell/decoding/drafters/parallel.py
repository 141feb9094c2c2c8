"""Drafting with heads that read no drafted token: every depth from one pass over what was verified.

The heads run over the very positions of the verify pass, called as the backbone called its last
block, and their caches stay in step with its own.

Shapes: B rows, W nodes of the pass, K depths, D hidden, V' tokens that can be drafted.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foretell.backbone import Backbone, BackboneOutput, rehearses
from foretell.decoding.cache import Past
from foretell.decoding.compiling import compile_fixed
from foretell.decoding.draft import Draft
from foretell.decoding.drafters.base import Committed, Drafter
from foretell.decoding.drafters.output import HeadOutput
from foretell.decoding.drafters.states import KeptStates
from foretell.decoding.sampling import Sampler
from foretell.decoding.transfer import to_device
from foretell.decoding.tree import TreeShape, chain, tree
from foretell.errors import InputError
from foretell.heads import FINAL, Head


class ParallelDrafter(Drafter, of_heads="parallel"):
    """Drafts from parallel or residual heads.

    Args:
        backbone: that the heads belong to.
        head: parallel or residual heads.
        length: how many depths are drafted; by default all.
        shape: of a tree; None drafts a chain.

    Raises:
        InputError: a chain of that length, or a tree of that width or depth, cannot be drafted.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        length: int | None = None,
        shape: TreeShape | None = None,
    ) -> None:
        length = head.depth if length is None else length
        if not 1 <= length <= head.depth:
            raise InputError(f"draft length {length}: these heads draft 1 to {head.depth} tokens.")
        if shape is not None:
            shape.check(head.config.vocabulary or backbone.vocab_size, length)
            length = min(length, len(shape.widths) or shape.nodes)
        self.backbone, self.head, self.shape = backbone, head, shape
        self.depths = range(1, length + 1)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return (self.head,)

    @property
    def layers(self) -> tuple[int, ...]:
        return self.head.layers

    @property
    def longest(self) -> int:
        return len(self.depths)

    def start(self, past: Past, sampler: Sampler, rows: int, capacity: int) -> None:
        self.sampler, self.past = sampler, past
        self.output = HeadOutput(self.backbone, self.head)
        # Blocks that cannot be called later run with every pass, or their past would have gaps.
        self.lags = self.head.runs_blocks and bool(rehearses(self.backbone))
        self.kept: dict[int, KeptStates] = {}  # by layer, while the heads are behind
        self.behind: list[int] | None = None  # where each row goes on
        self.caches = [past.beside() for _ in range(self.head.depth)]
        # Of the class: a method bound to `self` would keep it, and its caches, in a cycle.
        logits = ParallelDrafter._logits
        self._steady = compile_fixed(logits, self.backbone) if past.compiled else logits

    def draft(self, committed: Committed, limit: int) -> Draft:
        if limit < 1:
            self._wait(committed)
            return Draft.nothing(len(committed.last), committed.last.device)
        if self.behind is not None:
            self._keep(committed)
            logits = self._catch_up(committed)
        else:
            logits = self._keep_up(committed)
        logits = logits[:, :limit]
        if self.shape is not None:
            return self.output.named(tree(logits, self.shape, committed.reach))
        uniforms = self.sampler.draft_uniforms(0, logits.shape[1])
        return self.output.named(chain(logits, self.sampler, uniforms))

    def select(self, places: Sequence[int]) -> None:
        for states in self.kept.values():
            states.select(places)
        if self.behind is not None:
            self.behind = [self.behind[place] for place in places]

    def _wait(self, committed: Committed) -> None:
        """Draft nothing this time."""
        if self.lags:
            self._keep(committed)
        elif self.head.runs_blocks:
            self._keep_up(committed)

    def _keep_up(self, committed: Committed) -> Tensor:
        """Run the heads over the pass."""
        run = self._steady if all(committed.begin) else ParallelDrafter._logits
        logits: Tensor = run(self, committed.output, committed.last)
        return logits

    def _keep(self, committed: Committed) -> None:
        """Keep the states of a pass for later."""
        behind = committed.begin if self.behind is None else self.behind
        self.behind = list(map(min, behind, committed.begin))  # earlier where a row was read anew
        output = committed.output
        for layer in self.head.tap.layers:
            states = output.final if layer == FINAL else output.states[layer]
            self.kept.setdefault(layer, KeptStates()).add(states, committed.begin, committed.path)

    def _catch_up(self, committed: Committed) -> Tensor:
        """Run the heads over what was kept since they ran last."""
        assert self.behind is not None
        behind, self.behind, device = self.behind, None, committed.last.device
        counts = [n - 1 - b for n, b in zip(committed.lengths, behind, strict=True)]
        begin = to_device(behind, device).unsqueeze(1)
        positions = begin + torch.arange(max(counts), device=device)
        states = {layer: kept[positions] for layer, kept in self.kept.items()}
        given = self.past.reenter(max(counts), behind)
        hidden = next(iter(states.values()))
        tokens = committed.tokens.gather(1, positions.clamp(max=committed.tokens.shape[1] - 1))
        call = self.backbone.block_call(
            tokens,
            given["position_ids"],
            self.caches[0],
            given.get("attention_mask"),
            given.get("rotation"),
        )
        final = states.get(FINAL, hidden)
        output = BackboneOutput(final, {k: s for k, s in states.items() if k != FINAL}, call)
        return self._logits(output, to_device(counts, device) - 1)

    def _logits(self, output: BackboneOutput, last: Tensor) -> Tensor:
        """Of every depth after place `last` (B,) of a pass, (B, K, V')."""
        states = {FINAL: output.final, **output.states}

        def run(block: nn.Module, hidden: Tensor, depth: int) -> Tensor:
            return output.call(block, hidden, self.caches[depth - 1])

        per_depth = self.head(states, _no_embedding, run, self.depths)
        rows = torch.arange(len(last), device=last.device)
        final = torch.stack([hidden[rows, last] for hidden in per_depth], dim=1)
        return self.output.logits(final)


def _no_embedding(distance: int) -> Tensor:
    raise AssertionError("parallel heads read no tokens ahead")
