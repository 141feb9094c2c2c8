"""The loss of a backbone and its head on a batch: one pass of the trunk, and depths 0…K from it.

Shapes: B batch, T time, K depths, D hidden, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from foretell.backbone import Backbone, BackboneOutput
from foretell.errors import InputError
from foretell.heads import FINAL, Head, States
from foretell.objective.config import ObjectiveConfig
from foretell.objective.gradients import Objective, all_depths, depth_by_depth
from foretell.objective.loss import BackboneTarget, MarginalTarget, Readout, Target
from foretell.targets import IGNORE, depth_targets, tokens_ahead


@dataclass
class MTPOutput:
    """What a pass of the model returns.

    Attributes:
        loss: the weighted sum, a scalar.
        depth_losses: (K+1,) mean of -log p(token) at depths 0…K in nats, detached; also where a
            depth learns from a teacher. Not a number where it was not to be measured.
        unembed: computes `logits`.
    """

    loss: Tensor
    depth_losses: Tensor
    unembed: Callable[[], Tensor] = field(repr=False)

    @property
    def logits(self) -> Tensor:
        """(B, T, V), the backbone's own; computed when asked for, since training needs none."""
        return self.unembed()


@dataclass(frozen=True)
class JointLoss:
    """The loss of depths 0…K.

    Attributes:
        backbone: computes the trunk.
        head: predicts depths 1…K from it; None: there is depth 0 alone.
        backbone_learns: whether gradients reach the backbone; if not, depth 0 counts nothing.
        in_order: whether gradients are computed depth by depth, see
            `foretell.objective.gradients`; otherwise by autograd over all depths.
    """

    backbone: Backbone
    head: Head | None
    backbone_learns: bool = True
    in_order: bool = True

    @property
    def depth(self) -> int:
        """K; 0 without a head."""
        return 0 if self.head is None else self.head.depth

    @property
    def layers(self) -> tuple[int, ...]:
        """The residual states that the head reads."""
        return () if self.head is None else self.head.layers

    def __call__(
        self,
        tokens: Tensor,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        objective: ObjectiveConfig | None = None,
        weights: Sequence[float] | None = None,
        counts: Tensor | None = None,
        marginals: Mapping[int, MarginalTarget] | None = None,
        trunk: BackboneOutput | None = None,
        passes: int = 1,
        measures_all: bool = True,
    ) -> MTPOutput:
        """Of a batch; what is given, and raised, is as in `MTPModel.forward`."""
        objective = objective or ObjectiveConfig()
        weights = list(objective.at(self.depth) if weights is None else weights)
        if len(weights) != self.depth + 1:
            raise InputError(
                f"{len(weights)} weights were given; depths 0 to {self.depth} take one each."
            )
        if not self.backbone_learns:
            weights[0] = 0.0
        self._require_alike(tokens, labels, position_ids, attention_mask, counts)
        if labels is None:
            seen = attention_mask
            labels = tokens if seen is None else tokens.masked_fill(seen == 0, IGNORE)
        labels = labels.long()
        # Before the pass, so that a GPU is not waited for when it is busy with it.
        targets = [
            Target.of(target.flatten(), None if counts is None else counts[depth])  # (B·T,)
            for depth, target in enumerate(self.targets(labels, position_ids))
        ]
        output = trunk or self._trunk(tokens, position_ids, attention_mask)
        readouts = self._readouts()
        taught = [
            replace(
                target,
                soft=self._teacher(objective, depth, output, marginals, readout),
                soft_share=objective.distill_share,
            )
            for depth, (target, readout) in enumerate(zip(targets, readouts, strict=True))
        ]
        loss, depth_losses = self._losses(tokens, output, taught, weights, readouts, measures_all)
        loss = loss + self.backbone.auxiliary_loss(output) / passes
        return MTPOutput(loss, depth_losses, partial(self.backbone.unembed, output.final))

    def _require_alike(
        self,
        tokens: Tensor,
        labels: Tensor | None,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        counts: Tensor | None,
    ) -> None:
        """Refuse a batch whose parts do not go together, of which some would give a wrong loss."""
        if tokens.dim() != 2 or not tokens.numel():
            shape = tuple(tokens.shape)
            raise InputError(f"input_ids have the shape {shape}; give rows of tokens, (B, T).")
        beside = {"labels": labels, "position_ids": position_ids, "attention_mask": attention_mask}
        for name, given in beside.items():
            wanted = (
                [tokens.shape, (1, tokens.shape[1])] if given is position_ids else [tokens.shape]
            )
            if given is not None and given.shape not in wanted:
                raise InputError(
                    f"{name} has the shape {tuple(given.shape)}, input_ids {tuple(tokens.shape)}; "
                    "give both alike."
                )
        if counts is not None and len(counts) != self.depth + 1:
            raise InputError(
                f"{len(counts)} counts were given; depths 0 to {self.depth} take one each."
            )
        if labels is None:
            return
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise InputError(f"labels are {labels.dtype}; give token ids, whole numbers.")
        if labels.device.type == "cpu":  # to look at those of a GPU would wait for it
            size = self.backbone.vocab_size
            found = labels[labels != IGNORE]
            if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < size:
                raise InputError(
                    f"labels have token ids outside the model's vocabulary of {size}; where there "
                    f"is nothing to predict, give {IGNORE}."
                )

    def targets(self, labels: Tensor, position_ids: Tensor | None) -> list[Tensor]:
        """What depths 0…K have to predict, (B, T) each: `IGNORE` where there is nothing.

        Heads that draft from a vocabulary of their own predict places in it, and learn nothing of
        tokens outside.

        Args:
            labels: (B, T) not shifted, `IGNORE` where a token is no target.
            position_ids: (B, T), restarting at every packed document; None: a row is one document.
        """
        vocabulary = None if self.head is None else self.head.vocabulary
        known = labels if vocabulary is None else vocabulary.places(labels)
        return [
            depth_targets(known if depth else labels, depth, position_ids)
            for depth in range(self.depth + 1)
        ]

    def _readouts(self) -> list[Readout]:
        """What turns the states of depths 0…K into logits."""
        backbone, head = self.backbone, self.head
        own = Readout(backbone.unembed, backbone.vocab_size)
        if head is None or head.vocabulary is None:
            return [own] * (self.depth + 1)
        some = backbone.unembed_some(head.vocabulary.tokens)
        return [own, *[Readout(some, len(head.vocabulary))] * self.depth]

    def _trunk(
        self, tokens: Tensor, position_ids: Tensor | None, attention_mask: Tensor | None
    ) -> BackboneOutput:
        """The backbone's pass, with gradients where it learns."""
        with torch.set_grad_enabled(self.backbone_learns and torch.is_grad_enabled()):
            return self.backbone(
                tokens,
                attention_mask=attention_mask,
                position_ids=position_ids,
                layers=self.layers,
                auxiliary=torch.is_grad_enabled(),
            )

    def _teacher(
        self,
        objective: ObjectiveConfig,
        depth: int,
        output: BackboneOutput,
        marginals: Mapping[int, MarginalTarget] | None,
        readout: Readout,
    ) -> BackboneTarget | MarginalTarget | None:
        """What a depth learns from beside the text."""
        if depth == 0 or objective.distill == "none":
            return None
        if objective.distill == "marginal":
            if marginals is None:
                raise InputError("an objective that distills marginals has to be given them.")
            marginal = marginals[depth]
            vocabulary = None if self.head is None else self.head.vocabulary
            if vocabulary is None:
                return marginal
            return replace(marginal, probabilities=marginal.probabilities[:, vocabulary.tokens])
        return BackboneTarget(
            output.final.detach(),
            depth,
            readout.unembed,
            objective.temperature,
            objective.divergence,
        )

    def _losses(
        self,
        tokens: Tensor,
        output: BackboneOutput,
        targets: Sequence[Target],
        weights: Sequence[float],
        readouts: Sequence[Readout],
        measures_all: bool,
    ) -> tuple[Tensor, Tensor]:
        """The weighted loss of all depths, and the unweighted nll of each (K+1,)."""
        layers = (FINAL, *self.layers)

        def compute(states: Sequence[Tensor], depths: Sequence[int]) -> list[Tensor]:
            by_layer = dict(zip(layers, states, strict=True))
            found = [by_layer[FINAL]] if 0 in depths else []
            deeper = [depth for depth in depths if depth > 0]
            if self.head is not None and deeper:
                found += depth_hidden(self.backbone, self.head, tokens, output, deeper, by_layer)
            return found

        states = [output.final, *(output.states[layer] for layer in self.layers)]
        alone = self.head is None or not self.head.chained
        deeper = range(1, self.depth + 1)
        groups = [[0], *([k] for k in deeper)] if alone else [[0], list(deeper)]
        work = Objective(compute, groups, targets, weights, readouts, measures_all=measures_all)
        in_order = self.in_order and torch.is_grad_enabled()
        if in_order and not output.call.requires_grad:
            return depth_by_depth(work, states, self._learning_beside_trunk())
        return all_depths(work, states)

    def _learning_beside_trunk(self) -> list[nn.Parameter]:
        """The parameters that a loss reaches without going through the trunk's states.

        Those of a backbone that rests are left out, also where they are to learn later.
        """
        tables = [self.backbone.embedding, self.backbone.output] if self.backbone_learns else []
        parts = [*tables, *([] if self.head is None else [self.head])]
        found = {id(p): p for part in parts for p in part.parameters()}
        return [parameter for parameter in found.values() if parameter.requires_grad]


def depth_hidden(
    backbone: Backbone,
    head: Head,
    tokens: Tensor,
    output: BackboneOutput,
    depths: Sequence[int] | None = None,
    states: States | None = None,
) -> list[Tensor]:
    """What the output head reads for `depths` over a row, (B, T, D) each.

    Args:
        backbone: whose pass it was.
        head: that reads it.
        tokens: (B, T), the row that `output` was computed from.
        output: a pass of the backbone that kept `head.layers`.
        depths: which of 1…K; all by default.
        states: in place of the pass's own.
    """

    def run(block: nn.Module, hidden: Tensor, depth: int) -> Tensor:
        return output.call(block, hidden)

    def embed_ahead(distance: int) -> Tensor:
        ahead = backbone.embed(tokens_ahead(tokens, distance))  # (B, T, D)
        if distance == 1 and head.zero_first:
            ahead = ahead.masked_fill(_first(tokens, output).unsqueeze(-1), 0.0)
        return ahead

    states = states or {FINAL: output.final, **output.states}
    found: list[Tensor] = head(
        states, embed_ahead, run, range(1, head.depth + 1) if depths is None else depths
    )
    return found


def _first(tokens: Tensor, output: BackboneOutput) -> Tensor:
    """(B, T) where a document begins, by the positions that the pass was given."""
    positions = output.positions
    if positions is None:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
    return (positions == 0).expand_as(tokens)
