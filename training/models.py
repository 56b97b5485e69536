"""The two architectures, with weights drawn from a generator of their own."""

from __future__ import annotations

from typing import Any

import torch
from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM

from training.recipe import Recipe

ROPE_THETA = 10000.0
"""Written down in both, as the two families' defaults differ."""


def _shared(recipe: Recipe) -> dict[str, Any]:
    return {
        "vocab_size": recipe.vocabulary,
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.width,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.kv_heads,
        "max_position_embeddings": recipe.context,
        "sliding_window": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }


def fresh_dense(recipe: Recipe) -> Any:
    """A dense model that has learned nothing, float32."""
    model = empty_dense(recipe)
    generator = torch.Generator().manual_seed(recipe.seed_of("dense"))
    with torch.no_grad():
        for name, each in model.named_parameters():
            if "norm" in name:
                continue  # ones
            deviation: float = each.shape[-1] ** -0.5
            if "embed_tokens" in name:
                deviation = recipe.embedding
            elif "o_proj" in name or "down_proj" in name:
                # What all layers add to the residual stream is then as large as the embedding, however many they are.
                deviation *= (2 * recipe.layers) ** -0.5
            each.normal_(0, deviation, generator=generator)
    return model


def empty_dense(recipe: Recipe) -> Any:
    """A dense model to load weights into."""
    return _built(MistralForCausalLM, MistralConfig(**_shared(recipe)))


def empty_sparse(recipe: Recipe) -> Any:
    """A Mixture-of-Experts model to load weights into."""
    sparse: dict[str, Any] = {"num_local_experts": recipe.experts, "num_experts_per_tok": recipe.top_k}
    model = _built(MixtralForCausalLM, MixtralConfig(**_shared(recipe), **sparse))
    model.set_experts_implementation("grouped_mm")  # an eighth faster than expert by expert
    return model


def _built(model_class: Any, config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):  # transformers draws from the global generator.
        model = model_class(config)
    model.config.use_cache = False
    return model
