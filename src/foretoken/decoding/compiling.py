"""Compiled functions for passes of fixed shape."""

from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])

SHAPES = 64
"""Shapes that one function may be compiled for: draft lengths × batches × capacities × models."""


def compile_fixed(function: Function) -> Function:
    """`function`, compiled for each shape that it meets; on a GPU replayed from CUDA graphs.

    For one `generate`, in which nothing changes but numbers and the shapes of tensors in the
    arguments. PyTorch's guards (is every weight still what it was?) take as long as a tenth of a
    small model's pass, so they are checked when a shape comes for the first time, and not again.
    """
    on_gpu = torch.cuda.is_available()
    compiled = torch.compile(function, dynamic=False, mode="reduce-overhead" if on_gpu else None)
    checked: set[tuple[torch.Size, ...]] = set()

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        shapes = tuple(_shapes((args, kwargs)))
        if shapes in checked:
            with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
                return compiled(*args, **kwargs)
        with torch._dynamo.config.patch(recompile_limit=SHAPES):
            found = compiled(*args, **kwargs)
        checked.add(shapes)
        return found

    return call  # type: ignore[return-value]


def _shapes(value: Any) -> Iterator[torch.Size]:
    """Of the tensors in a value."""
    if isinstance(value, Tensor):
        yield value.shape
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _shapes(part)
    elif isinstance(value, dict):
        yield from _shapes(tuple(value.values()))
    elif is_dataclass(value):
        yield from _shapes(tuple(vars(value).values()))
