"""The cost model against arithmetic that can be done on paper."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spmoe.errors import InputError
from spmoe.machine.cost import CostModel
from spmoe.machine.geometry import DraftModel, Geometry, draft_model, geometry, geometry_names
from spmoe.machine.hardware import Cpu, Draft, Gpu, Hardware, Link, load_hardware

# 3 layers of 4 experts; 16 bits; GPU 1 GB/s and 1 GFLOP/s: a byte and a FLOP each take a nanosecond.
MODEL = Geometry(
    name="paper",
    layers=3,
    experts=4,
    top_k=2,
    expert_params=100,
    dense_params=3 * (50 + 8 * 4),
    hidden=8,
    kv_bytes_per_token=6,
    draft=None,
    source="this test",
)
DRAFT = DraftModel("half", 60, 50, 2, 4, None, "this test")
MACHINE = Hardware(
    name="paper",
    kind="datasheet",
    source="this test",
    link=Link(bandwidth=500_000_000, latency_ns=30, copy_ns=7),
    gpu=Gpu(memory_bytes=10_000, bandwidth=10**9, flops=10**9, layer_overhead_ns=11, expert_overhead_ns=5),
    draft=Draft(token_ns=1000, params=100, layers=4, bits=16),
    cpu=Cpu(name="paper", cores=1, bandwidth=250_000_000, gflops=1),
)
COST = CostModel(MODEL, MACHINE, 16, DRAFT)


def test_layer() -> None:
    # 50 weights of 2 bytes, and 2 bytes of keys and values per position and layer; 100 FLOP per token.
    assert COST.attention_ns(1, 0) == 100
    assert COST.attention_ns(1, 10) == 120
    assert COST.attention_ns(2, 10) == 200
    # 32 weights, 64 bytes, 64 FLOP per token.
    assert COST.router_ns(1) == 64
    assert COST.router_ns(3) == 192
    assert COST.overhead_ns() == 11
    assert COST.layer_ns(1, 10) == COST.layer_ns(1, 10) == 120 + 64 + 11
    assert COST.layer_ns(2, 10) == 200 + 128 + 11


def test_experts() -> None:
    assert [COST.expert_ns(n) for n in (0, 1, 2, 255, 256, 1000)] == [0, 205, 405, 51_005, 51_205, 200_005]
    assert [COST.host_expert_ns(n) for n in (0, 1, 4, 5, 1000)] == [0, 800, 800, 1000, 200_000]


def test_link() -> None:
    assert COST.transfer_ns(200) == 400
    assert COST.load_ns() == 430
    assert COST.batch_ns(1, 200) == 430
    assert COST.batch_ns(3, 600) == 30 + 2 * 7 + 1200


def test_draft() -> None:
    # The stated draft reads 200 bytes in 200 ns and spends 800 ns on its 4 layers; this one reads 100 in 2 layers.
    assert COST.draft_token_ns() == 100 + 400
    assert [COST.draft_layers_ns(k, k + 1) for k in range(3)] == [166, 167, 167]


def test_the_stated_draft_takes_the_stated_time() -> None:
    for token_ns in (1, 150, 1000):  # also when the weights alone would take longer
        machine = replace(MACHINE, draft=replace(MACHINE.draft, token_ns=token_ns))
        stated = DraftModel("stated", 100, 100, 4, 4, None, "this test")
        assert CostModel(MODEL, machine, 16, stated).draft_token_ns() == token_ns
    assert (
        CostModel(geometry("mixtral-8x7b"), load_hardware("rtx-4090"), 4.25, draft_model("mistral-7b")).draft_token_ns()
        == 8_000_000
    )


def test_odd_widths_round_up_once() -> None:
    cost = CostModel(replace(MODEL, expert_params=33), MACHINE, 4.25, None)
    assert cost.expert_ns(1) == 66 + 5  # the arithmetic takes longer than the 17.53 bytes
    fast = replace(MACHINE, gpu=replace(MACHINE.gpu, flops=10**15))
    assert CostModel(replace(MODEL, expert_params=33), fast, 4.25, None).expert_ns(1) == 18 + 5


def test_times_of_several_experts_are_those_of_each() -> None:
    for tokens in ([], [1, 4, 2], [3, 1000]):
        assert list(COST.expert_times(tokens)) == [COST.expert_ns(count) for count in tokens]


def test_what_is_missing_is_said() -> None:
    bare = CostModel(MODEL, replace(MACHINE, cpu=None), 16, None)
    with pytest.raises(InputError, match="hardware paper: field cpu: expected a CPU"):
        bare.host_expert_ns(1)
    with pytest.raises(InputError, match="model paper: field draft: expected a draft model"):
        bare.draft_token_ns()
    assert bare.draft_layers_ns(0, 3) == 0


def test_explain_adds_up() -> None:
    items = {item.name: item for item in COST.explain(2, 10, [2, 1, 0, 1])}
    assert list(items) == [
        "layer: attention",
        "layer: router",
        "layer: overhead",
        "layer: 2 x expert, tokens = 1",
        "layer: 1 x expert, tokens = 2",
        "load of one expert",
        "expert on the CPU, tokens = 1",
        "expert on the CPU, tokens = 2",
        "draft token",
    ]
    layer = sum(item.ns for item in items.values() if item.name.startswith("layer: "))
    assert layer == COST.layer_ns(2, 10) + 2 * COST.expert_ns(1) + COST.expert_ns(2)
    assert items["load of one expert"].ns == COST.load_ns()
    assert items["expert on the CPU, tokens = 2"].ns == COST.host_expert_ns(2)
    assert items["draft token"].ns == COST.draft_token_ns()
    assert all(item.formula for item in items.values())


def test_mixtral_on_the_rtx_4090_against_published_figures() -> None:
    """arXiv 2512.16473 Table III: two experts at 16 bits are fetched in 28.02 ms and computed on 24 threads in 7.34."""
    cost = CostModel(geometry("mixtral-8x7b"), load_hardware("rtx-4090"), 16, None)
    assert 2 * cost.load_ns() / 1e6 == pytest.approx(28.02, rel=0.05)
    assert 2 * cost.host_expert_ns(1) / 1e6 == pytest.approx(7.34, rel=0.01)


@pytest.mark.parametrize("name", geometry_names())
def test_every_model_on_every_width(name: str) -> None:
    model = geometry(name)
    assert model.draft is not None
    draft = draft_model(model.draft)
    costs = [CostModel(model, load_hardware("h200"), bits, draft) for bits in (4.25, 8, 16)]
    for times in (
        [cost.load_ns() for cost in costs],
        [cost.expert_ns(1) for cost in costs],
        [cost.layer_ns(5, 100) for cost in costs],
        [cost.draft_token_ns() for cost in costs],
    ):
        assert 0 < times[0] <= times[1] <= times[2]
    for cost in costs:
        assert sum(cost.draft_layers_ns(k, k + 1) for k in range(model.layers)) == cost.draft_token_ns()


@given(st.integers(1, 600), st.integers(0, 5000))
def test_more_tokens_and_context_never_take_less(tokens: int, context: int) -> None:
    assert (
        COST.layer_ns(tokens, context) <= COST.layer_ns(tokens + 1, context) <= COST.layer_ns(tokens + 1, context + 1)
    )
    assert COST.expert_ns(tokens) <= COST.expert_ns(tokens + 1)
    assert COST.host_expert_ns(tokens) <= COST.host_expert_ns(tokens + 1)
