"""Heads that are to go to a layout, before they are trained."""

from collections.abc import Mapping
from typing import Any

from foretell.errors import HeadError, InputError
from foretell.formats.base import has_plain_norms
from foretell.formats.registry import layout
from foretell.heads import DEPTH
from foretell.model import MTPModel


def head_for(target: str, given: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """The settings of heads that a layout can hold, with those given that it leaves open.

    Args:
        target: a layout's name.
        given: some of the settings, or a head's kind.

    Raises:
        InputError: there is no such layout or setting, or the layout wants another value.
    """
    given = given if isinstance(given, Mapping) else {"kind": given}
    head = layout(target).head(given.get("depth", DEPTH), given.get("kind"))
    wanted, left_open = head.to_dict(), {"depth", "init", "layers"}
    if layout(target).contract_of(head).vocabulary:
        left_open.add("vocabulary")
    for name, value in given.items():
        if name not in wanted:
            raise InputError(f"head.{name}: heads for {target} ({wanted['kind']}) have no such.")
        if value != wanted[name] and name not in left_open:
            raise InputError(
                f"head.{name} is {value!r}, and --for {target} makes it {wanted[name]!r}; "
                "leave one of them out."
            )
    return {**wanted, **given}


def require_layout(target: str, model: MTPModel) -> None:
    """Refuse a backbone, or heads, that the layout cannot hold, before anything is trained.

    Raises:
        HeadError: with the first reason.
    """
    found = layout(target)
    reasons = found.refusals(model, model.backbone.config.to_dict())
    if model.head is not None:
        plain_norms, head = has_plain_norms(model.backbone), model.head.config
        reasons = [*reasons, *found.contract_of(head).differences(head, plain_norms)]
    if reasons:
        raise HeadError(f"{target} cannot hold this model: {reasons[0]}.")
