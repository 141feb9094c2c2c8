"""The tokens that heads can draft, where these are fewer than the model's.

The output head is the largest cost of a draft, and few tokens make up most of a text: heads that
draft the likeliest few thousand alone are faster and lose little (Zhao et al. 2025, "FR-Spec",
arXiv 2502.14856; EAGLE-3, arXiv 2503.01840, stores such a map as `d2t`). Decoding stays lossless:
tokens outside have probability 0 in a draft, and the backbone still emits them.

Shapes: V the model's tokens, V' those that can be drafted.
"""

from typing import Any

import torch
from torch import Tensor, nn

from foretell.errors import InputError
from foretell.targets import IGNORE


class DraftVocabulary(nn.Module):
    """Which V' of the model's tokens can be drafted, in rising order.

    It is a buffer, stored with the head. Until others are chosen they are the first V', the
    likeliest ones of most tokenizers that merge pairs.

    Attributes:
        tokens: (V',), which ones.
        chosen: whether anybody has said so: `choose` did, or they were loaded.
    """

    tokens: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.arange(size))
        self.chosen = False

    def __len__(self) -> int:
        """V'."""
        return len(self.tokens)

    def choose(self, tokens: Tensor) -> None:
        """Draft these (V',) from now on.

        Raises:
            InputError: they are not V' different tokens.
        """
        chosen = tokens.to(self.tokens).unique()  # rising
        if len(chosen) != len(self):
            raise InputError(f"{len(chosen)} different tokens were given; {len(self)} are drafted.")
        self.tokens.copy_(chosen)
        self.chosen = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.chosen = True

    def check(self, vocab_size: int) -> None:
        """Refuse tokens that a model of V tokens has not, or that are not in rising order.

        Raises:
            InputError: there are some.
        """
        tokens = self.tokens
        if int(tokens[0]) < 0 or int(tokens[-1]) >= vocab_size or bool((tokens.diff() <= 0).any()):
            raise InputError(
                f"the draft vocabulary is not {len(self)} rising token ids of 0…{vocab_size - 1}."
            )

    def places(self, tokens: Tensor) -> Tensor:
        """The places 0…V'-1 of tokens of any shape; `IGNORE` of those that are not among them."""
        places = torch.searchsorted(self.tokens, tokens.contiguous()).clamp(max=len(self) - 1)
        return torch.where(self.tokens[places] == tokens, places, IGNORE)

    def spread(self, values: Tensor, vocab_size: int) -> Tensor:
        """Probabilities of all tokens, 0 of those outside: (..., V') → (..., V)."""
        whole = values.new_zeros(*values.shape[:-1], vocab_size)
        return whole.index_copy_(-1, self.tokens, values)
