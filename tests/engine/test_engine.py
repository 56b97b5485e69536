"""The engine as an object of Python: several requests, streams left early, and what is left when it is closed."""

from __future__ import annotations

import dataclasses
import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from benchmarks.engine.random_pair import byte_tokenizer, write_random_pair  # noqa: E402
from engine.cli.trace_output import trace_of  # noqa: E402
from engine.decoding.to_host import read  # noqa: E402
from engine.engine import Engine  # noqa: E402
from engine.moe.layers import find_moe_layers  # noqa: E402
from spmoe.errors import InputError  # noqa: E402
from spmoe.trace.schema import TokenLine  # noqa: E402
from tests.engine.tiny import VOCABULARY, save_tiny  # noqa: E402

PROMPT = list(range(60, 80))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_random_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def engine(pair: tuple[Path, Path]) -> Iterator[Engine]:
    with Engine.from_pretrained(*pair, cache=0.5) as engine:
        yield engine


def test_what_is_streamed_is_what_is_generated(engine: Engine) -> None:
    pieces = list(engine.stream("Hello", 24))
    whole = engine.generate("Hello", 24)
    assert tuple(token for piece in pieces for token in piece.tokens) == whole.tokens
    assert "".join(piece.text for piece in pieces) == whole.text
    assert engine.plan.tokenizer.decode(whole.tokens, skip_special_tokens=True) == whole.text
    assert len(pieces) > 1


def test_a_request_may_follow_one_that_was_left_between_two_rounds(engine: Engine) -> None:
    whole = engine.generate(PROMPT, 24).tokens
    for _ in zip(range(3), engine.stream(PROMPT, 24), strict=False):
        pass
    assert engine.generate(PROMPT, 24).tokens == whole
    assert engine.metrics().requests == 3


def test_one_request_at_a_time(engine: Engine) -> None:
    first = engine.stream(PROMPT, 24)
    next(first)
    with pytest.raises(RuntimeError, match="busy with another request"):
        engine.generate(PROMPT, 8)
    assert len([*first]) > 1


def test_torchs_modes_are_the_callers_between_rounds(engine: Engine) -> None:
    for _ in range(2):
        for _piece in engine.stream(PROMPT, 8):
            assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("options", [{"policy": "spmoe.per-layer"}, {"virtual_time": "rtx-4090"}])
def test_sampling_repeats_with_a_seed(pair: tuple[Path, Path], options: dict[str, str]) -> None:
    with Engine.from_pretrained(*pair, cache=0.5, **options) as engine:
        drawn = [engine.generate(PROMPT, 24, temperature=1.0, seed=seed).tokens for seed in (1, 2)]
    with Engine.from_pretrained(*pair, cache=0.5, **options) as engine:
        assert engine.generate(PROMPT, 24, temperature=1.0, seed=1).tokens == drawn[0] != drawn[1]


def test_weights_can_be_checked(engine: Engine) -> None:
    engine.generate(PROMPT, 24)
    engine.check_weights()
    key, slot = next(iter(engine._driver.resident().items()))
    engine._slots.rows(slot, 1)[0, 7] ^= 1
    with pytest.raises(RuntimeError, match=f"expert {key} in slot {slot} is not what host memory holds"):
        engine.check_weights()
    engine._store.blob(key)[7] ^= 1
    with pytest.raises(RuntimeError, match=f"expert {key} has changed in host memory"):
        engine.check_weights()


def test_closing_frees_threads_and_memory(pair: tuple[Path, Path]) -> None:
    threads = threading.active_count()
    gc.collect()
    gc.disable()  # Nothing may wait for the collector: a GPU's memory would stay taken.
    try:
        engine = Engine.from_pretrained(*pair, cache=0.5, record=True)
        engine.generate(PROMPT, 8)
        routers = [layer.router.module for layer in find_moe_layers(engine._model)]
        owned = [engine._model, engine._draft_model, engine._store, engine._slots, *routers]
        large = [weakref.ref(each) for each in owned]
        del routers, owned
        assert threading.active_count() > threads
        engine.close()
        engine.close()
        assert threading.active_count() == threads
        assert all(each() is None for each in large)
    finally:
        gc.enable()
    for use in (lambda: engine.generate(PROMPT, 8), engine.finish, engine.check_weights):
        with pytest.raises(RuntimeError, match="closed"):
            use()


def test_a_stream_does_not_outlive_its_engine(pair: tuple[Path, Path]) -> None:
    with Engine.from_pretrained(*pair, cache=0.5) as engine:
        stream = engine.stream(PROMPT, 24)
        next(stream)
    with pytest.raises(RuntimeError, match="closed"):
        next(stream)


@pytest.mark.parametrize(
    ("policy", "expected"), [("spmoe.paper", "spmoe.popular"), ("spmoe.per-layer", "spmoe.per-layer.popular")]
)
def test_popularity_stands_in_where_no_state_can_be_forecast_from(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, policy: str, expected: str
) -> None:
    with Engine.from_pretrained(*pair, policy=policy, cache=0.5) as engine:
        plain = engine.generate(PROMPT, 24).tokens
    monkeypatch.setattr("engine.moe.layers.attention_norm", lambda layer: None)
    monkeypatch.setattr("engine.decoding.layer_map.attention_norm", lambda layer: None)
    with Engine.from_pretrained(*pair, policy=policy, cache=0.5) as engine:
        assert engine.plan.recipe.name == expected
        assert f"{expected} stands in for {policy}: the norm behind attention was not found" in engine.plan.fallback
        assert engine.generate(PROMPT, 24).tokens == plain


@pytest.mark.parametrize("policy", ["on-demand.lru", "next-gate", "spmoe.per-layer", "finemoe.paper.spec"])
def test_the_device_is_read_once_a_layer(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    """Each reading is a synchronisation on a GPU."""
    reads: list[int] = []
    monkeypatch.setattr("engine.decoding.target_model.read", lambda tensors: (reads.append(1), read(tensors))[1])
    with Engine.from_pretrained(*pair, policy=policy, cache=0.5, record=True) as engine:
        engine.generate(PROMPT, 24)
        metrics, layers = engine.metrics(), engine.plan.config.layers
    assert len(reads) == layers * (metrics.steps + metrics.prefills)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_probabilities_are_recorded_in_every_number_format(pair: tuple[Path, Path], dtype: str) -> None:
    with Engine.from_pretrained(*pair, cache=0.5, dtype=dtype, record=True) as engine:
        engine.generate(PROMPT, 8)
        lines = [line for line in trace_of(engine) if isinstance(line, TokenLine)]
    assert len(lines) == 7
    for line in lines:
        assert line.weights is not None
        assert all(abs(sum(weights) - 65536) <= 512 for weights in line.weights)


def test_a_draft_may_know_fewer_tokens_than_the_target(tmp_path: Path) -> None:
    target = save_tiny(tmp_path / "target", "mixtral")
    draft = save_tiny(tmp_path / "draft", "mixtral", vocab_size=VOCABULARY - 8)
    for folder in (target, draft):
        byte_tokenizer().save_pretrained(folder)
    prompt = [VOCABULARY - 1, 5, VOCABULARY - 3, 9]
    with Engine.from_pretrained(target, cache=0.5, policy="on-demand.lru") as engine:
        plain = engine.generate(prompt, 24, ignore_eos=True).tokens
    with Engine.from_pretrained(target, draft, cache=0.5) as engine:
        assert engine.generate(prompt, 24, ignore_eos=True).tokens == plain


def test_memory_that_runs_out_on_a_gpu_names_its_budget(engine: Engine) -> None:
    plan = dataclasses.replace(engine.plan, device=torch.device("cuda"))
    with pytest.raises(InputError, match=r"out of memory on cuda: .* lower --vram, --cache or --slots"):  # noqa: SIM117
        with plan.oom_as_input_error():
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "prompt: expected at least one token"),
        ([-1], {}, r"prompt: expected token ids within 0\.\.258"),
        ([259], {}, r"prompt: expected token ids within 0\.\.258"),
        (PROMPT, {"max_new_tokens": 0}, "max_new_tokens: expected at least 1, got 0"),
        (PROMPT, {"max_new_tokens": 4096}, "context: room is reckoned for 4096 tokens, got 20 of prompt and 4096 new"),
        (PROMPT, {"temperature": -1.0}, "temperature: expected a finite number from 0 up"),
        (PROMPT, {"seed": -1, "temperature": 1.0}, "seed: expected an integer from 0"),
    ],
)
def test_bad_requests(engine: Engine, prompt: list[int], options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine.stream(prompt, **options)
    assert len(engine.generate(PROMPT, 4).tokens) == 4
