"""Matrix products of passes over a few tokens, in float32 on CPUs.

A pass over the five tokens of a draft reads the same weights as a pass over one, and reading them
is what takes the time. PyTorch leaves these products to MKL, which takes two to four times as long
for five rows as for one all the same. oneDNN, which PyTorch has as well, takes half to four fifths
of that, once the weights are laid out for it (docs/log.md, 2026-11-27). The layout is a copy: with
it, weights take twice their memory.

Shapes: N rows, D in, E out.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import NamedTuple
from weakref import ref

import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import linear as plain
from torch.utils.weak import WeakIdKeyDictionary

LAID_OUT_FOR = 4
"""Rows that oneDNN is told to expect."""

FEWEST, MOST = 2, 32
"""Rows with which a product through a layout is faster: not with one, nor with a whole prompt."""

SMALLEST = 1 << 18
"""Numbers in a weight from which on it is: a call of oneDNN takes some 40 µs, however small."""

SHARE = 0.5
"""Of the memory that is free, what a model's layouts may take; larger models do without."""


class Layout(NamedTuple):
    """A weight as oneDNN reads it fastest.

    Attributes:
        packed: the copy.
        version: of the weight that it is a copy of, as PyTorch counts changes.
        sums: (E,) of that weight's rows: changes to `weight.data` are not counted.
    """

    packed: Tensor
    version: int
    sums: Tensor


_layouts = WeakIdKeyDictionary()
"""By weight."""


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, (…, D) → (…, E), through the weight's layout if it has one."""
    if torch.compiler.is_compiling():
        return torch.ops.foretell.linear(rows, weight, bias)  # type: ignore[no-any-return]
    return _linear(rows, weight, bias)


def lay_out(weights: Iterable[Tensor]) -> None:
    """Lay out those of these weights that gain by it, all or none of them, once.

    Large matrices in float32 on a CPU do. One that changes afterwards is multiplied as if it had no
    layout, until it is laid out anew.
    """
    new = [weight for weight in weights if _gains(weight) and not _current(weight)]
    for weight in new:
        _layouts.pop(weight, None)
    if not new or sum(w.nbytes for w in new) > SHARE * psutil.virtual_memory().available:
        return
    with torch.inference_mode(False), torch.no_grad():
        for weight in new:
            whole = weight.detach().contiguous()
            packed = torch.ops.mkldnn._reorder_linear_weight(whole, LAID_OUT_FOR)
            _layouts[weight] = Layout(packed, weight._version, weight.sum(1))


class Products:
    """The products of some modules, and of all within them.

    Making it lays their weights out.
    """

    def __init__(self, *modules: nn.Module) -> None:
        found = {
            module
            for whole in modules
            for module in whole.modules()
            if type(module) is nn.Linear and "forward" not in vars(module) and _gains(module.weight)
        }
        lay_out({id(module.weight): module.weight for module in found}.values())
        self.modules = [ref(module) for module in found if module.weight in _layouts]

    @contextmanager
    def quick(self) -> Iterator[None]:
        """Multiply through the layouts, within."""
        changed = []
        for known in self.modules:
            if (module := known()) is not None and "forward" not in vars(module):
                vars(module)["forward"] = MethodType(_forward, module)
                changed.append(module)
        try:
            yield
        finally:
            for module in changed:
                vars(module).pop("forward", None)


def _forward(self: nn.Linear, input: Tensor) -> Tensor:
    return linear(input, self.weight, self.bias)


def _gains(weight: Tensor) -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and type(weight) in (Tensor, nn.Parameter)
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.dim() == 2
        and weight.numel() >= SMALLEST
        and not weight.is_inference()  # or nobody counts its changes
    )


@torch.no_grad()
def _current(weight: Tensor) -> bool:
    """Whether the weight is as it was laid out."""
    found = _layouts.get(weight)
    if found is None or found.version != weight._version:
        return False
    return torch.equal(weight.sum(1), found.sums)


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found = _layouts.get(weight)
    if (
        found is None
        or found.version != weight._version
        or not FEWEST <= rows.numel() // weight.shape[1] <= MOST
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
    ):
        return plain(rows, weight, bias)
    return _multiply(rows, found.packed, bias)


def _multiply(rows: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    product = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return product  # type: ignore[no-any-return]


# What is compiled knows it as one operation, since a layout cannot be an argument of a graph.
_library = torch.library.Library("foretell", "DEF")
_library.define("linear(Tensor rows, Tensor weight, Tensor? bias) -> Tensor")
_library.impl("linear", _linear, "CPU")


@torch.library.register_fake("foretell::linear", lib=_library)  # type: ignore[untyped-decorator]
def _(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return rows.new_empty(*rows.shape[:-1], len(weight))
