"""Tiny random models of many transformers families, built from configs alone (no downloads).

Every model is float32, in eval mode, fixed by its seed, and never stops early: it has no eos, bos
or pad token. There is no dropout, so training mode is deterministic too. Matrices are drawn wide
enough that greedy output varies, and every norm weight and bias is moved off its trivial initial
value, so code that forgets one is caught.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

import foretell as ft
from foretell.backbone import abilities
from foretell.errors import ForetellError

VOCAB = 101
HIDDEN = 64
LAYERS = 4
HEADS = 4
HEAD_DIM = HIDDEN // HEADS
WINDOW = 16
POSITIONS = 512
STD = 0.2

NO_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
BASE: dict[str, Any] = {
    **NO_TOKENS,
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "initializer_range": STD,
}
DENSE: dict[str, Any] = {
    **BASE,
    "intermediate_size": 96,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
}
LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": HEAD_DIM,
    "linear_value_head_dim": HEAD_DIM,
    "linear_conv_kernel_dim": 4,
}
ALTERNATING = ["sliding_attention", "full_attention"] * (LAYERS // 2)
HYBRID = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]

FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {}

OTHERS: dict[str, Callable[[], PreTrainedConfig]] = {}
"""With something odd about them, for the tests that name them."""

Make = Callable[[], PreTrainedConfig]


def _config(cls: str, *parts: dict[str, Any], **kwargs: Any) -> PreTrainedConfig:
    """An instance of the transformers config class named `cls`; later parts win."""
    merged: dict[str, Any] = {}
    for part in (*parts, kwargs):
        merged.update(part)
    config = getattr(transformers, cls)(**merged)
    assert isinstance(config, PreTrainedConfig)
    return config


def _family(name: str) -> Callable[[Make], Make]:
    def register(make: Make) -> Make:
        FAMILIES[name] = make
        return make

    return register


def _other(name: str) -> Callable[[Make], Make]:
    def register(make: Make) -> Make:
        OTHERS[name] = make
        return make

    return register


@_family("llama")
def _llama() -> PreTrainedConfig:
    return _config("LlamaConfig", DENSE)


@_family("mistral")
def _mistral() -> PreTrainedConfig:
    return _config("MistralConfig", DENSE, sliding_window=WINDOW, head_dim=HEAD_DIM)


@_family("qwen2")
def _qwen2() -> PreTrainedConfig:
    return _config("Qwen2Config", DENSE)


@_family("qwen3")
def _qwen3() -> PreTrainedConfig:
    return _config("Qwen3Config", DENSE, head_dim=HEAD_DIM)


@_family("gemma2")
def _gemma2() -> PreTrainedConfig:
    return _config(
        "Gemma2Config",
        DENSE,
        head_dim=HEAD_DIM,
        query_pre_attn_scalar=24,
        sliding_window=WINDOW,
        layer_types=list(ALTERNATING),
        final_logit_softcapping=30.0,
        attn_logit_softcapping=5.0,
    )


@_family("gemma3_text")
def _gemma3_text() -> PreTrainedConfig:
    return _config(
        "Gemma3TextConfig",
        DENSE,
        head_dim=HEAD_DIM,
        query_pre_attn_scalar=24,
        sliding_window=WINDOW,
        layer_types=list(ALTERNATING),
    )


@_family("phi3")
def _phi3() -> PreTrainedConfig:
    return _config("Phi3Config", DENSE, original_max_position_embeddings=POSITIONS)


@_family("olmo2")
def _olmo2() -> PreTrainedConfig:
    return _config("Olmo2Config", DENSE)


@_family("granite")
def _granite() -> PreTrainedConfig:
    return _config(
        "GraniteConfig",
        DENSE,
        embedding_multiplier=6.0,
        logits_scaling=3.0,
        residual_multiplier=0.7,
        attention_multiplier=0.2,
    )


@_family("cohere")
def _cohere() -> PreTrainedConfig:
    return _config("CohereConfig", DENSE, logit_scale=0.25)


@_family("gpt_neox")
def _gpt_neox() -> PreTrainedConfig:
    return _config(
        "GPTNeoXConfig",
        BASE,
        intermediate_size=96,
        num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS,
    )


@_family("gpt2")
def _gpt2() -> PreTrainedConfig:
    return _config(
        "GPT2Config",
        NO_TOKENS,
        vocab_size=VOCAB,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=POSITIONS,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        initializer_range=STD,
    )


@_family("falcon")
def _falcon() -> PreTrainedConfig:
    return _config(
        "FalconConfig",
        BASE,
        num_attention_heads=HEADS,
        num_kv_heads=2,
        new_decoder_architecture=True,
        alibi=False,
        max_position_embeddings=POSITIONS,
    )


@_family("falcon_alibi")
def _falcon_alibi() -> PreTrainedConfig:
    return _config(
        "FalconConfig",
        BASE,
        num_attention_heads=HEADS,
        new_decoder_architecture=False,
        multi_query=False,
        parallel_attn=False,
        bias=True,
        alibi=True,
        max_position_embeddings=POSITIONS,
    )


@_family("opt")
def _opt() -> PreTrainedConfig:
    return _config(
        "OPTConfig",
        NO_TOKENS,
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        word_embed_proj_dim=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        ffn_dim=96,
        max_position_embeddings=POSITIONS,
        init_std=STD,
        dropout=0.0,
    )


@_family("mixtral")
def _mixtral() -> PreTrainedConfig:
    return _config("MixtralConfig", DENSE, num_local_experts=4, num_experts_per_tok=2)


@_family("qwen3_moe")
def _qwen3_moe() -> PreTrainedConfig:
    return _config(
        "Qwen3MoeConfig",
        DENSE,
        head_dim=HEAD_DIM,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        mlp_only_layers=[1],
        norm_topk_prob=True,
    )


@_family("olmoe")
def _olmoe() -> PreTrainedConfig:
    return _config("OlmoeConfig", DENSE, num_experts=4, num_experts_per_tok=2)


@_family("deepseek_v3")
def _deepseek_v3() -> PreTrainedConfig:
    return _config(
        "DeepseekV3Config",
        DENSE,
        num_key_value_heads=HEADS,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        q_lora_rank=24,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
    )


@_family("qwen3_next")
def _qwen3_next() -> PreTrainedConfig:
    return _config(
        "Qwen3NextConfig",
        DENSE,
        LINEAR,
        head_dim=HEAD_DIM,
        layer_types=list(HYBRID),
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    )


@_family("qwen3_5_text")
def _qwen3_5_text() -> PreTrainedConfig:
    return _config("Qwen3_5TextConfig", DENSE, LINEAR, head_dim=HEAD_DIM, layer_types=list(HYBRID))


@_family("glm4")
def _glm4() -> PreTrainedConfig:
    return _config("Glm4Config", DENSE, head_dim=HEAD_DIM, attention_bias=True)


@_family("glm4_moe")
def _glm4_moe() -> PreTrainedConfig:
    return _config(
        "Glm4MoeConfig",
        DENSE,
        head_dim=HEAD_DIM,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        use_qk_norm=True,
    )


@_family("gpt_oss")
def _gpt_oss() -> PreTrainedConfig:
    return _config(
        "GptOssConfig",
        DENSE,
        intermediate_size=48,
        head_dim=HEAD_DIM,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
        layer_types=list(ALTERNATING),
    )


@_family("smollm3")
def _smollm3() -> PreTrainedConfig:
    # One layer without rotary embedding, as in the published models.
    return _config("SmolLM3Config", DENSE, no_rope_layers=[1, 1, 1, 0])


@_family("starcoder2")
def _starcoder2() -> PreTrainedConfig:
    return _config("Starcoder2Config", DENSE, sliding_window=WINDOW)


@_family("stablelm")
def _stablelm() -> PreTrainedConfig:
    return _config("StableLmConfig", DENSE, use_qkv_bias=True)


@_family("ernie4_5")
def _ernie4_5() -> PreTrainedConfig:
    return _config("Ernie4_5Config", DENSE, head_dim=HEAD_DIM, use_bias=True)


@_family("exaone4")
def _exaone4() -> PreTrainedConfig:
    return _config("Exaone4Config", DENSE, sliding_window=WINDOW, layer_types=list(ALTERNATING))


@_family("bloom")
def _bloom() -> PreTrainedConfig:
    return _config(
        "BloomConfig",
        NO_TOKENS,
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        initializer_range=STD,
    )


@_family("mamba")
def _mamba() -> PreTrainedConfig:
    return _config("MambaConfig", BASE, state_size=8, conv_kernel=4, expand=2)


@_family("lfm2")
def _lfm2() -> PreTrainedConfig:
    return _config(
        "Lfm2Config",
        DENSE,
        block_auto_adjust_ff_dim=False,
        layer_types=["conv", "full_attention", "conv", "full_attention"],
    )


@_family("lfm2_conv")
def _lfm2_conv() -> PreTrainedConfig:
    """As its released models: the last block, and so every block of heads, is recurrent."""
    config = _lfm2()
    config.layer_types = config.layer_types[::-1]
    return config


@_other("gpt_neo")
def _gpt_neo() -> PreTrainedConfig:
    """Its blocks keep their place in the list as `layer_id`."""
    return _config(
        "GPTNeoConfig",
        NO_TOKENS,
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_layers=LAYERS,
        num_heads=HEADS,
        intermediate_size=96,
        max_position_embeddings=POSITIONS,
        attention_types=[[["global", "local"], LAYERS // 2]],
        window_size=WINDOW,
        initializer_range=STD,
    )


@_other("mpt")
def _mpt() -> PreTrainedConfig:
    """Its ALiBi goes by slots."""
    return _config(
        "MptConfig",
        NO_TOKENS,
        vocab_size=VOCAB,
        d_model=HIDDEN,
        n_layers=LAYERS,
        n_heads=HEADS,
        max_seq_len=POSITIONS,
        initializer_range=STD,
    )


def _llama4(**kwargs: Any) -> PreTrainedConfig:
    return _config(
        "Llama4TextConfig",
        DENSE,
        head_dim=HEAD_DIM,
        intermediate_size_mlp=96,
        num_local_experts=2,
        attention_chunk_size=WINDOW,
        no_rope_layers=[1, 0] * (LAYERS // 2),
        layer_types=["chunked_attention", "full_attention"] * (LAYERS // 2),
        **kwargs,
    )


@_other("llama4_text")
def _llama4_text() -> PreTrainedConfig:
    """Some of its layers see no further than their chunk."""
    return _llama4()


@_other("llama4_tempered")
def _llama4_tempered() -> PreTrainedConfig:
    """And others change their temperature with the slot, from 20 tokens on."""
    return _llama4(floor_scale=20)


@_other("glm_moe_dsa")
def _glm_moe_dsa() -> PreTrainedConfig:
    """Its cache has keys of another kind, by which its attention picks what it sees."""
    return _config(
        "GlmMoeDsaConfig",
        DENSE,
        num_key_value_heads=HEADS,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        q_lora_rank=24,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
        index_n_heads=2,
        index_head_dim=16,
        index_topk=64,
    )


@_other("lfm3")
def _lfm3() -> PreTrainedConfig:
    """A recurrent state beside sliding windows."""
    kinds = ["conv", "full_attention", "sliding_attention", "conv"]
    return _config("Lfm3Config", DENSE, head_dim=HEAD_DIM, sliding_window=WINDOW, layer_types=kinds)


@_other("falcon_h1")
def _falcon_h1() -> PreTrainedConfig:
    """Keys and values and a recurrent state in one and the same layer."""
    return _config(
        "FalconH1Config",
        DENSE,
        head_dim=HEAD_DIM,
        mamba_d_ssm=2 * HIDDEN,
        mamba_n_heads=8,
        mamba_d_head=16,
        mamba_n_groups=1,
        mamba_d_state=8,
        mamba_chunk_size=16,
    )


def _gemma4(**kwargs: Any) -> PreTrainedConfig:
    return _config(
        "Gemma4TextConfig",
        DENSE,
        head_dim=HEAD_DIM,
        global_head_dim=HEAD_DIM,
        sliding_window=WINDOW,
        layer_types=list(ALTERNATING),
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCAB,
        **kwargs,
    )


@_other("gemma4_text")
def _gemma4_text() -> PreTrainedConfig:
    """Its blocks read inputs of their own, made from the tokens."""
    return _gemma4(num_kv_shared_layers=0)


@_other("gemma4_shared")
def _gemma4_shared() -> PreTrainedConfig:
    """Its last blocks read keys and values of earlier ones."""
    return _gemma4(num_kv_shared_layers=2)


@_other("zamba2")
def _zamba2() -> PreTrainedConfig:
    """Its blocks read the embeddings beside the hidden state."""
    return _config(
        "Zamba2Config",
        DENSE,
        num_key_value_heads=HEADS,
        attention_head_dim=2 * HIDDEN // HEADS,
        n_mamba_heads=8,
        mamba_d_state=8,
        mamba_ngroups=1,
        chunk_size=16,
        layers_block_type=["mamba", "hybrid"] * (LAYERS // 2),
        num_mem_blocks=1,
        use_mem_rope=True,
    )


@_other("jetmoe")
def _jetmoe() -> PreTrainedConfig:
    return _config(
        "JetMoeConfig",
        DENSE,
        kv_channels=HEAD_DIM,
        num_local_experts=4,
        num_experts_per_tok=2,
        num_key_value_heads=2,
    )


@_other("dbrx")
def _dbrx() -> PreTrainedConfig:
    return _config(
        "DbrxConfig",
        NO_TOKENS,
        vocab_size=VOCAB,
        d_model=HIDDEN,
        n_heads=HEADS,
        n_layers=LAYERS,
        max_seq_len=POSITIONS,
        attn_config={"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        ffn_config={
            "hidden_size": HIDDEN,
            "ffn_hidden_size": 32,
            "moe_num_experts": 4,
            "moe_top_k": 2,
        },
    )


def _granite_hybrid(**kwargs: Any) -> PreTrainedConfig:
    return _config(
        "GraniteMoeHybridConfig",
        DENSE,
        layer_types=["attention"] * LAYERS,
        shared_intermediate_size=32,
        **kwargs,
    )


@_other("granite_hybrid")
def _granite_hybrid_experts() -> PreTrainedConfig:
    return _granite_hybrid(num_local_experts=4, num_experts_per_tok=2)


@_other("granite_hybrid_dense")
def _granite_hybrid_dense() -> PreTrainedConfig:
    """A class for experts, without any."""
    return _granite_hybrid(num_local_experts=0)


@_other("doge")
def _doge() -> PreTrainedConfig:
    """Another class for experts, without any."""
    return _config("DogeConfig", DENSE, is_moe=False)


@_other("cohere_normed")
def _cohere_normed() -> PreTrainedConfig:
    """Norms with a row of weights for every attention head."""
    return _config("CohereConfig", DENSE, use_qk_norm=True)


@_other("marian")
def _marian() -> PreTrainedConfig:
    """Its cross-entropy is of its own making, and takes labels that are shifted by then."""
    return _config(
        "MarianConfig",
        NO_TOKENS,
        vocab_size=VOCAB,
        decoder_vocab_size=VOCAB,
        num_hidden_layers=LAYERS,
        decoder_start_token_id=0,
        tie_word_embeddings=False,
        d_model=HIDDEN,
        decoder_layers=LAYERS,
        decoder_attention_heads=HEADS,
        decoder_ffn_dim=96,
        max_position_embeddings=POSITIONS,
        dropout=0.0,
        is_decoder=True,
        is_encoder_decoder=False,
    )


@_other("bamba")
def _bamba() -> PreTrainedConfig:
    """Its own loss keeps logits small; most of its blocks keep a state."""
    return _config(
        "BambaConfig",
        DENSE,
        attn_layer_indices=[1, 3],
        mamba_n_heads=8,
        mamba_d_head=16,
        mamba_d_state=8,
        mamba_n_groups=1,
        mamba_chunk_size=16,
        z_loss_coefficient=0.1,
    )


@_other("recurrent_gemma")
def _recurrent_gemma() -> PreTrainedConfig:
    """Its logits are capped under another name; its blocks keep a recurrent state of their own."""
    return _config(
        "RecurrentGemmaConfig",
        DENSE,
        lru_width=HIDDEN,
        attention_window_size=WINDOW,
        logits_soft_cap=2.0,
        block_types=["recurrent", "attention"],
    )


def _randomise(model: PreTrainedModel) -> None:
    """Move norms and biases off their initial values; stop a tied head from echoing its input."""
    with torch.no_grad():
        params = sorted(model.named_parameters())
        scores = [
            b for b in sorted(model.named_buffers()) if b[0].endswith("score_correction_bias")
        ]
        for key, tensor in params + scores:
            if tensor.ndim == 1 or key.endswith("bias"):  # expert biases are matrices
                tensor.add_(0.1 * torch.randn_like(tensor))
        head: Any = model.get_output_embeddings
        if head().weight is model.get_input_embeddings().weight:
            # A tied head favours the token just read; a final norm of mixed signs undoes that.
            final_norm = [
                module
                for key, module in model.named_modules()
                if type(module).__name__.endswith("Norm")
                and not any(map(str.isdigit, key.split(".")))
            ][-1]
            weight = final_norm.weight
            assert isinstance(weight, torch.Tensor)
            offset = 1.0 if type(final_norm).__name__.startswith("Gemma") else 0.0
            weight.copy_(1.5 * torch.randn_like(weight) - offset)


_prototypes: dict[str, tuple[PreTrainedModel, dict[Any, Any]]] = {}
"""What is copied, and what it is able to do."""


def build(name: str, seed: int = 0, **fields: Any) -> PreTrainedModel:
    """The model of family `name`, its weights fixed by `seed`; the global RNG is left alone.

    `fields` of its config are set to other values than the family's own. Every call gives a copy of
    its own; what it is able to do was tried out on another copy, once, as that takes longer than
    most tests. `forget_abilities` has it tried again, which a test needs that changes the model.
    """
    config = {**FAMILIES, **OTHERS}[name]()
    for field, value in fields.items():
        setattr(config, field, value)
    asked = f"{name} {seed} {config.to_json_string(use_diff=False)}"  # tests change what makes it
    if asked not in _prototypes:
        prototype = _prototype(config, seed)
        _prototypes[asked] = prototype, _tried_out(prototype)
    prototype, known = _prototypes[asked]
    model = copy.deepcopy(prototype)
    abilities._known[model] = {**known}
    return model


def _tried_out(prototype: PreTrainedModel) -> dict[Any, Any]:
    """Of everything that `attach` asks for, tried on a copy."""
    scratch, before = copy.deepcopy(prototype), logging.root.manager.disable
    logging.disable(logging.WARNING)  # tests look at what is logged for their own models
    with torch.random.fork_rng(devices=[]):
        for head in ("sequential", "parallel"):
            with suppress(ForetellError):
                ft.attach(scratch, head, depth=1)
    logging.disable(before)
    return abilities._known.pop(scratch, {})


def _prototype(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    from_config: Any = AutoModelForCausalLM.from_config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = from_config(config, dtype=torch.float32)
        assert isinstance(model, PreTrainedModel)
        generation: Any = model.generation_config
        generation.update(**NO_TOKENS)  # glm4's config class fills in an eos of its own
        for key, value in NO_TOKENS.items():
            setattr(model.config, key, value)
        _randomise(model)
        model.train(mode=False)
    return model


def moved(model: PreTrainedModel, amount: float, seed: int = 0) -> PreTrainedModel:
    """`model`, its weights moved a little: as a draft model it is right now and then."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.add_(amount * parameter.abs().mean() * torch.randn_like(parameter))
    return model


def prompt(batch: int = 1, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Random token ids of shape (batch, length)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (batch, length), generator=generator)


UNFIT = {"bloom"}
"""Families that are refused: Bloom normalises its embedding."""
