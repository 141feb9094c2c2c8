"""Numerical marginalization: the multi-token distribution that a next-token model already has.

Mehra, Alonso Garcia and Mauch 2025 (arXiv 2502.09419):

    p(x_{t+1+k} | x_≤t) = Σ_{v_1…v_k} p(v_1 | x_≤t) ⋯ p(v_k | x_≤t, v_<k) · p(x_{t+1+k} | x_≤t,
    v_1…v_k)

The sum runs over the `width` likeliest strings, found depth by depth (a beam); their total
probability is the *covered mass*, and what is not covered is spread evenly over the vocabulary, so
that the result is a distribution. With `width` ≥ V the sum over strings of one token is exact.

All strings of all positions of a row hang on the same prefix, so they are computed as a tree: one
pass over the row, then one pass per depth in which every node sees its own prefix and its own
ancestors.

Shapes: P positions, M strings per position (`width`), K depths, V vocabulary, T row length.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from foretoken.backbone import Backbone
from foretoken.decoding.cache import recurrent_layers
from foretoken.errors import BackboneError, InputError


@dataclass(frozen=True)
class Marginal:
    """What the backbone predicts at one depth.

    Attributes:
        depth: k.
        probabilities: (P, V), each row a distribution.
        covered_mass: (P,), probability of the strings that were summed over; 1 at depth 0.
    """

    depth: int
    probabilities: Tensor
    covered_mass: Tensor


@torch.inference_mode()
def marginalize(
    backbone: Backbone, tokens: Tensor, positions: Tensor, depth: int, width: int
) -> Iterator[Marginal]:
    """Yield the distributions of depths 0…`depth` at `positions` of one row.

    Args:
        backbone: the model.
        tokens: (1, T).
        positions: (P,), each 0…T-1; position t predicts x_{t+1+k}.
        depth: K ≥ 0.
        width: M ≥ 1, strings kept per position and depth.

    Raises:
        InputError: `depth` or `width` out of range, or the row longer than a sliding window.
        BackboneError: the backbone's cache is no attention cache, it takes no mask of its own, or
            its logits are not finite.
    """
    if depth < 0 or width < 1:
        raise InputError(f"depth is {depth} and width {width}; use depth ≥ 0 and width ≥ 1.")
    if kinds := recurrent_layers(backbone):
        raise BackboneError(
            f"{type(backbone.model).__name__} cannot be marginalized: its cache has "
            f"{', '.join(kinds)}, which cannot follow many strings at once."
        )
    _require_whole_window(backbone, tokens.shape[1] + depth)
    cache = DynamicCache()
    output = backbone(tokens, cache=cache)
    probabilities = _distribution(backbone, output.final[0, positions])  # (P, V)
    mass = torch.ones(len(positions), device=tokens.device)
    yield Marginal(0, probabilities, mass)

    strings = torch.ones(len(positions), 1, device=tokens.device)  # (P, M): their probabilities
    following = probabilities.unsqueeze(1)  # (P, M, V): what follows each of them
    visible = _prefixes(positions, tokens.shape[1])  # (P·M, cache): what each of them sees
    for k in range(1, depth + 1):
        joint = (strings.unsqueeze(-1) * following).flatten(1)  # (P, M·V)
        strings, picked = joint.topk(min(width, joint.shape[1]))
        parents, leaves = picked // following.shape[-1], picked % following.shape[-1]
        rows = torch.arange(len(positions), device=tokens.device).unsqueeze(1) * following.shape[1]
        ancestors = visible[(rows + parents).flatten()]  # (P·M', cache)
        itself = torch.eye(len(ancestors), dtype=torch.bool, device=tokens.device)
        visible = torch.cat([ancestors, itself], dim=1)
        try:
            output = backbone(
                leaves.reshape(1, -1),
                attention_mask=_as_mask(visible, backbone),
                position_ids=(positions + k).repeat_interleave(leaves.shape[1]).unsqueeze(0),
                cache=cache,
            )
        except ValueError:  # Falcon builds its ALiBi from a mask of ones and zeros
            raise BackboneError(
                f"{type(backbone.model).__name__} cannot be marginalized: "
                "it takes no attention mask of one row per token."
            ) from None
        following = _distribution(backbone, output.final[0]).unflatten(0, leaves.shape)
        mass = strings.sum(1)
        mixture = torch.einsum("pm,pmv->pv", strings, following)
        rest = (1.0 - mixture.sum(1, keepdim=True)).clamp(min=0.0)
        yield Marginal(k, mixture + rest / mixture.shape[1], mass)


def _distribution(backbone: Backbone, final: Tensor) -> Tensor:
    probabilities = backbone.unembed(final).float().softmax(-1)
    if not bool(torch.isfinite(probabilities).all()):
        raise BackboneError("the model's logits are not finite; check its weights and type.")
    return probabilities


def _prefixes(positions: Tensor, length: int) -> Tensor:
    """(P, T): position t sees the row up to and with itself."""
    return torch.arange(length, device=positions.device) <= positions.unsqueeze(1)


def _as_mask(visible: Tensor, backbone: Backbone) -> Tensor:
    """(Q, S) → (1, 1, Q, S) additive, which every attention implementation understands."""
    mask = torch.zeros(visible.shape, dtype=backbone.dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(backbone.dtype).min)[None, None]


def _require_whole_window(backbone: Backbone, length: int) -> None:
    """A mask given whole knows no sliding window: rows must fit into it."""
    window = getattr(backbone.config, "sliding_window", None)
    if window is not None and length > window:
        raise InputError(
            f"rows of {length} tokens are longer than the model's sliding window of {window}; "
            "use shorter blocks."
        )
