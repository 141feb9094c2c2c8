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

    One row is compiled apart, any other number of them together; the first tensor has a line for
    each row, and so have others as long. For one `generate`, in which nothing changes but numbers
    and the shapes of tensors in the arguments. PyTorch's guards (is every weight still what it
    was?) take as long as a tenth of a small model's pass, so they are checked when a shape comes
    for the first time, and not again.
    """
    on_gpu = torch.cuda.is_available()
    compiled = torch.compile(function, dynamic=False, mode="reduce-overhead" if on_gpu else None)
    checked: set[tuple[torch.Size, ...]] = set()

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        tensors = list(_tensors((args, kwargs)))
        shapes = tuple(tensor.shape for tensor in tensors)
        if shapes in checked:
            with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
                return compiled(*args, **kwargs)
        for tensor in tensors:
            if tensor.shape[:1] == shapes[0][:1]:
                varying(tensor, 0)
        with torch._dynamo.config.patch(recompile_limit=SHAPES):
            found = compiled(*args, **kwargs)
        checked.add(shapes)
        return found

    return call  # type: ignore[return-value]


def varying(tensor: Tensor, dimension: int) -> Tensor:
    """The tensor; what is compiled for it serves for any size of a dimension, if it can."""
    torch._dynamo.maybe_mark_dynamic(tensor, dimension)
    return tensor


def _tensors(value: Any) -> Iterator[Tensor]:
    """In a value."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif is_dataclass(value):
        yield from _tensors(tuple(vars(value).values()))
