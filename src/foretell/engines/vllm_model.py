"""Heads as a draft model of vLLM, made of vLLM's own layers (vLLM 0.32, V1 model runner).

vLLM calls the model with the final hidden states of the positions it verified and the tokens after
them, samples from what `compute_logits` makes of the last position of each request, and calls it
again for every further token, one position on, with the hidden states that it returned.

Sequential heads are made for that. Parallel heads know all depths after the first call: they keep
what the others say, recognise their own answer when it is handed back, and answer with the next
depth. Heads without blocks have no past; vLLM's `medusa` method asks for all depths at once.

Shapes: N positions of all requests, R requests, D hidden, K depths.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix

RECOGNISED = 16
"""Elements of a hidden state by which a row is recognised."""


class Attention(LlamaAttention):
    """Llama's, with norms of queries and keys where there are any."""

    def __init__(self, *args: Any, config: Any, **kwargs: Any) -> None:
        super().__init__(*args, config=config, **kwargs)
        self.normed = bool(config.qk_norms)
        if self.normed:
            self.q_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        if self.normed:
            q = self.q_norm(q.reshape(-1, self.head_dim)).view(q.shape)
            k = self.k_norm(k.reshape(-1, self.head_dim)).view(k.shape)
        q, k = self.rotary_emb(positions, q, k)
        output, _ = self.o_proj(self.attn(q, k, v))
        return output  # type: ignore[no-any-return]


class Blocks(nn.Module):
    """Llama-shaped blocks side by side, and the norm after each."""

    def __init__(self, vllm_config: VllmConfig, config: Any, prefix: str) -> None:
        super().__init__()
        count = config.num_hidden_layers
        self.blocks = nn.ModuleList(
            LlamaDecoderLayer(
                vllm_config,
                prefix=f"{prefix}.layers.{config.target_layers + i}",
                config=config,
                attn_layer_type=Attention,
            )
            for i in range(count)
        )
        size, eps = config.hidden_size, config.rms_norm_eps
        self.norms = nn.ModuleList(RMSNorm(size, eps=eps) for _ in range(count))

    def run(self, index: int, hidden: Tensor, positions: Tensor) -> Tensor:
        """(N, D) → (N, D), the stream after block `index`."""
        hidden, residual = self.blocks[index](positions, hidden, None)
        return hidden + residual  # type: ignore[no-any-return]


class Sequential(nn.Module):
    """One module, which vLLM runs step by step."""

    def __init__(self, vllm_config: VllmConfig, config: Any, prefix: str) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.input_norm_eps
        self.hidden_norm = RMSNorm(size, eps=eps)
        self.embedding_norm = RMSNorm(size, eps=eps)
        self.projection = ReplicatedLinear(2 * size, size, bias=False, return_bias=False)
        self.chain = Blocks(vllm_config, config, prefix)
        self.zero_first, self.normed = config.zero_first, config.recycle == "normed"

    def forward(self, hidden: Tensor, embedding: Tensor, positions: Tensor) -> Tensor:
        if self.zero_first:
            embedding = torch.where(positions.unsqueeze(-1) == 0, 0, embedding)
        pair = (self.hidden_norm(hidden), self.embedding_norm(embedding))
        stream = self.chain.run(0, self.projection(torch.cat(pair, dim=-1)), positions)
        return self.chain.norms[0](stream) if self.normed else stream

    def final(self, hidden: Tensor) -> Tensor:
        """What the output head reads of what `forward` returned."""
        return hidden if self.normed else self.chain.norms[0](hidden)


class Kept(nn.Module):
    """Heads that know all depths at once, and say them one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[Tensor] = []  # (N, D) by depth
        self.rows: Tensor | None = None  # (R,) of the requests, once they are known
        self.depth = 0

    def forward(self, hidden: Tensor, embedding: Tensor, positions: Tensor) -> Tensor:
        if self.said and self._handed_back(hidden):
            self.depth = min(self.depth + 1, len(self.said) - 1)
            return self.said[self.depth][self.rows]
        self.said, self.rows, self.depth = self.all_depths(hidden, positions), None, 0
        return self.said[0]

    def all_depths(self, hidden: Tensor, positions: Tensor) -> list[Tensor]:
        """What the output head reads at each depth, (N, D) each."""
        raise NotImplementedError

    def _handed_back(self, hidden: Tensor) -> bool:
        """Whether `hidden` (R, D) is what was said last; finds the rows."""
        if len(hidden) > len(self.said[0]):
            return False
        last = self.said[self.depth]
        last = last if self.rows is None else last[self.rows]
        same = (hidden[:, None, :RECOGNISED] == last[None, :, :RECOGNISED]).all(-1)  # (R, N)
        if not bool(same.any(1)[0]):
            return False
        found = same.int().argmax(1)
        self.rows = found if self.rows is None else self.rows[found]
        return True

    def final(self, hidden: Tensor) -> Tensor:
        """What `forward` returns is what the output head reads."""
        return hidden


class Parallel(Kept):
    """One block per depth on one hidden state."""

    def __init__(self, vllm_config: VllmConfig, config: Any, prefix: str) -> None:
        super().__init__()
        self.chain = Blocks(vllm_config, config, prefix)

    def all_depths(self, hidden: Tensor, positions: Tensor) -> list[Tensor]:
        norms = self.chain.norms
        return [norm(self.chain.run(i, hidden, positions)) for i, norm in enumerate(norms)]


class Stateless(nn.Module):
    """Stacks of h + SiLU(W h + b), or one matrix and a norm (parallel heads, variant linear)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        size, self.linear = config.hidden_size, bool(config.linear)
        self.heads: Any = nn.ModuleList(
            nn.ModuleList(
                ReplicatedLinear(size, size, bias=not self.linear, return_bias=False)
                for _ in range(config.num_hidden_layers)
            )
            for _ in range(config.num_heads)
        )
        if self.linear:
            eps = config.rms_norm_eps
            self.norms = nn.ModuleList(RMSNorm(size, eps=eps) for _ in range(config.num_heads))

    def forward(self, hidden: Tensor) -> list[Tensor]:
        """(R, D) → (R, D) per depth."""
        if self.linear:
            pairs = zip(self.heads, self.norms, strict=True)
            return [norm(*(layer(hidden) for layer in layers)) for layers, norm in pairs]
        return [_stack(layers, hidden) for layers in self.heads]


def _stack(layers: Any, hidden: Tensor) -> Tensor:
    for layer in layers:
        hidden = hidden + F.silu(layer(hidden))
    return hidden


KINDS = {"sequential": Sequential, "parallel": Parallel}


class Inner(nn.Module):
    """The heads, and the embedding that vLLM exchanges for the backbone's."""

    def __init__(self, vllm_config: VllmConfig, config: Any, prefix: str) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.heads = KINDS[config.kind](vllm_config, config, prefix)


class ForetellHeads(nn.Module):
    """The draft model."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        assert vllm_config.speculative_config is not None
        self.config = config = vllm_config.speculative_config.draft_model_config.hf_config
        self.model = Inner(vllm_config, config, maybe_prefix(prefix, "model"))
        self.lm_head: Any = None  # vLLM puts the backbone's here, where it has one
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """With the family's own scaling."""
        embedding: Tensor = self.model.embed_tokens(input_ids)
        scale = float(self.config.embed_scale)
        return embedding / scale if self.config.embed_divides else embedding * scale

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        hidden_states: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        spec_step_idx: int = 0,
    ) -> Tensor:
        """(N, D) of `hidden_states` → (N, D) to be handed back."""
        embedding = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        heads: Any = self.model.heads
        result: Tensor = heads(hidden_states, embedding, positions)
        return result

    def compute_logits(self, hidden_states: Tensor, spec_step_idx: int = 0) -> Tensor:
        """(R, D) → (R, V). Scales and caps are left out: they do not change the largest."""
        output = self.model.embed_tokens if self.lm_head is None else self.lm_head
        heads: Any = self.model.heads
        logits: Tensor = self.logits_processor(output, heads.final(hidden_states))
        return logits

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_stacked={
            ".q_proj": (".qkv_proj", "q"),
            ".k_proj": (".qkv_proj", "k"),
            ".v_proj": (".qkv_proj", "v"),
            ".gate_proj": (".gate_up_proj", 0),
            ".up_proj": (".gate_up_proj", 1),
        }
    )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Every tensor of the directory; the embedding is the backbone's."""
        loaded: set[str] = AutoWeightsLoader(self).load_weights(
            weights, mapper=self.hf_to_vllm_mapper
        )
        return loaded


class ForetellStatelessHeads(nn.Module):
    """Heads without blocks, for the `medusa` method."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        assert vllm_config.speculative_config is not None
        config = vllm_config.speculative_config.draft_model_config.hf_config
        self.config = config
        self.heads = Stateless(config)
        head = maybe_prefix(prefix, "lm_head")
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size, prefix=head)
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def forward(self, hidden_states: Tensor) -> list[Tensor]:
        """(R, D) of the last positions → (R, D) per depth."""
        said: list[Tensor] = self.heads(hidden_states)
        return said

    def compute_logits(self, hidden_states: list[Tensor]) -> list[Tensor]:
        """(R, D) per depth → (R, V) per depth."""
        return [self.logits_processor(self.lm_head, hidden) for hidden in hidden_states]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Every tensor of the directory."""
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights)
        return loaded
