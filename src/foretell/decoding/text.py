"""Text of tokens as they come, never half a character."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

CONTEXT = 8
"""Tokens before the new ones that are decoded with them."""


class Detokenizer:
    """Gives text as soon as it is whole.

    New tokens are decoded together with those before them, since some tokenizers drop the space in
    front of what they decode alone. Special tokens give no text.

    Args:
        tokenizer: whose tokens they are.
        prompt: what was said before, which is not given again.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.context = list(prompt[-CONTEXT:])  # given already, decoded again for its sake
        self.pending: list[int] = []

    def add(self, token: int) -> str:
        """The text that one more token completes; empty where none is whole yet."""
        self.pending.append(token)
        text = self._text()
        return "" if text.endswith("\ufffd") else self._given(text)

    def finish(self) -> str:
        """What is left, whole or not."""
        return self._given(self._text())

    def _text(self) -> str:
        before, both = (
            str(self.tokenizer.decode(tokens, skip_special_tokens=True))
            for tokens in (self.context, self.context + self.pending)
        )
        return both[len(before) :]

    def _given(self, text: str) -> str:
        if text:
            self.context = (self.context + self.pending)[-CONTEXT:]
            self.pending = []
        return text
