"""What parameters are: matrices of linear maps, tables, or numbers that scale and shift.

The number of dimensions does not tell: biases of experts, norms of several heads and the parameters
of state-space layers have two or three. A matrix is what states are multiplied by, and the graph
that autograd makes of a small pass shows which parameters those are.

Shapes: B batch, T time.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.autograd.graph import Node

from foretell.model import MTPModel

Role = Literal["matrix", "table", "vector"]
"""A matrix or a stack of them; embeddings and the output head; everything else."""

PRODUCTS = ("mm", "mv", "linear")
"""In the names of products: mm, addmm, bmm, grouped_mm, mv, linear."""
MOVES = (
    *("T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "AsStrided", "Alias"),
    *("Expand", "Unsqueeze", "Squeeze", "Slice", "Select", "Narrow", "Split", "SplitWithSizes"),
    *("Unbind", "Index", "IndexSelect", "Clone", "ToCopy"),
)
"""Operations whose result holds their argument's numbers as they are."""


def roles(model: MTPModel) -> dict[str, Role]:
    """The role of every parameter that learns, by name, tried out on a few tokens."""
    multiplied = {id(parameter) for parameter in _multiplied(model)}
    for module in model.modules():  # experts that no token went to, too
        if isinstance(module, nn.Linear):
            multiplied.add(id(module.weight))
    tables = {id(model.backbone.output.weight)}
    tables |= {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}

    def role(parameter: nn.Parameter) -> Role:
        if id(parameter) in tables:
            return "table"
        return "matrix" if id(parameter) in multiplied and parameter.ndim >= 2 else "vector"

    return {name: role(p) for name, p in model.named_parameters() if p.requires_grad}


def _multiplied(model: MTPModel) -> Iterator[nn.Parameter]:
    """The parameters that states are multiplied by in a pass of backbone and heads."""
    training, backbone = model.training, model.backbone
    model.eval()
    try:
        with torch.enable_grad():
            tokens = torch.arange(8, device=backbone.device).remainder(backbone.vocab_size)[None]
            output = backbone(tokens, layers=model.layers)
            hidden = [] if model.head is None else model.depth_hidden(tokens, output)
    finally:
        model.train(training)
    for node in _nodes(part.grad_fn for part in (output.final, *hidden)):
        name = node.name().lower()
        if any(product in name for product in PRODUCTS):
            for factor, _ in node.next_functions["add" in name :]:  # not what is added
                if (parameter := _parameter(factor)) is not None:
                    yield parameter


def _nodes(starts: Any) -> Iterator[Node]:
    """Every node of the graph after `starts`."""
    waiting = [node for node in starts if node is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        new = {before for before, _ in node.next_functions if before is not None} - seen
        seen |= new
        waiting.extend(new)


def _parameter(node: Any) -> nn.Parameter | None:
    """The parameter whose numbers `node` hands on as they are."""
    while node is not None and not hasattr(node, "variable"):
        if node.name().rstrip("01234").removesuffix("Backward") not in MOVES:
            return None
        node = node.next_functions[0][0]
    return None if node is None else node.variable
