"""EAGLE-3's block: an attention that reads an embedding and a hidden state side by side.

Li et al. 2025, "EAGLE-3" (arXiv 2503.01840), as its authors' released code and the engines have it:
queries, keys and values are computed from both (2D), their result joins the hidden state's stream,
and the rest of the block is as usual. Queries and keys have no norms.

Shapes: B batch, T time, D hidden.
"""

from typing import Any, cast

from torch import Tensor, nn

from foretell.errors import BackboneError

PARTS = ("self_attn", "mlp", "post_attention_layernorm")
INPUTS = ("q_proj", "k_proj", "v_proj")


class WideBlock(nn.Module):
    """A block of a Llama-shaped model, widened.

    Args:
        block: a decoder block, whose parts are taken.

    Raises:
        BackboneError: it is not Llama-shaped.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        children = dict(block.named_children())
        attention = children.get("self_attn")
        found = {*children, *(dict(attention.named_children()) if attention else ())}
        missing = [name for name in (*PARTS, *INPUTS) if name not in found]
        extra = children.keys() - {*PARTS, "input_layernorm"}
        if missing or extra or attention is None:
            name = ", ".join(missing) or ", ".join(sorted(extra))
            raise BackboneError(
                f"{type(block).__name__} cannot be widened: it is not Llama-shaped ({name}); "
                "use block 'same'."
            )
        for name in INPUTS:
            setattr(attention, name, _wider(cast(nn.Linear, getattr(attention, name))))
        for name in ("q_norm", "k_norm"):
            if hasattr(attention, name):
                setattr(attention, name, nn.Identity())
        self.self_attn: Any = attention
        self.mlp: Any = children["mlp"]
        self.post_attention_layernorm: Any = children["post_attention_layernorm"]

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(B, T, 3D), what attention reads and the stream it joins, → (B, T, D)."""
        size = hidden.shape[-1] // 3
        read, stream = hidden.split((2 * size, size), dim=-1)
        stream = stream + self.self_attn(read, *args, **kwargs)[0]
        return cast(Tensor, stream + self.mlp(self.post_attention_layernorm(stream)))


def _wider(layer: nn.Linear) -> nn.Linear:
    """A new layer that reads twice as much, without a bias."""
    weight = layer.weight
    return nn.Linear(
        2 * layer.in_features,
        layer.out_features,
        bias=False,
        device=weight.device,
        dtype=weight.dtype,
    )
