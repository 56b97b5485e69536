# ruff: noqa: E402
"""Experts, routers and geometry, read from models of ten families."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")
pytest.importorskip("transformers", reason="the engine needs transformers")

import transformers
from transformers import AutoModelForCausalLM

from engine.moe.layers import expert_layout, find_moe_layers, read_geometry
from spmoe.errors import InputError
from spmoe.machine.geometry import geometry
from tests.engine.tiny import FAMILIES, HIDDEN, WIDTH, tiny_config, tokens

PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral-8x7b": (
        "MixtralConfig",
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
    ),
    "deepseek-v2-lite": (
        "DeepseekV2Config",
        {
            "vocab_size": 102400,
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "n_shared_experts": 2,
            "n_routed_experts": 64,
            "num_experts_per_tok": 6,
            "first_k_dense_replace": 1,
            "q_lora_rank": None,
            "kv_lora_rank": 512,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
        },
    ),
    "phi-3.5-moe": (
        "PhimoeConfig",
        {
            "vocab_size": 32064,
            "hidden_size": 4096,
            "intermediate_size": 6400,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 16,
            "num_experts_per_tok": 2,
            "attention_bias": True,
            "lm_head_bias": True,
        },
    ),
    "qwen3-30b-a3b": (
        "Qwen3MoeConfig",
        {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "moe_intermediate_size": 768,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
        },
    ),
    "olmoe-1b-7b": (
        "OlmoeConfig",
        {
            "vocab_size": 50304,
            "hidden_size": 2048,
            "intermediate_size": 1024,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_experts": 64,
            "num_experts_per_tok": 8,
        },
    ),
    "gpt-oss-20b": (
        "GptOssConfig",
        {
            "vocab_size": 201088,
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_hidden_layers": 24,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "num_local_experts": 32,
            "num_experts_per_tok": 4,
        },
    ),
}


def shell(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_layers_count_only_those_with_experts(family: str) -> None:
    expected = FAMILIES[family]
    layers = find_moe_layers(shell(tiny_config(family)))
    assert [layer.index for layer in layers] == list(range(expected.layers))
    assert layers[0].decoder_layer == expected.first
    assert [layer.decoder_layer for layer in layers] == sorted({layer.decoder_layer for layer in layers})
    assert all(f".layers.{layer.decoder_layer}." in layer.name for layer in layers)


def test_dense_layers_between_are_skipped() -> None:
    layers = find_moe_layers(shell(tiny_config("qwen3-moe")))
    assert [(layer.index, layer.decoder_layer) for layer in layers] == [(0, 0), (1, 2)]


def test_geometry_is_that_of_the_configuration(family: str) -> None:
    expected = FAMILIES[family]
    model = shell(tiny_config(family))
    found = read_geometry(model, family, "here")
    assert (found.layers, found.experts, found.top_k) == (expected.layers, expected.experts, expected.top_k)
    biases = 2 * WIDTH + HIDDEN if family == "gpt-oss" else 0
    assert found.expert_params == 3 * HIDDEN * WIDTH + biases
    assert found.dense_params + found.keys * found.expert_params == sum(each.numel() for each in model.parameters())
    assert (found.hidden, found.draft, found.name, found.source) == (HIDDEN, None, family, "here")


@pytest.mark.parametrize("name", PUBLISHED)
def test_geometry_of_published_models(name: str) -> None:
    config, options = PUBLISHED[name]
    found = read_geometry(shell(getattr(transformers, config)(**options)), name, "config")
    known = geometry(name)
    for field in ("layers", "experts", "top_k", "expert_params", "dense_params", "hidden", "kv_bytes_per_token"):
        assert getattr(found, field) == getattr(known, field), field


def test_one_expert_of_gpt_oss() -> None:
    layout = expert_layout(find_moe_layers(shell(tiny_config("gpt-oss"))))
    assert {field.name: field.shape for field in layout.fields} == {
        "gate_up_proj": (HIDDEN, 2 * WIDTH),
        "gate_up_proj_bias": (2 * WIDTH,),
        "down_proj": (WIDTH, HIDDEN),
        "down_proj_bias": (HIDDEN,),
    }


def test_routers_choose_what_the_experts_compute(family: str) -> None:
    """Called from outside on the states that reached it, each router gives what its experts then received."""
    model = AutoModelForCausalLM.from_config(tiny_config(family)).eval()
    layers = find_moe_layers(model)
    states: list[torch.Tensor] = []
    received: list[tuple[torch.Tensor, ...]] = []
    for layer in layers:
        layer.router.module.register_forward_pre_hook(lambda _, args: states.append(args[0]))
        layer.experts.register_forward_pre_hook(lambda _, args: received.append(args[1:]))
    with torch.no_grad():
        model(tokens(6))
        pairs = zip(layers, states.copy(), strict=True)
        routings = [layer.router.route(state.flatten(0, -2)) for layer, state in pairs]
    for (experts, weights), routing in zip(received, routings, strict=True):
        assert experts.shape == (6, FAMILIES[family].top_k)
        assert torch.equal(routing.experts, experts)
        assert torch.equal(routing.weights, weights)
        assert routing.logits.shape == (6, FAMILIES[family].experts)


def test_dropped_experts_are_gone_and_nothing_else(family: str) -> None:
    model = shell(tiny_config(family))
    before, experts = read_geometry(model, family, "here"), FAMILIES[family].layers * FAMILIES[family].experts
    for layer in find_moe_layers(model):
        layer.drop_experts()
        assert not layer.expert_parameters()
    left = sum(each.numel() for each in model.parameters())
    assert (left, experts) == (before.dense_params, before.keys)


def test_a_dense_model_has_no_moe_layers() -> None:
    options = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    model = shell(transformers.LlamaConfig(**options, num_attention_heads=4))
    assert find_moe_layers(model) == ()
    with pytest.raises(InputError, match=r"^here: LlamaForCausalLM has no routed experts; expected a Mixture"):
        read_geometry(model, "llama", "here")


def test_layers_must_be_alike() -> None:
    model = shell(tiny_config("mixtral"))
    layers = find_moe_layers(model)
    del layers[2].experts.down_proj
    with pytest.raises(
        InputError, match=r"^model\.layers\.2\.mlp\.experts: expected experts as in model\.layers\.0\.mlp"
    ):
        expert_layout(layers)


def test_experts_without_a_router_beside_them_run_and_cannot_be_asked() -> None:
    model = shell(tiny_config("mixtral"))
    model.model.layers[1].mlp.gate = torch.nn.Linear(4, 4)
    asked, silent, _ = find_moe_layers(model)
    assert asked.router.top_k == 2 and asked.norm is not None
    assert silent.router.top_k is None and silent.norm is None and silent.top_k(model.config) == 2
