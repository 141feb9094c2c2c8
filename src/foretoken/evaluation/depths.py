"""Prediction by depth on held-out text, teacher-forced: the probe's marginalization and heads
alike.

*Accuracy* compares a prediction with the text, *agreement* with what the backbone itself would
choose at that place after reading the true tokens in between. *Acceptance* at depth k asks for
agreement at every depth up to k, as greedy verification does: it is the share of drafted tokens of
that depth that would stand, so that 1 + Σ_k acceptance is the tokens per forward to expect.

Shapes: T row length, P positions, K depths, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foretoken.data import PackedBlocks
from foretoken.errors import InputError
from foretoken.model import MTPModel
from foretoken.probe import marginalize
from foretoken.targets import IGNORE, depth_targets


@dataclass
class _Tally:
    """Sums over positions, and what is left to divide by."""

    count: int = 0
    top1: float = 0.0
    top5: float = 0.0
    nll: float = 0.0
    agreement: float = 0.0
    acceptance: float = 0.0
    covered_mass: float = 0.0

    def add(
        self, probabilities: Tensor, targets: Tensor, own: Tensor, mass: Tensor, standing: Tensor
    ) -> Tensor:
        """Count the rows of (N, V) `probabilities` whose target (N,) exists.

        `standing` (N,) tells where all depths before agreed; returned is where they do up to here.
        """
        standing = standing & (probabilities.argmax(-1) == own)
        valid = targets != IGNORE
        self.acceptance += float(standing[valid].sum())
        probabilities, targets, own = probabilities[valid], targets[valid], own[valid]
        best = probabilities.topk(min(5, probabilities.shape[-1])).indices
        hits = best == targets.unsqueeze(1)
        likelihood = probabilities.gather(1, targets.unsqueeze(1)).clamp(min=1e-30)
        self.count += len(targets)
        self.top1 += float(hits[:, 0].sum())
        self.top5 += float(hits.any(1).sum())
        self.nll -= float(likelihood.log().sum())
        self.agreement += float((best[:, 0] == own).sum())
        self.covered_mass += float(mass[valid].sum())
        return standing

    def record(self) -> dict[str, Any]:
        """Means; not a number where there was no position."""
        fields = ("top1", "top5", "nll", "agreement", "acceptance", "covered_mass")
        return {n: getattr(self, n) / self.count if self.count else math.nan for n in fields}


@dataclass
class DepthTable:
    """One record per depth, as result files hold them.

    Attributes:
        method: `marginalization` or the head's kind.
        positions: how many positions the mean of depth 0 is over.
        tallies: one per depth.
        bits_per_byte: of depth 0; bytes per token are those of the whole corpus, also where only
            some of its blocks are read. The first token of a block is not predicted and counts as
            one of mean length.
    """

    method: str
    positions: int
    tallies: list[_Tally] = field(repr=False, default_factory=list)
    bits_per_byte: float = float("nan")

    @property
    def tokens_per_forward(self) -> float:
        """To expect of greedy decoding, from the acceptance by depth."""
        return 1.0 + sum(tally.acceptance / max(1, tally.count) for tally in self.tallies[1:])

    def rows(self) -> list[dict[str, Any]]:
        """Flat records of depths 0…K: top1, top5, nll (nats), agreement and so on."""
        return [
            {"method": self.method, "depth": depth, "positions": tally.count, **tally.record()}
            for depth, tally in enumerate(self.tallies)
        ]


def measure_marginals(
    model: MTPModel,
    blocks: PackedBlocks,
    *,
    depth: int,
    width: int,
    positions: int,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> DepthTable:
    """Marginalize the backbone at about `positions` random positions, 16 in a row.

    Positions are those from which every depth predicts a token that is learned, no prompt.
    """
    if positions < 1:
        raise InputError(f"positions is {positions}; ask for at least 1.")
    if depth < 0 or width < 1:
        raise InputError(f"depth is {depth} and width {width}; use depth ≥ 0 and width ≥ 1.")
    blocks.require_vocabulary(model.backbone.vocab_size)
    per_row = min(16, positions)
    rows = -(-positions // per_row)
    order = torch.Generator().manual_seed(seed)
    tallies = [_Tally() for _ in range(depth + 1)]
    for number, index in enumerate(torch.randperm(len(blocks), generator=order)[:rows].tolist()):
        row, learned = _last_document(blocks[index])
        if row.shape[1] < depth + 2:
            continue
        usable = learned[1:].unfold(0, depth + 1, 1).all(-1).nonzero().flatten()
        if not len(usable):
            continue
        where = usable[torch.randperm(len(usable), generator=order)[:per_row]].sort().values
        row, where = row.to(model.backbone.device), where.to(model.backbone.device)
        own = _own_choice(model, row)
        standing = torch.ones(len(where), dtype=torch.bool, device=where.device)
        for marginal in marginalize(model.backbone, row, where, depth, width):
            ahead = where + marginal.depth
            standing = tallies[marginal.depth].add(
                marginal.probabilities,
                row[0, ahead + 1],
                own[0, ahead],
                marginal.covered_mass,
                standing,
            )
        if progress is not None:
            progress((number + 1) / rows)
    _require_any(tallies[0])
    return DepthTable("marginalization", tallies[0].count, tallies)


def measure_heads(
    model: MTPModel,
    blocks: PackedBlocks,
    *,
    limit: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> DepthTable:
    """Teacher-forced predictions of the backbone (depth 0) and the heads on whole blocks."""
    if limit is not None and limit < 1:
        raise InputError(f"{limit} blocks were asked for; ask for at least 1.")
    blocks.require_vocabulary(model.backbone.vocab_size)
    head, total = model.head, min(limit or len(blocks), len(blocks))
    tallies = [_Tally() for _ in range(model.depth + 1)]
    model.eval()
    for index in range(total):
        _measure_block(model, blocks[index], tallies)
        if progress is not None:
            progress((index + 1) / total)
    _require_any(tallies[0])
    kind = head.config.kind if head is not None else "plain"
    nats_per_token = tallies[0].nll / tallies[0].count
    bytes_per_token = blocks.num_bytes / blocks.num_tokens
    bits_per_byte = nats_per_token / math.log(2) / bytes_per_token
    return DepthTable(kind, tallies[0].count, tallies, bits_per_byte)


@torch.inference_mode()
def _measure_block(model: MTPModel, block: dict[str, Tensor], tallies: list[_Tally]) -> None:
    backbone = model.backbone
    tokens = block["input_ids"].unsqueeze(0).to(backbone.device)
    labels = _labels(block).unsqueeze(0).to(backbone.device)
    position_ids = block["position_ids"].unsqueeze(0).to(backbone.device)
    output = backbone(tokens, position_ids=position_ids, layers=model.layers)
    own = backbone.unembed(output.final).argmax(-1)
    hiddens: Iterable[Tensor] = (output.final,)
    if model.head is not None:
        hiddens = (output.final, *model.depth_hidden(tokens, output))
    standing = torch.ones(tokens.shape[1], dtype=torch.bool, device=backbone.device)
    for depth, hidden in enumerate(hiddens):
        targets = depth_targets(labels, depth, position_ids)[0]
        probabilities = backbone.unembed(hidden)[0].float().softmax(-1)
        ahead = own[0].roll(-depth)  # the end wraps around, where there is no target
        mass = torch.ones(len(targets), device=targets.device)
        standing = tallies[depth].add(probabilities, targets, ahead, mass, standing)


def _require_any(tally: _Tally) -> None:
    if tally.count == 0:
        raise InputError("no position has a target at every depth; use longer blocks.")


@torch.inference_mode()
def _own_choice(model: MTPModel, row: Tensor) -> Tensor:
    """(1, T): the backbone's greedy choice after every token of the row."""
    return model.backbone.unembed(model.backbone(row).final).argmax(-1)


def _last_document(block: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The last document of a block as a row of its own, (1, T'), without what fills it up.

    And (T',), which of its tokens are learned.
    """
    start = int((block["position_ids"] == 0).nonzero()[-1])
    learned = _labels(block)[start:] != IGNORE
    end = int(learned.nonzero().max()) + 1 if learned.any() else 0
    return block["input_ids"][start : start + end].unsqueeze(0), learned[:end]


def _labels(block: dict[str, Tensor]) -> Tensor:
    """The tokens of a block, (T,), `IGNORE` on prompts and on what fills it up."""
    return block.get("labels", block["input_ids"])
