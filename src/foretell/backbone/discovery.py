"""How a model's anatomy is learned from one small pass.

Shapes: B batch, T time, D hidden, V vocabulary, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foretell.backbone.anatomy import Anatomy, Scale, cannot_carry, name_of
from foretell.backbone.calls import hidden_of, traced
from foretell.backbone.trying import evaluating, same, told
from foretell.backbone.weights import PLAIN, require_usable
from foretell.errors import BackboneError


@dataclass(frozen=True)
class Discovery:
    """What one pass showed.

    Attributes:
        anatomy: as it was learned, and not proved yet.
        tokens: (B, T) of the pass.
        logits: (B, T, V) that the model gave.
    """

    anatomy: Anatomy
    tokens: Tensor
    logits: Tensor


def discover(model: PreTrainedModel) -> Discovery:
    """Run `model` on a few random tokens, and see where its parts lie and how they are scaled.

    Raises:
        BackboneError: it lacks a property that heads need; the message says which.
    """
    require_usable(model)
    if getattr(model.config, "is_encoder_decoder", False):
        raise BackboneError(
            f"{name_of(model)} is an encoder-decoder; a decoder-only causal LM is needed."
        )
    parts = Anatomy(model, *find_blocks(model))
    for table in (parts.embedding, parts.output):
        if table.weight.dtype not in PLAIN:
            raise cannot_carry(
                model,
                f"its {type(table).__name__} is packed ({table.weight.dtype}); leave embeddings "
                "and the output head unquantised",
            )
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, parts.vocab_size, (2, 6), generator=generator).to(parts.device)
    with evaluating(model):
        return _learn(parts, tokens)


def find_blocks(model: PreTrainedModel) -> tuple[str, str, int]:
    """The path of the module that holds the decoder blocks, their list's name in it, and L."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for path, holder in model.named_modules():
        for name, child in holder.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return path, name, len(child)
    raise cannot_carry(
        model, f"it has no list of {count} decoder blocks (num_hidden_layers of its config)"
    )


def _learn(parts: Anatomy, tokens: Tensor) -> Discovery:
    model, output_embedding = parts.model, parts.output
    seen: list[tuple[nn.Module, Any, Tensor]] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            seen.append((module, args[0] if args else None, output))

    outside = [module for module in parts.decoder.children() if module is not parts.blocks]
    handles = [m.register_forward_hook(note) for m in {*outside, parts.embedding, output_embedding}]
    try:
        with traced(parts.blocks, {0, parts.num_layers - 1}) as trace:
            logits = _logits(model, tokens)
    finally:
        for handle in handles:
            handle.remove()
    if not bool(torch.isfinite(logits).all()):
        raise BackboneError(
            f"the logits of {name_of(model)} are not finite; check its weights and type."
        )
    if trace.call is None or trace.last_output is None or 0 not in trace.block_inputs:
        raise cannot_carry(model, "a forward pass does not go through its list of decoder blocks")
    output_calls = [(given, raw) for module, given, raw in seen if module is output_embedding]
    if not output_calls:
        raise cannot_carry(model, "a forward pass does not call its output embedding")
    final, raw = output_calls[-1]
    bare = isinstance(trace.last_output, Tensor)
    norm_name = _final_norm(parts, seen, hidden_of(trace.last_output), final)
    embed_scale = _embed_scale(parts, tokens, trace.block_inputs[0])
    logit_scale, softcap = _logit_scale(parts, raw, logits)
    anatomy = replace(
        parts,
        norm_name=norm_name,
        embed_scale=embed_scale,
        logit_scale=logit_scale,
        softcap=softcap,
        answers=0 if bare else len(trace.last_output),
    )
    return Discovery(anatomy, tokens, logits)


def _logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """What the model says of them; its own code may raise anything."""
    try:
        return cast(Tensor, model(input_ids=tokens, use_cache=False).logits)
    except Exception as error:
        raise cannot_carry(model, f"a forward pass raises {told(error)}") from error


def _final_norm(
    parts: Anatomy, seen: Sequence[Any], last_output: Tensor, final: Tensor
) -> str | None:
    """Its name in the decoder; None where there is none."""
    names = {module: name for name, module in parts.decoder.named_children()}
    for module, given, output in seen:
        if given is last_output and module in names and same(output, final):
            return names[module]
    if same(last_output, final):
        return None
    raise cannot_carry(
        parts.model, "something else than one norm lies between the last block and the output head"
    )


def _embed_scale(parts: Anatomy, tokens: Tensor, entering: Tensor) -> Scale:
    """The first block reads scale * embedding, plus positions that no token changes."""
    raw = cast(Tensor, parts.embedding(tokens))
    if raw.shape != entering.shape:
        raise cannot_carry(parts.model, "the embedding is not as wide as the blocks")
    if (scale := Scale.between(raw, entering, parts.config)) is not None:
        return scale
    flipped = tokens.flip(0)
    positions = entering - raw
    with traced(parts.blocks, {0}) as trace:
        parts.model(input_ids=flipped, use_cache=False)
    if not same(cast(Tensor, parts.embedding(flipped)) + positions, trace.block_inputs[0]):
        raise cannot_carry(
            parts.model, "what enters its first block is not the scaled embedding plus positions"
        )
    return Scale()


def _logit_scale(parts: Anatomy, raw: Tensor, logits: Tensor) -> tuple[Scale, float | None]:
    """From the output embedding to the logits: a scale, or a soft cap."""
    # Caps first: small logits pass them almost unbent, and would look like no cap at all.
    for cap in _caps(parts.config):
        if same(torch.tanh(raw / cap) * cap, logits):
            return Scale(), cap
    if (scale := Scale.between(raw, logits, parts.config)) is not None:
        return scale, None
    raise cannot_carry(
        parts.model, "its logits are neither scaled nor soft-capped outputs of its output embedding"
    )


def _caps(config: Any) -> list[float]:
    """What a config says of soft caps on logits; those of attention and routers are others."""
    others = ("att", "router", "gate")
    return [
        float(value)
        for name, value in vars(config).items()
        if "cap" in name and not any(other in name for other in others)
        if type(value) in (int, float) and value > 0
    ]
