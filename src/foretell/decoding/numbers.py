"""Numbers as they are told from Python: its own or NumPy's, whole ones in a tensor too."""

from collections.abc import Iterable
from numbers import Real
from operator import index
from typing import Any

from foretell.errors import InputError


def whole(name: str, value: Any) -> int:
    """`value` as an int; `name` is what errors call it.

    Raises:
        InputError: it is no whole number.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return index(value)
    except TypeError:
        raise InputError(f"{name} is {value!r}; give a whole number.") from None


def wholes(name: str, values: Any) -> list[int]:
    """One whole number, or several, as a list.

    Raises:
        InputError: there is something else among them.
    """
    return [whole(name, value) for value in (values if are_several(values) else [values])]


def are_several(values: Any) -> bool:
    """Whether there may be more than one: a tensor without dimensions is one number."""
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
        return False
    return getattr(values, "ndim", None) != 0


def require_number(name: str, value: Any) -> None:
    """Raise unless `value` is a number.

    Raises:
        InputError: see there.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{name} is {value!r}; give a number.")
