"""Logits of heads, over the tokens that they can draft.

Shapes: B rows, K depths, D hidden, V the model's tokens, V' those that can be drafted.
"""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from foretell.backbone import Backbone
from foretell.decoding.draft import Draft
from foretell.heads import Head


class HeadOutput:
    """The backbone's output head as some heads use it.

    Attributes:
        logits: (..., D) → (..., V'), or all V where the heads draft any token.

    Raises:
        InputError: the model has no such tokens.
    """

    def __init__(self, backbone: Backbone, head: Head | None) -> None:
        self.vocabulary = None if head is None else head.vocabulary
        self.vocab_size = backbone.vocab_size
        if self.vocabulary is not None:
            self.vocabulary.check(self.vocab_size)
        self.logits: Callable[[Tensor], Tensor] = (
            backbone.unembed
            if self.vocabulary is None
            else backbone.unembed_some(self.vocabulary.tokens)
        )

    def spread(self, probabilities: Tensor) -> Tensor:
        """Those of all tokens, 0 of those that cannot be drafted: (..., V') → (..., V)."""
        if self.vocabulary is None:
            return probabilities
        return self.vocabulary.spread(probabilities, self.vocab_size)

    def named(self, draft: Draft) -> Draft:
        """A draft from these logits in the model's tokens: those outside have probability 0."""
        if self.vocabulary is None:
            return draft
        drawn = None if draft.probabilities is None else self.spread(draft.probabilities)
        return replace(draft, tokens=self.vocabulary.tokens[draft.tokens], probabilities=drawn)
