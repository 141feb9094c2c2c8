"""What kind of token a token is, where it stands: multi-token ability depends on it."""

import keyword
import re
from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

CLASSES = (
    "whitespace",
    "punctuation",
    "number",
    "keyword",
    "identifier",
    "word start",
    "word inside",
    "special",
)
"""`keyword` and `identifier` begin a word in Python sources, `word start` in other texts."""

CODE_KIND = "python"
_WORD = re.compile(r"[\w\ufffd]*")


class TokenClasses:
    """Tells the classes of a tokenizer's tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._anchor = list(tokenizer("a", add_special_tokens=False)["input_ids"])
        self._before = tokenizer.decode(self._anchor)
        self._piece = lru_cache(maxsize=None)(self._decode)

    def __call__(self, tokens: Sequence[int], kind: str) -> list[str]:
        """One class per token of a stretch of one document of that kind."""
        pieces = [self._piece(token) for token in tokens]
        classes: list[str] = []
        number = False
        for place, (token, piece) in enumerate(zip(tokens, pieces, strict=True)):
            inside = place > 0 and _in_word(piece[:1]) and _in_word(pieces[place - 1][-1:])
            word = piece.strip()
            number = word[:1].isdigit() and (number or not inside)
            if token in self._special:
                classes.append("special")
            elif not word:
                classes.append("whitespace")
            elif not _in_word(word[0]):
                classes.append("punctuation")
            elif number:
                classes.append("number")
            elif inside:
                classes.append("word inside")
            elif kind != CODE_KIND:
                classes.append("word start")
            else:
                whole = keyword.iskeyword(_word(word, pieces[place + 1 :]))
                classes.append("keyword" if whole else "identifier")
        return classes

    def _decode(self, token: int) -> str:
        """The text of a token inside a text: some tokenizers strip what stands first."""
        return str(self.tokenizer.decode([*self._anchor, token]))[len(self._before) :]


def _in_word(character: str) -> bool:
    """Also what part of a character in several tokens decodes to."""
    return character.isalnum() or character in ("_", "\ufffd")


def _word(begin: str, following: Sequence[str]) -> str:
    """The whole word that `begin` begins; no keyword is longer than what is looked at."""
    return _WORD.match(begin + "".join(following[:8])).group()  # type: ignore[union-attr]
