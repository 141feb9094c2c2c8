"""Compiled functions for passes of fixed shape."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])

SHAPES = 64
"""Shapes that one function may be compiled for: draft lengths × batches × capacities × models."""


def compile_fixed(function: Function) -> Function:
    """`function`, compiled for each shape that it meets; on a GPU replayed from CUDA graphs."""
    on_gpu = torch.cuda.is_available()
    compiled = torch.compile(function, dynamic=False, mode="reduce-overhead" if on_gpu else None)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=SHAPES):
            return compiled(*args, **kwargs)

    return call  # type: ignore[return-value]
