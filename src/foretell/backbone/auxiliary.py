"""What a model's own loss has beside the cross-entropy: what balances its experts, for one.

Families compute it under many names. Here the model's own code does: its forward runs on what its
decoder has answered before, with stand-ins for the decoder and the output head and a cross-entropy
of 0, and what is left of its loss is what it adds.

Shapes: B batch, T time, D hidden, V vocabulary.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretell.backbone.anatomy import Anatomy, name_of
from foretell.backbone.calls import with_stand_ins
from foretell.backbone.trying import evaluating, told
from foretell.errors import BackboneError

ROUTING = {"output_router_logits": True}
"""Has transformers keep the routing, and models with experts add the loss that balances them."""


class AuxiliaryLoss:
    """A function from what the decoder answered to what the model adds to its cross-entropy.

    Args:
        parts: of the model that has the loss.
        options: of the decoder's pass.
        reads_logits: whether logits are needed, (B, T, V) of them.
    """

    def __init__(self, parts: Anatomy, options: dict[str, Any], reads_logits: bool) -> None:
        self.parts, self.options, self.reads_logits = parts, options, reads_logits

    def __call__(self, decoded: Any) -> Tensor:
        """The loss as the model weighs it, a scalar; `decoded` is what its decoder answered."""
        parts = self.parts
        stand_ins: dict[nn.Module, nn.Module] = {parts.decoder: _Answering(decoded)}
        if not self.reads_logits:
            stand_ins[parts.output] = _NoLogits()
        model: Any = with_stand_ins(parts.model, stand_ins)
        model.loss_function = _CrossEntropy()
        tokens = torch.zeros(decoded[0].shape[:2], dtype=torch.long, device=parts.device)
        return _loss(model, tokens, self.options)


def find_auxiliary(parts: Anatomy) -> AuxiliaryLoss | None:
    """What computes the auxiliary loss of a model, proved on a small pass; None: it has none.

    Raises:
        BackboneError: it has one, which cannot be had apart from the model's own forward.
    """
    tokens = torch.arange(16, device=parts.device).remainder(parts.vocab_size).reshape(2, 8)
    model: Any = with_stand_ins(parts.model, {})
    model.loss_function = entropy = _CrossEntropy()
    answers: list[Any] = []
    hook = parts.decoder.register_forward_hook(lambda *seen: answers.append(seen[-1]))
    try:
        with evaluating(parts.model):
            options = _options(parts, model, tokens, answers)
            if options is None:
                return None
            own, decoded = _loss(model, tokens, options), answers[-1]
            if not entropy.called:
                if _is_cross_entropy(own, parts.unembed(decoded[0]).float(), tokens):
                    return None
            elif own == 0:
                return None
            else:
                for reads_logits in (False, True):
                    found = AuxiliaryLoss(parts, options, reads_logits)
                    if torch.allclose(found(decoded), own):
                        return found
    finally:
        hook.remove()
    raise _refuse(parts, "its own loss is not the cross-entropy and something beside it")


def _is_cross_entropy(loss: Tensor, logits: Tensor, tokens: Tensor) -> bool:
    """Of a model's own making: with labels as they are given, or shifted."""
    pairs = (logits[:, :-1], tokens[:, 1:]), (logits, tokens)
    return any(
        torch.allclose(F.cross_entropy(said.flatten(0, 1), labels.flatten()), loss, rtol=1e-4)
        for said, labels in pairs
    )


def _options(
    parts: Anatomy, model: Any, tokens: Tensor, answers: list[Any]
) -> dict[str, Any] | None:
    """With which options the model has a loss; None where it has none with any."""
    for options in (ROUTING, {}):
        try:
            _loss(model, tokens, options)
        except Exception as error:  # a family's code may raise anything, as where no block routes
            if answers and getattr(answers[-1], "router_logits", None):
                raise _refuse(parts, f"its own loss raises {told(error)}") from None
        else:
            return options
    return None


def _loss(model: Any, tokens: Tensor, options: dict[str, Any]) -> Tensor:
    return cast(
        Tensor, model.forward(input_ids=tokens, labels=tokens, use_cache=False, **options).loss
    )


def _refuse(parts: Anatomy, reason: str) -> BackboneError:
    return BackboneError(
        f"{name_of(parts.model)} cannot learn here: {reason}; train heads on it frozen."
    )


class _Answering(nn.Module):
    """Answers what it was told to."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.answer


class _NoLogits(nn.Module):
    """In the output head's place: one logit of 0."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.new_zeros(*hidden.shape[:-1], 1)


class _CrossEntropy:
    """In its place: 0, and whether it was asked for."""

    called = False

    def __call__(self, logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.called = True
        return logits.new_zeros((), dtype=torch.float32)
