"""Acceptance rules by the names that commands and `MTPModel.decode` use."""

from collections.abc import Callable

from foretell.decoding.acceptance import (
    AcceptanceRule,
    Distance,
    Exact,
    MinimumBlock,
    SpeculativeSampling,
    TopK,
    Typical,
)
from foretell.errors import InputError

LOSSLESS: dict[str, Callable[[], AcceptanceRule]] = {
    "exact": Exact,
    "speculative": SpeculativeSampling,
}
LOSSY: dict[str, Callable[[float], AcceptanceRule]] = {
    "top-k": lambda number: TopK(_whole(number)),
    "distance": lambda number: Distance(_whole(number)),
    "typical": lambda number: Typical(epsilon=number),
    "minimum-block": lambda number: MinimumBlock(_whole(number)),
}
LOSSY_DEFAULTS = {"top-k": 2.0, "distance": 1.0, "typical": 0.09, "minimum-block": 1.0}


def rule_named(text: str) -> AcceptanceRule:
    """`top-k:3` → `TopK(3)`.

    Raises:
        InputError: there is no rule of that name, or it does not take that number.
    """
    name, colon, number = text.partition(":")
    if name in LOSSLESS:
        if colon:
            raise InputError(f"rule {text}: {name} takes no number.")
        return LOSSLESS[name]()
    if name not in LOSSY:
        known = ", ".join([*LOSSLESS, *LOSSY])
        raise InputError(f"rule {text}: the rule {name!r} is unknown; use one of {known}.")
    try:
        return LOSSY[name](float(number) if colon else LOSSY_DEFAULTS[name])
    except InputError:  # a number, but not one for this rule
        raise
    except (ValueError, OverflowError):
        example = f"{name}:{LOSSY_DEFAULTS[name]:g}"
        raise InputError(f"rule {text}: give a number, such as {example}.") from None


def _whole(number: float) -> int:
    if number != int(number):
        raise ValueError(number)
    return int(number)
