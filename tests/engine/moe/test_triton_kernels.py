# ruff: noqa: E402
"""The Triton kernels beside torch's operations, by hand and on tiny experts; on the CPU Triton interprets them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")
pytest.importorskip("transformers", reason="the engine needs transformers")
pytest.importorskip("triton", reason="the kernels need Triton")

from torch.nn.functional import linear

from engine.engine import Engine
from engine.memory.layout import Layout
from engine.memory.slot_buffer import SharedSlots, SlotBuffer
from engine.moe.eager import ExpertRows
from engine.moe.gated_mlp import ACTIVATIONS, Gated
from engine.moe.triton_grouped import MOST_TOKENS, TILING, GroupedRows, Tiles, Tiling
from tests.engine.pairs import Pairs
from tests.paths import ROOT

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = Tiling(Tiles(16, 64), Tiles(16, 64))
"""Tiles so small that tiny experts need several of each."""


class Experts:
    """An experts module, as far as its weights do not lie in it."""

    has_gate = True
    is_transposed = False
    is_concatenated = True

    def __init__(self, activation: str) -> None:
        self._activation = ACTIVATIONS[activation]

    def _apply_gate(self, both: torch.Tensor) -> torch.Tensor:
        gate, up = both.chunk(2, dim=-1)
        return self._activation(gate) * up


class Case(NamedTuple):
    """Random experts in slots, each in that of `slots`, and what a router said of some tokens."""

    module: Experts
    gated: Gated
    buffer: SlotBuffer
    slots: Mapping[int, int]
    states: torch.Tensor
    experts: torch.Tensor
    weights: torch.Tensor

    @property
    def counts(self) -> dict[int, int]:
        ids, counts = self.experts.unique(return_counts=True)
        return dict(zip(ids.tolist(), counts.tolist(), strict=True))

    def grouped(self, tiling: Tiling = TILING) -> GroupedRows:
        return GroupedRows(self.buffer, self.gated, self.states, self.experts, self.weights, self.counts, tiling)

    def plain(self) -> ExpertRows:
        return ExpertRows(self.buffer, self.module, self.states, self.experts, self.weights, self.counts)

    def expected(self) -> torch.Tensor:
        """What the experts add up to, in float64."""
        total = torch.zeros(self.states.shape, dtype=torch.float64, device=DEVICE)
        for token, (chosen, shares) in enumerate(zip(self.experts.tolist(), self.weights.double(), strict=True)):
            for expert, share in zip(chosen, shares, strict=True):
                views = {name: each.double() for name, each in self.buffer.views(self.slots[expert]).items()}
                hidden = self.module._apply_gate(linear(self.states[token].double(), views["gate_up_proj"]))
                total[token] += share * linear(hidden, views["down_proj"])
        return total


def case(
    tokens: int = 5,
    hidden: int = 40,
    width: int = 24,
    dtype: torch.dtype = torch.float32,
    activation: str = "silu",
    experts: int = 4,
    top_k: int = 2,
) -> Case:
    """One of these; whatever is not weights of its experts is not a number, so that reading it shows."""
    generator = torch.Generator().manual_seed(tokens + hidden + width)
    layout = Layout.of({"gate_up_proj": ((2 * width, hidden), dtype), "down_proj": ((hidden, width), dtype)})
    buffer = SlotBuffer(layout, 2 * experts, DEVICE)
    buffer.blobs.view(dtype).fill_(math.nan)
    slots = {expert: 2 * experts - 1 - 2 * expert for expert in range(experts)}
    for slot in slots.values():
        for view in buffer.views(slot).values():
            view.copy_(torch.randn(view.shape, generator=generator) / view.shape[1] ** 0.5)
    states = torch.randn(tokens, hidden, generator=generator).to(DEVICE, dtype)
    scores = torch.rand(tokens, experts, generator=generator).to(DEVICE)
    weights, chosen = scores.topk(top_k)
    module = Experts(activation)
    return Case(module, Gated.of(module, layout, "m"), buffer, slots, states, chosen, weights)


def computed(rows: Any, of: Case, together: bool = True) -> torch.Tensor:
    """What all experts add up to, launched together or one by one."""
    for expert in of.counts:
        rows.compute(expert, of.slots[expert])
        if not together:
            rows.launch()
    rows.launch()
    return rows.combined()


def check_close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Within some roundings of the largest value."""
    assert found.dtype == dtype
    scale = float(expected.abs().max())
    assert float((found.double() - expected).abs().max()) <= 8 * torch.finfo(dtype).eps * scale


def test_one_expert_by_hand() -> None:
    layout = Layout.of({"gate_up_proj": ((2, 2), torch.float32), "down_proj": ((2, 1), torch.float32)})
    buffer = SlotBuffer(layout, 2, DEVICE)
    buffer.views(1)["gate_up_proj"].copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))  # gate(x) = x0, up(x) = x1
    buffer.views(1)["down_proj"].copy_(torch.tensor([[2.0], [3.0]]))
    gated = Gated.of(Experts("silu"), layout, "m")
    states = torch.tensor([[math.log(3), 4.0]], device=DEVICE)  # silu(ln 3) = 3/4 ln 3
    shares = torch.tensor([[0.5]], device=DEVICE)
    rows = GroupedRows(buffer, gated, states, torch.tensor([[7]], device=DEVICE), shares, {7: 1})
    rows.compute(7, 1)
    rows.launch()
    assert rows.combined()[0].tolist() == pytest.approx([3 * math.log(3), 4.5 * math.log(3)], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("tokens", "hidden", "width"), [(1, 64, 128), (7, 40, 24), (16, 100, 70), (32, 8, 300)])
def test_sums_are_those_of_float64(tokens: int, hidden: int, width: int, dtype: torch.dtype) -> None:
    given = case(tokens, hidden, width, dtype)
    check_close(computed(given.grouped(SMALL), given), given.expected(), dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str) -> None:
    given = case(activation=activation)
    check_close(computed(given.grouped(), given), given.expected(), torch.float32)


def test_an_expert_with_every_token() -> None:
    given = case(tokens=MOST_TOKENS, top_k=4)
    assert set(given.counts.values()) == {MOST_TOKENS}
    check_close(computed(given.grouped(), given), given.expected(), torch.float32)


def test_it_is_what_torch_computes() -> None:
    given = case()
    torch.testing.assert_close(computed(given.grouped(), given), computed(given.plain(), given))


def test_who_comes_together_changes_no_bit() -> None:
    given = case(tokens=9, hidden=72, width=300)
    assert SMALL.splits(given.gated) > 1
    together, apart = (computed(given.grouped(SMALL), given, each) for each in (True, False))
    assert torch.equal(together, apart)


def test_cells_that_a_router_left_out_do_not_count() -> None:
    """Lossy gating takes the first ranks only: views that are not contiguous."""
    given = case(top_k=3)
    fewer = given._replace(experts=given.experts[:, :2], weights=given.weights[:, :2])
    assert not fewer.experts.is_contiguous()
    check_close(computed(fewer.grouped(), fewer), fewer.expected(), torch.float32)


def test_an_expert_may_be_computed_elsewhere() -> None:
    given = case()
    rows, plain = given.grouped(), given.plain()
    elsewhere, *others = given.counts
    for expert in others:
        rows.compute(expert, given.slots[expert])
    rows.launch()
    with pytest.raises(RuntimeError, match=rf"experts \[{elsewhere}\] have no output"):
        rows.combined()
    assert sorted(map(tuple, rows.inputs(elsewhere).tolist())) == sorted(map(tuple, plain.inputs(elsewhere).tolist()))
    views = given.buffer.views(given.slots[elsewhere])
    hidden = given.module._apply_gate(linear(rows.inputs(elsewhere), views["gate_up_proj"]))
    rows.put(elsewhere, linear(hidden, views["down_proj"]))
    check_close(rows.combined(), given.expected(), torch.float32)


def test_nothing_noted_is_nothing_to_launch() -> None:
    given = case()
    rows = given.grouped()
    rows.launch()
    assert not rows._done


def test_slots_that_share_memory() -> None:
    given = case(experts=2, top_k=1)
    shared = SharedSlots(given.buffer.layout, 6, 2, DEVICE)
    for slot in (0, 1):
        for name, view in shared.views(slot).items():
            view.copy_(given.buffer.views(given.slots[slot])[name])
    found = computed(given._replace(buffer=shared, slots={0: 4, 1: 5}).grouped(), given._replace(slots={0: 4, 1: 5}))
    check_close(found, given.expected(), torch.float32)


@pytest.mark.parametrize(
    ("hidden", "width", "dtype", "splits"),
    [
        (4096, 14336, torch.bfloat16, 8),  # 64 tiles: 512 programs for an expert alone
        (2048, 1408, torch.bfloat16, 2),  # 11 blocks of 128: parts of at least 4
        (2048, 1408, torch.float32, 5),  # 22 blocks of 64
        (32, 24, torch.float32, 1),
    ],
)
def test_into_how_many_parts_a_sum_is_split(hidden: int, width: int, dtype: torch.dtype, splits: int) -> None:
    assert TILING.splits(Gated("silu", hidden, width, dtype, 0, 0)) == splits


COMPILE = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from engine.moe import triton_kernels as kernels

assert not triton.knobs.runtime.interpret
POINTERS = {"order": "*i64", "table": "*i32", "parts": "*fp32", "shares": "*fp32"}
PLAIN = {"slot_stride", "offset", "top_k"}
SHARED = {"HIDDEN": 2048, "WIDTH": 1408, "ROWS": 16, "WIDEN": False}
for capability, kind, depth in ((80, "bf16", 128), (89, "fp16", 128), (90, "bf16", 128), (90, "fp32", 64)):
    for kernel, more in (
        (kernels.gate_and_up, {"ACTIVATION": "gelu", "COLUMNS": 32}),
        (kernels.down, {"SPLITS": 2, "COLUMNS": 64}),
    ):
        constants = {**SHARED, **more, "DEPTH": depth}
        types = {
            name: "constexpr" if name in constants else "i32" if name in PLAIN else POINTERS.get(name, "*" + kind)
            for name in kernel.arg_names
        }
        aligned = {
            (place,): [["tt.divisibility", 16]]
            for place, (name, each) in enumerate(types.items()) if each != "constexpr" and name != "top_k"
        }
        source = ASTSource(kernel, types, constants, aligned)
        options = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        ptx = compiled.asm["ptx"]
        copies = re.findall(r"cp\\.async\\.c[ag]\\.shared\\.global[^;]*?, 0x([0-9a-f]+)", ptx)
        print(capability, kind, kernel.__name__, compiled.metadata.shared, set(copies), "mma.sync" in ptx)
"""


def test_they_compile_for_gpus_and_read_weights_ahead_and_wide(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    found = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [line.split(maxsplit=3) for line in found.stdout.splitlines()]
    assert len(lines) == 8
    for _, kind, _, rest in lines:
        shared, copies, matrix = rest.split()
        assert int(shared) <= 49_152  # two programs find room on a multiprocessor with 100 KiB
        assert copies == "{'10'}"  # asynchronous copies, all of them of 16 bytes
        assert matrix == str(kind != "fp32")  # matrix units; float32 stays exact


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("pairs"))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("family", "policy", "prompt"),
    [
        ("mixtral", "spmoe.per-layer", 11),
        ("deepseek-v2", "on-demand.lru", 5),
        ("qwen3-moe", "llamacpp.n-cpu-moe", 40),  # experts on the CPU, and a prompt for torch
    ],
)
def test_a_run_puts_out_the_same_tokens(pairs: Pairs, family: str, policy: str, prompt: int) -> None:
    """In float32, on models whose likeliest tokens are not close together."""
    asked = list(range(3, 3 + prompt))
    folder = pairs.target(family)
    found = {}
    for kernel in ("plain", "triton"):
        options = {"policy": policy, "cache": 0.5, "gamma": 3, "kernel": kernel, "context": 64}
        draft = pairs.draft("noisy", family)
        with Engine.from_pretrained(folder, draft, device=DEVICE.type, dtype="float32", **options) as engine:
            found[kernel] = engine.generate(asked, 12, ignore_eos=True).tokens
            assert engine.plan.recipe.name == policy
    margins = pairs.plain(folder, torch.float32, asked, 12, None).margins
    assert min(margins) > 1e-4
    assert found["triton"] == found["plain"]
