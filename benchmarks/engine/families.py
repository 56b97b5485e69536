"""Tiny random models of every causal language model with routed experts that the installed transformers has.

A configuration is the family's default with every size made small; what a family needs besides is in `PARTICULARS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

EXPERTS: Final = ("n_routed_experts", "num_local_experts", "moe_num_experts", "num_experts", "ffn_config")
"""What configurations call the number of routed experts, or where they have it."""

SMALL: Final[Mapping[str, Any]] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 40,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    **dict.fromkeys(EXPERTS[:-1], 8),
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "sliding_window": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""For whichever of these a configuration has."""

LATENT: Final = {"num_key_value_heads": 4}
"""Latent attention has as many keys as queries."""
INDEXED: Final = {"index_topk": 8, "index_n_heads": 16, "index_head_dim": 16}
"""With few heads many scores of an indexer are 0, and which of equals are the best depends on a pass's length."""

NARROW: Final = {
    **LATENT,
    **INDEXED,
    "head_dim": 16,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 8,
}
"""Sliding and indexed layers have sizes of their own."""
GEMMA: Final = {
    "global_head_dim": 8,
    "enable_moe_block": True,
    "top_k_experts": 2,
    "hidden_size_per_layer_input": 0,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
GATED: Final = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
COMPRESSED: Final = {
    **GATED,
    "indexer_n_heads": 16,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
CHUNKED: Final = {"intermediate_size_mlp": 40, "attention_chunk_size": 8}
PADDED: Final = {"unpadded_vocab_size": 60, "layer_types": ["hybrid_sliding", "hybrid"] * 2}

PARTICULARS: Final[Mapping[str, Mapping[str, Any]]] = {
    "axk1": LATENT,
    "axk2": LATENT,
    "bailing_hybrid": {**LATENT, "layer_group_size": 2},
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 256,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "deepseek_v32": {**LATENT, **INDEXED},
    "dots3_note": NARROW,
    "dots3_note_text": NARROW,
    "gemma4": GEMMA,
    "gemma4_text": GEMMA,
    "glm4_moe_lite": LATENT,
    "glm_moe_dsa": {**LATENT, **INDEXED},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"] * 2,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "shared_intermediate_size": 16,
    },
    "inkling2_loop_text": PADDED,
    "inkling2_text": PADDED,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {
        **LATENT,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_head_dim": 8,
        "linear_num_heads": 2,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "llama4": CHUNKED,
    "llama4_text": CHUNKED,
    "longcat_flash": {
        **LATENT,
        "num_layers": 2,
        "ffn_hidden_size": 40,
        "expert_ffn_hidden_size": 24,
        "zero_expert_num": 2,
        "moe_topk": 2,
    },
    "qwen3_5_moe": GATED,
    "qwen3_5_moe_text": GATED,
    "qwen3_next": GATED,
    "qwen4_exp": COMPRESSED,
    "qwen4_exp_text": COMPRESSED,
    "sarvam_mla": LATENT,
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
WHOLE: Final[Mapping[str, Mapping[str, Any]]] = {
    "dots3_note": {"vision_config": {"adapter_out_dim": 32}, "audio_config": {"adapter_out_dim": 32}},
}
"""Of models that see or hear, what their configuration needs besides that of text."""


def model_types() -> Iterator[str]:
    """The model types of causal language models that can have routed experts, by the fields of their configurations."""
    for name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        config = _default(name)
        if config is not None and not set(dir(config)).isdisjoint(EXPERTS):
            yield name


def tiny_config(model_type: str) -> Any:
    """A small configuration of that type."""
    known = _default(model_type)
    assert known is not None
    sizes = {name: value for name, value in SMALL.items() if name in dir(known)}
    sizes |= PARTICULARS.get(model_type, {})
    family = CONFIG_MAPPING[model_type]
    return family(**sizes) if isinstance(known, family) else family(text_config=sizes, **WHOLE.get(model_type, {}))


def tiny_model(model_type: str, seed: int = 0) -> Any:
    """A random model in float64; weights are large, so that what lands in the wrong place shows."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type), dtype=torch.float64)
    with torch.no_grad():
        for each in model.parameters():
            if each.ndim > 1:
                each.normal_(0, 0.3)
    return model.eval()


def _default(model_type: str) -> Any:
    """The family's default configuration of text; None where there is none."""
    try:
        return CONFIG_MAPPING[model_type]().get_text_config(decoder=True)
    except Exception:  # Families check their configurations in many ways.
        return None
