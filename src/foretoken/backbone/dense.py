"""A dense feed-forward network in the place of a mixture of experts.

Shapes: D hidden, F inner width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DenseFeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202), answering as the mixture that it replaces does.

    Args:
        hidden_size: D.
        inner_size: F.
        answers_with_routing: whether the mixture answers with its routing beside the result.
    """

    def __init__(self, hidden_size: int, inner_size: int, answers_with_routing: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, inner_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, inner_size, bias=False)
        self.down_proj = nn.Linear(inner_size, hidden_size, bias=False)
        self.answers_with_routing = answers_with_routing

    def forward(self, hidden: Tensor) -> Any:
        result = self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return (result, None) if self.answers_with_routing else result


def make_dense(block: nn.Module, config: Any) -> None:
    """Replace the mixture of experts in `block`, where it has one.

    The new network is as wide as the experts that one token goes through.
    """
    for name, child in block.named_children():
        if hasattr(child, "experts"):
            width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
            weight = next(child.parameters())
            probe = torch.zeros(1, 1, config.hidden_size, device=weight.device, dtype=weight.dtype)
            with torch.no_grad():
                with_routing = isinstance(child(probe), tuple)
            dense = DenseFeedForward(
                config.hidden_size, width * config.num_experts_per_tok, with_routing
            )
            setattr(block, name, dense.to(weight.device, weight.dtype))
