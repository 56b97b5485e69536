# ruff: noqa: E402
"""Which experts the kernels compute, and what is said of the others."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")
pytest.importorskip("transformers", reason="the engine needs transformers")

from torch.nn.functional import gelu, silu
from transformers import AutoModelForCausalLM

from engine.memory.layout import Layout
from engine.moe.gated_mlp import Gated
from engine.moe.layers import expert_layout, find_moe_layers
from spmoe.errors import InputError
from tests.engine.tiny import FAMILIES, HIDDEN, WIDTH, tiny_config

LAYOUT = Layout.of({"gate_up_proj": ((20, 6), torch.bfloat16), "down_proj": ((6, 10), torch.bfloat16)})


class Experts:
    """As much of an experts module as is asked for."""

    has_gate = True
    is_transposed = False
    is_concatenated = True

    def __init__(self, activation: Any = silu, **features: bool) -> None:
        self.__dict__.update(features)
        self._activation = activation

    def _apply_gate(self, both: torch.Tensor) -> torch.Tensor:
        gate, up = both.chunk(2, dim=-1)
        return self._activation(gate) * up


def experts_of(family: str, **options: Any) -> tuple[Any, Layout]:
    with torch.device("meta"):
        layers = find_moe_layers(AutoModelForCausalLM.from_config(tiny_config(family, **options)))
    return layers[0].experts, expert_layout(layers)


def test_where_things_lie_in_a_slot() -> None:
    # gate and up take 240 bytes, so down begins at byte 256.
    assert Gated.of(Experts(), LAYOUT, "m") == Gated("silu", 6, 10, torch.bfloat16, 0, 128)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"gpt-oss"}))
def test_families_that_it_fits(family: str) -> None:
    found = Gated.of(*experts_of(family), "m")
    assert found == ("silu", HIDDEN, WIDTH, torch.float32, 0, 2 * WIDTH * HIDDEN)


@pytest.mark.parametrize(("name", "called"), [("gelu", "gelu"), ("gelu_pytorch_tanh", "gelu_tanh")])
def test_activations_are_known_by_what_they_answer(name: str, called: str) -> None:
    assert Gated.of(*experts_of("mixtral", hidden_act=name), "m").activation == called


def test_a_family_that_it_does_not_fit() -> None:
    with pytest.raises(
        InputError, match=r"^here: kernel triton: expected gated .*, got GptOssExperts: transposed, gate"
    ):
        Gated.of(*experts_of("gpt-oss"), "here")


@pytest.mark.parametrize(
    ("experts", "layout", "what"),
    [
        (Experts(has_gate=False), LAYOUT, "no gate"),
        (Experts(is_transposed=True), LAYOUT, "transposed"),
        (Experts(is_concatenated=False), LAYOUT, "gate and up interleaved"),
        (Experts(has_post_expert_norm=True), LAYOUT, "a norm behind them"),
        (Experts(torch.relu), LAYOUT, "another activation"),
        (Experts(lambda x: silu(x.clamp(max=7.0))), LAYOUT, "another activation"),
        (Experts(lambda x: x * torch.sigmoid(1.702 * x)), LAYOUT, "another activation"),
        (Experts(lambda x: gelu(x).clamp(max=50.0)), LAYOUT, "another activation"),
        (
            Experts(),
            Layout.of({each.name: (each.shape, torch.float64) for each in LAYOUT.fields}),
            "float64",
        ),
        (
            Experts(),
            Layout.of(
                {"gate_up_proj": ((20, 6), torch.bfloat16), "down_proj": ((6, 10), torch.float32)},
            ),
            "bfloat16, float32",
        ),
        (
            Experts(),
            Layout.of(
                {**{each.name: (each.shape, each.dtype) for each in LAYOUT.fields}, "bias": ((6,), torch.bfloat16)}
            ),
            "bias",
        ),
    ],
)
def test_one_line_says_what_is_in_the_way(experts: Experts, layout: Layout, what: str) -> None:
    with pytest.raises(InputError, match=rf"^m: kernel triton: .*, got Experts: {what}$"):
        Gated.of(experts, layout, "m")
