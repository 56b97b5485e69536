"""Tiny random models of ten families, with every feature of their architecture that touches experts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import torch
import transformers
from transformers import AutoModelForCausalLM

VOCABULARY: Final = 64
HIDDEN: Final = 32
WIDTH: Final = 24
"""The intermediate size of a routed expert; not that of dense layers, so that a mix-up shows."""

_COMMON: Final = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT: Final = {
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_ONE_DENSE: Final = {"intermediate_size": 40, "moe_intermediate_size": WIDTH, "n_shared_experts": 1}


class Family(NamedTuple):
    """A family's config class, what differs from the common options, and what must be read from its model."""

    config: str
    options: Mapping[str, Any]
    layers: int
    experts: int
    top_k: int
    first: int = 0
    dtype: torch.dtype = torch.float32


FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    {
        "mixtral": Family(
            "MixtralConfig",
            {"num_hidden_layers": 3, "intermediate_size": WIDTH, "num_local_experts": 4, "num_experts_per_tok": 2},
            3,
            4,
            2,
        ),
        "qwen2-moe": Family(
            "Qwen2MoeConfig",
            {
                "num_hidden_layers": 4,
                "intermediate_size": 40,
                "moe_intermediate_size": WIDTH,
                "shared_expert_intermediate_size": 16,
                "num_experts": 6,
                "num_experts_per_tok": 3,
                "decoder_sparse_step": 2,  # every second layer is dense
            },
            2,
            6,
            3,
            first=1,
        ),
        "qwen3-moe": Family(
            "Qwen3MoeConfig",
            {
                "num_hidden_layers": 3,
                "intermediate_size": 40,
                "moe_intermediate_size": WIDTH,
                "head_dim": 16,
                "num_experts": 8,
                "num_experts_per_tok": 3,
                "mlp_only_layers": [1],
                "tie_word_embeddings": True,
            },
            2,
            8,
            3,
        ),
        "olmoe": Family(
            "OlmoeConfig",
            {"num_hidden_layers": 3, "intermediate_size": WIDTH, "num_experts": 8, "num_experts_per_tok": 4},
            3,
            8,
            4,
        ),
        "deepseek-v2": Family(
            "DeepseekV2Config",
            {
                **_LATENT,
                **_ONE_DENSE,
                "num_hidden_layers": 3,
                "n_routed_experts": 8,
                "num_experts_per_tok": 3,
                "first_k_dense_replace": 1,
            },
            2,
            8,
            3,
            first=1,
        ),
        "deepseek-v3": Family(
            "DeepseekV3Config",
            {
                **_LATENT,
                **_ONE_DENSE,
                "num_hidden_layers": 4,
                "n_routed_experts": 8,
                "num_experts_per_tok": 4,
                "n_group": 2,
                "topk_group": 1,
                "first_k_dense_replace": 2,
                "num_nextn_predict_layers": 0,
            },
            2,
            8,
            4,
            first=2,
        ),
        "phimoe": Family(
            "PhimoeConfig",
            {"num_hidden_layers": 2, "intermediate_size": WIDTH, "num_local_experts": 4, "num_experts_per_tok": 2},
            2,
            4,
            2,
        ),
        "gpt-oss": Family(
            "GptOssConfig",
            {
                "num_hidden_layers": 2,
                "intermediate_size": WIDTH,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "head_dim": 8,
                "sliding_window": 16,
            },
            2,
            4,
            2,
            dtype=torch.bfloat16,
        ),
        "glm4-moe": Family(
            "Glm4MoeConfig",
            {
                **_ONE_DENSE,
                "num_hidden_layers": 3,
                "n_routed_experts": 8,
                "num_experts_per_tok": 3,
                "n_group": 1,
                "topk_group": 1,
                "first_k_dense_replace": 1,
                "head_dim": 8,
            },
            2,
            8,
            3,
            first=1,
        ),
        "granite-moe": Family(
            "GraniteMoeConfig",
            {"num_hidden_layers": 2, "intermediate_size": WIDTH, "num_local_experts": 4, "num_experts_per_tok": 2},
            2,
            4,
            2,
        ),
    }
)


def tiny_config(family: str, **options: Any) -> Any:
    """The configuration of a tiny model of `family`; `options` override it."""
    chosen = FAMILIES[family]
    return getattr(transformers, chosen.config)(**{**_COMMON, **chosen.options, **options})


def tiny_model(family: str, seed: int = 0, dtype: torch.dtype | None = None, **options: Any) -> Any:
    """A random model of `family`, in evaluation mode.

    Weights are ten times as large as usual, and biases and norms are random too, so that a tensor that lands in the
    wrong place changes the logits.
    """
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **options), dtype=dtype or FAMILIES[family].dtype)
    with torch.no_grad():
        for name, each in [*model.named_parameters(), *model.named_buffers()]:
            if "rotary" not in name and each.is_floating_point():
                noise = torch.randn(each.shape, generator=generator, dtype=torch.float32)
                each.copy_(noise * 0.2 + (1.0 if "norm" in name else 0.0))
    return model.eval()


def save_tiny(folder: Path, family: str, seed: int = 0, shard: str = "20KB", **options: Any) -> Path:
    """Saves such a model as a checkpoint of several shards (of at most `shard` each) and returns `folder`."""
    tiny_model(family, seed, **options).save_pretrained(folder, max_shard_size=shard)
    return folder


def eager_model(folder: Path, dtype: torch.dtype) -> Any:
    """The reference: what transformers makes of a checkpoint, with its "eager" experts.

    Where nothing is converted, transformers leaves weights in the mapped file, at any multiple of 8 bytes, and the last
    bit of a matrix product depends on that.  So the reference gets memory of its own.
    """
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, experts_implementation="eager", local_files_only=True
    )
    for each in [*model.parameters(), *model.buffers()]:
        each.data = each.data.clone()
    return model


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    """A random prompt, [1, count]."""
    return torch.randint(3, VOCABULARY, (1, count), generator=torch.Generator().manual_seed(seed))
