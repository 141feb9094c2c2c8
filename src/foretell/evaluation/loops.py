"""Loops: small models under greedy decoding end up repeating themselves.

In a loop nearly every draft is accepted, so tokens per forward is close to its maximum and means
nothing. Measurements are therefore taken up to where a continuation begins to loop.
"""

from collections.abc import Sequence

MAX_PERIOD = 64
LOOK_AHEAD = 2 * MAX_PERIOD
"""Tokens to decode beyond those that are measured, so that a loop that has just begun is seen."""

MIN_REPEATS = 3
MIN_LENGTH = 12


def loop_start(tokens: Sequence[int]) -> int | None:
    """Where the continuation begins to repeat itself to its end, or None.

    A loop is a tail in which some cycle of up to `MAX_PERIOD` tokens stands at least `MIN_REPEATS`
    times in a row (and at least `MIN_LENGTH` tokens in all). It starts where the cycle begins for
    the second time: the first time it was still news.
    """
    length = len(tokens)
    best: int | None = None
    for period in range(1, min(MAX_PERIOD, length // MIN_REPEATS) + 1):
        start = length - period
        while start > 0 and tokens[start - 1] == tokens[start - 1 + period]:
            start -= 1
        if length - start >= max(MIN_REPEATS * period, MIN_LENGTH):
            second = start + period
            best = second if best is None else min(best, second)
    return best
