"""A block's call: recorded in one pass of the model, repeated with another block.

A head's block is called *exactly as the model calls its own last block*: the arguments of that call
(attention mask, rotary embedding, positions, whatever the family passes) are recorded and handed on
with the hidden state and the cache exchanged. That is why no mask or rotary code is written here,
and why packed documents, sliding windows and padding mean for the heads what they mean for the
backbone.

Shapes: B batch, T time, D hidden, L layers.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import Cache


@dataclass(frozen=True)
class BlockCall:
    """How the model called its last block, ready to be repeated with another block beside it."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def requires_grad(self) -> bool:
        """Whether an argument depends on what learns, as well as the hidden state does."""
        return any(
            isinstance(part, Tensor) and part.requires_grad
            for part in tree_leaves((self.args, self.kwargs))
        )

    def __call__(self, block: nn.Module, hidden: Tensor, cache: Cache | None = None) -> Tensor:
        """Run `block` on `hidden` (B, T, D) → (B, T, D) with the recorded mask and positions.

        `cache` takes the place of the backbone's. It must have as many tokens as the backbone's
        cache had at the recorded call, or the recorded mask would not fit.
        """

        def swap(value: Any) -> Any:
            if isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point():
                return value.to(hidden.dtype)  # a mask: attention wants it in its own type
            return cache if isinstance(value, Cache) else value

        kwargs = {name: swap(value) for name, value in self.kwargs.items()}
        return hidden_of(block(hidden, *map(swap, self.args), **kwargs))


@dataclass(frozen=True)
class BackboneOutput:
    """One pass of the backbone.

    Attributes:
        final: (B, T, D) after the final norm: what the output head reads.
        states: (B, T, D) each; `states[l]` is the residual stream entering block `l`, and
            `states[L]` leaves the last block (before the final norm). Only the layers asked for.
        call: how the last block was called.
        decoded: all that the decoder answered, where the model's auxiliary loss is made of it.
        positions: (B, T) that the pass was given; None: every row counts from 0.
    """

    final: Tensor
    states: dict[int, Tensor]
    call: BlockCall
    decoded: Any = None
    positions: Tensor | None = None


@dataclass(eq=False)  # each is itself alone: compiled passes remember who watched
class Trace:
    """What hooks saw in the last forward pass."""

    layers: set[int]
    block_inputs: dict[int, Tensor] = field(default_factory=dict)
    last_output: Any = None
    call: BlockCall | None = None


@contextmanager
def traced(blocks: nn.ModuleList, layers: set[int]) -> Iterator[Trace]:
    """Record, while the model runs, what enters `layers` and how the last block is called."""
    trace = Trace(layers)
    last = blocks[-1]

    def see_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _, trace.call = split_call(args, kwargs)

    def see_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        trace.last_output = output

    def see_input(layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            trace.block_inputs[layer] = split_call(args, kwargs)[0]

        return hook

    handles = [
        last.register_forward_pre_hook(see_call, with_kwargs=True),
        last.register_forward_hook(see_output),
    ]
    handles += [
        blocks[layer].register_forward_pre_hook(see_input(layer), with_kwargs=True)
        for layer in layers
        if layer < len(blocks)
    ]
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def unwatch(model: nn.Module) -> None:
    """Take the hooks of `traced` off a copy of a model that was watched when it was copied."""
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for number in [n for n, hook in hooks.items() if _is_ours(hook)]:
                del hooks[number]
                module._forward_pre_hooks_with_kwargs.pop(number, None)


def _is_ours(hook: Any) -> bool:
    return getattr(hook, "__module__", None) == __name__


@dataclass
class Recorder:
    """Keeps the last call that a stand-in received, and knows how the family's blocks answer.

    Attributes:
        answers: with how many things; 0: with their hidden state, bare.
    """

    answers: int
    call: BlockCall | None = None

    def take(self) -> BlockCall | None:
        """The call, which is not kept: it holds a cache."""
        call, self.call = self.call, None
        return call


class StandIn(nn.Module):
    """Takes a block's place in a rehearsal: same attributes, no work."""

    def __init__(self, block: nn.Module, recorder: Recorder) -> None:
        super().__init__()
        self.__dict__["_block"] = block
        self.__dict__["_recorder"] = recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden, self._recorder.call = split_call(args, kwargs)
        beside = self._recorder.answers - 1
        return hidden if beside < 0 else (hidden, *[None] * beside)


def with_stand_ins(module: nn.Module, stand_ins: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """A copy of `module` that shares every part with it but those in `stand_ins`, by identity."""
    copied = copy.copy(module)
    for hooked in ("forward", "_hf_hook"):  # accelerate's, bound to the module itself
        copied.__dict__.pop(hooked, None)
    copied._modules = {
        name: child and _stand_in(child, stand_ins) for name, child in module._modules.items()
    }
    return copied


def _stand_in(child: nn.Module, stand_ins: Mapping[nn.Module, nn.Module]) -> nn.Module:
    if child in stand_ins:
        return stand_ins[child]
    if any(part in stand_ins for part in child.modules()):
        return with_stand_ins(child, stand_ins)
    return child


CACHE_KEYWORDS = ("cache", "past_key_values", "cache_params")
"""What transformers calls a cache that is handed to a decoder: `cache` from 5.24 on."""


def cache_keyword(decoder: nn.Module) -> str:
    """The name under which `decoder` takes a cache; the newest where it tells none."""
    taken = inspect.signature(type(decoder).forward).parameters
    return next((name for name in CACHE_KEYWORDS if name in taken), CACHE_KEYWORDS[0])


def split_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, BlockCall]:
    """A block's hidden state, and the rest of its call."""
    if args:
        return args[0], BlockCall(args[1:], dict(kwargs))
    rest = dict(kwargs)
    return rest.pop("hidden_states"), BlockCall((), rest)


def hidden_of(output: Any) -> Tensor:
    """The hidden state of what a block returns: a tensor, or a tuple that begins with it."""
    return cast(Tensor, output[0] if isinstance(output, (tuple, list)) else output)
