"""Compiled functions for passes of fixed shape."""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import is_dataclass
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit
from transformers import Cache

from foretell.backbone import Backbone

Function = TypeVar("Function", bound=Callable[..., Any])

SHAPES = 64
"""Shapes that one function may be compiled for: draft lengths × one row or several × models."""


def compile_fixed(function: Function, backbone: Backbone) -> Function:
    """`function`, compiled for each shape that it meets.

    On a GPU torch is asked for CUDA graphs too; that has not been run on one yet, and torch leaves
    them out where what it captures changes a tensor that may move, as a cache may.

    One row is compiled apart, any other number of them together; the first tensor has a line for
    each row, and so have others as long. What else varies is marked before, see `varying`.

    For one `generate`, in which nothing changes but numbers, the shapes of tensors in the
    arguments, and who watches `backbone`, which runs in it: other streams may begin and end.
    PyTorch's guards (is every weight still what it was?) take as long as a tenth of a small model's
    pass, so they are checked where one of these is new, and not again. Shapes beyond the limit run
    uncompiled.
    """
    compiled = torch.compile(function, dynamic=False, options=_options(backbone.device))
    ways: dict[Hashable, Callable[..., Any]] = {}

    def unguarded(*args: Any, **kwargs: Any) -> Any:
        with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
            return compiled(*args, **kwargs)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        tensors = list(_tensors((args, kwargs)))
        shapes = tuple(tensor.shape for tensor in tensors)
        case = backbone.watchers, shapes
        if case in ways:
            return ways[case](*args, **kwargs)
        for tensor in tensors:
            if tensor.shape[:1] == shapes[0][:1]:
                varying(tensor, 0)
        try:
            with torch._dynamo.config.patch(
                recompile_limit=SHAPES, fail_on_recompile_limit_hit=True
            ):
                found = compiled(*args, **kwargs)
        except FailOnRecompileLimitHit:
            ways[case] = function
            return function(*args, **kwargs)
        ways[case] = unguarded
        return found

    return call  # type: ignore[return-value]


def _options(device: torch.device) -> dict[str, Any]:
    """Of PyTorch's Inductor."""
    if device.type == "cuda":
        return {"triton.cudagraphs": True}
    # Sizes and strides would be asserted in every call, which takes up to a twentieth of a small
    # model's pass; those of arguments and weights are guarded.
    return {"size_asserts": False}


def compilations() -> int:
    """How often torch has compiled something so far: a step that waits for it tells no speed."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def varying(tensor: Tensor, *dimensions: int) -> Tensor:
    """The tensor; what is compiled for it serves for any size of these dimensions, if it can."""
    torch._dynamo.maybe_mark_dynamic(tensor, dimensions)
    return tensor


def _tensors(value: Any) -> Iterator[Tensor]:
    """In a value; of a cache, whose layers are alike, the first keys."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Cache):
        yield from _tensors(getattr(value.layers[0], "keys", None))
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif is_dataclass(value):
        yield from _tensors(tuple(vars(value).values()))
