"""What a client is sent of a row: text that is whole, up to where it stops."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from foretell.decoding import Detokenizer, Step


@dataclass(frozen=True)
class Piece:
    """Text of one token, or of several that make up a character.

    Attributes:
        text: what they say.
        depth: that drafted the token which completes it; 0: it is the backbone's own.
    """

    text: str
    depth: int


class Writer:
    """Text of a row as its tokens come.

    Text that may be the beginning of a stop string is held back, and a stop string itself, and
    what follows it, is never given.

    Args:
        tokenizer: whose tokens they are.
        prompt: the row's.
        stops: texts that end it.

    Attributes:
        stopped: whether one of `stops` was found.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stops: Sequence[str]
    ) -> None:
        self._text, self._stops = Detokenizer(tokenizer, prompt), stops
        self._held: list[Piece] = []
        self.stopped = False

    def add(self, step: Step) -> list[Piece]:
        """What may be given after one more step; depth k drafted its k-th accepted token."""
        given: list[Piece] = []
        for index, token in enumerate(step.tokens):
            depth = index + 1 if index < step.accepted else 0
            self._held.append(Piece(self._text.add(token), depth))
            given += self._give(self._free())
        return given

    def finish(self) -> list[Piece]:
        """The rest, after the last step."""
        self._held.append(Piece(self._text.finish(), 0))
        self._free()  # there may be a stop in it
        return self._give(len(_joined(self._held)))

    def _free(self) -> int:
        """How many characters of what is held can be part of no stop; drops what stops."""
        text = _joined(self._held)
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found and not self.stopped:
            self.stopped = True
            self._held = _split(self._held, min(found))[0]
            return min(found)
        if self.stopped:
            self._held = []
            return 0
        return len(text) - max((_begun(text, stop) for stop in self._stops), default=0)

    def _give(self, characters: int) -> list[Piece]:
        given, self._held = _split(self._held, characters)
        return [piece for piece in given if piece.text]


def _joined(pieces: Iterable[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of `text` are a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def _split(pieces: Sequence[Piece], characters: int) -> tuple[list[Piece], list[Piece]]:
    """The first `characters` of some pieces, and the rest."""
    before: list[Piece] = []
    behind: list[Piece] = []
    for piece in pieces:
        taken = piece.text[:characters]
        characters -= len(taken)
        if taken:
            before.append(Piece(taken, piece.depth))
        if len(taken) < len(piece.text):
            behind.append(Piece(piece.text[len(taken) :], piece.depth))
    return before, behind
