"""Text of tokens as they come, never half a character.

Some tokenizers write a character that they do not know as tokens of one byte each, and decode all
of a run of these to U+FFFD where any of it is no character. So what is decoded here begins at a
character, and a run that is broken keeps its whole characters, as sentencepiece itself has it.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNKNOWN = "\ufffd"
"""What decoding gives for bytes that are no character, or not one yet."""

LONGEST = 4
"""Bytes of a character in UTF-8."""

CONTEXT = 8
"""Tokens before the new ones that are decoded with them, at first."""

UNCLEAN = (" ", "'", " n", " 'v", " 'r")
"""Behind these `clean_up_tokenization` may still take out a space, or have left one in: they begin
what it replaces, or may be what it made of " ' ", of which a full stop takes the last space."""


class Detokenizer:
    """Gives text as soon as it is whole.

    All pieces together are what the tokenizer decodes the tokens to, after those of the prompt;
    only that in a broken run of byte tokens each whole character stays, and every other byte is
    one U+FFFD.

    Args:
        tokenizer: whose tokens they are.
        prompt: what was said before, which is not given again.
        special: whether special tokens give their names; else they give no text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Sequence[int] = (),
        *,
        special: bool = False,
    ) -> None:
        self.tokenizer, self.special = tokenizer, special
        self.unclean = UNCLEAN if _cleans_up(tokenizer) else ()
        # Decoded again with what follows: some tokenizers drop the space that a text begins with.
        self.context = self.end(prompt, 1)
        self.pending: list[int] = []
        self.given = self.decode(self.context)  # of the text of both

    def add(self, token: int) -> str:
        """The text that one more token completes; empty where none is whole yet."""
        self.pending.append(token)
        text = self._text()
        whole = text.rstrip(UNKNOWN)
        if whole.endswith(self.unclean):
            return ""
        if whole == text:
            return self._give(text)
        self.given += whole
        return whole or self._behind_broken()

    def finish(self) -> str:
        """What is left, whole or not."""
        return self._give(self._text())

    def end(self, tokens: Sequence[int], characters: int) -> list[int]:
        """The last tokens, from where a character begins, with this many characters; or all."""
        size = max(CONTEXT, characters)
        while size < len(tokens):
            for start in range(len(tokens) - size, len(tokens) - size + LONGEST):
                text = self.decode(tokens[start:])
                if self._staying(text) >= characters and not text.startswith(UNKNOWN):
                    return list(tokens[start:])
            size *= 2
        return list(tokens)

    def _staying(self, text: str) -> int:
        """At least this many of its characters stay, whatever follows: bytes of a run that is not
        whole yet may become fewer, and a clean-up may take out spaces.
        """
        stays = text.rstrip("".join(self.unclean))
        unknown = stays.count(UNKNOWN)
        return len(stays) - unknown + unknown // LONGEST

    def decode(self, tokens: Sequence[int]) -> str:
        """Their text, by the tokenizer alone."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=not self.special))

    def _text(self) -> str:
        """What is not given yet."""
        both, given = self.decode(self.context + self.pending), self.given
        while given.endswith(UNKNOWN) and not both.startswith(given):
            given = given[:-1]  # it was half a character of the prompt
        if not both.startswith(given):  # a run of bytes that began in the context is broken now
            self.context, given = [], ""
            both = self.decode(self.pending)
        self.given = given
        return both[len(given) :]

    def _behind_broken(self) -> str:
        """What is pending, where its last tokens are a character by themselves."""
        for start in range(max(0, len(self.pending) - LONGEST), len(self.pending)):
            text = self.decode(self.pending[start:])
            if text and UNKNOWN not in text:
                broken, self.pending = self.pending[:start], self.pending[start:]
                return self.decode(broken) + self._give(text)
        return ""

    def _give(self, text: str) -> str:
        if text:
            context = self.context
            self.context, self.given = self.pending, self.decode(self.pending)
            # It begins inside a character, or could be cleaned up were it all of the text.
            if self.given.startswith(UNKNOWN) or self.given.endswith(self.unclean):
                self.context = [*context, *self.pending]
                self.given = self.decode(self.context)
            self.pending = []
        return text


def _cleans_up(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether decoding takes out spaces; some tokenizers are told to and do not."""
    if not tokenizer.clean_up_tokenization_spaces:
        return False
    ids = tokenizer("n ' t .", add_special_tokens=False)["input_ids"]
    return bool(tokenizer.decode(ids) != tokenizer.decode(ids, clean_up_tokenization_spaces=False))
