"""A dense feed-forward network in the place of a mixture of experts.

Shapes: D hidden, F inner width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretell.errors import BackboneError


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

    The new network is as wide as the experts that one token goes through, with those that every
    token goes through (shared experts: Dai et al. 2024, "DeepSeekMoE", arXiv 2401.06066).

    Raises:
        BackboneError: its config does not tell how wide that is, or the mixture is no feed-forward
            network.
    """
    for name, child in block.named_children():
        if hasattr(child, "experts"):
            weight = next(child.parameters())
            probe = torch.zeros(1, 1, config.hidden_size, device=weight.device, dtype=weight.dtype)
            try:
                with torch.no_grad():
                    with_routing = isinstance(child(probe), tuple)
            except TypeError:
                raise _refuse(child, "reads more than a hidden state") from None
            dense = DenseFeedForward(config.hidden_size, _active_width(child, config), with_routing)
            setattr(block, name, dense.to(weight.device, weight.dtype))


def _active_width(mixture: nn.Module, config: Any) -> int:
    """The inner width of all experts together that a token goes through."""
    width = getattr(config, "moe_intermediate_size", None)
    width = width or getattr(config, "intermediate_size", None)
    routed = getattr(config, "num_experts_per_tok", None)
    if not (isinstance(width, int) and isinstance(routed, int)):
        raise _refuse(mixture, "does not tell in its config how wide its active experts are")
    shared = [child for name, child in mixture.named_children() if name.startswith("shared")]
    return width * routed + sum(_inner_width(child, config.hidden_size) for child in shared)


def _inner_width(network: nn.Module, hidden_size: int) -> int:
    """What the last matrix of a feed-forward network reads; 0 of a gate, which has none."""
    layers = [child for child in network.children() if isinstance(child, nn.Linear)]
    return max((one.in_features for one in layers if one.out_features == hidden_size), default=0)


def _refuse(mixture: nn.Module, reason: str) -> BackboneError:
    return BackboneError(
        f"no dense network can replace {type(mixture).__name__}, which {reason}; use block 'same'."
    )
