"""Passes of fixed shape, made fast."""

from collections.abc import Callable, Hashable, Iterator
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit
from transformers import Cache

from foretell.backbone import Backbone
from foretell.decoding import capturing
from foretell.decoding.arguments import leaves
from foretell.decoding.capturing import Captured

Function = TypeVar("Function", bound=Callable[..., Any])

SHAPES = 64
"""Shapes that one function may be compiled for: draft lengths × one row or several × models."""


def compile_fixed(function: Function, backbone: Backbone) -> Function:
    """`function`, made fast for each shape that it meets: on a GPU as a CUDA graph
    (`foretell.decoding.capturing`), elsewhere compiled by torch.

    One row is compiled apart, any other number of them together; the first tensor has a line for
    each row, and so have others as long. What else varies is marked before, see `varying`.

    For one `generate`, in which nothing changes but numbers, the shapes of tensors in the
    arguments, and who watches `backbone`, which runs in it: other streams may begin and end.
    PyTorch's guards (is every weight still what it was?) take as long as a tenth of a small model's
    pass, so they are checked where one of these is new, and not again. Shapes beyond the limit run
    uncompiled.
    """
    if backbone.device.type == "cuda":
        return cast(Function, Captured(function, backbone))
    # Sizes and strides would be asserted in every call, which takes up to a twentieth of a small
    # model's pass; those of arguments and weights are guarded.
    compiled = torch.compile(function, dynamic=False, options={"size_asserts": False})
    ways: dict[Hashable, Callable[..., Any]] = {}

    def unguarded(*args: Any, **kwargs: Any) -> Any:
        with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
            return compiled(*args, **kwargs)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        shaped = list(_shaped((args, kwargs)))
        shapes = tuple(tensor.shape for tensor in shaped)
        case = backbone.watchers, shapes
        if case in ways:
            return ways[case](*args, **kwargs)
        for tensor in shaped:
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


def compilations() -> int:
    """How often torch has compiled something so far: a step that waits for it tells no speed."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def preparations() -> int:
    """The same, and how many passes were run that later ones play back."""
    return compilations() + capturing.slow_calls


def varying(tensor: Tensor, *dimensions: int) -> Tensor:
    """The tensor; what is compiled for it serves for any size of these dimensions, if it can."""
    torch._dynamo.maybe_mark_dynamic(tensor, dimensions)
    return tensor


def _shaped(value: Any) -> Iterator[Tensor]:
    """Tensors in arguments; of a cache, whose layers are alike, the first keys."""
    for leaf in leaves(value):
        found = getattr(leaf.layers[0], "keys", None) if isinstance(leaf, Cache) else leaf
        if isinstance(found, Tensor):
            yield found
