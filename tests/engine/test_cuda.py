"""What only a GPU shows: the same decoding with pinned memory, a copy stream and events."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from benchmarks.engine.kernel_bandwidth import Sizes, Subject  # noqa: E402
from benchmarks.engine.random_pair import PairShape, write_random_pair  # noqa: E402
from engine.cli.trace_output import trace_of  # noqa: E402
from engine.engine import Engine  # noqa: E402
from engine.options import Options  # noqa: E402
from engine.plan import make_plan  # noqa: E402
from tests.engine.tiny import eager_model, save_tiny, tokens  # noqa: E402

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

NEW_TOKENS = 40
FAMILIES = ("mixtral", "qwen3-moe", "deepseek-v3", "granite-moe")
POLICIES = ("on-demand.lru", "spmoe.per-layer", "next-gate", "llamacpp.n-cpu-moe")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_random_pair(tmp_path_factory.mktemp("pair"), PairShape(hidden=128, expert_width=256))


def plain(folder: Path, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """Greedy tokens of transformers' eager experts on the GPU in float32, and the margin of each."""
    model = eager_model(folder, torch.float32).to("cuda")
    output = model.generate(
        torch.tensor([prompt], device="cuda"),
        max_new_tokens=count,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    best = [score[0].topk(2).values.tolist() for score in output.scores]
    return output.sequences[0, len(prompt) :].tolist(), [first - second for first, second in best]


def check_same(found: tuple[int, ...], expected: list[int], margins: list[float]) -> None:
    """Equal token for token, up to a place where plain decoding itself was undecided."""
    for one, other, margin in zip(found, expected, margins, strict=False):
        if one != other:
            assert margin < 1e-4
            return
    assert len(found) == len(expected)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("slots", [4, 16, 32])
def test_greedy_equals_plain_decoding(pair: tuple[Path, Path], policy: str, slots: int) -> None:
    prompt = list(range(60, 80))
    with Engine.from_pretrained(*pair, policy=policy, slots=slots, device="cuda", dtype="float32") as engine:
        found = engine.generate(prompt, NEW_TOKENS).tokens
    check_same(found, *plain(pair[0], prompt, NEW_TOKENS))


@pytest.mark.parametrize("family", FAMILIES)
def test_families(tmp_path: Path, family: str) -> None:
    folder = save_tiny(tmp_path, family)
    prompt = tokens(12)[0].tolist()
    with Engine.from_pretrained(
        folder, folder, policy="spmoe.per-layer", cache=0.5, device="cuda", dtype="float32"
    ) as engine:
        found = engine.generate(prompt, NEW_TOKENS).tokens
    check_same(found, *plain(folder, prompt, NEW_TOKENS))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_triton_kernels_put_out_the_same(pair: tuple[Path, Path], policy: str) -> None:
    pytest.importorskip("triton", reason="the kernels need Triton")
    prompt = list(range(60, 80))
    options = {"policy": policy, "slots": 16, "device": "cuda", "dtype": "float32", "kernel": "triton"}
    with Engine.from_pretrained(*pair, **options) as engine:
        found = engine.generate(prompt, NEW_TOKENS).tokens
    check_same(found, *plain(pair[0], prompt, NEW_TOKENS))


@pytest.mark.parametrize(("hidden", "width"), [(4096, 14336), (2048, 1408)])
@pytest.mark.parametrize("count", [1, 5, 16])
def test_the_triton_kernels_at_the_sizes_of_real_experts(hidden: int, width: int, count: int) -> None:
    """In bfloat16, all experts of a layer at once; both ways round hidden states, torch's operations more of them."""
    pytest.importorskip("triton", reason="the kernels need Triton")
    subject = Subject(Sizes(hidden, width, 8, 2, 1), torch.device("cuda"))
    for layer in subject.layers(count):
        expected = subject.plain(layer).float()
        assert float((subject.grouped(layer).float() - expected).abs().max()) < 0.02 * float(expected.abs().max())


def test_an_engine_frees_the_memory_of_the_gpu(pair: tuple[Path, Path]) -> None:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    with Engine.from_pretrained(*pair, cache=0.5, device="cuda") as engine:
        engine.generate(list(range(60, 80)), 8)
        assert torch.cuda.memory_allocated() > before
    del engine
    assert torch.cuda.memory_allocated() == before


def test_slots_hold_what_the_host_store_has(pair: tuple[Path, Path]) -> None:
    with Engine.from_pretrained(*pair, cache=0.5, device="cuda", record=True) as engine:
        engine.generate(list(range(60, 80)), NEW_TOKENS)
        engine.check_weights()
        assert trace_of(engine).header.tokens == NEW_TOKENS - 1


def test_virtual_time_decides_the_same_on_every_device(pair: tuple[Path, Path]) -> None:
    """In float32 both devices route alike here: margins of routers are far above rounding."""
    decided = []
    for device in ("cpu", "cuda"):
        entries: list[tuple[object, ...]] = []
        options = Options(cache=0.5, device=device, dtype="float32", virtual_time="rtx-4090")
        observers = [lambda event, commands, entries=entries: entries.append((type(event), event.time, commands))]
        with Engine(make_plan(*pair, options), observers) as engine:
            engine.generate(list(range(60, 80)), NEW_TOKENS, ignore_eos=True)
        decided.append(entries)
    assert decided[0] == decided[1]
