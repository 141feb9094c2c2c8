"""EAGLE-3's layout (Li et al. 2025, arXiv 2503.01840): a wide block on fused states.

vLLM 0.32, `llama_eagle3.py`: `fc` reads three residual states of the backbone (the streams entering
the layers that the config names, 2, L//2 and L−3 unless it does); attention reads the normed
embedding and the normed state side by side; the stream is handed on, before `norm`; an output head
of its own, here the backbone's, or its rows of the tokens that can be drafted.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foretell.errors import CheckpointError
from foretell.formats.base import EMBEDDING, OUTPUT, Layout, Loaded, chain
from foretell.formats.contract import Chain
from foretell.formats.eagle import Eagle, write_config
from foretell.formats.files import SINGLE, Checkpoint, save_tensors
from foretell.model import MTPModel

PARTS = {
    "hidden_norm.weight": "midlayer.hidden_norm.weight",
    "embedding_norm.weight": "midlayer.input_layernorm.weight",
    "norm.weight": "norm.weight",
}
"""Our names of a module's norms, and theirs."""

FC, TAP = "fc.weight", "tap.projection.weight"
FROM_DRAFT, KNOWN = "d2t", "t2d"
"""Where heads draft some of the tokens: by how much the id of each is more than its place among
them, (V',), and which of all tokens they are, (V,)."""


class Eagle3(Layout):
    """One wide Llama block in a directory of its own."""

    name = "eagle3"
    apart = True
    contract = Chain(
        engine="vLLM 0.32",
        concat="embedding, hidden (into the attention)",
        tap="fused",
        recycle="stream",
        block="wide",
        vocabulary=True,
    )
    serve = (
        "vllm serve {model} --speculative-config "
        """'{{"method": "eagle3", "model": "{out}", "num_speculative_tokens": {depth}}}'"""
    )

    def refusals(self, model: MTPModel, base: Mapping[str, Any]) -> list[str]:
        return Eagle().refusals(model, base)

    def save(self, model: MTPModel, base: Checkpoint, out: Path) -> None:
        module, head = chain(model)[0], model.require_head()
        tensors = {theirs: module[ours] for ours, theirs in PARTS.items()}
        for name, tensor in module.items():
            if name.startswith("block."):
                tensors["midlayer." + name.removeprefix("block.")] = tensor
        tensors[FC] = head.state_dict()[TAP]
        tensors[OUTPUT] = model.backbone.output.weight
        if head.vocabulary is not None:
            tokens = head.vocabulary.tokens
            known = torch.zeros(len(tensors[OUTPUT]), dtype=torch.bool, device=tokens.device)
            tensors |= {
                OUTPUT: tensors[OUTPUT][tokens],
                FROM_DRAFT: tokens - torch.arange(len(tokens), device=tokens.device),
                KNOWN: known.index_fill(0, tokens, True),
            }
        layers = list(head.layers)
        write_config(
            base,
            out,
            architectures=["LlamaForCausalLMEagle3"],
            draft_vocab_size=len(tensors[OUTPUT]),
            num_aux_hidden_states=len(layers),
            eagle_aux_hidden_state_layer_ids=layers,
            eagle_config={"eagle_aux_hidden_state_layer_ids": layers, "use_aux_hidden_state": True},
        )
        save_tensors(tensors, out / SINGLE)

    def recognises(self, base: Checkpoint) -> bool:
        return FC in base.files and any(name.startswith("midlayer.") for name in base.files)

    def load(self, base: Checkpoint) -> Loaded:
        found = base.tensors(lambda name: True)
        tensors = {TAP: found[FC]}
        for ours, theirs in PARTS.items():
            if theirs not in found:
                raise CheckpointError(f"{base.directory}: its EAGLE-3 module lacks {theirs}.")
            tensors[f"chain.0.{ours}"] = found[theirs]
        taken = {FC, OUTPUT, *PARTS.values(), "embed_tokens.weight", FROM_DRAFT, KNOWN}
        for name, tensor in found.items():
            if name.startswith("midlayer.") and name not in taken:
                tensors["chain.0.block." + name.removeprefix("midlayer.")] = tensor
            elif name not in taken:
                raise CheckpointError(f"{base.directory}: {name} is not part of an EAGLE-3 head.")
        shared = {OUTPUT: found[OUTPUT]} if OUTPUT in found else {}
        if "embed_tokens.weight" in found:
            shared[EMBEDDING] = found["embed_tokens.weight"]
        head = self.contract.head(1)
        if (tokens := _drafted(found, base)) is not None:
            head = head.replace(vocabulary=len(tokens))
            tensors["vocabulary.tokens"] = tokens
        return Loaded(head, tensors, shared)

    def owns(self, name: str, base: Checkpoint) -> bool:
        return True


def _drafted(found: Mapping[str, Tensor], base: Checkpoint) -> Tensor | None:
    """The tokens (V',) that a module drafts; None: any.

    Raises:
        CheckpointError: there is no map where the config says that there are fewer, or it is none.
    """
    size, vocab = base.config.get("draft_vocab_size"), base.config.get("vocab_size")
    offsets = found.get(FROM_DRAFT)
    if offsets is None:
        if size not in (None, vocab):
            raise CheckpointError(
                f"{base.directory}: it drafts {size} of {vocab} tokens, and {FROM_DRAFT}, which "
                "says which, is not in it."
            )
        return None
    tokens = offsets.long() + torch.arange(len(offsets))
    if len(tokens) == vocab and not offsets.any():
        return None
    known = found.get(KNOWN)
    alike = known is None or torch.equal(known.bool().nonzero().squeeze(1), tokens)
    if len(tokens) != size or not alike or bool((tokens.diff() <= 0).any()):
        raise CheckpointError(
            f"{base.directory}: {FROM_DRAFT} does not map its {size} drafted tokens to rising ids."
        )
    return tokens
