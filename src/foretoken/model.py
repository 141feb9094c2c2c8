"""`MTPModel`: a backbone and a head, trained together and saved together.

Shapes: B batch, T time, K depths, D hidden, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foretoken.backbone import Backbone, BackboneOutput, BlockCall
from foretoken.errors import HeadError
from foretoken.heads import Head, HeadConfig, Parts, Tap, head_class
from foretoken.objective import DepthWeights, cross_entropy
from foretoken.targets import depth_targets, tokens_ahead

if TYPE_CHECKING:
    from foretoken.decoding import Generation


@dataclass
class MTPOutput:
    """What a training step returns.

    Attributes:
        loss: the weighted sum, a scalar.
        depth_losses: (K+1,) mean cross-entropy of depths 0…K in nats, detached.
    """

    loss: Tensor
    depth_losses: Tensor


class MTPModel(nn.Module):
    """A causal language model with heads that predict further ahead.

    Build one with `attach` or `MTPModel.from_pretrained`. Without a head it is the backbone alone, and
    everything that needs no head still works.

    Args:
        model: the backbone, any `AutoModelForCausalLM`; used as it is.
        head: the head's config; None for a backbone alone.
    """

    def __init__(self, model: PreTrainedModel, head: HeadConfig | None = None) -> None:
        super().__init__()
        self.lm = model
        self.backbone = Backbone(model)
        self.backbone_trains = True
        self.head: Head | None = None
        if head is not None:
            self.tap = Tap.resolve(head.tap, self.backbone.num_layers)
            self.head = self._build(head)

    def _build(self, config: HeadConfig) -> Head:
        parts = Parts(
            hidden_size=self.backbone.hidden_size,
            block=lambda: self.backbone.new_block(config.init),
            norm=self.backbone.new_norm,
        )
        head = head_class(config.kind)(config, parts)  # type: ignore[arg-type]
        return head.to(device=self.backbone.device, dtype=self.backbone.dtype)

    @property
    def depth(self) -> int:
        """K; 0 without a head."""
        return self.head.depth if self.head is not None else 0

    def require_head(self) -> Head:
        """The head, or an error that says how to get one."""
        if self.head is None:
            raise HeadError("the model has no heads; train some with `foretoken train`.")
        return self.head

    def freeze_backbone(self) -> None:
        """From now on the backbone neither learns nor drops out: it runs as in inference."""
        self.backbone_trains = False
        self.lm.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "MTPModel":
        """As in torch, except that a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if not self.backbone_trains:
            self.lm.eval()
        return self

    def depth_hidden(
        self, tokens: Tensor, output: BackboneOutput, head: Head | None = None
    ) -> Iterator[Tensor]:
        """What the output head reads for depths 1…K over a whole row, (B, T, D) each, one at a time.

        Args:
            tokens: (B, T), the row that `output` was computed from.
            output: a pass of the backbone that kept `self.tap.layers`.
        """
        head = head or self.require_head()

        def run(block: nn.Module, hidden: Tensor, depth: int) -> Tensor:
            return output.call(block, hidden)

        def embed_ahead(distance: int) -> Tensor:
            return self.backbone.embed(tokens_ahead(tokens, distance))

        return head(self.tap.read(output.final, output.states), embed_ahead, run)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        weights: DepthWeights | None = None,
    ) -> MTPOutput:
        """The training loss of depths 0…K.

        Args:
            input_ids: (B, T).
            position_ids: (B, T), restarting at every packed document; None: a row is one document.
            labels: (B, T) not shifted, `IGNORE` where a token is no target; None: all are.
            weights: of the depths; by default Gloeckle's sum, and no depth 0 for a frozen backbone.
        """
        head = self.require_head() if self.depth else None
        labels = input_ids if labels is None else labels
        if weights is None:
            weights = DepthWeights(backbone=1.0 if self.backbone_trains else 0.0)
        with torch.set_grad_enabled(self.backbone_trains and torch.is_grad_enabled()):
            output = self.backbone(
                input_ids, position_ids=position_ids, layers=self.tap.layers if head else ()
            )
        losses = []
        total = output.final.new_zeros((), dtype=torch.float32)
        for depth, weight in enumerate(weights.of(self.depth)):
            if depth == 0:
                hidden = output.final
                ahead = self.depth_hidden(input_ids, output, head) if head else iter(())
            else:
                hidden = next(ahead)
            targets = depth_targets(labels, depth, position_ids)
            learns = weight > 0 and (depth > 0 or self.backbone_trains)
            with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
                loss = cross_entropy(hidden, targets, self.backbone.unembed, self.backbone.vocab_size)
            losses.append(loss.detach())
            if learns:
                total = total + weight * loss
        return MTPOutput(total, torch.stack(losses))
