"""What is sent of a row: all of its text, up to a stop, and never more."""

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from command_line import TOKENIZER
from foretell.decoding import Step
from foretell.serve.answers import CompletionForm, chunks
from foretell.serve.text import Piece, Writer

TEXTS = st.text(st.sampled_from("ab\né日"), max_size=14)


def written(text: str, stops: list[str], sizes: list[int]) -> tuple[list[str], Writer]:
    """What a writer gives, step by step, then at the end."""
    ids: Any = TOKENIZER(text)["input_ids"]
    writer, given_now, number = Writer(TOKENIZER, [], stops), [], 0
    while ids:
        size = sizes[number % len(sizes)]
        pieces = writer.add(Step(size, size - 1, tuple(ids[:size])))
        given_now.append("".join(piece.text for piece in pieces))
        ids, number = ids[size:], number + 1
    given_now.append("".join(piece.text for piece in writer.finish()))
    return given_now, writer


@given(TEXTS, st.lists(TEXTS.filter(bool), max_size=3), st.lists(st.integers(1, 5), min_size=1))
def test_text_up_to_the_first_stop(text: str, stops: list[str], sizes: list[int]) -> None:
    found, writer = written(text, stops, sizes)
    places = [text.find(stop) for stop in stops if stop in text]
    # Text is cut where a stop was seen first; one that begins earlier may be complete only later.
    whole = "".join(found)
    assert writer.stopped == bool(places)
    assert text.startswith(whole)
    assert not any(stop in whole for stop in stops)
    if not places:
        assert whole == text
    elif len(stops) == 1:
        assert whole == text[: places[0]]


def test_text_is_held_back_only_where_it_may_be_a_stop() -> None:
    assert written("abab\nb", ["\n\n"], [1])[0] == ["a", "b", "a", "b", "", "\nb", ""]


def test_pieces_say_at_which_depth_they_were_drafted() -> None:
    writer = Writer(TOKENIZER, [], [])
    pieces = writer.add(Step(3, 2, tuple(TOKENIZER("abc")["input_ids"])))
    assert [(piece.text, piece.depth) for piece in pieces] == [("a", 1), ("b", 2), ("c", 0)]
    half, rest = TOKENIZER("é")["input_ids"]
    assert writer.add(Step(0, 0, (half,))) == []
    assert [(p.text, p.depth) for p in writer.add(Step(1, 1, (rest,)))] == [("é", 1)]


def test_an_event_is_one_line_for_clients_that_know_more_line_ends() -> None:
    text = "a\u2028b\x85c\u2029 é"

    class Said:
        """A row that says it and ends."""

        rows = (SimpleNamespace(finish_reason="stop"),)

        async def pieces(self) -> AsyncIterator[tuple[int, list[Piece]]]:
            yield 0, [Piece(text, 0)]

    async def events() -> list[str]:
        said = chunks(CompletionForm("m"), cast(Any, Said()), show_drafts=False, usage=False)
        return [event async for event in said]

    lines = "".join(asyncio.run(events())).splitlines()
    first, *_ = [line for line in lines if line]
    assert json.loads(first.removeprefix("data: "))["choices"][0]["text"] == text
