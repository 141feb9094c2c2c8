"""Prediction by depth on held-out text, teacher-forced: the probe's marginalization and heads
alike.

What is measured is in `foretell.probe.scores`. *Acceptance* at depth k asks for agreement at every
depth up to k, as greedy verification does: it is the share of drafted tokens of that depth that
would stand, so that 1 + Σ_k acceptance is the tokens per forward to expect.

Shapes: T row length, N positions, K depths, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foretell.backbone import Backbone
from foretell.data import PackedBlocks
from foretell.decoding.drafters.output import HeadOutput
from foretell.errors import InputError
from foretell.evaluation.calibration import calibrate, calibration_rows
from foretell.evaluation.rules import accepted_by_rule, reported
from foretell.model import MTPModel
from foretell.probe import Marginalization, measure
from foretell.probe.branches import distribution
from foretell.probe.scores import Scorer, Scores, Truth
from foretell.results import Row
from foretell.results.tables import (
    AcceptedByConfidence,
    AcceptedByRule,
    CalibrationError,
    Quality,
    ScoredByDepth,
)
from foretell.tally import Estimate, Means, Tally, estimate
from foretell.targets import IGNORE, NO_TARGET, depth_targets, tokens_ahead

INNER = ("bytes", "rule ")
"""How values begin that other tables are made of."""
CHUNK = 1 << 24
"""Numbers of one distribution that are looked at at once: 64 MiB in float32."""


@dataclass
class DepthTable:
    """What one method predicts at depths 0…K.

    Attributes:
        method: `marginalization` or the head's kind.
        tally: means by method, depth and whatever else tells positions apart.
        blocks: that were read; for the size of their text.
        confidences: of the head, by depth and bin.
        head: the kind of the heads that were measured, if any.
    """

    method: str
    tally: Tally
    blocks: PackedBlocks = field(repr=False)
    confidences: Tally | None = None
    head: str | None = None

    @property
    def depth(self) -> int:
        """K."""
        return max(int(depth) for depth in self.tally.keys("depth"))

    @property
    def positions(self) -> int:
        """How many the mean of depth 0 is over."""
        return self.tally.count("top1", method=self.method, depth=0)

    @property
    def tokens_per_forward(self) -> float:
        """To expect of greedy decoding, from the acceptance by depth."""
        return float(self.expected("acceptance")[0])

    def expected(self, acceptance: str, depth: int | None = None) -> Means:
        """1 + Σ_k acceptance, of drafts of `depth` tokens, K by default."""
        depths = range(1, (self.depth if depth is None else depth) + 1)
        means = (self.tally.means(acceptance, method=self.method, depth=k) for k in depths)
        return np.asarray(sum(means, np.ones(1)))

    @property
    def bits_per_byte(self) -> float:
        """Of depth 0.

        Bytes per token are those of the whole corpus, also where only some of its blocks are read.
        The first token of a block is not predicted and counts as one of mean length.
        """
        return float(self.bits()[0])

    def bits(self) -> Means:
        """Bits per byte; drawn documents bring their own bytes per token."""
        nats = self.tally.means("nll", method=self.method, depth=0)
        length = self.tally.means("bytes", method=self.method, depth=0)
        mean = self.blocks.num_bytes / self.blocks.num_tokens
        return np.asarray(nats / math.log(2) / (mean * length / length[0]))

    def more_bits_than(self, other: "DepthTable") -> Estimate | None:
        """By how many bits per byte this has more, with an interval; None of other documents.

        Documents are drawn for both together, so that the interval is that of the difference.
        """
        if self.tally.groups != other.tally.groups:
            return None
        return estimate(self.bits() - other.bits())

    def quality_row(self) -> Quality:
        """Bits per byte of depth 0, with its interval."""
        return Quality(bits_per_byte=estimate(self.bits()))

    def all_rows(self) -> list[Row]:
        """Those of all tables."""
        first, *deeper = self.rows()
        first = replace(first, bits_per_byte=self.bits_per_byte)
        rules, calibration = self.rule_rows(), self.calibration_rows()
        return [first, *deeper, *rules, *calibration, self.quality_row()]

    def rows(self) -> list[ScoredByDepth]:
        """Depths 0…K."""
        rows = []
        for depth in range(self.depth + 1):
            where: dict[str, str | int] = {"method": self.method, "depth": depth}
            means = self.tally.estimates(**where)
            kept = {name: value for name, value in means.items() if not name.startswith(INNER)}
            rows.append(
                ScoredByDepth(
                    method=self.method,
                    depth=depth,
                    positions=self.tally.count("top1", **where),
                    head=self.head,
                    **kept,
                )
            )
        return rows

    def rule_rows(self) -> list[AcceptedByRule]:
        """What each acceptance rule is expected to accept, by draft length."""
        return [
            AcceptedByRule(
                method=self.method,
                depth=depth,
                rule=rule,
                lossless=lossless,
                acceptance=estimate(
                    self.tally.means(f"rule {rule}", method=self.method, depth=depth)
                ),
                tokens_per_forward=estimate(self.expected(f"rule {rule}", depth)),
            )
            for depth in range(1, self.depth + 1)
            for rule, lossless in reported().items()
        ]

    def calibration_rows(self) -> list[CalibrationError | AcceptedByConfidence]:
        """Reliability of the head's confidence: the error by depth, and its bins."""
        return [] if self.confidences is None else calibration_rows(self.confidences, self.method)


def measure_marginals(
    model: MTPModel,
    blocks: PackedBlocks,
    *,
    depth: int,
    width: int | Sequence[int],
    positions: int,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> DepthTable:
    """Marginalize the backbone at about `positions` random positions, see `probe.measure`."""
    methods = [Marginalization(depth, width)]
    tally = measure(
        model, blocks, methods, depth=depth, positions=positions, seed=seed, progress=progress
    )
    return DepthTable("marginalization", tally, blocks)


def measure_heads(
    model: MTPModel,
    blocks: PackedBlocks,
    *,
    limit: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> DepthTable:
    """Teacher-forced predictions of the backbone (depth 0) and the heads on whole blocks.

    Raises:
        InputError: no blocks are asked for, or no position in them has a target at every depth.
    """
    if limit is not None and limit < 1:
        raise InputError(f"{limit} blocks were asked for; ask for at least 1.")
    blocks.require_vocabulary(model.backbone.vocab_size)
    head, total = model.head, min(limit or len(blocks), len(blocks))
    kind = head.config.kind if head is not None else None
    method = kind or "plain"
    tally, confidences = Tally("method", "depth"), Tally("depth", "bin")
    model.eval()
    for index in range(total):
        _measure_block(model, blocks, index, method, tally, confidences)
        if progress is not None:
            progress((index + 1) / total)
    table = DepthTable(method, tally, blocks, confidences, kind)
    if not tally.count("top1", method=method, depth=table.depth):
        raise InputError(NO_TARGET)
    return table


@torch.inference_mode()
def _measure_block(
    model: MTPModel,
    blocks: PackedBlocks,
    index: int,
    method: str,
    tally: Tally,
    confidences: Tally,
) -> None:
    backbone, block = model.backbone, blocks[index]
    tokens = block["input_ids"].unsqueeze(0).to(backbone.device)
    position_ids = block["position_ids"].unsqueeze(0).to(backbone.device)
    labels = block.get("labels", block["input_ids"]).unsqueeze(0).to(backbone.device)
    output = backbone(tokens, position_ids=position_ids, layers=model.layers)
    hiddens: Iterable[Tensor] = (output.final,)
    if model.head is not None:
        hiddens = (output.final, *model.depth_hidden(tokens, output))
    finals = torch.stack([hidden[0] for hidden in hiddens], dim=1)  # (T, K+1, D)
    ahead = torch.stack([tokens_ahead(tokens, k + 1)[0] for k in range(finals.shape[1])], dim=1)
    learned = torch.stack(
        [depth_targets(labels, k, position_ids)[0] != IGNORE for k in range(finals.shape[1])], dim=1
    )
    documents = blocks.documents(index)
    outputs = _outputs(model)
    size = max(1, CHUNK // (backbone.vocab_size * finals.shape[1]))
    places = torch.arange(finals.shape[0], device=backbone.device)
    for part in places.split(size):
        own = _own(backbone, output.final[0], part, finals.shape[1])
        found = _scores(outputs, finals[part], ahead[part], own, learned[part])
        here = documents[part.cpu().numpy()]
        for depth, (scores, judged) in enumerate(found):
            values = {name: value.cpu().numpy() for name, value in scores.items()}
            if depth == 0:
                values["bytes"] = _bytes_per_token(blocks, here)
            tally.add((method, depth), here, values)
            if depth:
                calibrate(confidences, depth, here, *judged)


def _own(backbone: Backbone, final: Tensor, part: Tensor, depths: int) -> list[Tensor]:
    """The backbone's own distributions at depths 0…K from places `part`, (N, V) each.

    Beyond the row's end its last one, where nothing is counted.
    """
    last = len(final) - 1
    return [
        distribution(backbone.unembed, final[(part + k).clamp(max=last)]) for k in range(depths)
    ]


def _outputs(model: MTPModel) -> list[HeadOutput]:
    """What gives the distributions of depths 0…K."""
    own = HeadOutput(model.backbone, None)
    return [own, *[HeadOutput(model.backbone, model.head)] * model.depth]


def _scores(
    outputs: Sequence[HeadOutput],
    finals: Tensor,
    ahead: Tensor,
    own: list[Tensor],
    learned: Tensor,
) -> list[tuple[Scores, tuple[Tensor, Tensor, Tensor]]]:
    """By depth: scores, and confidence, whether it stood, and whether it was judged, (N,) each.

    Not a number where nothing is learned.
    """
    scorer, found = Scorer(), []
    drafts = [
        output.spread(distribution(output.logits, finals[:, k])) for k, output in enumerate(outputs)
    ]
    best = torch.stack([draft.argmax(-1) for draft in drafts], dim=1)
    by_rule = accepted_by_rule(best[:, 1:], own[1:])
    reached = torch.ones_like(learned[:, 0])
    for depth, draft in enumerate(drafts):
        scores = scorer.distribution(depth, draft, Truth(ahead[:, depth], own[depth]))
        scores["covered_mass"] = torch.ones_like(scores["nll"])
        if (vocabulary := outputs[depth].vocabulary) is not None:
            inside = vocabulary.places(ahead[:, depth]) != IGNORE
            scores["coverage"] = inside.float()
            scores["nll"] = scores["nll"].masked_fill(~inside, math.nan)  # it would be infinite
        stands = scores["acceptance"] > 0
        confidence = draft.max(-1).values
        if depth:
            for rule, accepted in by_rule.items():
                scores[f"rule {rule}"] = (accepted >= depth).float()
            scores["rule speculative"] = scores["speculative"]
        valid = learned[:, depth]
        judged = valid & reached
        if depth:
            reached = stands
        masked = {name: value.masked_fill(~valid, math.nan) for name, value in scores.items()}
        found.append((masked, (confidence, stands, judged)))
    return found


def _bytes_per_token(blocks: PackedBlocks, documents: np.ndarray[Any, Any]) -> Any:
    """Of each position's document, (N,); 1 where it is not known."""
    if blocks.document_bytes is None:
        return np.ones(len(documents))
    return (blocks.document_bytes / blocks.document_lengths())[documents]
