"""Fields of configs hold what they are declared as, or there is one clear error.

Values come from YAML and from the command line. YAML 1.1, which PyYAML reads, takes `1e-1` for a
string, since it has no point: such a string is read as the number that it is.
"""

import math
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from foretell.errors import InputError


def check_fields(config: Any) -> None:
    """Check every field of a frozen dataclass against its annotation.

    Whole numbers, finite numbers, booleans and literals are checked; anything else is left alone.

    Raises:
        InputError: a value is of another type, or none of those allowed.
    """
    declared = get_type_hints(type(config))
    for field in fields(config):
        value = _checked(field.name, getattr(config, field.name), declared[field.name])
        object.__setattr__(config, field.name, value)


def _checked(name: str, value: Any, declared: Any) -> Any:
    if get_origin(declared) is Literal:
        if value not in get_args(declared):
            choices = ", ".join(get_args(declared))
            raise InputError(f"{name} is {value!r}; choose from {choices}.")
    elif declared is bool:
        if not isinstance(value, bool):
            raise InputError(f"{name} is {value!r}; it is true or false.")
    elif declared is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{name} is {value!r}; it is a whole number.")
    elif declared is float:
        return _finite(name, value)
    return value


def _finite(name: str, value: Any) -> int | float:
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise InputError(f"{name} is {value!r}; it is a number.")
    if not math.isfinite(number):
        raise InputError(f"{name} is {value!r}; it is a finite number.")
    return number
