"""What is in the arguments of a pass: tensors, caches, and values that do not change."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor
from transformers import Cache

from foretell.backbone import Backbone


def leaves(value: Any) -> Iterator[Any]:
    """Tensors, caches and all else that `value` holds, however deep, in a fixed order."""
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, dict):
        yield from leaves(tuple(value.values()))
    elif _holds(value):
        yield from leaves(_parts(value))
    else:
        yield value


def tensors(value: Any) -> list[Tensor]:
    """Those of `leaves`; not what lies in caches."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]


def caches(value: Any) -> list[Cache]:
    """Those of `leaves`."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, Cache)]


def exchanged(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same value with other tensors; everything else in it is shared."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        parts = [exchanged(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return {name: exchanged(part, change) for name, part in value.items()}
    if _holds(value):
        return replace(value, **exchanged(_parts(value), change))
    return value


def _holds(value: Any) -> bool:
    """Whether it is a record of a pass; a backbone is one of other things."""
    return is_dataclass(value) and not isinstance(value, (type, Cache, Backbone))


def _parts(record: Any) -> dict[str, Any]:
    """By name; not what it has worked out from them."""
    return {field.name: getattr(record, field.name) for field in fields(record)}
