"""Sequential heads: DeepSeek's chain of modules, each reading the one before and the next true
token.

DeepSeek-V3 technical report (arXiv 2412.19437), section 2.2, equations 21-23:

    h'^k_i = M_k [RMSNorm(h^{k-1}_i) ; RMSNorm(Emb(x_{i+k}))],   M_k ∈ R^{D×2D}
    h^k    = TRM_k(h'^k)
    P^k    = OutHead(h^k)

h^0 is the backbone's final hidden state; embedding and output head are the backbone's. With
`shared=True` one module serves every depth (FastMTP's recursion).

Serving engines run such modules with small differences, which a module has to be trained for: what
is handed on (`recycle`), the embedding at the first position (`zero_first`), the norms (`norms`),
and whose past a further step continues (`rollout`). EAGLE (Li et al. 2024, arXiv 2401.15077) is the
chain without norms; EAGLE-3 (arXiv 2503.01840) has no M_k: its block's attention reads both normed
inputs side by side (`block="wide"`).
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self, cast

import torch
from pydantic import model_validator
from torch import Tensor, nn

from foretell.errors import HeadError, InputError
from foretell.heads.base import BlockKind, EmbedAhead, Head, HeadConfig, Parts, RunBlock
from foretell.heads.taps import States

Norms = Literal["own", "backbone", "none"]
Recycle = Literal["stream", "normed"]
Rollout = Literal["depth", "token"]


class SequentialModule(nn.Module):
    """One link of the chain."""

    def __init__(self, parts: Parts, norms: Norms = "own", wide: bool = False) -> None:
        super().__init__()
        size = parts.hidden_size
        self.hidden_norm = _input_norm(parts, norms)
        self.embedding_norm = _input_norm(parts, norms)
        self.projection = nn.Identity() if wide else nn.Linear(2 * size, size, bias=False)
        self.block = parts.block()
        if norms == "none":
            if not hasattr(self.block, "input_layernorm"):
                raise HeadError(
                    f"norms 'none' leaves out a block's input_layernorm, and "
                    f"{type(self.block).__name__} has none; use norms 'backbone'."
                )
            _leave_out_norms(self.block)
        self.norm = nn.Identity() if norms == "none" else parts.norm()
        self.wide = wide

    def fuse(self, hidden: Tensor, ahead: Tensor) -> Tensor:
        """h'^k from h^{k-1} and Emb(x_{i+k}): two (B, T, D) → (B, T, D).

        For a wide block (B, T, 3D): both normed, the embedding first, and the stream they join.
        """
        # In the weights' own type: under autocast the states are bfloat16 and the weights float32.
        dtype = next(self.parameters()).dtype
        hidden, ahead = hidden.to(dtype), ahead.to(dtype)
        pair = (self.hidden_norm(hidden), self.embedding_norm(ahead))
        if self.wide:
            return torch.cat((*reversed(pair), hidden), dim=-1)
        return cast(Tensor, self.projection(torch.cat(pair, dim=-1)))


def _leave_out_norms(block: nn.Module) -> None:
    """Before attention, and of queries and keys."""
    block.input_layernorm = nn.Identity()
    for module in block.modules():
        for name in ("q_norm", "k_norm"):
            if hasattr(module, name):
                setattr(module, name, nn.Identity())


def _input_norm(parts: Parts, norms: Norms) -> nn.Module:
    if norms == "none":
        return nn.Identity()
    return parts.new_norm() if norms == "backbone" else nn.RMSNorm(parts.hidden_size, eps=1e-6)


class SequentialHeads(Head):
    """The chain. Depth k's state is computed from depth k-1's and the token k places ahead."""

    class Config(HeadConfig):
        """Sequential heads."""

        kind: ClassVar[str] = "sequential"
        blocks: ClassVar[tuple[BlockKind, ...]] = ("same", "dense", "wide")
        shared: bool = False
        """One module for all depths, applied recursively."""
        norms: Norms = "own"
        """Norms of a module's two inputs: RMSNorms of its `own`, norms like the `backbone`'s, or
        `none`, and then none before its block, in its attention or after it (EAGLE)."""
        recycle: Recycle = "stream"
        """What depth k+1 reads of depth k: the residual `stream` leaving the block, or what the
        output head reads, `normed`."""
        zero_first: bool = False
        """Whether depth 1 reads zeros for the embedding at a document's first position."""
        rollout: Rollout = "depth"
        """Whose past a drafted depth continues: that of the same `depth`, as in training, or that
        of depth 1, one `token` further on, as engines do that run one module step by step."""

        @model_validator(mode="after")
        def _one_module_rolls_out(self) -> Self:
            if self.rollout == "token" and self.depth > 1 and not self.shared:
                raise InputError("rollout 'token' runs one module step by step; use shared true.")
            return self

        @property
        def modules(self) -> int:
            return 1 if self.shared else self.depth

    def __init__(self, config: "SequentialHeads.Config", parts: Parts) -> None:
        super().__init__(config, parts)
        wide = config.block == "wide"
        links = (SequentialModule(parts, config.norms, wide) for _ in range(config.modules))
        self.chain = nn.ModuleList(links)

    @property
    def contract(self) -> "SequentialHeads.Config":
        """How the chain is run."""
        return cast(SequentialHeads.Config, self.config)

    @property
    def drafter(self) -> str:
        return "rollout" if self.contract.rollout == "token" else "sequential"

    @property
    def zero_first(self) -> bool:
        return self.contract.zero_first

    @property
    def runs_ahead(self) -> bool:
        return True

    @property
    def chained(self) -> bool:
        return True

    def module(self, depth: int) -> SequentialModule:
        """The module of `depth` (1…K); deeper depths reuse the last one."""
        return cast(SequentialModule, self.chain[min(depth, len(self.chain)) - 1])

    def step(self, hidden: Tensor, ahead: Tensor, depth: int, run: RunBlock) -> Tensor:
        """h^k from h^{k-1} and Emb(x_{i+k}): two (B, T, D) → (B, T, D), before the output norm."""
        module = self.module(depth)
        return run(module.block, module.fuse(hidden, ahead), depth)

    def hand_on(self, hidden: Tensor, depth: int) -> Tensor:
        """What depth `depth + 1` reads of `step`'s result."""
        if self.contract.recycle == "stream":
            return hidden
        return cast(Tensor, self.module(depth).norm(hidden))

    def forward(
        self, states: States, embed_ahead: EmbedAhead, run: RunBlock, depths: Sequence[int]
    ) -> list[Tensor]:
        hidden, wanted = self.tap(states, 1), []
        for depth in range(1, max(depths) + 1):
            hidden = hidden if depth == 1 else self.hand_on(hidden, depth - 1)
            hidden = self.step(hidden, embed_ahead(depth), depth, run)
            if depth in depths:
                wanted.append(self.module(depth).norm(hidden))
        return wanted
