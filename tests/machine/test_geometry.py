"""The published geometries, recomputed from the configurations they come from."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spmoe.errors import InputError
from spmoe.machine import geometry as geometry_module
from spmoe.machine.bits import parse_bits
from spmoe.machine.geometry import Geometry, draft_model, draft_names, geometry, geometry_names, read_catalogue

DATA = Path(geometry_module.__file__).with_name("geometries.json")


def total_params(model: Geometry) -> int:
    """All parameters of a model."""
    return model.dense_params + model.keys * model.expert_params


def attention(hidden: int, heads: int, kv_heads: int, head: int) -> int:
    """Query, key, value and output matrices of grouped-query attention."""
    return 2 * hidden * heads * head + 2 * hidden * kv_heads * head


def mixtral(layers: int, hidden: int, width: int, heads: int) -> int:
    layer = attention(hidden, heads, 8, 128) + 8 * hidden + 8 * 3 * hidden * width + 2 * hidden
    return layers * layer + 2 * 32000 * hidden + hidden


def phi(width: int) -> int:
    hidden, biases = 4096, 4096 + 2 * 1024 + 4096
    layer = attention(hidden, 32, 8, 128) + biases + 16 * hidden + 16 * 3 * hidden * width + 4 * hidden
    return 32 * layer + 2 * 32064 * hidden + 32064 + 2 * hidden


def deepseek_v2_lite() -> int:
    hidden, heads, latent, nope, rope, value = 2048, 16, 512, 128, 64, 128
    latent_attention = hidden * heads * (nope + rope) + hidden * (latent + rope) + latent
    latent_attention += latent * heads * (nope + value) + heads * value * hidden
    moe = (64 + 2) * 3 * hidden * 1408 + 64 * hidden
    return 27 * (latent_attention + 2 * hidden) + 3 * hidden * 10944 + 26 * moe + 2 * 102400 * hidden + hidden


def qwen3_30b_a3b() -> int:
    hidden = 2048
    layer = attention(hidden, 32, 4, 128) + 2 * 128 + 128 * hidden + 128 * 3 * hidden * 768 + 2 * hidden
    return 48 * layer + 2 * 151936 * hidden + hidden


def olmoe() -> int:
    hidden = 2048
    layer = attention(hidden, 16, 16, 128) + 2 * hidden + 64 * hidden + 64 * 3 * hidden * 1024 + 2 * hidden
    return 16 * layer + 2 * 50304 * hidden + hidden


def gpt_oss(layers: int, experts: int) -> int:
    hidden, heads, kv_heads, head = 2880, 64, 8, 64
    biases_and_sinks = heads * head + 2 * kv_heads * head + hidden + heads
    expert = 2 * hidden * hidden + 2 * hidden + hidden * hidden + hidden
    layer = attention(hidden, heads, kv_heads, head) + biases_and_sinks + experts * (hidden + 1 + expert) + 2 * hidden
    return layers * layer + 2 * 201088 * hidden + hidden


@pytest.mark.parametrize(
    ("name", "shape", "total", "computed", "kv"),
    [
        ("mixtral-8x7b", (32, 8, 2, 176_160_768), 46_702_792_704, mixtral(32, 4096, 14336, 32), 32 * 2 * 8 * 128 * 2),
        ("mixtral-8x22b", (56, 8, 2, 301_989_888), 140_620_634_112, mixtral(56, 6144, 16384, 48), 56 * 2 * 8 * 128 * 2),
        ("deepseek-v2-lite", (26, 64, 6, 8_650_752), 15_706_484_224, deepseek_v2_lite(), 27 * (512 + 64) * 2),
        ("phi-3.5-moe", (32, 16, 2, 78_643_200), 41_873_153_344, phi(6400), 32 * 2 * 8 * 128 * 2),
        ("qwen3-30b-a3b", (48, 128, 8, 4_718_592), 30_532_122_624, qwen3_30b_a3b(), 48 * 2 * 4 * 128 * 2),
        ("olmoe-1b-7b", (16, 64, 8, 6_291_456), 6_919_161_856, olmoe(), 16 * 2 * 16 * 128 * 2),
        ("gpt-oss-20b", (24, 32, 4, 24_891_840), 20_914_757_184, gpt_oss(24, 32), 24 * 2 * 8 * 64 * 2),
        ("gpt-oss-120b", (36, 128, 4, 24_891_840), 116_829_156_672, gpt_oss(36, 128), 36 * 2 * 8 * 64 * 2),
    ],
)
def test_published_figures(name: str, shape: tuple[int, ...], total: int, computed: int, kv: int) -> None:
    model = geometry(name)
    assert (model.layers, model.experts, model.top_k, model.expert_params) == shape
    assert total_params(model) == total == computed
    assert model.kv_bytes_per_token == kv
    assert model.keys == shape[0] * shape[1]


def test_every_model_has_a_source_and_a_known_draft() -> None:
    for name in geometry_names():
        model = geometry(name)
        assert "https://" in model.source
        assert model.draft is not None and draft_model(model.draft).name == model.draft


def test_drafts() -> None:
    expected = {name: (draft_model(name).params, draft_model(name).active_params) for name in draft_names()}
    assert expected["mistral-7b"] == (7_241_732_096, 7_241_732_096 - 32000 * 4096)
    assert expected["phi-mini-moe"][0] == phi(960)
    assert expected["deepseek-v2-lite-awq"][0] == total_params(geometry("deepseek-v2-lite"))
    assert expected["gpt-oss-20b"][0] == total_params(geometry("gpt-oss-20b"))
    for params, active in expected.values():
        assert 0 < active <= params


def test_sizes_round_up() -> None:
    model = geometry("mixtral-8x7b")
    assert model.expert_bytes(16) == 352_321_536
    assert model.expert_bytes(8) == 176_160_768
    assert model.expert_bytes(4.25) == 93_585_408
    assert model.expert_bytes(32) == 2 * model.expert_bytes(16) == model.expert_bytes(64) // 2
    odd = replace(model, expert_params=33, dense_params=1)
    assert odd.expert_bytes(4.25) == 18  # 140.25 bits
    assert odd.dense_bytes(4.25) == 1


def test_a_draft_is_never_wider_than_published() -> None:
    draft = draft_model("deepseek-v2-lite-awq")
    assert draft.bytes(16) == draft.bytes(8) == draft.bytes(4.25) == 8_344_069_744
    assert draft_model("mistral-7b").bytes(16) == 2 * 7_241_732_096


@pytest.mark.parametrize(
    ("text", "bits"), [("64", 64), ("32", 32), ("16", 16), ("8.0", 8), (" 4.25 ", 4.25), (16, 16), (4.25, 4.25)]
)
def test_bits(text: str | float, bits: float) -> None:
    assert parse_bits(text) == bits


@pytest.mark.parametrize("text", ["4", "", "nan", "-8", "sixteen", "inf", "1e400"])
def test_other_bits_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"bits: expected 64, 32, 16, 8 or 4\.25, got"):
        parse_bits(text)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"model 'gpt-5' is unknown; expected one of mixtral-8x7b, .*, gpt-oss-120b$"):
        geometry("gpt-5")
    with pytest.raises(InputError, match="draft '' is unknown; expected one of mistral-7b, "):
        draft_model("")


def test_impossible_geometries_are_refused() -> None:
    with pytest.raises(InputError, match="model mixtral-8x7b: field layers: expected at least 1, got 0"):
        replace(geometry("mixtral-8x7b"), layers=0)
    with pytest.raises(InputError, match="field top_k: expected at most 8, got 9"):
        replace(geometry("mixtral-8x7b"), top_k=9)


def rename_layers(document: dict[str, Any]) -> None:
    document["models"]["mixtral-8x7b"]["depth"] = document["models"]["mixtral-8x7b"].pop("layers")


def add_field(document: dict[str, Any]) -> None:
    document["models"]["mixtral-8x7b"]["vocabulary"] = 32000


def unknown_draft(document: dict[str, Any]) -> None:
    document["models"]["mixtral-8x7b"]["draft"] = "gpt-2"


def odd_width(document: dict[str, Any]) -> None:
    document["drafts"]["mistral-7b"]["max_bits"] = 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_layers, r"field models\.mixtral-8x7b\.layers: expected a whole number above 0, but it is missing"),
        (add_field, r"field models\.mixtral-8x7b\.vocabulary: unknown"),
        (unknown_draft, r"field models\.mixtral-8x7b\.draft: expected one of mistral-7b, .* got \"gpt-2\""),
        (odd_width, r"field drafts\.mistral-7b\.max_bits: expected 64, 32, 16, 8 or 4\.25, got '5'"),
    ],
)
def test_the_file_is_read_strictly(change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path) -> None:
    document = json.loads(DATA.read_text())
    change(document)
    path = tmp_path / "geometries.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"geometries\.json: " + message):
        read_catalogue(path)
