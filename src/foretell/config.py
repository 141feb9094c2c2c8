"""What heads, objectives and runs can be told: checked as it is told, and then left as it is.

pydantic reads the annotations; the first thing that is wrong becomes one line.
"""

from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from foretell.errors import InputError


def _number(value: Any) -> Any:
    """YAML 1.1, which PyYAML reads, takes `1e-1` for a string, since it has no point."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Number = Annotated[float, BeforeValidator(_number)]
"""A finite number, also where it comes as text."""

Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class BaseConfig(BaseModel):
    """Frozen values under the names that are declared, each held to its annotation.

    No text passes for a whole number and no number for a truth value. What goes beyond one field is
    checked by validators, which raise an `InputError` that can stand alone. The docstring after a
    field explains it wherever it is explained: its first paragraph is the help of the command line.

    Raises:
        InputError: a name is unknown or missing, or a value is not one that it can have.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _first(error, type(self)) from None

    @classmethod
    def called(cls) -> str:
        """What messages call these settings."""
        return "settings"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From plain values, as `to_dict` gives them."""
        return cls(**{str(name): value for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return self.model_dump()

    def changed(self) -> dict[str, Any]:
        """What differs from the defaults, or has none, as plain values."""
        told = self.to_dict()
        usual = {
            name: field.get_default(call_default_factory=True, validated_data=told)
            for name, field in type(self).model_fields.items()
            if not field.is_required()
        }
        return {name: value for name, value in told.items() if usual.get(name) != value}

    def replace(self, **changes: Any) -> Self:
        """The same with other values, checked again."""
        told = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**told, **changes})


WANTED = {
    "bool_type": "it is true or false",
    "finite_number": "it is a finite number",
    "float_type": "it is a number",
    "greater_than": "it must be more than {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "int_type": "it is a whole number",
    "less_than": "it must be less than {lt}",
    "less_than_equal": "it must be at most {le}",
    "literal_error": "choose from {expected}",
    "model_type": "give a mapping of names to values",
    "string_type": "it is a text",
}
"""What to say of pydantic's errors, by their type."""


class SettingError(InputError):
    """What is wrong with one setting: it has a longer path where settings hold settings."""

    def __init__(self, path: str, wrong: str, called: str = "") -> None:
        super().__init__(path, wrong, called)  # as given, so that it can be pickled
        self.path, self.wrong, self.called = path, wrong, called

    def __str__(self) -> str:
        return f"{self.path or self.called} {self.wrong}"


def _first(error: ValidationError, kind: type[BaseConfig]) -> InputError:
    """The first thing that is wrong."""
    fault = error.errors(include_url=False)[0]
    # Further parts tell the members of a union apart, which nobody has typed.
    name = ".".join(str(part) for part in fault["loc"][:1])
    facts = fault.get("ctx", {})
    cause = facts.get("error")
    if isinstance(cause, SettingError):
        return SettingError(".".join(part for part in (name, cause.path) if part), cause.wrong)
    if isinstance(cause, InputError):
        return cause
    if fault["type"] == "extra_forbidden":
        known = ", ".join(kind.model_fields)
        return SettingError("", f"has no {name!r}; it has {known}.", kind.called())
    if fault["type"] == "missing":
        return SettingError(name, "is missing; it has no default.")
    wanted = WANTED.get(fault["type"], "").format_map(facts).replace("'", "") or fault["msg"]
    return SettingError(name, f"is {fault['input']!r}; {wanted}.")
