"""Acceptance rules by the names that commands and `MTPModel.decode` use."""

from foretell.decoding.acceptance import RULES, AcceptanceRule
from foretell.errors import InputError


def rule_named(text: str) -> AcceptanceRule:
    """`top-k:3` → `TopK(3)`.

    Raises:
        InputError: there is no rule of that name, or it does not take that number.
    """
    name, colon, number = text.partition(":")
    if name not in RULES:
        known = ", ".join(RULES)
        raise InputError(f"rule {text}: the rule {name!r} is unknown; use one of {known}.")
    rule = RULES[name]
    if rule.number is None:
        if colon:
            raise InputError(f"rule {text}: {name} takes no number.")
        return rule.of(None)
    try:
        return rule.of(float(number) if colon else rule.number)
    except InputError:  # a number, but not one for this rule
        raise
    except (ValueError, OverflowError):
        example = f"{name}:{rule.number:g}"
        raise InputError(f"rule {text}: give a number, such as {example}.") from None
